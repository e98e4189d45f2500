"""Collecting second moments: what Linear sites of a language model take over a set of examples.

`questions_of` makes the examples of training cases, `second_moments` streams them through the base
model. Both keep what they computed in files that are known by content, so the same question costs
nothing the second time, and a pass that was stopped continues.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import final

from mmedit.arguments import as_cases, as_count, as_examples, as_sites
from mmedit.cache import GIGABYTE
from mmedit.cases import EditCase, Example, Probe
from mmedit.chunks import padded_batches
from mmedit.editors.closed_form.moments import (
    SecondMoments,
    damaged,
    has_moments,
    read_moments,
    write_moments,
)
from mmedit.editors.closed_form.sums import Sums, begun
from mmedit.errors import DataError
from mmedit.images import image_key
from mmedit.progress import Progress, silent
from mmedit.storage import make_folder, user_folder, write_atomically
from mmedit.vlm.interface import VLM

log = logging.getLogger(__name__)

FORM = 1
"""Version of the files, and of all that decides their digits: order, batches, blocks, length of
answers.
"""
BATCH, ANSWERED = 16, 32
"""Examples in one forward, and questions that are answered together, at most."""
TOKENS = 4096
"""Tokens of prompts in one forward, with padding, at most. One example may have more."""
ANSWER_TOKENS = 10
"""Length of an answer of the base model, in tokens, at most. A longer one is cut off."""
SUMS = 4 * GIGABYTE
"""Size of the sums of a group of sites, in bytes, at most. Each group takes a pass of its own."""
SECONDS, SHARE = 60.0, 0.05
"""Seconds between two writings of sums, at least, and the share of the time that they may take."""
WRITTEN = 20
"""Batches between two writings of answers."""


@final
@dataclass(frozen=True, eq=False)
class SavedMoments(Mapping[str, SecondMoments]):
    """Second moments by site. Each is read from its file whenever it is asked for, because those of
    a large VLM do not fit into memory together.
    """

    files: Mapping[str, Path]
    folder: Path
    """The folder that the files are in."""

    def __getitem__(self, site: str) -> SecondMoments:
        return read_moments(self.files[site])

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def statistics_folder() -> Path:
    """Return the folder in which statistics are kept: `statistics` in the user's folder."""
    return user_folder() / "statistics"


def questions_of(
    vlm: VLM, cases: Sequence[EditCase], *, progress: Progress = silent, folder: Path | None = None
) -> list[Example]:
    """Return the examples to collect second moments over: the prompts of requests with their images
    and the text-locality questions, each once, answered by the base model. So nothing that an edit
    would teach is in them.

    Costs a generation of `ANSWER_TOKENS` for each, which is kept in `folder` (by default
    `statistics_folder`); a call that was stopped continues. A question to which the base model says
    nothing is left out. Raises DataError if one cannot be asked, or none is left.
    """
    base = vlm.base
    asked = [example for case in as_cases(cases) for example in _questions(case)]
    questions = list({_content(question): question for question in asked}.values())
    if not questions:
        raise DataError("no training cases were given; statistics need at least one")
    for fault in base.frozen.faults(questions, new_tokens=ANSWER_TOKENS):
        if fault is not None:
            raise DataError(f"a question of the training cases cannot be asked: {fault}")
    answers = _answers(base, questions, folder or statistics_folder(), progress)
    answered = [replace(q, target=a) for q, a in zip(questions, answers, strict=True) if a]
    if len(answered) < len(questions):
        log.warning(
            "the base model says nothing to %d of %d questions; statistics leave them out",
            len(questions) - len(answered), len(questions),
        )  # fmt: skip
    if not answered:
        raise DataError(
            "the base model answers no question of the training cases; expected some answers, over "
            "which statistics are collected; choose another dataset or VLM"
        )
    return answered


def second_moments(
    vlm: VLM,
    examples: Sequence[Example],
    sites: Sequence[str],
    *,
    batch_size: int = BATCH,
    progress: Progress = silent,
    folder: Path | None = None,
) -> SavedMoments:
    """Return the second moments of what sites of the language model take in the base model.

    They depend on the examples and `batch_size` alone: products are in float32, sums in float64.
    They are kept in `folder` (by default `statistics_folder`). Sites that are not there yet cost a
    forward of all examples up to the last one of them; several, where their sums take more than
    `SUMS` bytes. A pass that was stopped continues, and ends with the same bytes. Raises SiteError,
    DataError; EditorError if a file is damaged or cannot be written, or an input is not finite.
    """
    base, examples, sites = vlm.base, as_examples(examples), as_sites(sites)
    batch_size = as_count("batch_size")(batch_size)
    widths = {site: base.shape(site)[1] for site in sites}
    place = (folder or statistics_folder()) / _key(base, examples, batch_size)
    files = {site: place / f"{site}.safetensors" for site in widths}
    missing = {site: n for site, n in widths.items() if not has_moments(files[site], n)}
    if not missing:
        return SavedMoments(files, place)
    make_folder(place)
    about = {"vlm": base.name, "examples": len(examples), "batch_size": batch_size}
    unfinished = place / "unfinished.safetensors"
    batches = [[examples[row] for row in rows] for rows in _batches(base, examples, batch_size)]
    groups = _groups(missing)
    for number, group in enumerate(groups):
        told = _part(progress, number, len(groups), len(examples))
        sums = _summed(base, batches, group, unfinished, told)
        for site in group:
            write_moments(files[site], sums.moments(site), {**about, "site": site})
        unfinished.unlink(missing_ok=True)
    return SavedMoments(files, place)


def _summed(
    vlm: VLM,
    batches: Sequence[Sequence[Example]],
    widths: Mapping[str, int],
    unfinished: Path,
    progress: Progress,
) -> Sums:
    """Return the sums of sites over all batches; those in `unfinished` are continued."""
    sums = begun(unfinished, widths)
    done, total = (sum(map(len, some)) for some in (batches[: sums.batches], batches))
    task, written, took = "collecting second moments", time.monotonic(), 0.0
    progress(task, done, total, "")
    for batch in batches[sums.batches :]:
        sums.add(vlm.observe(batch, list(widths)).x, vlm.places(batch))
        done += len(batch)
        counts = f"{sums.text_count:,} text and {sums.image_count:,} image tokens"
        progress(task, done, total, counts)
        now = time.monotonic()
        if now - written > max(SECONDS, took / SHARE):
            sums.write(unfinished)
            written = time.monotonic()
            took = written - now
    return sums


def _groups(widths: Mapping[str, int]) -> list[dict[str, int]]:
    """Return the sites that go through together: as many as `SUMS` has room for, at least one."""
    groups: list[dict[str, int]] = []
    for site, width in widths.items():
        used = sum(n * n for n in groups[-1].values()) if groups else 0
        if not groups or 2 * 8 * (used + width * width) > SUMS:  # two kinds in float64
            groups.append({})
        groups[-1][site] = width
    return groups


def _batches(vlm: VLM, examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Return the rows that go through together: those with an image first, the shortest first."""
    lengths = vlm.prompt_tokens(examples)
    batches: list[list[int]] = []
    for has_image in (True, False):
        rows = [row for row, one in enumerate(examples) if (one.image is not None) == has_image]
        rows.sort(key=lengths.__getitem__)
        parts = padded_batches([lengths[row] for row in rows], batch_size, TOKENS)
        batches += [[rows[place] for place in part] for part in parts]
    return batches


def _part(progress: Progress, number: int, passes: int, examples: int) -> Progress:
    """Report one of several passes as a part of them all."""
    return lambda task, done, _, figures: progress(
        task, number * examples + done, passes * examples, figures
    )


def _questions(case: EditCase) -> Iterator[Example]:
    for example in (case.request, *case.probes.get(Probe.TEXT_LOCALITY, ())):
        yield replace(example, target="?", answers=())  # the target is not read


def _answers(vlm: VLM, questions: Sequence[Example], folder: Path, progress: Progress) -> list[str]:
    """Return the greedy answers to questions; those in the file are not asked again."""
    file = folder / "answers" / f"{_key(vlm, questions, ANSWERED)}.json"
    said = _said(file)
    task, total = "asking the base model", len(questions)
    progress(task, len(said), total, "")
    left = [] if len(said) == total else _batches(vlm, questions, ANSWERED)
    for number, rows in enumerate([rows for rows in left if rows[0] not in said], start=1):
        asked = [questions[row] for row in rows]
        said |= zip(rows, vlm.generate(asked, max_new_tokens=ANSWER_TOKENS), strict=True)
        if number % WRITTEN == 0 or len(said) == total:
            write_atomically(file, json.dumps(said, ensure_ascii=False, indent=0).encode())
        progress(task, len(said), total, "")
    return [said[row] for row in range(total)]


def _said(file: Path) -> dict[int, str]:
    """Return the answers in a file, by row; none if it is missing. Raises EditorError."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {int(row): str(answer) for row, answer in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise damaged(file, error) from error


def _key(vlm: VLM, examples: Sequence[Example], batch_size: int) -> str:
    """Return a hash of all that statistics depend on."""
    digest = blake2b(json.dumps([FORM, *vlm.identity, batch_size]).encode(), digest_size=16)
    for example in examples:
        digest.update(json.dumps(_content(example)).encode() + b"\n")
    return digest.hexdigest()


def _content(example: Example) -> tuple[str | None, ...]:
    """Return all of an example that a VLM reads."""
    seen = image_key(example.image) if example.image else None
    return example.prompt, example.context, example.target, seen
