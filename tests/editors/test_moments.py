"""Second moments of what weights take: the values, their files, and the pass that collects them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from counted_vlm import CountedVLM
from tiny import IMAGES, MIXED, SEEN, TEXT_ONLY
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe
from mmedit.deltas import Dense
from mmedit.editors.closed_form import statistics, sums
from mmedit.editors.closed_form.moments import (
    RIDGE,
    SecondMoments,
    effective_rank,
    read_moments,
    spare_directions,
    usable,
    write_moments,
)
from mmedit.editors.closed_form.statistics import questions_of, second_moments
from mmedit.errors import DataError, EditorError, SiteError
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Observed

KINDS = ("text", "image")


class Asked(CountedVLM):
    """Is its own base model, and notes what it is observed and asked."""

    def __init__(self, inner: VLM) -> None:
        super().__init__(inner)
        self.observed: list[tuple[int, tuple[str, ...]]] = []

    @property
    def base(self) -> VLM:
        return self

    def observe(self, examples: Sequence[Example], sites: Sequence[str], **how: Any) -> Observed:
        self.observed.append((len(examples), tuple(sites)))
        return self.inner.observe(examples, sites, **how)


class Silent(Asked):
    """Says nothing to questions without an image."""

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int) -> list[str]:
        said = self.inner.generate(examples, max_new_tokens=max_new_tokens)
        return [text if e.image else "" for e, text in zip(examples, said, strict=True)]


def naive(vlm: VLM, examples: Sequence[Example], site: str) -> SecondMoments:
    """The products in float64 of each example alone, so without padding."""
    found: dict[str, Any] = dict.fromkeys(KINDS, 0)
    counts: dict[str, int] = dict.fromkeys(KINDS, 0)
    for example in examples:
        x = vlm.observe([example], [site]).x[site][0].double()
        is_image = vlm.places([example]).is_image[0]
        for kind, mask in (("text", ~is_image), ("image", is_image)):
            found[kind] = found[kind] + x[mask].mT @ x[mask]
            counts[kind] += int(mask.sum())
    return SecondMoments(**found, text_count=counts["text"], image_count=counts["image"])


def assert_close(found: SecondMoments, expected: SecondMoments) -> None:
    assert (found.text_count, found.image_count) == (expected.text_count, expected.image_count)
    for kind in KINDS:
        one, other = getattr(found, kind), getattr(expected, kind)
        assert one.dtype == torch.float64
        assert torch.equal(one, one.mT)
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(other.abs().max()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def moments(text: Tensor, image: Tensor | None = None, *, counts: tuple[int, int]) -> SecondMoments:
    image = torch.zeros_like(text) if image is None else image
    return SecondMoments(text=text, image=image, text_count=counts[0], image_count=counts[1])


# The pass


def test_sums_are_the_float64_products_of_every_real_token(tiny_vlm, tmp_path: Path):
    """Rows differ in length and one has no image, so padding would show."""
    found = second_moments(tiny_vlm, MIXED, tiny_vlm.value_sites, folder=tmp_path)
    assert list(found) == list(tiny_vlm.value_sites)
    assert len(found) == 3
    for site, one in found.items():
        assert_close(one, naive(tiny_vlm, MIXED, site))
        assert one.image_count == 2 * tiny.QUERIES


def test_markers_of_a_conversation_count_as_text(tmp_path: Path):
    import tiny_families

    from mmedit.vlm.loading import load_vlm

    vlm = load_vlm(tiny_families.save_family("qwen2_vl", tmp_path / "vlm"))
    site = vlm.value_sites[0]
    found = second_moments(vlm, MIXED, [site], folder=tmp_path / "statistics")[site]
    assert_close(found, naive(vlm, MIXED, site))
    assert found.text_count + found.image_count == vlm.places(MIXED).is_real.sum()


@pytest.mark.parametrize("most_tokens", [statistics.TOKENS, 1])
def test_batches_change_nothing_beyond_rounding(tiny_vlm, tmp_path, monkeypatch, most_tokens):
    site = tiny_vlm.value_sites[1]
    whole = second_moments(tiny_vlm, MIXED, [site], folder=tmp_path)[site]
    monkeypatch.setattr(statistics, "TOKENS", most_tokens)
    small = second_moments(tiny_vlm, MIXED, [site], batch_size=2, folder=tmp_path)[site]
    assert_close(small, whole)


def test_products_in_blocks_are_the_whole_product(tiny_vlm, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", 24)
    site = tiny_vlm.value_sites[1]
    found = second_moments(tiny_vlm, MIXED, [site], folder=tmp_path)[site]
    assert_close(found, naive(tiny_vlm, MIXED, site))


def test_an_edited_model_has_the_statistics_of_its_base_model(tiny_vlm, tmp_path: Path):
    site = tiny_vlm.value_sites[0]
    edited = tiny_vlm.with_deltas({site: Dense(torch.ones(tiny_vlm.shape(site)))})
    last = tiny_vlm.value_sites[-1]
    found = second_moments(edited, MIXED, [last], folder=tmp_path)[last]
    assert_close(found, naive(tiny_vlm, MIXED, last))


def test_sites_that_do_not_fit_together_go_in_groups_with_the_same_bytes(
    tiny_vlm, tmp_path: Path, monkeypatch
):
    second_moments(tiny_vlm, MIXED, tiny_vlm.value_sites, folder=tmp_path / "together")
    monkeypatch.setattr(statistics, "SUMS", 1)
    asked = Asked(NetworkVLM(tiny_vlm.adapter))
    second_moments(asked, MIXED, tiny_vlm.value_sites, folder=tmp_path / "groups")
    assert [sites for _, sites in asked.observed[::2]] == [(s,) for s in tiny_vlm.value_sites]
    assert contents(tmp_path / "groups") == contents(tmp_path / "together")


def test_what_is_kept_costs_no_forward(tiny_vlm, tmp_path: Path):
    asked, sites = Asked(tiny_vlm), tiny_vlm.value_sites
    first = second_moments(asked, MIXED, sites[:1], folder=tmp_path)
    assert asked.observed == [(2, sites[:1]), (1, sites[:1])]  # with an image, and without
    again = second_moments(asked, MIXED, sites, folder=tmp_path)  # the other sites alone
    assert asked.observed[2:] == [(2, sites[1:]), (1, sites[1:])]
    second_moments(asked, MIXED, sites, folder=tmp_path)
    assert len(asked.observed) == 4
    assert torch.equal(first[sites[0]].text, again[sites[0]].text)


def test_other_examples_models_or_batches_have_other_statistics(tiny_vlm, vlm, tmp_path: Path):
    def folder_of(one: VLM, *examples: Example, batch_size: int = 16) -> Path:
        site = one.value_sites[0]
        made = second_moments(one, examples, [site], batch_size=batch_size, folder=tmp_path)
        return made.folder

    same = folder_of(tiny_vlm, SEEN[0])
    assert folder_of(tiny_vlm, replace(SEEN[0], answers=("azure",), subject="shape")) == same
    others = [
        folder_of(vlm, SEEN[0]),
        folder_of(tiny_vlm, SEEN[0], batch_size=1),
        folder_of(tiny_vlm, SEEN[0], SEEN[0]),
        folder_of(tiny_vlm, replace(SEEN[0], target="no")),
        folder_of(tiny_vlm, replace(SEEN[0], prompt="a photo of")),
        folder_of(tiny_vlm, replace(SEEN[0], context="yes")),
        folder_of(tiny_vlm, replace(SEEN[0], image=IMAGES[1])),
        folder_of(tiny_vlm, replace(SEEN[0], image=None)),
    ]
    assert len({same, *others}) == 9


@pytest.mark.parametrize("groups", [1, 3])
def test_a_pass_that_was_killed_ends_with_the_same_bytes(
    tiny_vlm, tmp_path: Path, monkeypatch, groups: int
):
    examples = [replace(one, target=target) for target in ("yes", "no") for one in MIXED]
    sites = tiny_vlm.value_sites
    monkeypatch.setattr(statistics, "SUMS", 0 if groups == 3 else statistics.SUMS)
    second_moments(tiny_vlm, examples, sites, batch_size=1, folder=tmp_path / "whole")
    monkeypatch.setattr(statistics, "SECONDS", 0.0)  # write the sums after every batch
    monkeypatch.setattr(statistics, "SHARE", float("inf"))
    told: list[int] = []

    def stop(task: str, done: int, total: int, figures: str) -> None:
        told.append(done)
        if len(told) == 6:
            raise KeyboardInterrupt

    def again() -> VLM:
        asked = Asked(NetworkVLM(tiny_vlm.adapter))
        second_moments(asked, examples, sites, batch_size=1, progress=stop, folder=tmp_path / "cut")
        return asked

    with pytest.raises(KeyboardInterrupt):
        again()
    asked = again()
    assert told[6] == 4  # the fifth batch was not yet written
    assert isinstance(asked, Asked)
    assert len(asked.observed) == 6 * groups - 4
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_unfinished_sums_are_continued_for_their_own_sites_alone(
    tiny_vlm, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(statistics, "SECONDS", 0.0)
    monkeypatch.setattr(statistics, "SHARE", float("inf"))
    sites = tiny_vlm.value_sites

    def stop(task: str, done: int, total: int, figures: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for asked, forwards in ((sites[1:], 3), (sites[:1], 1)):
        with pytest.raises(KeyboardInterrupt):
            second_moments(
                tiny_vlm, MIXED, sites[:2], batch_size=1, progress=stop, folder=tmp_path / asked[0]
            )
        noted = Asked(tiny_vlm)
        found = second_moments(noted, MIXED, asked, batch_size=1, folder=tmp_path / asked[0])
        assert len(noted.observed) == forwards
        assert_close(found[asked[0]], naive(tiny_vlm, MIXED, asked[0]))


def test_inputs_that_are_not_finite_are_one_error(tiny_vlm, tmp_path: Path):
    class Broken(Asked):
        def observe(self, examples: Any, sites: Any, **how: Any) -> Observed:
            found = self.inner.observe(examples, sites, **how)
            found.x[sites[0]][0, 0, 3] = float("inf")
            return found

    with pytest.raises(EditorError, match="takes values that are not finite"):
        second_moments(Broken(tiny_vlm), MIXED, tiny_vlm.value_sites[:1], folder=tmp_path)
    assert not contents(tmp_path)


def test_wrong_arguments_are_found_before_anything_is_observed(tiny_vlm, tmp_path: Path):
    site = tiny_vlm.value_sites[0]
    with pytest.raises(DataError, match="no examples"):
        second_moments(tiny_vlm, [], [site], folder=tmp_path)
    with pytest.raises(SiteError, match=f"Did you mean '{site}'"):
        second_moments(tiny_vlm, MIXED, [site[:-1]], folder=tmp_path)
    with pytest.raises(SiteError, match="not in the language model"):
        second_moments(tiny_vlm, MIXED, tiny_vlm.sites("vision"), folder=tmp_path)
    assert not contents(tmp_path)


# Their files


def test_a_file_holds_all_digits_in_half_the_bytes_of_float64(tmp_path: Path):
    x = torch.randn(50, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    text, image = x.mT @ x / 3, x[:30].mT @ x[:30]
    text, image = ((one + one.mT) / 2 for one in (text, image))
    made = moments(text, image, counts=(2**40 + 1, 30))
    file = tmp_path / "site.safetensors"
    write_moments(file, made, {"site": "x"})
    read = read_moments(file)
    assert torch.equal(read.text, text)
    assert torch.equal(read.image, image)
    assert (read.text_count, read.image_count) == (2**40 + 1, 30)
    assert file.stat().st_size < 2 * 8 * 21 * 22 / 2 + 500


@pytest.mark.parametrize("damage", [b"", b"no safetensors", "cut", "other"])
def test_a_damaged_file_is_one_error_that_says_what_to_do(
    tiny_vlm, tmp_path: Path, damage: bytes | str
):
    site = tiny_vlm.value_sites[0]
    found = second_moments(tiny_vlm, MIXED, [site], folder=tmp_path)
    file = found.files[site]
    if damage == "other":
        write_moments(file, moments(torch.eye(3), counts=(1, 0)), {})
    else:
        file.write_bytes(damage if isinstance(damage, bytes) else file.read_bytes()[:-10])
    with pytest.raises(EditorError, match=r"are damaged .* delete it, and it is made again"):
        second_moments(tiny_vlm, MIXED, [site], folder=tmp_path)
    if damage != "other":
        with pytest.raises(EditorError, match="are damaged"):
            found[site]
    file.unlink()
    assert_close(
        second_moments(tiny_vlm, MIXED, [site], folder=tmp_path)[site],
        naive(tiny_vlm, MIXED, site),
    )


def test_damaged_files_of_a_stopped_call_are_errors_too(tiny_vlm, tmp_path: Path):
    site = tiny_vlm.value_sites[0]
    folder = second_moments(tiny_vlm, MIXED, [site], folder=tmp_path).folder
    (folder / "unfinished.safetensors").write_bytes(b"cut off")
    with pytest.raises(EditorError, match=r"unfinished.* delete it"):
        second_moments(tiny_vlm, MIXED, tiny_vlm.value_sites, folder=tmp_path)
    questions_of(tiny_vlm, CASES, folder=tmp_path)
    [answers] = (tmp_path / "answers").iterdir()
    for text in ("{", "[]"):
        answers.write_text(text)
        with pytest.raises(EditorError, match="delete it"):
            questions_of(tiny_vlm, CASES, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_found_before_the_pass(tiny_vlm, tmp_path: Path):
    asked = Asked(tiny_vlm)
    (tmp_path / "file").write_text("x")
    with pytest.raises(Exception, match="cannot make the folder"):
        second_moments(asked, MIXED, tiny_vlm.value_sites, folder=tmp_path / "file")
    assert not asked.observed


# The value


def test_means_are_over_tokens_of_their_kind():
    text, image = 4 * torch.eye(2).double(), 9 * torch.ones(2, 2).double()
    both = moments(text, image, counts=(2, 3))
    assert [both.count(kind) for kind in ("text", "image", "balanced", "all")] == [2, 3, 2, 5]
    assert torch.equal(both.mean("text"), 2 * torch.eye(2).double())
    assert torch.equal(both.mean("image"), torch.full((2, 2), 3.0).double())
    assert torch.equal(both.mean("balanced"), torch.tensor([[2.5, 1.5], [1.5, 2.5]]).double())
    assert torch.equal(both.mean("all"), (text + image) / 5)
    alone = moments(text, counts=(2, 0))
    assert alone.count("balanced") == 2
    assert torch.equal(alone.mean("balanced"), alone.mean("text"))
    with pytest.raises(EditorError, match="no image tokens were seen"):
        alone.mean("image")


def test_too_few_tokens_shrink_the_mean_and_say_so(caplog: pytest.LogCaptureFixture):
    mean = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).double()
    few = moments(9 * mean, counts=(9, 0))
    with caplog.at_level(logging.WARNING):
        shrunk = usable(few, "text", shrink=0.1, what="fc2")
    assert "fc2: the second moment of 2 inputs comes from 9 text tokens" in caplog.text
    assert "at least 5 for each input, 10" in caplog.text
    close = {"rtol": 0, "atol": 10 * RIDGE}
    torch.testing.assert_close(shrunk, 0.9 * mean + 0.1 * 2 * torch.eye(2).double(), **close)
    assert torch.equal(few.text, 9 * mean)
    with pytest.raises(EditorError, match=r"fc2: .* 9 text tokens.* give more training cases"):
        usable(few, "text", shrink=None, what="fc2")
    caplog.clear()
    enough = moments(10 * mean, counts=(10, 0))
    found = usable(enough, "text", shrink=0.1, what="fc2")
    torch.testing.assert_close(found, mean + RIDGE * 2 * torch.eye(2).double())
    assert not caplog.records


def test_rank_and_spare_directions_of_a_known_spectrum():
    mean = torch.diag(torch.tensor([50.0, 49.5, 0.4, 0.1])).double()
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(mean) == pytest.approx(100**2 / (50**2 + 49.5**2 + 0.4**2 + 0.1**2))
    assert spare_directions(mean, 0.01) == 2
    assert spare_directions(mean, 0.002) == 1
    assert spare_directions(mean, 0.0005) == 0


# The questions

CASES = [
    EditCase(id="1", request=SEEN[0], probes={Probe.TEXT_LOCALITY: (TEXT_ONLY,)}),
    EditCase(id="2", request=SEEN[1], probes={Probe.TEXT_LOCALITY: (TEXT_ONLY,)}),
    EditCase(
        id="3",
        request=replace(SEEN[0], target="never said"),
        probes={Probe.IMAGE_LOCALITY: (SEEN[2],), Probe.TEXT_GENERALITY: (SEEN[2],)},
    ),
]


def test_questions_are_asked_once_and_answered_by_the_base_model(tiny_vlm, tmp_path: Path):
    site = tiny_vlm.value_sites[0]
    edited = tiny_vlm.with_deltas({site: Dense(torch.ones(tiny_vlm.shape(site)))})
    found = questions_of(edited, CASES, folder=tmp_path)
    assert [(q.prompt, q.image) for q in found] == [
        (q.prompt, q.image) for q in (SEEN[0], TEXT_ONLY, SEEN[1])
    ]
    for question in found:
        said = tiny_vlm.generate([question], max_new_tokens=statistics.ANSWER_TOKENS)
        assert [question.target] == said


def test_answers_are_kept_and_a_stopped_call_continues(tiny_vlm, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(statistics, "ANSWERED", 1)
    monkeypatch.setattr(statistics, "WRITTEN", 1)

    def stop(task: str, done: int, total: int, figures: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    asked = Asked(tiny_vlm)
    with pytest.raises(KeyboardInterrupt):
        questions_of(asked, CASES, progress=stop, folder=tmp_path)
    assert asked.asked == 2
    found = questions_of(asked, CASES, folder=tmp_path)
    assert asked.asked == 3
    assert questions_of(asked, CASES, folder=tmp_path) == found
    assert asked.asked == 3
    [file] = (tmp_path / "answers").iterdir()
    said = json.loads(file.read_text(encoding="utf-8"))
    assert {said[str(row)] for row in range(3)} == {question.target for question in found}


def test_questions_without_an_answer_are_left_out_aloud(
    tiny_vlm, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        found = questions_of(Silent(tiny_vlm), CASES, folder=tmp_path)
    assert [question.prompt for question in found] == [SEEN[0].prompt, SEEN[1].prompt]
    assert "says nothing to 1 of 3 questions" in caplog.text
    text = EditCase(id="4", request=TEXT_ONLY)
    with pytest.raises(DataError, match="answers no question"):
        questions_of(Silent(tiny_vlm), [text], folder=tmp_path)


def test_questions_that_cannot_be_asked_are_one_error(tiny_vlm, tmp_path: Path):
    with pytest.raises(DataError, match="no training cases"):
        questions_of(tiny_vlm, [], folder=tmp_path)
    long = EditCase(id="1", request=Example(prompt="what " * 80, target="yes"))
    with pytest.raises(DataError, match="a question of the training cases cannot be asked"):
        questions_of(tiny_vlm, [*CASES, long], folder=tmp_path)


def test_statistics_lie_in_the_users_folder_by_default(tiny_vlm, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MMEDIT_HOME", str(tmp_path))
    found = second_moments(tiny_vlm, questions_of(tiny_vlm, CASES), tiny_vlm.value_sites[:1])
    assert found.folder.parent == tmp_path / "statistics"
    assert (tmp_path / "statistics" / "answers").is_dir()
