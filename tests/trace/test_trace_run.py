"""A run of causal tracing: which items, what is left in the folder, what is left on the network."""

from __future__ import annotations

import json
import shutil

import pytest
from traced import SETTINGS, WRONG, candidates, lines_of

import mmedit
from mmedit.errors import DataError, ModelError, RunError
from mmedit.trace.captions import notes_of
from mmedit.trace.corruption import corrupted
from mmedit.trace.item_runs import ItemRuns
from mmedit.trace.records import TraceRecord, require_room
from mmedit.trace.run import run_trace
from mmedit.trace.settings import TraceSettings
from mmedit.vlm.network import NetworkVLM


@pytest.fixture(scope="module")
def vlm() -> NetworkVLM:
    return mmedit.load_vlm("embedded")


@pytest.fixture(scope="module")
def folder(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces") / "trace"
    run_trace(vlm, candidates(), folder, settings=SETTINGS)
    return folder


def assert_untouched(vlm: NetworkVLM) -> None:
    for module in vlm.adapter.network.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.grad is None and not p.requires_grad for p in vlm.adapter.network.parameters())


def test_a_trace_leaves_nothing_on_the_network(vlm, folder):
    assert folder.is_dir()
    assert_untouched(vlm)


def test_a_trace_that_fails_leaves_nothing_on_the_network(vlm, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmedit.trace.item_runs.probabilities_of", fail)
    with pytest.raises(KeyboardInterrupt):
        run_trace(vlm, candidates(1), tmp_path / "x", settings=SETTINGS)
    assert_untouched(vlm)


def test_a_trace_writes_records_table_plots_and_page(folder):
    names = {file.name for file in folder.iterdir()}
    assert names >= {"trace.jsonl", "manifest.json", "trace.csv", "trace.md", "trace.html"}
    assert names >= {f"heat-{one}.{kind}" for one in ("block", "mlp", "attention")
                     for kind in ("png", "svg")}  # fmt: skip
    assert names >= {"curves.png", "curves.svg"}


def test_a_stopped_trace_goes_on_after_its_last_whole_line(vlm, folder):
    before = lines_of(folder)
    (folder / "trace.jsonl").write_text(
        "\n".join([*before[:-1], before[-1][:50]]), encoding="utf-8"
    )
    run_trace(vlm, candidates(), folder, settings=SETTINGS)
    assert lines_of(folder) == before


def test_the_number_of_rows_in_a_forward_changes_no_rate(vlm, tmp_path):
    settings, items = SETTINGS.model_copy(update={"components": ("mlp",)}), candidates(1)
    many = run_trace(vlm, items, tmp_path / "many", settings=settings)
    settings = settings.model_copy(update={"rows": 7})
    few = run_trace(vlm, items, tmp_path / "few", settings=settings)
    assert few.recovery("mlp").effect == pytest.approx(many.recovery("mlp").effect, abs=1e-5)


def test_a_folder_of_another_trace_is_refused(vlm, folder):
    with pytest.raises(RunError, match="setting seed differ"):
        run_trace(vlm, candidates(), folder, settings=TraceSettings(draws=2, cells=2, seed=1))


def test_a_folder_that_other_code_began_says_so(vlm, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"components": ("block",), "draws": 1, "cells": 0})
    monkeypatch.setattr("mmedit.trace.run.write_outputs", lambda *_: None)  # which takes longest
    whole = run_trace(vlm, candidates(), tmp_path, settings=settings)
    assert len(whole.manifest.parts) == 1
    assert not any("same code" in note for note in notes_of(whole))
    lines = lines_of(tmp_path)
    monkeypatch.setattr("mmedit.trace.run.version", lambda name: f"0 of {name}")
    for kept, parts in ((len(lines), 2), (2, 2), (1, 2), (0, 1)):
        (tmp_path / "trace.jsonl").write_text("".join(f"{one}\n" for one in lines[:kept]))
        again = run_trace(vlm, candidates(), tmp_path, settings=settings)
        assert len(again.manifest.parts) == parts
        assert any("same code" in note for note in notes_of(again)) == (0 < kept < len(lines))
    (tmp_path / "trace.jsonl").write_text(f"{lines[0]}\n")
    monkeypatch.setattr("mmedit.trace.run.version", lambda name: f"1 of {name}")
    again = run_trace(vlm, candidates(), tmp_path, settings=settings)
    assert [part.first_record for part in again.manifest.parts] == [0, 1]
    (note,) = [note for note in notes_of(again) if "same code" in note]
    assert "from item 1 on python" in note
    assert "from item 2 on python" in note
    assert "mmedit 1 of mmedit" in note


def test_a_damaged_line_is_one_error_that_names_its_row(vlm, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t")
    lines = lines_of(folder)
    record = json.loads(lines[1])
    ragged = record | {"restored": {"mlp": {"first": [[0.1], [0.1, 0.2]], "answer": [[0.1]]}}}
    cells = record | {"cells": record["cells"] | {"tokens": [1]}}
    draws = record | {"clean": {"first": [], "answer": []}}
    fewer = record | {"restored": {"mlp": record["restored"]["mlp"]}}
    for damaged, said in (
        ("{", "row 2: .*delete the row to trace that item again"),
        (json.dumps(ragged), "row 2: .*a probability of every group in every layer"),
        (json.dumps(cells), "row 2: .*every cell in their layers"),
        (json.dumps(draws), "row 2: .*as many draws"),
        (json.dumps(fewer), "row 2: .*is not an item of manifest.json with its layers"),
        (json.dumps(record | {"id": "another"}), "row 2: 'another' is not an item"),
        (lines[0], "row 2: .*or comes twice"),
    ):
        content = "".join(f"{one}\n" for one in (lines[0], damaged, *lines[2:]))
        (tmp_path / "t" / "trace.jsonl").write_text(content, encoding="utf-8")
        for use in (
            lambda: mmedit.read_trace(tmp_path / "t"),
            lambda: run_trace(vlm, candidates(), tmp_path / "t", settings=SETTINGS),
            lambda: require_room(tmp_path / "t"),
        ):
            with pytest.raises(DataError, match=said):
                use()


def test_records_of_earlier_versions_are_read(folder):
    record = json.loads(lines_of(folder)[0])
    for grid, sides in ((2, (2, 2)), (0, None)):
        record["cells"]["grid"] = grid
        cells = TraceRecord.model_validate_json(json.dumps(record)).cells
        assert cells
        assert cells.grid == sides


def test_only_what_the_base_model_answers_right_is_traced(vlm, tmp_path):
    with pytest.raises(DataError, match="the base model answers otherwise: 1"):
        run_trace(vlm, {"a": WRONG}, tmp_path, settings=TraceSettings(corruption="text_noise"))
    with pytest.raises(DataError, match="no image: 1"):
        run_trace(vlm, {"a": WRONG}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_swap_takes_an_image_that_changes_the_answer(vlm, tmp_path):
    settings = TraceSettings(corruption="image_swap", components=("block",), cells=0)
    trace = run_trace(vlm, candidates(8), tmp_path, settings=settings)
    assert trace.records
    for record in trace.records:
        assert record.other not in (None, record.image)
        assert record.clean.answer[0] > 0.5 > record.corrupt.answer[0]
    left_out = sum(trace.manifest.left_out.values())
    assert len(trace.records) + left_out == len(candidates(8).examples)


def test_restoring_all_that_the_last_layer_reads_brings_the_answer_back(folder):
    for record in mmedit.read_trace(folder).records:
        names = [group.name for group in record.groups]
        at_end = record.restored["block"].first[names.index("last prompt token")][-1]
        assert at_end == pytest.approx(record.clean.first[0], abs=1e-5)


def test_the_noise_of_an_item_is_the_same_whatever_stands_beside_it(vlm):
    items = candidates().examples
    name = list(items)[-1]
    _, among = corrupted(vlm, name, items, (SETTINGS, 1.0))
    _, alone = corrupted(vlm, name, {name: items[name]}, (SETTINGS, 1.0))
    assert among
    assert alone
    assert all(one.equal(two) for one, two in zip(among.features, alone.features, strict=True))
    assert not among.features[0].equal(among.features[1])


def test_an_edited_vlm_is_refused(vlm, tmp_path):
    request = next(iter(candidates(1).examples.values()))
    edited = mmedit.load_editor("ft", vlm, steps=1).apply(vlm, [request])
    with pytest.raises(ModelError, match=r"give vlm\.base"):
        run_trace(edited, candidates(1), tmp_path)


def test_groups_share_no_position_and_leave_out_none(vlm):
    from mmedit.trace.groups import groups_of

    for example in candidates().examples.values():
        runs = ItemRuns(vlm, example)
        groups = groups_of(runs.places, 3)
        whole = groups.masks[: len(groups.groups)].int().sum(0)
        prompt = runs.places.is_real[0] & ~runs.places.is_answer[0]
        assert whole.equal(prompt.int())
        assert groups.masks[groups.cells].int().sum(0).equal(runs.places.is_image[0].int())
