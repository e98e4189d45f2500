"""All rows of a run are checked before anything is measured or fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_families
from PIL import Image
from plans import make_plan
from tiny import random_image

from mmedit.bench.plan import Plan
from mmedit.bench.rows import require_sound_rows
from mmedit.bench.run import run
from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.base import Editor
from mmedit.errors import DataError
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.progress import silent
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

LONG = "what color is the shape? " * 50


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("test", limit=6))


def case(id: str, **given: object) -> EditCase:
    request = Example(prompt="what color is the shape?", target="blue", image=random_image(0))
    return EditCase(id=id, request=replace(request, **given))


def plan() -> Plan:
    editors: dict[str, Editor] = {"IKE": IKE(IKEConfig(k=1))}
    return make_plan(vlm_name="embedded", dataset="easyvqa", limit=6, editors=editors)


def refused(vlm: VLM, cases: Sequence[EditCase], new_tokens: int = 0) -> str:
    with pytest.raises(DataError) as raised:
        require_sound_rows(vlm, cases, new_tokens=new_tokens)
    return str(raised.value)


def test_rows_that_can_be_asked_pass(tiny_vlm: NetworkVLM):
    require_sound_rows(tiny_vlm, [case("a")], new_tokens=4)


def test_every_fault_is_listed_with_case_probe_and_reason(tiny_vlm: NetworkVLM, tmp_path: Path):
    (tmp_path / "text.png").write_text("no image")
    long = Example(prompt=LONG, target="no")
    cases = [
        case("sound"),
        EditCase(id="b", request=case("").request, probes={Probe.TEXT_LOCALITY: (long,)}),
        case("c", image=tmp_path / "nowhere.png"),
        case("d", image=tmp_path / "text.png"),
        case("e", image=tmp_path),
        case("f", prompt="is <image> red?"),
    ]
    said = refused(tiny_vlm, cases)
    assert said.startswith("5 rows cannot be used with this VLM; repair them, or take their cases")
    assert f"case 'b', text_locality: {LONG[:60]!r} makes a sequence of" in said
    assert f"case 'c', reliability: image not found: {tmp_path / 'nowhere.png'}" in said
    assert "case 'd', reliability: " in said
    assert "is a folder" in said
    assert "case 'f', reliability: 'is <image> red?' or its context or answer contains" in said
    assert "sound" not in said


def test_more_than_ten_faults_are_counted(tiny_vlm: NetworkVLM):
    said = refused(tiny_vlm, [case(str(number), prompt=LONG) for number in range(14)])
    assert said.startswith("14 rows")
    assert said.count("\n- case ") == 10
    assert said.endswith("\n- and 4 more")


def test_a_generation_needs_room_behind_its_prompt(tiny_vlm: NetworkVLM):
    require_sound_rows(tiny_vlm, [case("a")], new_tokens=8)
    assert "1 row cannot be used" in refused(tiny_vlm, [case("a")], new_tokens=60)


def test_a_request_that_is_no_probe_is_checked_too(tiny_vlm: NetworkVLM):
    asked = EditCase(
        id="a",
        request=Example(prompt=LONG, target="no"),
        probes={Probe.RELIABILITY: (case("").request,)},
    )
    assert "case 'a', request: " in refused(tiny_vlm, [asked])


def test_an_image_that_the_image_processor_refuses_is_found_by_its_size(tmp_path: Path):
    vlm = load_vlm(tiny_families.save_family("qwen2_5_vl", tmp_path / "qwen"))
    Image.new("RGB", (4_000, 10)).save(tmp_path / "strip.png")
    said = refused(vlm, [case("a"), case("b", image=tmp_path / "strip.png")])
    assert "1 row cannot be used" in said
    assert f"case 'b', reliability: {tmp_path / 'strip.png'}" in said


def test_a_run_with_a_fault_leaves_no_folder_and_measures_nothing(vlm, cases, tmp_path: Path):
    bad = EditCase(id="bad", request=Example(prompt=LONG * 10, target="no"))
    with pytest.raises(DataError, match="case 'bad', reliability"):
        run(plan(), tmp_path / "run", vlm, [*cases, bad], lambda _: cases, progress=silent)
    assert not (tmp_path / "run").exists()


def test_training_cases_are_checked_before_an_editor_is_fitted(vlm, cases, tmp_path: Path):
    bad = EditCase(id="bad", request=Example(prompt=LONG * 10, target="no"))
    with pytest.raises(DataError, match="case 'bad', reliability"):
        run(plan(), tmp_path, vlm, cases, lambda _: [*cases, bad], progress=silent)
