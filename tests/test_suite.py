"""Whole tables from one file: every file fits what it names, and one is run in small."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mmedit.cases import Split
from mmedit.catalog import names
from mmedit.config import load_editors, load_mode, load_table, named_vlms, read_overrides
from mmedit.config_files import Block
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.datasets.easyvqa.pictures import known_pictures, load_pictures
from mmedit.errors import ConfigError, MmeditError, UnknownNameError
from mmedit.report.papers import load_published
from mmedit.report.render import page
from mmedit.storage import config_folder
from mmedit.suite import RunOptions, run_suite

TABLES = sorted(file.stem for file in (config_folder() / "table").glob("*.yaml"))
SMALL = (
    "--limit", "2", "--no-generate", "--set", "sequential.gaps=[1]", "--batch-size", "8",
    *(o for name in ("mend", "ke", "serac", "serac-text")
      for o in ("--set", f"{name}.training.steps=1", "--set", f"{name}.training.batch_size=4")),
    "--set", "ft.steps=1", "--set", "ft-l.steps=1",
)  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_every_table_names_what_there_is(name):
    found, file = load_table(name)
    assert found == name
    for block in file.named_blocks().values():
        assert block.vlm in named_vlms()
        assert block.dataset in names("dataset")
        assert load_editors(block.editors, block.vlm)
        assert load_mode(block.mode, read_overrides(block.settings))


@pytest.mark.parametrize(
    "name", [name for name in TABLES if name not in ("embedded", "beside", "photo")]
)
def test_every_row_of_a_papers_table_has_its_published_value(name):
    _, file = load_table(name)
    for block in file.named_blocks().values():
        paper = load_published(block.published or "")
        assert block.published_model is not None
        assert block.published_dataset is not None
        values = paper.values[block.published_model][block.published_dataset]
        for label in load_editors(block.editors, block.vlm):
            known = {method: (method, *paper.methods.get(method, ())) for method in values}
            assert any(label in others for others in known.values()), (label, block.title)


@pytest.fixture
def few_training_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let easy-VQA have 60 pictures to train on instead of 3,227."""

    def few(split: Split):
        return known_pictures(split)[: 60 if split == "train" else None]

    monkeypatch.setattr(easyvqa, "known_pictures", few)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plots out of the pages: they take a quarter of the time of a small run."""
    monkeypatch.setattr(page, "sequence_figures", lambda *_, **__: {})


@pytest.mark.usefixtures("few_training_cases", "no_plots")
def test_the_table_of_the_embedded_vlm_runs_in_small(mmedit_, tmp_path):
    command = ("bench", "embedded", "--out", tmp_path / "t", *SMALL)
    shown = mmedit_(*command)
    assert shown.code == 0, shown.err
    for title in ("Questions, each", "Captions, each", "Questions, one", "Captions, one"):
        assert title in shown.out
    blocks = [folder.name for folder in (tmp_path / "t").iterdir() if folder.is_dir()]
    assert sorted(blocks) == ["caption", "caption-sequential", "vqa", "vqa-sequential"]
    written = (tmp_path / "t" / "table.md").read_text()
    assert written.count("\n## ") + written.startswith("## ") == 4
    # trained once on the same cases
    assert not (tmp_path / "t" / "vqa-sequential" / "editors").exists()
    manifests = [json.loads((tmp_path / "t" / b / "manifest.json").read_text()) for b in blocks]
    by_dataset = {m["dataset"]: m["training_seconds"]["MEND"] for m in manifests}
    assert all(m["training_seconds"]["MEND"] == by_dataset[m["dataset"]] for m in manifests)
    again = mmedit_(*command)
    assert again.err.count("continuing the run") == 4
    assert (tmp_path / "t" / "table.md").read_text() == written


def write_table(folder: Path, **changed: object) -> Path:
    block = {"dataset": "easyvqa", "limit": 2, "editors": ["ft"], "settings": ["ft.steps=1"]}
    named = {"published_model": "BLIP-2 OPT", "published_dataset": "E-VQA"}
    file = folder / "mine.yaml"
    file.write_text(
        yaml.safe_dump({"published": "liveedit", "blocks": {"a": block | named}} | changed)
    )
    return file


def test_published_values_stand_beside_those_of_the_table(mmedit_, tmp_path):
    file = write_table(tmp_path)
    shown = mmedit_("bench", file, "--out", tmp_path / "t", "--no-generate")
    assert shown.code == 0, shown.err
    assert "LiveEdit, Table 2, one edit" in shown.out
    assert "20.57" in shown.out  # of the unedited model
    assert "Not published there: FT-M." in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "embeded"), "Did you mean 'embedded'"),
        (("bench", "embedded", "--editor", "ft"), "leave out --vlm, --editor, --dataset"),
        (("bench", "--editor", "ft"), "--out is missing: name the output folder, for example"),
        (("bench", "--mode", "sequntial", "--out", "x"), "Did you mean 'sequential'"),
        (("bench", "--set", "batch.k=3", "--out", "x"), "batch.* is for --mode batch"),
        (("bench", "--set", "ft.steps=3", "--out", "x"), "ft.* is for --editor ft"),
        (("bench", "--set", "speech.clip_score=a/b", "--out", "x"), "--set generation.clip_score"),
        (("bench", "--vlm", "", "--out", "x"), "named ''"),
        (("bench", "--editor", "", "--out", "x"), "named ''"),
        (("bench", "--mode", "", "--out", "x"), "named ''"),
        (("bench", "--out", ""), "the name of a folder is empty"),
        (("bench", "--generate", "false"), "--generate and --no-generate take no value"),
        (("bench", "--vlm", "./gone", "--out", "x"), "the folder ./gone does not exist"),
        (
            ("bench", "--dataset", "json", "--set", "dataset.test=one.json", "--out", "x"),
            "--set dataset.train=FILE.json",
        ),
        (("bench", "--mode", "batch", "--set", "batch.kk=3", "--out", "x"), "Did you mean 'k'"),
        (
            ("bench", "--mode", "sequential", "--limit", "3", "--set", "sequential.gaps=[9]",
             "--out", "x"),
            "needs at least 10 edits and there are 3",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message_before_anything_is_loaded(
    mmedit_, monkeypatch, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(load_pictures("test")[0].path, "0.png")
    record = {"src": "what?", "alt": "red", "image": "0.png"}
    (tmp_path / "one.json").write_text(json.dumps([record]))
    shown = mmedit_(*arguments)
    assert shown.code == 2
    assert message in shown.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"blocks": {}}, "blocks"),
        ({"blocks": {"../x": {"dataset": "easyvqa"}}}, "cannot be the name of a folder"),
        ({"blocks": {"x": {"datasets": "easyvqa"}}}, "Did you mean 'dataset'"),
        ({"blocks": {"x": {"dataset": "easyvqa"}}}, "editors"),
    ],
)
def test_a_faulty_table_says_what_is_wrong(tmp_path, written, message):
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump(written))
    with pytest.raises(ConfigError, match=message):
        load_table(str(file))[1].named_blocks()


def test_a_table_that_is_not_there_names_those_that_are():
    with pytest.raises(UnknownNameError, match="mmedit-blip2"):
        load_table("mmedit-blip")


def test_several_datasets_in_one_call_are_blocks_of_one_table(mmedit_, tmp_path):
    datasets = ("--dataset", "easyvqa", "--dataset", "easyvqa-caption")
    few = ("--limit", "2", "--no-generate", "--set", "ft.steps=1")
    shown = mmedit_("bench", "--editor", "ft", *datasets, *few, "--out", tmp_path / "t")
    assert shown.code == 0, shown.err
    written = (tmp_path / "t" / "table.md").read_text()
    assert "## easyvqa\n" in written
    assert "## easyvqa-caption\n" in written
    assert (tmp_path / "t" / "easyvqa-caption" / "records.jsonl").is_file()


def test_a_suite_runs_from_python_and_continues(tmp_path):
    block = Block(dataset="easyvqa", editors=("ft",), limit=3, settings=("ft.steps=1",))
    blocks = {
        "questions": block,
        "captions": block.model_copy(update={"dataset": "easyvqa-caption"}),
    }
    options = RunOptions(limit=2, generate=False)
    told: list[str] = []
    results = run_suite(
        blocks, tmp_path, options=options, progress=lambda task, *_: told.append(task)
    )
    assert [result.name for result in results] == ["questions", "captions"]
    assert told.count("loading the VLM") == 2  # begun and done, once for both blocks
    for result in results:
        assert list(result.table.index) == ["base", "FT-M"]
        assert {record.editor for record in result.records} == {"base", "FT-M"}
        assert result.comparison is None
        assert result.manifest.limit == 2
        assert result.folder == tmp_path / result.name
        files = {file.name for file in result.folder.iterdir()}
        assert files >= {"records.jsonl", "manifest.json", "table.md", "table.tex", "report.html"}
    assert "## questions" in (tmp_path / "table.md").read_text()
    again = run_suite(blocks, tmp_path, options=options)
    assert [result.records for result in again] == [result.records for result in results]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"published": "nope"}, "no published table named 'nope'"),
        ({"published": "mmedit", "published_model": "BLIP"}, "published model named 'BLIP'"),
        ({"settings": ("mend.lr=1",)}, "is for --editor mend"),
        (
            {"editors": ("mend",), "settings": ("mend.training.trackers=[wandb]",)},
            "the tracker 'wandb' is not installed",
        ),
    ],
)
def test_a_wrong_block_is_refused_before_anything_is_loaded(tmp_path, changed, message):
    block = Block.model_validate({"editors": ("ft",), "limit": 2} | changed)
    with pytest.raises(MmeditError, match=message):
        run_suite({"a": block}, tmp_path)
    assert not (tmp_path / "a").exists()
