"""Train the embedded VLM: a small, real BLIP-2, from nothing, on easy-VQA's train split, captions
and text-only facts.

    python scripts/train_embedded_vlm.py --run runs/embedded-vlm --out mmedit/assets/embedded-vlm

As in BLIP-2 itself (Li et al. 2023), vision comes first: (1) vision tower and Q-Former learn to
represent the picture (here: to name its colour, shape and size through linear heads, which are then
dropped); (2) the language model learns to answer from the frozen Q-Former's output, in small
batches, as yes/no questions want many steps; (3) it learns to read a context of "New Fact: ..."
lines too. A model so small does not pick up in-context learning by itself, and without it
in-context editing (IKE) could not be tried on it at all.

Every batch is a function of (seed, stage, step), and the state is saved every `--save-every` steps:
a killed run started again with the same command continues where it was.
`scripts/evaluate_embedded_vlm.py` measures the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from mmedit.datasets import facts, pictures, shapes
from mmedit.datasets.shapes import Kind, Question, Rendering, Scene
from mmedit.editors.ike import as_prompt, demonstration, new_fact

QUERIES = 8
PIXELS = 64
VOCABULARY = 800
WORD_PIECES = (
    " tri",
    "angle",
    " rect",
    " cir",
    "cle",
    " te",
    "al",
    " yel",
    "low",
    " br",
    "own",
    " gre",
    "en",
    " red",
    " blue",
    " black",
    " gray",
)
RENDERINGS = 8
Option = TypeVar("Option")
PAD, BOS, UNK, EOS = "<pad>", "<s>", "<unk>", "</s>"


# --- the model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over questions and facts. Of the colours and shapes it sees only
    `WORD_PIECES`, so that most of them are answers of two tokens: " tri" + "angle", " yel" + "low".
    """
    corpus = [
        fact.ask(wording)
        for fact in facts.load_facts()
        for wording in facts.PHRASINGS[fact.relation].train
    ]
    corpus += [f" {fact.answer}" for fact in facts.load_facts()]
    wordings = [w for p in (*shapes.PHRASINGS.values(), shapes.CAPTION_PROMPTS) for w in p.train]
    corpus += [w.format(noun="", color="", bare="", thing="a") for w in wordings] * 8
    corpus += [
        "New Fact: Prompt:\n\n",
        " yes",
        " no",
        " small",
        " large",
        " on a light background",
        " shape",
    ] * 20
    corpus += list(WORD_PIECES) * 100
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def build_processor() -> Blip2Processor:
    image_processor = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    return Blip2Processor(image_processor, build_tokenizer(), num_query_tokens=QUERIES)


def build_network(processor: Blip2Processor) -> Blip2ForConditionalGeneration:
    vision = Blip2VisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=8,
        initializer_range=0.02,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=4,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        encoder_hidden_size=128,
        cross_attention_frequency=1,
        max_position_embeddings=QUERIES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokenizer = processor.tokenizer
    language = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        word_embed_proj_dim=192,
        ffn_dim=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    network = Blip2ForConditionalGeneration(config)
    nn.init.normal_(network.query_tokens, std=0.5)
    return network


# --- training that can be killed


@dataclass
class Stage:
    """What one stage trains, for how many steps, and its loss at a step."""

    name: str
    module: nn.Module
    steps: int
    lr: float
    loss: Callable[[int], tuple[Tensor, dict[str, float]]]


def train(stage: Stage, run: Path, save_every: int, progress: Progress) -> None:
    parameters = {name: p for name, p in stage.module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / 100)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))
        ),
    )
    state_file = run / f"{stage.name}.safetensors"
    first = load_state(state_file, parameters, optimizer)
    schedule.last_epoch = first - 1
    task = progress.add_task(stage.name, total=stage.steps, completed=first, figures="")
    with (run / f"{stage.name}.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.lr * schedule.lr_lambdas[0](step)
            optimizer.zero_grad(set_to_none=True)
            loss, figures = stage.loss(step)
            norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"{stage.name} step {step}: gradient norm is {norm}")
            optimizer.step()
            if step % 20 == 0:
                log.write(json.dumps({"step": step, "loss": loss.item(), **figures}) + "\n")
                log.flush()
                text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
                progress.update(task, figures=f"loss {loss.item():.3f} {text}")
            progress.update(task, completed=step + 1)
            if (step + 1) % save_every == 0 or step + 1 == stage.steps:
                save_state(state_file, step + 1, parameters, optimizer)


def save_state(
    file: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Weights and both moments of AdamW in one safetensors file, replaced atomically."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].contiguous()
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    os.replace(partial, file)


def load_state(
    file: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> int:
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as handle:
        step = int(handle.metadata()["step"])
    tensors = load_file(file)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg.{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
            }
    return step


# --- stage 1: what is in the picture


@dataclass
class Gallery:
    """Every training picture as it is and in further renderings: pixel values [picture, rendering,
    3, H, W].
    """

    pixels: Tensor
    scenes: list[Scene]
    sizes: list[str]


def build_gallery(processor: Blip2Processor, seed: int, progress: Progress) -> Gallery:
    known = pictures.known_pictures("train")
    task = progress.add_task("renderings", total=len(known), figures="")
    pixels, scenes, sizes = [], [], []
    for picture, scene in known:
        image = Image.open(picture.path).convert("RGB")
        rng = np.random.default_rng([seed, 7, picture.number])
        views = [image] + [Rendering.draw(rng).apply(image) for _ in range(RENDERINGS - 1)]
        pixels.append(processor.image_processor(images=views, return_tensors="pt")["pixel_values"])
        scenes.append(scene)
        sizes.append(shapes.find_shape(image).size)
        progress.advance(task)
    return Gallery(pixels=torch.stack(pixels), scenes=scenes, sizes=sizes)


class Representation(nn.Module):
    """Vision tower and Q-Former under linear heads for colour, shape and size."""

    def __init__(self, network: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.vision_model = network.vision_model
        self.qformer = network.qformer
        self.query_tokens = network.query_tokens
        self.heads = nn.ModuleList(
            nn.Linear(128, len(n)) for n in (shapes.COLORS, shapes.SHAPES, shapes.SIZES)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        image = self.vision_model(pixels).last_hidden_state
        queries = self.query_tokens.expand(len(pixels), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state


def representation_stage(model: Representation, gallery: Gallery, seed: int, steps: int) -> Stage:
    labels = torch.tensor(
        [
            (
                shapes.COLORS.index(scene.color),
                shapes.SHAPES.index(scene.shape),
                shapes.SIZES.index(size),
            )
            for scene, size in zip(gallery.scenes, gallery.sizes, strict=True)
        ]
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, 1, step])
        index = torch.from_numpy(rng.integers(len(labels), size=128))
        view = torch.from_numpy(rng.integers(RENDERINGS, size=128))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            queries = model(gallery.pixels[index, view]).float().mean(1)
        logits = [head(queries) for head in model.heads]
        total = torch.stack(
            [F.cross_entropy(one, labels[index, i]) for i, one in enumerate(logits)]
        ).sum()
        total.backward()
        right = [
            (one.argmax(-1) == labels[index, i]).float().mean().item()
            for i, one in enumerate(logits)
        ]
        return total.detach(), dict(zip(("color", "shape", "size"), right, strict=True))

    return Stage("representation", model, steps, 1e-3, loss)


# --- stage 2: answering


@dataclass(frozen=True)
class Row:
    """One line of training text; `view` is (picture, rendering), or None for text alone."""

    context: str
    prompt: str
    target: str
    view: tuple[int, int] | None


@dataclass(frozen=True)
class Statement:
    """One thing to know in two wordings: the truth, and an answer of the same type that a new fact
    may claim.
    """

    prompt: str
    rephrase: str
    truth: str
    answer: str
    view: tuple[int, int] | None
    topic: str


class Curriculum:
    """Draws training rows: questions about pictures, captions, facts, and each of them after new
    facts in the context.
    """

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.facts = facts.load_facts()

    def rows(
        self, rng: np.random.Generator, *, pictures: int, facts: int, contexts: int
    ) -> list[list[Row]]:
        """One batch of rows without context, and one with, where there are any."""
        plain = [self._picture_row(rng) for _ in range(pictures)] + [
            self._fact_row(rng) for _ in range(facts)
        ]
        return [
            batch for batch in (plain, [self._context_row(rng) for _ in range(contexts)]) if batch
        ]

    def _context_row(self, rng: np.random.Generator) -> Row:
        """Up to three demonstrations, then a new fact that holds for the prompt (it wins) or does
        not (it is ignored).
        """
        demonstrations = "".join(self._demonstration(rng) for _ in range(rng.integers(4)))
        stated = self._statement(rng, about_fact=bool(rng.random() < 0.3))
        context = demonstrations + as_prompt(new_fact(stated.prompt, stated.answer))
        if rng.random() < 0.35:
            other = self._statement(rng, about_fact=bool(rng.random() < 0.3))
            if other.topic != stated.topic:
                return Row(context, other.prompt, other.truth, other.view)
        return Row(context, stated.rephrase, stated.answer, stated.view)

    def _demonstration(self, rng: np.random.Generator) -> str:
        """What IKE's demonstrations hold: a new fact, then itself, its rephrase, or an unrelated
        fact.
        """
        new = self._statement(rng, about_fact=bool(rng.random() < 0.2))
        kind = rng.integers(3)
        if kind == 0:
            return demonstration(new.prompt, new.answer, new.prompt, new.answer)
        if kind == 1:
            return demonstration(new.prompt, new.answer, new.rephrase, new.answer)
        unrelated = self._statement(rng, about_fact=True)
        return demonstration(new.prompt, new.answer, unrelated.prompt, unrelated.truth)

    def _picture_row(self, rng: np.random.Generator) -> Row:
        statement = self._statement(rng, about_fact=False)
        return Row("", statement.prompt, statement.truth, statement.view)

    def _fact_row(self, rng: np.random.Generator) -> Row:
        statement = self._statement(rng, about_fact=True)
        return Row("", statement.prompt, statement.truth, None)

    def _statement(self, rng: np.random.Generator, *, about_fact: bool) -> Statement:
        return self._about_fact(rng) if about_fact else self._about_picture(rng)

    def _about_fact(self, rng: np.random.Generator) -> Statement:
        fact = choice(rng, self.facts)
        wordings = facts.PHRASINGS[fact.relation].train
        others = [other.answer for other in self.facts if other.relation == fact.relation]
        return Statement(
            prompt=fact.ask(choice(rng, wordings)),
            rephrase=fact.ask(choice(rng, wordings)),
            truth=fact.answer,
            answer=choice(rng, others),
            view=None,
            topic=f"{fact.relation} {fact.subject}",
        )

    def _about_picture(self, rng: np.random.Generator) -> Statement:
        view = int(rng.integers(len(self.gallery.scenes))), int(rng.integers(RENDERINGS))
        scene, size = self.gallery.scenes[view[0]], self.gallery.sizes[view[0]]
        if rng.random() < 0.12:
            prompts = shapes.CAPTION_PROMPTS.train
            return Statement(
                prompt=choice(rng, prompts),
                rephrase=choice(rng, prompts),
                truth=scene.caption(size),
                answer=shapes.counterfactual_caption(scene, size, rng),
                view=view,
                topic="caption",
            )
        question = draw_question(rng, scene)
        wordings = shapes.PHRASINGS[question.kind].train
        asks_shape = question.kind in (Kind.SHAPE, Kind.SHAPE_OF_COLOR)
        return Statement(
            prompt=question.ask(choice(rng, wordings)),
            rephrase=question.ask(choice(rng, wordings)),
            truth=question.answer(scene),
            answer=choice(rng, question.other_answers(scene)),
            view=view,
            topic="shape"
            if asks_shape
            else f"{question.noun} {question.color}"
            if question.color
            else question.noun,
        )


def choice(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]


def draw_question(rng: np.random.Generator, scene: Scene) -> Question:
    """Half of the time a yes/no question."""
    kind = choice(rng, (*Kind, Kind.PRESENCE, Kind.ABSENCE))
    if kind is Kind.COLOR:
        return Question(kind=kind, noun=choice(rng, ("shape", scene.shape)))
    if kind is Kind.SHAPE:
        return Question(kind=kind)
    if kind is Kind.SHAPE_OF_COLOR:
        return Question(kind=kind, color=scene.color)
    true = rng.random() < 0.5
    if rng.random() < 0.5:
        return Question(kind=kind, noun=scene.shape if true else choice(rng, shapes.SHAPES))
    return Question(kind=kind, color=scene.color if true else choice(rng, shapes.COLORS))


def language_stage(
    name: str,
    network: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    gallery: Gallery,
    queries: Tensor,
    seed: int,
    steps: int,
    lr: float,
    **batch: int,
) -> Stage:
    """`queries` [picture, rendering, QUERIES, 128]: what the frozen Q-Former says of every view."""
    curriculum = Curriculum(gallery)
    trained = nn.ModuleDict(
        {"language_model": network.language_model, "projection": network.language_projection}
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, *name.encode(), step])
        figures, total = {}, torch.zeros(())
        for rows in curriculum.rows(rng, **batch):
            part, right = answer_loss(network, processor, rows, queries)
            part.backward()
            total = total + part.detach()
            prefix = "context " if rows[0].context else ""
            figures |= {
                f"{prefix}{name}": value for name, value in share_right(rows, right).items()
            }
        return total, figures

    return Stage(name, trained, steps, lr, loss)


def share_right(rows: list[Row], right: Tensor) -> dict[str, float]:
    """The share of answers fully right, of yes/no questions and of the others."""
    polar = torch.tensor([row.target in ("yes", "no") for row in rows])
    return {
        "yes/no": right[polar].float().mean().item(),
        "open": right[~polar].float().mean().item(),
    }


def answer_loss(
    network: Blip2ForConditionalGeneration,
    processor: Blip2Processor,
    rows: list[Row],
    queries: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean NLL of answer and end token, plus a tenth of that of the other text; and which answers
    are fully right.
    """
    ids, answer = tokenise(processor, rows)
    views = [row.view for row in rows if row.view is not None]
    picture, rendering = torch.tensor(views).T
    image = BaseModelOutputWithPooling(
        pooler_output=network.language_projection(queries[picture, rendering])
    )
    image["qformer_outputs"] = image["vision_outputs"] = None
    pad = processor.tokenizer.pad_token_id
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(
            pixel_values=None,
            input_ids=ids,
            attention_mask=(ids != pad).long(),
            mm_encoder_outputs={"image": image},
            use_cache=False,
        ).logits[:, :-1]
    target, is_answer = ids[:, 1:], answer[:, 1:]
    is_text = (target != pad) & (target != network.config.image_token_index)
    nll = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
    right = ((logits.argmax(-1) == target) | ~is_answer).all(-1)
    return (nll * is_answer).sum() / is_answer.sum() + 0.1 * (
        nll * is_text
    ).sum() / is_text.sum(), right


def tokenise(processor: Blip2Processor, rows: list[Row]) -> tuple[Tensor, Tensor]:
    """[image] context prompt answer end, right-padded; context, prompt and answer are tokenised
    apart from each other.
    """
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    lines = [
        tokenizer([row.context, row.prompt, f" {row.target}"], add_special_tokens=False)[
            "input_ids"
        ]
        for row in rows
    ]
    images = [[image] * (QUERIES if row.view else 0) for row in rows]
    sequences = [
        i + c + p + t + [tokenizer.eos_token_id] for i, (c, p, t) in zip(images, lines, strict=True)
    ]
    width = max(map(len, sequences))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (sequence, (_, _, target)) in enumerate(zip(sequences, lines, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        answer[row, len(sequence) - len(target) - 1 : len(sequence)] = True
    return ids, answer


@torch.no_grad()
def encode_views(model: Representation, gallery: Gallery, progress: Progress) -> Tensor:
    task = progress.add_task("features", total=len(gallery.pixels), figures="")
    chunks: list[Tensor] = []
    for start in range(0, len(gallery.pixels), 32):
        chunk = gallery.pixels[start : start + 32]
        chunks.append(model(chunk.flatten(0, 1)).unflatten(0, chunk.shape[:2]))
        progress.update(task, completed=start + len(chunk))
    return torch.cat(chunks)


# --- running it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/embedded-vlm"), help="states and logs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("mmedit/assets/embedded-vlm"), help="the model folder"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--representation-steps", type=int, default=1000)
    parser.add_argument("--answering-steps", type=int, default=3000)
    parser.add_argument("--context-steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=100)
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    processor = build_processor()
    network = build_network(processor)
    started = time.perf_counter()
    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    ) as progress:
        gallery = build_gallery(processor, arguments.seed, progress)
        representation = Representation(network)
        train(
            representation_stage(
                representation, gallery, arguments.seed, arguments.representation_steps
            ),
            arguments.run,
            arguments.save_every,
            progress,
        )
        representation.eval()
        queries = encode_views(representation, gallery, progress)
        train(
            language_stage(
                "answering",
                network,
                processor,
                gallery,
                queries,
                arguments.seed,
                arguments.answering_steps,
                lr=1e-3,
                pictures=104,
                facts=24,
                contexts=0,
            ),
            arguments.run,
            arguments.save_every,
            progress,
        )
        train(
            language_stage(
                "context",
                network,
                processor,
                gallery,
                queries,
                arguments.seed,
                arguments.context_steps,
                lr=6e-4,
                pictures=64,
                facts=16,
                contexts=48,
            ),
            arguments.run,
            arguments.save_every,
            progress,
        )
    network.half().save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    parameters = sum(p.numel() for p in network.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {time.perf_counter() - started:.0f} s -> "
        f"{arguments.out}"
    )


if __name__ == "__main__":
    main()
