"""A memory grows without copies of what it holds, and every memory stays the value it was."""

from __future__ import annotations

import copy
import random

import torch
from torch import Tensor

from mmedit.editors.entries import Entries


def entry(number: float, tokens: int = 2) -> dict[str, Tensor]:
    return {
        "key": torch.full((1, 3), number),
        "ids": torch.full((1, tokens), int(number), dtype=torch.long),
    }


def test_memories_that_grow_from_one_another_keep_their_own_entries():
    draw = random.Random(0)
    memories, expected = [Entries(tensors={}).with_all(entry(0))], [[0.0]]
    for number in range(1, 60):
        parent = draw.choice([len(memories) - 1, draw.randrange(len(memories))])
        memories.append(memories[parent].with_all(entry(number, tokens=1 + number // 20)))
        expected.append([*expected[parent], float(number)])
    for memory, numbers in zip(memories, expected, strict=True):
        assert memory["key"][:, 0].tolist() == numbers
        assert memory["ids"][:, 0].tolist() == [int(number) for number in numbers]


def test_most_entries_are_added_without_a_copy_of_the_others():
    memory, places = Entries(tensors={}).with_all(entry(0)), set[int]()
    for number in range(1, 500):
        memory = memory.with_all(entry(number))
        places.add(memory["key"].data_ptr())
    assert len(places) < 20
    assert memory["key"][:, 0].tolist() == list(range(500))


def test_a_memory_that_began_in_inference_mode_grows_outside_it():
    with torch.inference_mode():
        memory = Entries(tensors={}).with_all(entry(0)).with_all(entry(1))
    for number in (2, 3):
        memory = memory.with_all(entry(number))
    assert memory["key"][:, 0].tolist() == [0, 1, 2, 3]


def test_a_copied_memory_grows_apart():
    memory = Entries(tensors={}).with_all(entry(0)).with_all(entry(1))
    copied = copy.deepcopy(memory).with_all(entry(7))
    assert memory.with_all(entry(2))["key"][:, 0].tolist() == [0, 1, 2]
    assert copied["key"][:, 0].tolist() == [0, 1, 7]


def test_a_memory_whose_entry_was_replaced_grows_apart_from_the_other():
    first = Entries(tensors={}).with_all(entry(0)).with_all(entry(1))
    other = first.replaced(0, entry(7)).with_all(entry(8))
    again = first.with_all(entry(2))
    assert other["key"][:, 0].tolist() == [7, 1, 8]
    assert again["key"][:, 0].tolist() == [0, 1, 2]


def test_separate_entries_grow_besides_shared_ones():
    shared = Entries(tensors={}).with_all(entry(0)).with_all(entry(1))
    both = {name: torch.cat([entry(2)[name], entry(3)[name]]) for name in entry(2)}
    separate, later = shared.with_each(both), shared.with_all(entry(4))
    assert separate["key"][:, 0].tolist() == [0, 1, 2, 3]
    assert separate.seen_by(2).tolist() == [[True, True, True, False], [True, True, False, True]]
    assert later["key"][:, 0].tolist() == [0, 1, 4]
