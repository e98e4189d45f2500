"""The worked examples of docs/protocol.md are true, and it defines every column."""

import doctest
import re
from pathlib import Path

from mmedit.records.schema import Generation, Locality, Scores

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_worked_examples_are_true():
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 40
    assert results.failed == 0


def test_every_score_of_a_record_is_defined():
    defined = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    for model in (Scores, Locality, Generation):
        assert defined.issuperset(model.model_fields)


def test_every_score_of_a_record_has_a_worked_example():
    code = "\n".join(
        re.findall(r"^    (?:>>>|\.\.\.) (.*)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    )
    shown_by = {
        "top10_ordered_all": "topk_ordered",
        "top10_set_answer": "topk_set",
        "judge": "verdict",
    }
    for model in (Scores, Locality, Generation):
        for score in model.model_fields:
            assert re.search(rf"\b{shown_by.get(score, score)}\b", code), score
