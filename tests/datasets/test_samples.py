"""data/samples: a few records of our own in each format, small, reproducible, ready to use."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from mmedit.bench.protocol import NoEdit, evaluate
from mmedit.cases import Split
from mmedit.config import load_cases
from mmedit.datasets import DATASETS
from mmedit.datasets.audits import AUDITS, AuditSettings
from mmedit.progress import silent

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "samples"
SAMPLES: dict[str, list[dict[str, Any]]] = {
    "evqa": [{"root": FOLDER / "evqa"}],
    "eic": [{"root": FOLDER / "eic"}],
    "vlkeb": [
        {"root": FOLDER / "vlkeb", "portability": kind} for kind in ("none", "onehop", "multihop")
    ],
    "mmke": [{"root": FOLDER / "mmke", "knowledge": kind} for kind in ("entity", "visual", "user")],
    "comprehendedit": [{"root": FOLDER / "comprehendedit", "per_group": n} for n in (2, 0)],
    "fgvedit": [{"root": FOLDER / "fgvedit"}],
    "cckeb": [{"root": FOLDER / "cckeb"}],
    "adsedit": [{"root": FOLDER / "adsedit"}],
    "grocery": [
        {"root": FOLDER / "grocery", "task": task} for task in ("object", "photo", "caption")
    ],
    "json": [{"train": FOLDER / "json" / "train.json", "test": FOLDER / "json" / "test.json"}],
}
"""Settings with which each dataset reads its sample."""


def test_every_dataset_that_needs_files_has_a_sample():
    assert SAMPLES.keys() == DATASETS.keys() - {"easyvqa", "facts"}
    assert SAMPLES.keys() == AUDITS.keys()


@pytest.mark.parametrize("split", get_args(Split))
@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_read_whole(name: str, split: Split):
    for settings in SAMPLES[name]:
        cases = load_cases(name, split, **settings)
        assert 1 <= len(cases) <= 6
        assert not cases.left_out
        assert len({case.id for case in cases}) == len(cases)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_sound(name: str):
    root = SAMPLES[name][0].get("root", FOLDER / "json" / "test.json")
    text = AUDITS[name](AuditSettings(root=root), True, silent, "mmedit data check")
    assert "for instance" not in text
    assert "is not there" not in text


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_can_be_measured(name: str, vlm):
    for settings in SAMPLES[name]:
        cases = load_cases(name, "test", limit=1, **settings)
        [record] = evaluate(vlm, NoEdit(), cases, name="base", batch_size=1)
        assert set(record.probes) == set(cases[0].probes)


def test_samples_are_small():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    for path in files:
        if path.suffix in (".jpg", ".png"):
            with Image.open(path) as image:
                assert max(image.size) <= 128


def test_the_script_makes_these_samples(tmp_path: Path):
    runpy.run_path(str(ROOT / "scripts" / "make_samples.py"))["make_all"](tmp_path)
    made, kept = (
        {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path, FOLDER)
    )
    assert made.keys() == kept.keys()
    for name, path in made.items():
        if path.suffix not in (".jpg", ".png"):  # their bytes depend on the version of Pillow
            assert path.read_bytes() == kept[name].read_bytes(), name
