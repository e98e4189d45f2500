"""A run that was cut off at any line ends with the bytes of one that ran through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from plans import make_plan

from mmedit.bench.run import run
from mmedit.cases import EditCase, Example, Probe
from mmedit.methods.ft import FT, FTConfig
from mmedit.progress import silent
from mmedit.records.store import MANIFEST, RECORDS
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

SITE = "language_model.model.decoder.layers.2.fc1"
QUESTIONS = ("what is the capital of Albania?", "is there a red circle?", "yes or no?", "a photo")
CASES = 8


def cases() -> list[EditCase]:
    """Text locality asks a question again after some cases, in another batch of three."""
    made = []
    for number in range(CASES):
        prompt = tiny.CORPUS[number % 4]
        image = tiny.IMAGES[number % 3]
        unrelated = Example(prompt=QUESTIONS[number % len(QUESTIONS)], target="Tirana")
        seen = Example(prompt="what color is it?", target="blue", image=image)
        request = Example(prompt=f"{prompt} {number}", target="teal", image=image)
        probes = {Probe.TEXT_LOCALITY: (unrelated,), Probe.IMAGE_LOCALITY: (seen,)}
        made.append(EditCase(id=str(number), request=request, probes=probes))
    return made


def measure(vlm: NetworkVLM, folder: Path) -> None:
    editors = {f"FT-{n}": FT(FTConfig(sites=(SITE,), lr=5e-2, steps=n)) for n in (1, 2)}
    plan = make_plan(editors=editors, batch_size=3, max_new_tokens=3)
    run(plan, folder, vlm, cases(), lambda progress: [], progress=silent)


def measured(folder: Path) -> list[str]:
    """The lines without wall times and memory, which differ from run to run."""
    lines = []
    for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        lines.append(json.dumps(record | {"seconds": 0, "peak_memory_bytes": 0}))
    return lines


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    measure(load_vlm(tiny_folder, dtype=request.param), folder)
    return request.param, folder


LINES = (0, 3, 5, 8, 10, 15, 20)
"""The base model and two editors have eight lines each, in batches of three. So these are: nothing,
one batch, a part of a batch, one model; then an editor's first, last and second batch in part.
"""


def assert_the_same_after_a_cut(whole: tuple[str, Path], tiny: Path, cut: Path, lines: int) -> None:
    """Go on in another process: nothing that the first one has looked up is there."""
    dtype, folder = whole
    written = (folder / RECORDS).read_bytes().splitlines(keepends=True)
    shutil.copy(folder / MANIFEST, cut)
    (cut / RECORDS).write_bytes(b"".join(written[:lines]))
    measure(load_vlm(tiny, dtype=dtype), cut)
    assert measured(cut) == measured(folder)
    assert (cut / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()


@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("whole", ["bfloat16"], indirect=True)
def test_a_run_cut_off_at_any_line_ends_with_the_same_records(whole, tiny_folder, tmp_path, lines):
    """In half precision the rows of a batch move each other: another batch would show."""
    assert_the_same_after_a_cut(whole, tiny_folder, tmp_path, lines)


@pytest.mark.parametrize("lines", [5, 15])
@pytest.mark.parametrize("whole", ["float32"], indirect=True)
def test_a_run_in_float32_that_was_cut_off_does_too(whole, tiny_folder, tmp_path, lines):
    assert_the_same_after_a_cut(whole, tiny_folder, tmp_path, lines)
