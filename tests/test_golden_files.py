"""Golden numbers are found in a folder, and a kind without a case is an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden_files import REPOSITORY, golden_cases, golden_files, golden_folder

KINDS = ("metrics", "locality")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed numbers, as $MMEDIT_GOLDEN."""
    for kind in KINDS:
        shutil.copytree(REPOSITORY / "tests" / "golden" / kind, tmp_path / kind)
    monkeypatch.setenv("MMEDIT_GOLDEN", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_of_the_named_folder_is_found(folder: Path, kind: str):
    file = folder / kind / "cases.json"
    written = json.loads(file.read_text())
    written["cases"] = written["cases"][1:3]
    file.write_text(json.dumps(written))
    assert golden_folder() == folder
    assert [case.name for case in golden_cases(kind)] == [c["name"] for c in written["cases"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_without_case_is_an_error(folder: Path, kind: str):
    (folder / kind / "cases.json").write_text(json.dumps({"cases": []}))
    with pytest.raises(ValueError, match=rf"no case in .*{kind}/cases\.json"):
        golden_cases(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_without_tensors_is_an_error(folder: Path, kind: str):
    (folder / kind / "cases.json").write_text(json.dumps({"cases": [{"name": "case_1000"}]}))
    with pytest.raises(ValueError, match=r"no golden tensor case_1000\.\*"):
        golden_cases(kind)


def test_a_missing_file_or_folder_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"no golden file nothing/cases\.json"):
        golden_files("nothing/cases.json")
    monkeypatch.setenv("MMEDIT_GOLDEN", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        golden_folder()
