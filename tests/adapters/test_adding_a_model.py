"""docs/adding-a-model.md names the files to touch; `tests/docs/test_readme.py` runs its adapter."""

from __future__ import annotations

import re
from pathlib import Path

import full_size
import test_families
import tiny_families

from mmedit.adapters import ADAPTERS
from mmedit.adapters.auto import TransformersAdapter
from mmedit.adapters.base import Adapter

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
NEW = {"FAMILY": "llava", "NAME": "llava-1.5-7b", "question": "llava"}
"""Files that the page tells to make, by files that were made so."""


def test_every_file_that_the_page_names_exists():
    files = re.findall(r"`((?:mmedit|tests|configs|docs)/[\w./-]+)`", TEXT)
    assert len(set(files)) >= 8
    for file in files:
        for new, made in NEW.items():
            file = re.sub(rf"\b{new}\b", made, file)
        assert (REPOSITORY / file).exists(), file


def test_the_table_names_every_file_that_knows_the_families():
    table = TEXT.partition("## The files to touch")[2].partition("No editing method")[0]
    rows = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    named = {file for file in rows if "FAMILY" not in file and "NAME" not in file}
    assert len(rows) == 6
    for folder in ("mmedit", "tests"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            if "InstructBlipAdapter" in text or re.search(r"\binstructblip\b.*lambda", text):
                inside = str(file.relative_to(REPOSITORY))
                assert inside in {*named, "mmedit/adapters/instructblip.py", *THIS}, inside


THIS = ("tests/adapters/test_adding_a_model.py",)


def test_the_tables_that_get_a_row_are_those_of_the_page():
    assert tiny_families.FAMILIES
    assert full_size.CONFIGS
    assert "paligemma" in test_families.WITHOUT_TEMPLATE
    assert "gemma3" in test_families.BRIDGE_WITHOUT_LINEAR
    assert "photo" in test_families.VISION_WITHOUT_LINEAR


def test_the_number_of_tests_on_the_page_is_true():
    [number] = re.findall(r"The (\d+) tests of `tests/adapters/test_families\.py`", TEXT)
    assert int(number) == sum(name.startswith("test_") for name in vars(test_families))


def test_the_methods_on_the_page_are_the_adapters():
    table = TEXT.partition("| question | method |")[2].partition("\n\n")[0]
    methods = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`(\w+)(?:\([\w, ]*\))?`", row.split("|")[2])
    }
    assert methods == {
        "formats", "prepare", "vision", "bridge", "encode", "extras", "sites", "stage",
        "feature_key", "layers", "reads_features_later", "compiled_whole",
    }  # fmt: skip
    for method in methods:
        assert hasattr(TransformersAdapter, method)


def test_a_class_of_adapters_is_abstract_or_final():
    """A class with subclasses cannot be made, and every class of the table has none."""

    def below(adapter: type[Adapter]) -> set[type[Adapter]]:
        return {adapter}.union(*map(below, adapter.__subclasses__()))

    ours = {one for one in below(Adapter) if one.__module__.startswith("mmedit.")}
    for adapter in ours:
        derived = [one for one in adapter.__subclasses__() if one in ours]
        assert bool(adapter.__abstractmethods__) == (adapter not in ADAPTERS.values())
        assert not (derived and adapter in ADAPTERS.values())
