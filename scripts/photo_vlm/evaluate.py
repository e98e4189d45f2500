"""Measure the VLM "photo" on photographs that it never saw, and on what its language model knew.

    python scripts/photo_vlm/evaluate.py --vlm photo --photographs grocery --parts PARTS \\
        --run runs/photo-vlm --out results/photo-vlm/base.json

Answers are right if greedy decoding gives exactly the true answer and then ends: with the true
answer as input, that is the argmax at each of its tokens and at its end. The text that perplexity
is measured on is Python's own help (`pydoc_data.topics`), which every machine has.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lessons import Batch, Row, pack, states_before_answers
from photographs import Photograph, load_features, read_photographs
from replies import KnownFact, generate, held_out, known_facts
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmedit.convert.photo import read_language_model
from mmedit.datasets.facts import PHRASINGS
from mmedit.datasets.grocery.questions import QUESTIONS, TEXT_QUESTIONS, product_facts
from mmedit.vlm.loading import resolve_vlm

ROWS = 16
PASSAGE, PASSAGES = 128, 64
"""Length in tokens, and number, of the passages for perplexity."""


@torch.no_grad()
def right_answers(network: Any, batch: Batch, images: Tensor | None) -> list[bool]:
    """Return, for every block of every row, whether greedy decoding gives its answer and ends."""
    projected = None if images is None else network.model.multi_modal_projector(images)
    states, row, token = states_before_answers(
        network.model.language_model, batch, projected, network.config.image_token_id
    )
    found = network.lm_head(states).argmax(-1)
    right, blocks = found == batch.ids[row, token], []
    starts = (token[1:] != token[:-1] + 1) | (row[1:] != row[:-1])
    for block in right.split(torch.diff(_edges(starts, len(right))).tolist()):
        blocks.append(bool(block.all()))
    return blocks


def _edges(starts: Tensor, length: int) -> Tensor:
    inner = starts.nonzero()[:, 0] + 1
    return torch.cat([torch.tensor([0]), inner, torch.tensor([length])])


def ask_photographs(
    network: Any, tokenizer: Any, photographs: Sequence[Photograph], features: Tensor
) -> dict[str, list[bool]]:
    """Return which answers are right, by question and wording."""
    facts = product_facts()
    right: dict[str, list[bool]] = {}
    wordings = [
        (f"{question}, {kind}", question, wording)
        for question, phrasings in QUESTIONS.items()
        if question != "description"
        for kind, options in (("original", phrasings.original), ("held out", phrasings.held_out))
        for wording in options[:1]
    ]
    for first in range(0, len(photographs), ROWS):
        rows, names = [], []
        for photograph in photographs[first : first + ROWS]:
            known = facts[photograph.shown]
            asked = [(n, w, known.answer(q)) for n, q, w in wordings if known.answer(q)]
            rows.append(Row(image=True, asked=tuple((w, answer) for _, w, answer in asked)))
            names += [name for name, _, _ in asked]
        batch = pack(tokenizer, rows, features.shape[2], torch.float32)
        given = right_answers(network, batch, features[first : first + ROWS, 0].float())
        for name, is_right in zip(names, given, strict=True):
            right.setdefault(name, []).append(is_right)
    return right


def ask_products(network: Any, tokenizer: Any) -> dict[str, list[bool]]:
    """Return which answers about products by their names are right."""
    right: dict[str, list[bool]] = {}
    for question, phrasings in TEXT_QUESTIONS.items():
        for kind, options in (("original", phrasings.original), ("held out", phrasings.held_out)):
            rows = [
                Row(image=False, asked=((options[0].format(name=f.name), f.answer(question)),))
                for f in product_facts().values()
            ]
            batch = pack(tokenizer, rows, 0, torch.float32)
            right[f"text: {question}, {kind}"] = right_answers(network, batch, None)
    return right


def kept_facts(network: Any, tokenizer: Any, known: Sequence[KnownFact], progress: Any) -> dict:
    """Return which facts that the pretrained language model answered are still in the replies.

    "trained" are those of the countries whose replies were in the training, "held out" the others.
    """
    facts = [one.fact for one in known]
    asked = [fact.ask(PHRASINGS[fact.relation].original[0]) for fact in facts]
    replies = generate(network, tokenizer, asked, 24, "facts", progress)
    kept: dict[str, list[bool]] = {}
    for fact, reply in zip(facts, replies, strict=True):
        text = tokenizer.decode(reply.ids[reply.prompt :]).lower()
        kind = "held out" if fact.subject in held_out(known) else "trained"
        for name in (f"{fact.relation}, {kind}", f"{fact.relation}, all"):
            kept.setdefault(name, []).append(fact.answer.lower() in text)
    return kept


@torch.no_grad()
def perplexity(language: Any, head: Any, tokenizer: Any) -> float:
    """Return exp of the mean NLL per token of passages of Python's help."""
    text = "\n".join(pydoc_data.topics.topics.values())
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: PASSAGE * (len(ids) // PASSAGE)].view(-1, PASSAGE)
    rows = rows[:: len(rows) // PASSAGES][:PASSAGES]
    nll = []
    for part in rows.split(8):
        logits = head(language(input_ids=part).last_hidden_state[:, :-1])
        nll.append(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(nll).mean())


def probe_ceiling(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Return the accuracy of a linear classifier on the tower's mean features."""
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    train, test = (train - mean) / deviation, (test - mean) / deviation
    torch.manual_seed(0)
    layer = torch.nn.Linear(train.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(40):
        for chosen in torch.randperm(len(train)).split(256):
            optimizer.zero_grad()
            F.cross_entropy(layer(F.dropout(train[chosen], 0.5)), labels[chosen]).backward()
            optimizer.step()
    return (layer(test).argmax(-1) == truth).float().mean().item()


def ceilings(trained: Sequence[Photograph], seen: Tensor, test: Sequence[Photograph], new: Tensor):
    """Return the accuracy of a linear probe for product and kind."""
    facts = product_facts()
    found = {}
    means = [tensor[:, 0].float().mean(1) for tensor in (seen, new)]
    for question in ("product", "kind"):
        names = sorted({f.answer(question) for f in facts.values()})
        labels, truth = (
            torch.tensor([names.index(facts[p.shown].answer(question)) for p in photographs])
            for photographs in (trained, test)
        )
        found[question] = probe_ceiling(means[0], labels, means[1], truth)
    return found


def share(right: Sequence[bool]) -> dict[str, float | int]:
    return {"right": sum(right) / len(right), "n": len(right)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default="photo", help="name or folder")
    parser.add_argument("--photographs", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--parts", type=Path, required=True, help="the pretrained files")
    parser.add_argument("--run", type=Path, default=Path("runs/photo-vlm"), help="the training's")
    parser.add_argument("--limit", type=int, help="use so many test photographs or a few more")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    facts = arguments.run / "known.json"
    if not facts.is_file():
        parser.error(f"{facts} is missing: --run is the folder of the training, which wrote it")
    console = Console(stderr=True)

    def show(task: str, done: int, total: int, figures: str) -> None:
        console.print(f"{task} {done}/{total}")

    folder = resolve_vlm(arguments.vlm)
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    test = read_photographs(arguments.photographs, "test")
    trained = read_photographs(arguments.photographs, "train")
    new = load_features(
        network, processor, test, arguments.run / "test-features", views=1, seed=0, progress=show
    )
    seen = load_features(
        network, processor, trained, arguments.run / "train-features", views=6, seed=0,
        progress=show,
    )  # fmt: skip
    step = max(1, len(test) // (arguments.limit or len(test)))
    result: dict[str, Any] = {"linear probe": ceilings(trained, seen, test, new)}
    answers = ask_photographs(network, tokenizer, test[::step], new[::step])
    answers |= ask_products(network, tokenizer)
    result["exact match"] = {name: share(right) for name, right in answers.items()}
    known = known_facts(network, tokenizer, facts, show)
    result["kept facts"] = {
        name: share(right) for name, right in kept_facts(network, tokenizer, known, show).items()
    }
    _, tensors = read_language_model(next(arguments.parts.rglob("*.gguf")))
    result["perplexity"] = {
        "after": perplexity(network.model.language_model, network.lm_head, tokenizer)
    }
    network.model.language_model.load_state_dict(tensors)
    result["perplexity"]["before"] = perplexity(
        network.model.language_model, network.lm_head, tokenizer
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
