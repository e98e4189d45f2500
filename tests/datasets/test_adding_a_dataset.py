"""The dataset of docs/adding-a-dataset.md, taken from the page and put through its steps."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import tiny

from mmedit import catalog
from mmedit.bench.protocol import NoEdit, evaluate
from mmedit.cases import Probe
from mmedit.config import load_cases
from mmedit.datasets import DATASETS
from mmedit.errors import ConfigError, DataError, UnknownNameError
from mmedit.storage import config_folder

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "adding-a-dataset.md").read_text(encoding="utf-8")


def block(pattern: str) -> str:
    [found] = re.findall(pattern, TEXT, re.DOTALL)
    return found


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps 1 to 3 in a copy of `configs`, and the page's data; returns its folder."""
    file = tmp_path / "pairs.py"
    file.write_text(block(r"pairs\.py`:\n\n```python\n(.*?)```"), encoding="utf-8")
    spec = spec_from_file_location("added_pairs", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    written = block(r"`DATASETS`:\n\n```\n(.*?)```")
    row: dict[str, Any] = eval("{" + written.strip() + "}", vars(module))
    monkeypatch.setitem(DATASETS, "pairs", row["pairs"])
    configs = shutil.copytree(config_folder(), tmp_path / "configs")
    (configs / "dataset" / "pairs.yaml").write_text(block(r"```yaml\n(.*?)```"), encoding="utf-8")
    for name in ("mmedit.catalog", "mmedit.config_files", "mmedit.config"):
        if hasattr(sys.modules[name], "config_folder"):
            monkeypatch.setattr(f"{name}.config_folder", lambda: configs)
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(block(r"```csv\n(.*?)```"), encoding="utf-8")
    for seed, name in enumerate(("cat.png", "car.png")):
        tiny.random_image(seed).save(folder / name)
    return folder


def test_the_dataset_of_the_page_is_loaded_and_measured(root: Path, vlm):
    cases = load_cases("pairs", "test", root=root)
    assert {case.request.target for case in cases} == {"dog", "a bicycle"}
    assert load_cases("pairs", "test", root=root, limit=1) == cases[:1]
    records = list(evaluate(vlm, NoEdit(), cases, name="base", batch_size=2))
    assert all(Probe.TEXT_GENERALITY in record.probes for record in records)


def test_its_faults_are_those_of_every_dataset(root: Path):
    with pytest.raises(DataError, match=r"pairs needs its folder: --set dataset\.root=DIR"):
        load_cases("pairs", "test")
    with pytest.raises(ConfigError, match="unknown key 'rot'"):
        load_cases("pairs", "test", rot=root)
    with pytest.raises(UnknownNameError, match="no split named 'tset'"):
        load_cases("pairs", "tset", root=root)  # pyright: ignore[reportArgumentType]
    (root / "test.csv").write_text("image,question\n../x.png,why?\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.csv, row 0: rephrase is missing"):
        load_cases("pairs", "test", root=root)


def test_the_yaml_is_listed_with_its_comment():
    assert ("pairs", "Pairs of a picture and a question. Needs --set dataset.root=DIR.") in (
        catalog.describe("dataset")
    )


def test_every_file_that_the_page_names_is_there():
    named = set(
        re.findall(r"`((?:mmedit|configs|docs|data|tests)/[\w./-]+|pyproject\.toml)`", TEXT)
    )
    added = {name for name in named if "pairs" in name}
    assert {"mmedit/datasets/pairs.py", "configs/dataset/pairs.yaml"} <= added
    assert all((ROOT / name).exists() for name in named - added)
