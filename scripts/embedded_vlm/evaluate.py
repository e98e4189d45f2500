"""Measure the embedded VLM: every figure in mmedit/assets/README.md.

python scripts/embedded_vlm/evaluate.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from rich.progress import track

from mmedit import Example, load_vlm
from mmedit.cases import Probe
from mmedit.datasets import facts
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.datasets.easyvqa import questions, renderings
from mmedit.datasets.easyvqa.pictures import known_pictures, load_pictures
from mmedit.images import open_image
from mmedit.metrics.multiclass_log_probs import exact_match, token_accuracy
from mmedit.vlm.interface import VLM

BATCH = 200


def main() -> None:
    vlm = load_vlm("embedded")
    sets = dict(example_sets())
    print("| examples | n | token accuracy | exact match | tokens per answer |")
    print("|---|--:|--:|--:|--:|")
    for name, examples in sets.items():
        accuracy, exact, tokens = score(vlm, name, examples)
        print(f"| {name} | {len(examples)} | {accuracy:.2%} | {exact:.2%} | {tokens:.2f} |")
    free = sets["easy-VQA test questions"][::10]
    said = generate(vlm, free)
    right = sum(text == example.target for text, example in zip(said, free, strict=True))
    print(f"\nsaid freely, every tenth test question: {right / len(free):.2%} of {len(free)} right")
    print(f"answers of several tokens: {several_tokens(vlm)}")


def example_sets() -> Iterator[tuple[str, list[Example]]]:
    pictures = load_pictures("test")
    yield (
        "easy-VQA test questions",
        [
            Example(prompt=asked.text, target=asked.answer, image=picture.path)
            for picture in pictures
            for asked in picture.asked
        ],
    )
    yield (
        "the same, in all held-out wordings",
        [
            Example(prompt=asked.question.ask(wording), target=asked.answer, image=picture.path)
            for picture in pictures
            for asked in picture.asked
            for wording in questions.PHRASINGS[asked.question.kind].held_out
        ],
    )
    for name, prompts in (
        ("captions of test pictures", questions.CAPTION_PROMPTS.original),
        ("the same, held-out prompts", questions.CAPTION_PROMPTS.held_out),
    ):
        yield (
            name,
            [
                Example(prompt=prompt, target=caption, image=picture.path)
                for picture, scene in known_pictures("test")
                for caption in [scene.caption(renderings.find_shape(open_image(picture.path)).size)]
                for prompt in prompts
            ],
        )
    for name, chosen in (("facts", "train"), ("facts, held-out wordings", "held_out")):
        yield (
            name,
            [
                Example(prompt=fact.ask(wording), target=fact.answer)
                for fact in facts.load_facts()
                for wording in getattr(facts.PHRASINGS[fact.relation], chosen)
            ],
        )
    for task in ("vqa", "caption"):
        cases = easyvqa.EasyVQA(task=task).load("test")
        yield (f"counterfactual targets, {task} task", [case.request for case in cases])
        yield (
            f"image rephrases asked truthfully, {task} task",
            [truthful(case.probes[Probe.IMAGE_GENERALITY][0], case.id) for case in cases],
        )


def truthful(example: Example, case_id: str) -> Example:
    """The example with its right answer, from the labels."""
    number = int(case_id.rsplit("-", 1)[1])
    picture, scene = next(known for known in known_pictures("test") if known[0].number == number)
    if example.prompt in questions.CAPTION_PROMPTS.original:
        answer = scene.caption(renderings.find_shape(open_image(picture.path)).size)
    else:
        answer = next(asked.answer for asked in picture.asked if asked.text == example.prompt)
    return Example(prompt=example.prompt, target=answer, image=example.image)


@torch.no_grad()
def score(vlm: VLM, name: str, examples: Sequence[Example]) -> tuple[float, float, float]:
    columns: list[list[float]] = [[], [], []]
    for start in track(range(0, len(examples), BATCH), description=name):
        asked = vlm.predict(examples[start : start + BATCH])
        parts = (
            token_accuracy(asked.logits, asked.target, asked.is_answer),
            exact_match(asked.logits, asked.target, asked.is_answer),
            asked.is_answer.sum(1),
        )
        for column, part in zip(columns, parts, strict=True):
            column += part.double().tolist()
    accuracy, exact, tokens = (float(np.mean(column)) for column in columns)
    return accuracy, exact, tokens


def generate(vlm: VLM, examples: Sequence[Example]) -> list[str]:
    said: list[str] = []
    for start in track(range(0, len(examples), BATCH), description="said freely"):
        said += vlm.generate(examples[start : start + BATCH], max_new_tokens=8)
    return said


def several_tokens(vlm: VLM) -> str:
    """How many distinct answers the tokenizer splits, and how many of the benchmark's targets."""
    distinct = (*questions.COLORS, *questions.SHAPES, "yes", "no")
    targets = [case.request.target for case in easyvqa.EasyVQA().load("test")]
    shares = []
    for name, answers in (
        ("easy-VQA's 13 answers", distinct),
        ("the facts' answers", [fact.answer for fact in facts.load_facts()]),
        ("targets of the VQA test cases", targets),
    ):
        examples = [Example(prompt="?", target=answer) for answer in answers]
        tokens = [
            count
            for start in range(0, len(examples), BATCH)
            for count in vlm.predict(examples[start : start + BATCH]).is_answer.sum(1).tolist()
        ]
        shares.append(f"{sum(count > 1 for count in tokens)} of {len(tokens)} ({name})")
    return "; ".join(shares)


if __name__ == "__main__":
    main()
