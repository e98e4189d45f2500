"""GRACE's codebook against the published code (golden kind `grace`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from golden_files import GoldenCase, golden_cases, under
from torch import Tensor
from torch.nn import functional as F

from mmedit.editors.codebook import PromptEnd, nearest, placed, shift_to_values
from mmedit.editors.entries import Entries
from mmedit.editors.shifts import Shift

# EasyEdit's code compares an edit with the label of another key: labels go to the front of its
# list, keys to the back.
CASES = [case for case in golden_cases("grace") if case.facts["implementation"] == "thartvigsen"]
of_every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
AFTER = {"key": "keys", "value": "values", "radius": "epsilons"}


def published_label(labels: Tensor) -> Tensor:
    """By this the published code compares answers: the mean of the label tensor, -100 included."""
    return (labels.double().mean(1, keepdim=True) * 1e6).round().long()


def answer_label(labels: Tensor) -> Tensor:
    """The tokens of the answer, as mmedit compares them."""
    return labels[labels != -100].unsqueeze(0)


def codebooks(
    case: GoldenCase, label: Callable[[Tensor], Tensor]
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor], Entries]]:
    """Every edit of the case, its tensors, and the codebook after it."""
    entries = Entries(tensors={})
    for number, facts in enumerate(case.facts["edits"]):
        edit = under(f"edit_{number}", case.tensors)
        new = {
            "key": edit["query"],
            "value": edit["trained_value"],
            "label": label(edit["labels"]),
        }
        entries = placed(entries, new, radius=case.facts["eps"], expand=case.facts["eps_expand"])
        yield facts, edit, entries


def prompt_end(case: GoldenCase, x: Tensor, token: int) -> PromptEnd:
    """What the Linear takes and gives at one token."""
    y = F.linear(x, case.tensors["layer.weight"], case.tensors["layer.bias"])
    writes = torch.zeros(*x.shape[:2], 1)
    writes[:, token] = 1
    return PromptEnd(x[:, token], y[:, token], writes)


def edited_output(case: GoldenCase, entries: Entries, x: Tensor, token: int) -> Tensor:
    at = prompt_end(case, x, token)
    _, shift = shift_to_values(entries, at)
    layer = F.linear(x, case.tensors["layer.weight"], case.tensors["layer.bias"])
    return layer + Shift(shift.unsqueeze(1), at.writes, x.shape[-1])(x)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.to(expected), expected, rtol=0, atol=1e-5)


@of_every_case
def test_the_codebook_is_the_published_one_after_every_edit(case: GoldenCase):
    for facts, edit, entries in codebooks(case, published_label):
        assert len(entries) == facts["n_keys"]
        for ours, theirs in AFTER.items():
            close(entries[ours], edit[f"after.{theirs}"])


@of_every_case
def test_the_layer_gives_the_published_output_while_an_edit_is_made(case: GoldenCase):
    for facts, edit, entries in codebooks(case, published_label):
        # the value is that of the start of training there
        chosen = facts["chosen_key"]
        values = entries["value"].clone()
        values[chosen] = edit["value_before_training"]
        before = Entries(tensors={**entries.tensors, "value": values})
        token = facts["token_index"]
        found = edited_output(case, before, edit["input"], token)
        close(found, edit["layer_output_with_adapter"])


@of_every_case
def test_probes_are_decided_and_answered_as_published(case: GoldenCase):
    *_, (_, _, entries) = codebooks(case, published_label)
    for facts in case.facts["probes"]:
        tensors, token = under(f"probe_{facts['probe']:02}", case.tensors), facts["token_index"]
        at = prompt_end(case, tensors["input"], token)
        distance, entry = nearest(entries["key"], at.x, entries.seen_by(1))
        assert int(entry) == facts["nearest_key"]
        assert float(distance) == pytest.approx(facts["distance"], abs=1e-5)
        inside, _ = shift_to_values(entries, at)
        assert bool(inside) == facts["replaced"]
        found = edited_output(case, entries, tensors["input"], token)
        close(found, tensors["output_replace_last"])


@of_every_case
def test_a_permuted_answer_is_another_answer(case: GoldenCase):
    entries_before = 0
    for facts, _, entries in codebooks(case, answer_label):
        added = len(entries) > entries_before
        permuted = facts["kind"] == "same_mean_permuted_label"
        assert added == (facts["added_key"] or permuted)
        if permuted:
            return
        entries_before = len(entries)
    pytest.fail("no edit has a permuted answer")
