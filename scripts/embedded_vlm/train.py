"""Train the embedded VLM: a small, real BLIP-2, from nothing, on easy-VQA's train split, captions
and text-only facts.

    python scripts/embedded_vlm/train.py --run runs/embedded-vlm --out mmedit/assets/embedded-vlm

As in BLIP-2 itself (Li et al. 2023), vision comes first: (1) vision tower and Q-Former learn to
represent the picture (here: to name its colour, shape and size through linear heads, which are then
dropped); (2) the language model learns to answer from the frozen Q-Former's output, in small
batches, as yes/no questions want many steps; (3) it learns to read a context of "New Fact: ..."
lines too. A model so small does not pick up in-context learning by itself, and without it
in-context editing (IKE) could not be tried on it at all.

Every batch is a function of (seed, stage, step), and the state is saved every `--save-every` steps:
a killed run started again with the same command continues where it was.
`scripts/embedded_vlm/evaluate.py` measures the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from curriculum import RENDERINGS, Curriculum, Gallery, Row, build_gallery
from model import QUERIES, build_network, build_processor
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Blip2ForConditionalGeneration, Blip2Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmedit.datasets.easyvqa import questions


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


class Representation(nn.Module):
    """Vision tower and Q-Former under linear heads for colour, shape and size."""

    def __init__(self, network: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.vision_model = network.vision_model
        self.qformer = network.qformer
        self.query_tokens = network.query_tokens
        self.heads = nn.ModuleList(
            nn.Linear(128, len(n)) for n in (questions.COLORS, questions.SHAPES, questions.SIZES)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        image = self.vision_model(pixels).last_hidden_state
        queries = self.query_tokens.expand(len(pixels), -1, -1)
        return self.qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state


def representation_stage(model: Representation, gallery: Gallery, seed: int, steps: int) -> Stage:
    labels = torch.tensor(
        [
            (
                questions.COLORS.index(scene.color),
                questions.SHAPES.index(scene.shape),
                questions.SIZES.index(size),
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
