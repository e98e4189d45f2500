"""The worked examples of docs/protocol.md are true, and it defines every column."""

import doctest
import re
from pathlib import Path

from mmedit.bench.records import Generation, Locality, Scores

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"


def test_the_worked_examples_are_true():
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 15
    assert results.failed == 0


def test_every_score_of_a_record_is_defined():
    defined = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    for model in (Scores, Locality, Generation):
        assert defined.issuperset(model.model_fields)
