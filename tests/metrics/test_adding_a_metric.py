"""The metric of docs/adding-a-metric.md, taken from the page and put through its six steps."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from made_records import asked

from mmedit.bench import generation as bench_generation
from mmedit.metrics import generation
from mmedit.records import schema
from mmedit.report import columns

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "adding-a-metric.md").read_text(encoding="utf-8")
FUNCTION, FIELD, TEST = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CALL, ROW = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
[LINE] = re.findall(r"```markdown\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def added() -> dict[str, Any]:
    """Step 1: the names of the module with the function."""
    names = dict(vars(generation))
    exec(compile(FUNCTION, "adding-a-metric.md", "exec"), names)
    return names


@pytest.fixture
def record_class() -> Any:
    """Step 2: the class with the field."""
    names = dict(vars(schema))
    source = f"class Added(Generation):\n{FIELD}"
    exec(compile(source, "adding-a-metric.md", "exec"), names)
    return names["Added"]


def test_the_metric_goes_from_the_text_to_the_table(added: dict[str, Any], record_class: Any):
    class Module:
        answer_words = staticmethod(added["answer_words"])

    filled = eval(f"dict({CALL.strip()})", {"generation": Module, "text": "a red circle"})
    assert filled == {"answer_words": 3.0}
    scores = record_class(contains=0.0, exact=0.0, rouge_l=0.0, **filled)
    [measure] = eval(f"[{ROW.strip()}]", dict(vars(columns)))
    probe = asked(1.0, 1.0, generation_post=scores)
    assert measure.of(probe) == 3.0
    assert measure.metric == "generation/answer_words"
    assert record_class.model_validate_json(scores.model_dump_json()) == scores


def test_records_written_before_leave_the_cell_empty(record_class: Any):
    [measure] = eval(f"[{ROW.strip()}]", dict(vars(columns)))
    before = record_class(contains=0.0, exact=0.0, rouge_l=0.0)
    assert measure.of(asked(1.0, 1.0, generation_post=before)) is None
    assert measure.of(asked(1.0, 1.0)) is None
    assert measure.optional


def test_the_pages_own_test_passes(added: dict[str, Any]):
    names = {**added, "pytest": pytest}
    exec(compile(TEST, "adding-a-metric.md", "exec"), names)
    [mark] = names["test_words_are_counted_between_spaces_and_line_feeds"].pytestmark
    for text, words in mark.args[1]:
        names["test_words_are_counted_between_spaces_and_line_feeds"](text=text, words=words)


def test_the_page_names_every_file_and_each_exists():
    table = TEXT.partition("## The files to touch")[2].partition("No other file")[0]
    files = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(files) == 6
    steps = re.findall(r"^## \d\. .*\n\n(.*(?:\n.+)*)", TEXT, re.MULTILINE)
    assert [next(f for f in files if f in step) for step in steps] == files
    for file in {*files, *re.findall(r"`((?:mmedit|tests|docs)/[\w./-]+)`", TEXT)}:
        assert (REPOSITORY / file).exists(), file


def test_the_places_that_the_page_names_are_there():
    assert "rouge_l" in schema.Generation.model_fields
    assert "rouge_l=generation.rouge_l(text, example.accepted)," in inspect.getsource(
        bench_generation
    )
    assert len(columns._FREE) >= 3
    protocol = (REPOSITORY / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert (
        LINE.count("|") == protocol.partition("| `rouge_l` |")[2].partition("\n")[0].count("|") + 2
    )
