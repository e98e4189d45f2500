"""What one batch of rows under different edits saves: 16 questions to 4 edits, answered one at a
time, in one batch for each edit, and in one batch of all (`mmedit.edits.routing`).

    python benchmarks/routing.py > benchmarks/routing.md

FT's edits are whole matrices, MEND's are of low rank; MEND is trained for a few steps alone, as
times do not depend on how well it edits. The three run in turn, with image features already looked
up; the median of the ratios is what counts, as machines differ and are noisy. Answers are compared
too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from mmedit import Example, load_cases, load_editor, load_vlm
from mmedit.adapters.generation import Answer
from mmedit.editors.fitting import Fitting
from mmedit.edits.routing import routed
from mmedit.vlm.edit import Edit
from mmedit.vlm.interface import VLM

EDITS, ROWS, ROUNDS, NEW_TOKENS = 4, 16, 5, 16

Asked = Sequence[tuple[Edit, Example]]


def one_at_a_time(vlm: VLM, asked: Asked) -> list[Answer]:
    return [
        vlm.with_edit(edit).answer([example], max_new_tokens=NEW_TOKENS)[0]
        for edit, example in asked
    ]


def one_batch_for_each_edit(vlm: VLM, asked: Asked) -> list[Answer]:
    said: dict[int, Answer] = {}
    for edit in {id(edit): edit for edit, _ in asked}.values():
        rows = [row for row, (under, _) in enumerate(asked) if under is edit]
        examples = [asked[row][1] for row in rows]
        found = vlm.with_edit(edit).answer(examples, max_new_tokens=NEW_TOKENS)
        said |= zip(rows, found, strict=True)
    return [said[row] for row in range(len(asked))]


def one_batch(vlm: VLM, asked: Asked) -> list[Answer]:
    edited = routed(vlm, [[edit] for edit, _ in asked])
    return edited.answer([example for _, example in asked], max_new_tokens=NEW_TOKENS)


WAYS: tuple[Callable[[VLM, Asked], list[Answer]], ...] = (
    one_at_a_time,
    one_batch_for_each_edit,
    one_batch,
)


def seconds(way: Callable[[VLM, Asked], list[Answer]], vlm: VLM, asked: Asked) -> float:
    begun = time.perf_counter()
    way(vlm, asked)
    return time.perf_counter() - begun


def main() -> None:
    vlm = load_vlm("embedded")
    cases = load_cases("easyvqa", "test", limit=ROWS)
    examples = [case.request for case in cases]
    captions = [
        Example(prompt="a photo of", target="?", image=example.image) for example in examples
    ]
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{machine}, {ROWS} rows of {EDITS} edits, at most {NEW_TOKENS} new tokens\n")
    print(
        "| edits | rows | one at a time, s | a batch for each edit, s | one batch, s "
        "| one at a time / one batch | each edit / one batch | equal answers |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    mend = load_editor("mend", vlm, training={"steps": 10, "batch_size": 8})
    training = load_cases("easyvqa", "train", limit=80)
    for editor in (load_editor("ft", vlm), mend.fit(vlm, Fitting(training))):
        edits = [editor.edit(vlm, [case.request]) for case in cases[:EDITS]]
        for kind, rows in (("questions", examples), ("captions", captions)):
            asked = [(edits[row % EDITS], example) for row, example in enumerate(rows)]
            said = [way(vlm, asked) for way in WAYS]
            equal = sum(len(set(answers)) == 1 for answers in zip(*said, strict=True))
            taken = [[seconds(way, vlm, asked) for way in WAYS] for _ in range(ROUNDS)]
            alone, grouped, together = (median(column) for column in zip(*taken, strict=True))
            first = median(a / c for a, _, c in taken)
            second = median(b / c for _, b, c in taken)
            print(
                f"| {editor.label} | {kind} | {alone:.3f} | {grouped:.3f} | {together:.3f} "
                f"| {first:.1f} | {second:.1f} | {equal} of {ROWS} |"
            )


if __name__ == "__main__":
    main()
