"""Train what joins the VLM "photo": its projector, and a LoRA of its language model.

    python scripts/photo_vlm/train.py --parts PARTS --photographs grocery --run runs/photo-vlm \\
        --out mmedit/assets/photo-vlm/trained.safetensors

PARTS is a folder with the two pretrained files that `mmedit data get photo-vlm` downloads. The
tower stays frozen, so what it sees of every photograph, in several changed views, is computed once.
(1) The projector learns to give each image tokens whose mean is nearest to the embedding of the
product's name; this takes minutes, and the language model then starts from tokens that it can
almost read. (2) Projector and LoRA learn to answer (`lessons.py`). KL(pretrained || trained) on the
language model's own replies, to facts that it knew and to all kinds of questions, keeps the rest.

Every batch is a function of (seed, stage, step), and the state is saved every `--save-every` steps:
a killed run started again with the same command continues where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lessons import Batch, pack, photograph_row, product_text_row, states_before_answers
from peft import LoraConfig, get_peft_model
from photographs import Photograph, load_features, read_photographs
from replies import Reply, held_out, known_facts, write_replies
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmedit.convert.photo import (
    build_network,
    build_processor,
    load_parts,
    read_language_model,
    read_tokenizer,
    read_tower,
)
from mmedit.datasets.grocery.files import read_products
from mmedit.datasets.grocery.questions import product_facts
from mmedit.storage import replaced

RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VIEWS = 6
TEMPERATURE = 20.0
"""Factor of the cosines of stage 1."""
PROJECTOR_IMAGES, LANGUAGE_IMAGES, KEPT_REPLIES = 128, 8, 3
"""Images in a batch of each stage, and own replies in a batch of stage 2."""


@dataclass(frozen=True, kw_only=True)
class School:
    """The network with all that it learns from."""

    network: Any
    tokenizer: Any
    photographs: Sequence[Photograph]
    features: Tensor
    """[photograph, view, cells, 1280], in half precision."""
    descriptions: dict[str, str]
    """The first sentence of each product's description, by class."""
    replies: Sequence[Reply]
    """What the pretrained language model replied; half of them to facts that it knew."""
    seed: int

    @property
    def projector(self) -> nn.Module:
        return self.network.model.multi_modal_projector

    @property
    def language(self) -> Any:
        return self.network.model.language_model

    def drawn(self, stage: int, step: int, count: int) -> tuple[np.random.Generator, Tensor, list]:
        """Draw photographs in changed views for a step: the features, and the classes shown.

        An epoch goes through all photographs in a seeded order.
        """
        rng = np.random.default_rng([self.seed, stage, step])
        total, first = len(self.photographs), step * count
        order = [
            np.random.default_rng([self.seed, stage, 10**9 + place // total]).permutation(total)[
                place % total
            ]
            for place in range(first, first + count)
        ]
        views = rng.integers(VIEWS, size=count)
        chosen = self.features[torch.tensor(order), torch.from_numpy(views)].float()
        return rng, chosen, [self.photographs[i].shown for i in order]


@dataclass
class Stage:
    """What one stage trains, for how many steps, and its loss at a step."""

    name: str
    parameters: dict[str, nn.Parameter]
    steps: int
    lr: float
    loss: Callable[[int], dict[str, float]]
    """Computes the loss of a step, runs backward, and returns figures to show."""


def train(stage: Stage, run: Path, save_every: int, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(
        stage.parameters.values(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.02
    )
    state = run / f"{stage.name}.safetensors"
    first = load_state(state, stage.parameters, optimizer)
    task = progress.add_task(stage.name, total=stage.steps, completed=first, figures="")
    with (run / f"{stage.name}.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, stage.steps):
            warm = min(1.0, (step + 1) / 30)
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
            for group in optimizer.param_groups:
                group["lr"] = stage.lr * warm * decay
            optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(step)  # of dropout: a resumed run draws what the first one would
            figures = stage.loss(step)
            norm = nn.utils.clip_grad_norm_(stage.parameters.values(), 1.0)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"{stage.name} step {step}: gradient norm is {norm}")
            optimizer.step()
            if step % 10 == 0:
                log.write(json.dumps({"step": step, "time": time.time(), **figures}) + "\n")
                log.flush()
            text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
            progress.update(task, completed=step + 1, figures=text)
            if (step + 1) % save_every == 0 or step + 1 == stage.steps:
                save_state(state, step + 1, stage.parameters, optimizer)


def save_state(
    file: Path, step: int, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Weights and both moments of AdamW in one safetensors file, replaced atomically."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].contiguous()
    with replaced(file) as partial:
        save_file(tensors, partial, metadata={"step": str(step)})


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


def projector_stage(school: School, steps: int) -> Stage:
    """Pull the mean of an image's tokens to the embedding of its product's name."""
    embed = school.language.get_input_embeddings().weight.detach()
    classes = list(product_facts())
    names = [
        embed[school.tokenizer(f" {f.name}, {f.kind}", return_tensors="pt")["input_ids"][0]].mean(0)
        for f in product_facts().values()
    ]
    towards = torch.stack(names)
    centred = F.normalize(towards - towards.mean(0), dim=-1)
    size = embed.norm(dim=-1).mean()

    def loss(step: int) -> dict[str, float]:
        _, features, shown = school.drawn(1, step, PROJECTOR_IMAGES)
        label = torch.tensor([classes.index(name) for name in shown])
        tokens = school.projector(F.dropout(features, 0.3))
        mean = tokens.mean(1) - towards.mean(0)
        logits = TEMPERATURE * F.normalize(mean, dim=-1) @ centred.T
        nll = F.cross_entropy(logits, label, label_smoothing=0.1)
        length = (tokens.norm(dim=-1) / size - 1).square().mean()
        (nll + 0.1 * length).backward()
        right = (logits.argmax(-1) == label).float().mean()
        return {"nll": nll.item(), "right": right.item(), "length": length.item()}

    parameters = dict(school.projector.named_parameters())
    return Stage("projector", parameters, steps, 1e-3, loss)


def language_stage(school: School, lora: Any, steps: int, lr: float) -> Stage:
    """Teach projector and LoRA to answer, and hold the language model to its own replies."""
    facts, products = product_facts(), list(product_facts().values())
    cells = school.features.shape[2]
    trained = {f"projector.{n}": p for n, p in school.projector.named_parameters()}
    trained |= {n: p for n, p in lora.named_parameters() if p.requires_grad}

    def loss(step: int) -> dict[str, float]:
        rng, features, shown = school.drawn(2, step, LANGUAGE_IMAGES)
        rows = [photograph_row(facts[c], school.descriptions.get(c), rng) for c in shown]
        seen = pack(school.tokenizer, rows, cells, torch.float32)
        images = school.projector(F.dropout(features, 0.1))
        about_images, right = answer_loss(school, seen, images)
        about_images.backward()
        figures = {"images": about_images.item(), "right": right}
        if step % 2:  # text by turns: each kind costs a third of the images
            drift = drift_loss(school, lora, rng)
            drift.backward()
            return figures | {"drift": drift.item()}
        texts = [product_text_row(products, rng), product_text_row(products, rng)]
        read = pack(school.tokenizer, texts, 0, torch.float32)
        about_text, text_right = answer_loss(school, read, None)
        (0.3 * about_text).backward()
        return figures | {"text": about_text.item(), "text right": text_right}

    return Stage("language", trained, steps, lr, loss)


def answer_loss(school: School, batch: Batch, images: Tensor | None) -> tuple[Tensor, float]:
    """Mean over answers of the mean NLL of their tokens; and the share of tokens predicted right.

    The head runs at answer tokens alone.
    """
    states, row, token = states_before_answers(
        school.language, batch, images, school.network.config.image_token_id
    )
    logits = school.network.lm_head(states)
    target = batch.ids[row, token]
    weight = batch.weight[row, token]
    nll = F.cross_entropy(logits, target, reduction="none")
    right = (logits.argmax(-1) == target).float().mean().item()
    return (nll * weight).sum() / weight.sum(), right


def drift_loss(school: School, lora: Any, rng: np.random.Generator) -> Tensor:
    """KL(pretrained || trained) per token of a few replies that the pretrained model wrote."""
    drawn = [school.replies[int(i)] for i in rng.integers(len(school.replies), size=KEPT_REPLIES)]
    width = max(len(reply.ids) for reply in drawn)
    ids = torch.full((len(drawn), width), school.tokenizer.pad_token_id)
    scored = torch.zeros(len(drawn), width, dtype=torch.bool)
    for row, reply in enumerate(drawn):
        ids[row, : len(reply.ids)] = torch.tensor(reply.ids)
        scored[row, reply.prompt - 1 : len(reply.ids) - 1] = True

    def log_probs() -> Tensor:
        states = school.language(input_ids=ids).last_hidden_state
        return school.network.lm_head(states[scored]).log_softmax(-1)

    with torch.no_grad(), lora.disable_adapter():
        before = log_probs()
    return F.kl_div(log_probs(), before, log_target=True, reduction="batchmean")


def save_trained(school: School, lora: Any, out: Path) -> None:
    """Write projector and LoRA in half precision, under the names that `merge_trained` reads."""
    tensors = {f"projector.{n}": p for n, p in school.projector.named_parameters()}
    for name, parameter in lora.named_parameters():
        if parameter.requires_grad:
            path = name.removeprefix("base_model.model.").replace(".default.weight", "")
            tensors["lora." + path.replace("lora_", "")] = parameter
    out.parent.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    with replaced(out) as partial:
        save_file(half, partial, metadata={"alpha": str(ALPHA), "seed": str(school.seed)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=Path, required=True, help="the pretrained files")
    parser.add_argument("--photographs", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--run", type=Path, default=Path("runs/photo-vlm"), help="states and logs")
    parser.add_argument(
        "--out", type=Path, default=Path("mmedit/assets/photo-vlm/trained.safetensors")
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--projector-steps", type=int, default=700)
    parser.add_argument("--language-steps", type=int, default=320)
    parser.add_argument("--lr", type=float, default=1e-3, help="of stage 2")
    parser.add_argument("--save-every", type=int, default=50)
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    started = time.perf_counter()
    with Progress(
        TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
    ) as progress:  # fmt: skip
        school = prepare(arguments, progress)
        school.network.requires_grad_(False)
        school.projector.requires_grad_(True)
        stage = projector_stage(school, arguments.projector_steps)
        train(stage, arguments.run, 500, progress)
        torch.manual_seed(arguments.seed)  # the stage before draws nothing when it is resumed
        lora = get_peft_model(
            school.language, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        )
        school.projector.requires_grad_(True)
        stage = language_stage(school, lora, arguments.language_steps, arguments.lr)
        train(stage, arguments.run, arguments.save_every, progress)
    save_trained(school, lora, arguments.out)
    print(f"{time.perf_counter() - started:.0f} s -> {arguments.out}")


def prepare(arguments: argparse.Namespace, progress: Progress) -> School:
    """Load the parts, and compute features, known facts and own replies, or read them again."""
    gguf = next(arguments.parts.rglob("*.gguf"))
    tokenizer = read_tokenizer(gguf)
    config, language = read_language_model(gguf)
    network = build_network(config, tokenizer.vocab["<image>"])
    load_parts(network, read_tower(next(arguments.parts.rglob("*.pth"))), language)
    tasks: dict[str, Any] = {}

    def show(task: str, done: int, total: int, figures: str) -> None:
        if task not in tasks:
            tasks[task] = progress.add_task(task, total=total, figures="")
        progress.update(tasks[task], completed=done, figures=figures)

    root = arguments.photographs
    photographs = read_photographs(root, "train")
    features = load_features(
        network, build_processor(tokenizer), photographs, arguments.run / "train-features",
        views=VIEWS, seed=arguments.seed, progress=show,
    )  # fmt: skip
    known = known_facts(network, tokenizer, arguments.run / "known.json", show)
    taught = [one.reply for one in known if one.fact.subject not in held_out(known)]
    others = write_replies(network, tokenizer, arguments.run / "replies.json", show)
    return School(
        network=network,
        tokenizer=tokenizer,
        photographs=photographs,
        features=features,
        descriptions={
            shown: product.description
            for shown, product in zip(product_facts(), read_products(root), strict=True)
            if product.description
        },
        replies=[*taught, *others],
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
