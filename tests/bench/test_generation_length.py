"""The length of generations follows from the answers of a run, and is kept when it continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from made_records import REL, asked, generation, record, reliability
from plans import make_plan

from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.folder import generation_length
from mmedit.bench.generation import MARGIN, GenerationSettings, answer_length, longest_answer
from mmedit.bench.plan import Plan
from mmedit.bench.protocol import NoEdit, evaluate
from mmedit.bench.run import run
from mmedit.bench.scoring import measure
from mmedit.cases import EditCase, Example, Probe
from mmedit.config import load_vlm_file
from mmedit.errors import ConfigError, DataError, RunError
from mmedit.progress import silent
from mmedit.records.schema import RunSettings
from mmedit.records.store import read_manifest
from mmedit.report.render import render
from mmedit.report.table import method_table
from mmedit.settings import Overrides
from mmedit.vlm.network import NetworkVLM

SHORT = Example(prompt="what is it?", target="no", image=tiny.IMAGES[0])


def case(target: str, *answers: str, prompt: str = "which?") -> EditCase:
    probe = Example(prompt=prompt, target=target, answers=answers)
    return EditCase(id=target, request=SHORT, probes={Probe.TEXT_LOCALITY: (probe,)})


def tokens(vlm: NetworkVLM, text: str) -> int:
    return len(vlm.frozen.tokenize([f" {text}"])[0])


def plan(max_new_tokens: int | None) -> Plan:
    return make_plan(batch_size=1, max_new_tokens=max_new_tokens)


def test_the_longest_accepted_answer_of_any_probe_decides(tiny_vlm: NetworkVLM):
    long = "a small teal triangle on a light background beside"
    cases = [case("blue"), case("yes", long)]
    assert longest_answer(tiny_vlm, [e for c in cases for e in c.probes[Probe.TEXT_LOCALITY]]) == (
        tokens(tiny_vlm, long)
    )
    assert answer_length(tiny_vlm, cases) == tokens(tiny_vlm, long) + MARGIN


def test_a_long_answer_gets_a_quarter_more_as_far_as_there_is_room(tiny_vlm: NetworkVLM):
    long = "z" * 44
    assert tokens(tiny_vlm, long) == 45
    room = tiny_vlm.frozen.room([SHORT], new_tokens=1)[0] + 1
    assert answer_length(tiny_vlm, [case(long, prompt="")]) == min(room, 45 + 11)


def test_the_margin_ends_where_the_vlm_has_no_room(tiny_vlm: NetworkVLM):
    long = "w" * (tiny.MAX_TOKENS - tiny.QUERIES - 8)
    example = Example(prompt=long, target="no", image=tiny.IMAGES[0])
    cases = [EditCase(id="0", request=example, probes={})]
    length = answer_length(tiny_vlm, cases)
    assert 1 < length == tiny_vlm.frozen.room([example], new_tokens=1)[0] + 1 < 1 + MARGIN
    (answer,) = tiny_vlm.answer([example], max_new_tokens=length)
    assert answer.is_cut_off


def test_a_run_that_continues_keeps_its_length(tiny_vlm: NetworkVLM):
    earlier = plan(7).manifest({})
    short, long = [case("blue")], [case("z" * 20)]
    assert generation_length(plan(None), earlier, tiny_vlm, short) == 7
    assert generation_length(plan(None), None, tiny_vlm, short) == answer_length(tiny_vlm, short)
    assert generation_length(plan(0), None, tiny_vlm, long) == 0
    assert generation_length(plan(3), None, tiny_vlm, long) == 3
    with pytest.raises(RunError, match=r"at most 7 tokens, and the longest .* now has 21\. Choose"):
        generation_length(plan(None), earlier, tiny_vlm, long)


def test_a_run_that_the_room_bounded_continues(tiny_vlm: NetworkVLM):
    cases = [case("z" * 55, prompt="")]
    first = generation_length(plan(None), None, tiny_vlm, cases)
    assert first < tokens(tiny_vlm, "z" * 55)
    earlier = plan(first).manifest({})
    assert generation_length(plan(None), earlier, tiny_vlm, cases) == first


@pytest.mark.parametrize("name", ["max_new_tokens", "fluency_tokens"])
def test_a_length_that_does_not_fit_is_refused_before_anything_is_measured(
    tiny_vlm: NetworkVLM, tmp_path: Path, name: str
):
    generation = GenerationSettings.model_validate({name: 60})
    asked = replace(plan(generation.max_new_tokens), generation=generation)
    cases = [EditCase(id="0", request=SHORT, probes={Probe.RELIABILITY: (SHORT,)})]
    with pytest.raises(DataError, match="case '0', reliability"):
        run(asked, tmp_path, tiny_vlm, cases, lambda _: [], progress=silent)
    assert not list(tmp_path.iterdir())


def test_a_long_answer_beside_a_long_prompt_is_measured_as_far_as_there_is_room(
    tiny_vlm: NetworkVLM, tmp_path: Path
):
    answer = Example(prompt="", target="z" * 50, image=tiny.IMAGES[0])
    prompt = Example(prompt="z" * 50, target="no", image=tiny.IMAGES[0])
    probes = {Probe.RELIABILITY: (answer,), Probe.IMAGE_LOCALITY: (prompt,)}
    cases = [EditCase(id="0", request=answer, probes=probes)]
    (record,), _ = run(plan(None), tmp_path, tiny_vlm, cases, lambda _: [], progress=silent)
    length = read_manifest(tmp_path).run.max_new_tokens
    assert length == tiny_vlm.frozen.room([prompt], new_tokens=1)[0] + 1
    assert record.probes[Probe.IMAGE_LOCALITY][0].cut_off_pre is not None


def test_a_run_of_a_first_version_without_length_gets_one(tiny_vlm: NetworkVLM):
    earlier = plan(0).manifest({}).model_copy(update={"run": RunSettings()})
    assert generation_length(plan(None), earlier, tiny_vlm, [case("blue")]) > 1


def test_the_length_is_set_by_hand_under_its_own_name():
    with pytest.raises(ConfigError, match=r"write --set generation.max_new_tokens=9"):
        Overrides.parse(["vlm.max_new_tokens=9"])
    with pytest.raises(ConfigError, match="unknown key 'max_new_tokens'"):
        load_vlm_file("embedded", {"max_new_tokens": 9})
    assert GenerationSettings(max_new_tokens=9).costly_scores == []
    with pytest.raises(ConfigError, match=r"generation\.max_new_tokens is a setting of free"):
        replace(plan(0), generation=GenerationSettings(max_new_tokens=9))


def test_a_generation_that_was_cut_off_is_marked_before_and_after(tiny_vlm: NetworkVLM):
    asked = [(Probe.RELIABILITY, example) for example in tiny.MIXED]
    for length in (1, 30):
        found = measure(BaseOutputs(tiny_vlm), tiny_vlm, asked, max_new_tokens=length)
        cut = [answer.is_cut_off for answer in tiny_vlm.answer(tiny.MIXED, max_new_tokens=length)]
        assert [one.cut_off_pre for one in found] == [one.cut_off_post for one in found] == cut
    assert any(cut)
    (unmeasured,) = evaluate(tiny_vlm, NoEdit(), [case("blue")])
    assert unmeasured.probes[Probe.TEXT_LOCALITY][0].cut_off_pre is None


def test_generations_that_were_cut_off_are_counted_under_the_table(tmp_path: Path):
    said = generation(contains=1.0)
    rows = [
        record(
            str(number),
            {REL: (asked(1.0, 1.0, generation_post=said, cut_off_post=number < 2),)},
            editor=editor,
        )
        for editor in ("base", "FT")
        for number in range(3 if editor == "FT" else 2)
    ]
    note = "Generations cut off at the run's largest length: 2 of 2 (base), 2 of 3 (FT)."
    for format in ("md", "html"):
        shown = render(method_table(rows, columns="generation"), format)
        assert note.replace("'", "&#39;") in shown or note in shown
    assert "cut off" not in render(method_table(reliability("FT", [1.0, 0.0])), "md")
