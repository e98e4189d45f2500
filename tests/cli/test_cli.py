"""The command line: what it prints, and that wrong input is one message and exit code 2."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_families
from PIL import Image
from run_folders import edits, write_run

import mmedit.vlm.loading
from mmedit import catalog, cli
from mmedit.config_files import read_editor
from mmedit.datasets.easyvqa.pictures import load_pictures
from mmedit.methods import EDITORS

RESULTS = Path(__file__).parents[2] / "results"
SAMPLES = Path(__file__).parents[2] / "data" / "samples"
VQA, CAPTION = RESULTS / "embedded-vqa", RESULTS / "embedded-caption"
PICTURE = str(load_pictures("test")[0].path)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch):
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", load)


def edit(*more: object) -> tuple[object, ...]:
    given = {"--prompt": "what color is the shape?", "--target": "blue", "--image": PICTURE}
    given |= dict(zip(more[::2], more[1::2], strict=True))
    return ("edit", *(part for pair in given.items() for part in pair))


@pytest.mark.parametrize("what", ["editors", "vlms", "datasets"])
def test_ls_lists_names(mmedit_, what):
    shown = mmedit_("ls", what)
    assert shown.code == 0
    assert {"editors": "mend", "vlms": "embedded", "datasets": "easyvqa-caption"}[what] in shown.out


def test_ls_editors_shows_paper_and_what_is_edited_and_learnt(mmedit_):
    shown = mmedit_("ls", "editors").out
    mend = "Mitchell et al. 2022; edits weights; learns a hypernetwork"
    assert f"Settings: MMEdit's for BLIP-2. {mend}" in shown
    assert "De-VQA 2026; edits weights; learns a hypernetwork" in shown


@pytest.mark.parametrize("name", catalog.names("editor"))
def test_what_a_file_of_settings_says_of_its_method_is_true(name: str):
    file = read_editor(name)
    method = EDITORS[file.method]
    assert file.paper
    assert file.edits
    assert file.learns.startswith("nothing") != method.learns
    if name == file.method:
        assert method.paper.startswith(file.paper)


def test_ls_vlms_shows_sites_and_families(mmedit_):
    shown = mmedit_("ls", "vlms").out
    assert "llava-1.5-7b LLaVA-1.5 with Vicuna-7B" in shown
    assert "language model.language_model.layers.{29,30,31}.mlp.{up_proj,down_proj}" in shown
    assert "qwen2.5-vl qwen2_5_vl" in shown
    assert "auto any other that transformers knows, with a chat template" in shown


def test_bench_runs_on_a_folder_of_another_family(mmedit_, tmp_path: Path):
    folder = tiny_families.save_family("qwen2_5_vl", tmp_path / "model")
    run = tmp_path / "run"
    shown = mmedit_(
        "bench", "--vlm", folder, "--editor", "ft", "--limit", 2, "--out", run,
        "--set", "editor.steps=2", "--set", "vlm.dtype=bfloat16",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert [record["editor"] for record in records] == ["base", "base", "FT-M", "FT-M"]
    assert all(len(record["probes"]) == 5 for record in records)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ls", "editor"), "no list named 'editor'. Did you mean 'editors'"),
        (edit("--editor", "mned"), "Did you mean 'mend'"),
        (edit("--vlm", "embeded"), "Did you mean 'embedded'"),
        (edit("--dataset", "easyvq"), "Did you mean 'easyvqa'"),
        (edit("--target", " "), "target of 'what color is the shape?' is empty"),
        (edit("--target", "cut off \udcff"), "contains half of a character"),
        (edit("--prompt", "cut off \udcff"), "contains half of a character"),
        (edit("--image", "nowhere.png"), "image not found: nowhere.png"),
        (edit("--image", "."), ". is a folder; expected an image file"),
        (edit("--image", "/dev/zero"), "/dev/zero is not a regular file"),
        (edit("--image", "a" * 5_000), "cannot be read: File name too long"),
        (edit("--set", "editor.lrr=1"), "unknown key 'lrr'. Did you mean 'lr'"),
        (edit("--prompt", " "), "the text is empty"),
        (edit("--vlm", ""), "named ''"),
        (edit("--set", "mend.lr=1"), "--set mend.* is for --editor mend"),
        (("fit", "--editor", "ft", "--out", "x"), "ft has nothing to learn"),
        (("fit", "--limit", "9", "--validation", "9", "--out", "x"), "leaves none of the 9 cases"),
        (("bench", "--editor", "ft", "--limit", "0", "--out", "x"), "limit"),
        (("bench", "--editor", "ft", "--limit", "1", "--out", PICTURE), "cannot make the folder"),
        (
            ("bench", "--no-generate", "--set", "generation.fluency_tokens=9", "--out", "x"),
            "generation.fluency_tokens is a setting of free generations, which --no-generate turns",
        ),
        (("fit", "--limit", "1", "--out", PICTURE), "cannot make the folder"),
        (("table", "nowhere"), "cannot read nowhere"),
        (("table", "nowhere", "--format", "latx"), "Did you mean 'latex'"),
        (("table", "nowhere", "--published", "mmedti"), "Did you mean 'mmedit'"),
        (("table", VQA, "--columns", "localty"), "Did you mean 'locality'"),
        (("table", VQA, "--columns", "generation"), "none of the scores of --columns generation"),
        (("table", VQA, "--published", "mmedit"), "--published-model"),
        (("compare", VQA, f"{VQA}:MND"), "Did you mean 'MEND'"),
        (("compare", VQA, VQA), "to compare; write RUN:EDITOR"),
        (("plot", VQA, "--out", PICTURE), "cannot make the folder"),
    ],
)
def test_wrong_input_is_one_message_before_the_model_is_loaded(mmedit_, arguments, message):
    shown = mmedit_(*arguments)
    assert shown.code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.usefixtures("no_model")
def test_a_broken_or_giant_image_is_refused(mmedit_, tmp_path: Path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    whole = Path(PICTURE).read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    assert "is not an image" in mmedit_(*edit("--image", tmp_path / "text.png")).err
    assert "is broken" in mmedit_(*edit("--image", tmp_path / "torn.png")).err
    monkeypatch.setattr("mmedit.images.MAX_PIXELS", 100)
    Image.new("RGB", (20, 20)).save(tmp_path / "giant.png")
    giant = mmedit_(*edit("--image", tmp_path / "giant.png"))
    assert giant.code == 2
    assert "20 x 20 = 400 pixels; expected at most 100" in giant.err


def test_an_edit_that_is_too_long_is_refused_before_anything_is_fitted(mmedit_, monkeypatch):
    monkeypatch.setattr("mmedit.cli.edit.fit_editor", lambda *_, **__: pytest.fail("was fitted"))
    shown = mmedit_(*edit("--prompt", "what? " * 500, "--editor", "mend"))
    assert shown.code == 2
    assert "this model takes 512" in shown.err


def test_edit_prints_the_answer_before_and_after_and_three_unrelated_ones(mmedit_):
    shown = mmedit_(*edit("--target", "light blue"))
    assert shown.code == 0
    assert "as expected" in shown.out
    assert shown.out.count("unrelated") == 3
    assert "The VLM itself is unchanged" in shown.out


def test_fit_then_edit_with_the_fitted_editor(mmedit_, tmp_path):
    training = ("--set", "editor.training.steps=3", "--set", "editor.training.batch_size=4")
    small = (*training, "--limit", "12")
    fitted = mmedit_("fit", "--editor", "mend", *small, "--out", tmp_path / "mend")
    assert fitted.code == 0
    assert "was fitted on 12 cases" in fitted.out
    assert mmedit_(*edit("--editor", tmp_path / "mend")).code == 0
    for part in ("editor", "mend"):
        changed = mmedit_(*edit("--editor", tmp_path / "mend", "--set", f"{part}.lr=1"))
        assert changed.code == 2
        assert "fixed" in changed.err


def test_fit_needs_no_test_file_and_edit_shows_the_probes_there_are(mmedit_, tmp_path):
    file = tmp_path / "mine.json"
    shutil.copy(PICTURE, tmp_path / "0.png")
    file.write_text(json.dumps([{"src": "what?", "alt": "red", "image": "0.png"}]))
    few = ("--set", "ft.steps=1", "--dataset", "json", "--set", f"dataset.test={file}")
    shown = mmedit_(*edit("--editor", "ft"), *few)
    assert shown.code == 0, shown.err
    assert "unrelated" not in shown.out
    train = ("--dataset", "json", "--set", f"dataset.train={file}")
    fitted = mmedit_("fit", "--editor", "ike", *train, "--out", tmp_path / "ike")
    assert "the test file is not named" not in fitted.err


def test_edit_says_that_an_editor_it_must_fit_is_thrown_away(mmedit_):
    few = ("--dataset", "evqa", "--set", f"dataset.root={SAMPLES / 'evqa'}")
    shown = mmedit_(*edit("--editor", "ike"), *few, "--set", "ike.k=1")
    assert shown.code == 0, shown.err
    assert "thrown away" in shown.err
    assert "mmedit fit --editor ike" in shown.err


def test_show_lists_every_setting_with_its_value_for_a_vlm(mmedit_):
    shown = mmedit_("show", "editor", "mend", "--vlm", "embedded")
    assert shown.code == 0
    assert "training.batch_size 2 16" in shown.out
    assert "Mitchell et al. 2022" in shown.out
    assert "mmedit fit --editor mend" in shown.out
    assert "It needs no fitting" in mmedit_("show", "editor", "ft").out
    assert "Did you mean 'mend'" in mmedit_("show", "editor", "mnd").err


def test_report_is_made_again_from_the_records_of_a_run(mmedit_, run_folder):
    page = run_folder / "report.html"
    written = page.read_text()
    assert "data:image/webp;base64" in written
    page.unlink()
    shown = mmedit_("report", run_folder)
    assert shown.code == 0
    assert page.read_text().count("data:image/webp") == written.count("data:image/webp")


def test_report_of_a_run_whose_images_are_gone_has_none(mmedit_, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "moved")
    manifest = json.loads((tmp_path / "moved" / "manifest.json").read_text())
    manifest["dataset"] = "evqa"
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest))
    shown = mmedit_("report", tmp_path / "moved")
    assert shown.code == 0
    assert "the report has no images" in shown.err
    assert "data:image/webp" not in (tmp_path / "moved" / "report.html").read_text()


def test_a_run_folder_with_brackets_is_named_as_it_is(mmedit_, tmp_path):
    few = ("--editor", "ft", "--set", "ft.steps=1", "--limit", "1", "--no-generate")
    shown = mmedit_("bench", *few, "--out", tmp_path / "run_[b]")
    assert shown.code == 0
    assert "run_[b]/" in shown.out


def test_an_edit_that_breaks_the_vlm_says_so(mmedit_):
    shown = mmedit_(*edit("--editor", "ft"), "--set", "editor.lr=1e30", "--set", "editor.steps=3")
    assert shown.code == 0
    assert "FT-M broke the VLM: NaN or infinite outputs on 4 of 4 questions" in shown.err


@pytest.mark.parametrize("command", ["bench", "fit", "edit", "demo", "report", "push"])
def test_help_shows_defaults_and_examples(mmedit_, command):
    shown = mmedit_(command, "--help").out
    assert "Examples:" in shown
    assert "<bool>" not in shown
    if command == "bench":
        for default in ("mend", "embedded", "easyvqa", "independent", "runs/TABLE"):
            assert f"[default: ({default}" in shown


BENCH = ("bench", "--editor", "ft", "--limit", "3")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `BENCH` writes."""
    folder = tmp_path_factory.mktemp("run") / "ft"
    cli.app([*BENCH, "--out", str(folder)], standalone_mode=False)
    return folder


def test_bench_writes_records_and_tables_and_continues(mmedit_, run_folder):
    command = (*BENCH, "--out", run_folder)
    files = {file.name for file in run_folder.iterdir()}
    assert files >= {"records.jsonl", "manifest.json", "table.md", "table.tex", "report.html"}
    before = (run_folder / "records.jsonl").read_bytes()
    again = mmedit_(*command)
    assert again.code == 0
    assert "continuing the run" in again.err
    assert "FT-M" in again.out
    assert (run_folder / "records.jsonl").read_bytes() == before
    refused = mmedit_(*command[:3], "--limit", "2", "--out", run_folder)
    assert refused.code == 2
    assert "holds a run with limit=3, and this command has limit=2. A limit can" in refused.err


@pytest.mark.parametrize(
    ("format", "sign"),
    [
        ("md", "| FT-M"),
        ("latex", "\\toprule"),
        ("csv", "FT-M,Rel,EM,"),
        ("html", '<th scope="row">FT-M</th>'),
        ("json", '"editor": "FT-M"'),
    ],
)
def test_table_is_made_from_the_records_of_runs(mmedit_, run_folder, format, sign):
    shown = mmedit_("table", run_folder, run_folder, "--format", format)
    assert shown.code == 0
    assert sign in shown.out


def test_published_values_stand_beside_those_of_a_run(mmedit_):
    named = ("--published-model", "BLIP-2 OPT", "--published-dataset", "e-vqa")
    shown = mmedit_("table", VQA, "--published", "mmedit", *named)
    assert "MEND | Rel | EM (exact_match) | 100.0 −1.3 | 99.40 | exact_match | +0.6" in shown.out
    assert "Not published there: FT-L, FT-M." in shown.out


def test_runs_of_different_datasets_have_a_table_each(mmedit_):
    shown = mmedit_("table", VQA, CAPTION)
    assert "## embedded, easyvqa | editor" in shown.out
    assert "## embedded, easyvqa-caption | editor" in shown.out
    assert "##" not in mmedit_("table", VQA).out


def test_one_block_of_a_table_is_run_alone(mmedit_, tmp_path):
    block = {"vlm": "embedded", "dataset": "easyvqa"}
    table = tmp_path / "two.yaml"
    table.write_text(json.dumps({"editors": ["ft"], "blocks": {"one": block, "other": block}}))
    chosen = ("--block", "other", "--limit", 1, "--no-generate", "--out", tmp_path / "out")
    assert mmedit_("bench", table, *chosen).code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]
    shown = mmedit_("bench", table, "--block", "more", "--out", tmp_path / "out")
    assert shown.code == 2
    assert "no block of the table" in shown.err
    assert "There are: one, other" in shown.err
    shown = mmedit_("bench", "--block", "one", "--out", tmp_path / "out")
    assert shown.code == 2
    assert "name the table" in shown.err


@pytest.mark.parametrize("command", ["table", "plot", "report", "compare", "bench"])
def test_a_run_whose_records_stand_there_twice_is_refused(mmedit_, run_folder, tmp_path, command):
    shutil.copytree(run_folder, tmp_path / "run")
    records = tmp_path / "run" / "records.jsonl"
    records.write_bytes(records.read_bytes() * 2)
    arguments = {
        "table": (tmp_path / "run",),
        "plot": (tmp_path / "run", "--out", tmp_path / "plots"),
        "report": (tmp_path / "run",),
        "compare": (tmp_path / "run", run_folder),
        "bench": (*BENCH[1:], "--out", tmp_path / "run"),
    }
    shown = mmedit_(command, *arguments[command])
    assert shown.code == 2
    assert "records.jsonl, row 7: the record of base, case" in shown.err
    assert "is in row 1 already" in shown.err


def test_a_run_with_markup_and_formulas_in_its_name_is_shown_as_it_is(mmedit_, tmp_path):
    plain, odd = tmp_path / "plain", tmp_path / "[/b] $x^$ _y"
    shutil.copytree(write_run(plain, *edits("MEND", [1.0, 0.0, 1.0])), odd)
    assert f"MEND ({odd})" in mmedit_("table", plain, odd).out
    plots = tmp_path / "p[b]x[/b][/x]$y^$"
    shown = mmedit_("plot", plain, odd, "--out", plots)
    assert shown.code == 0
    assert f"written: {plots}" in shown.out
    assert str(odd) in mmedit_("compare", f"{plain}:MEND", f"{odd}:MEND").out


def test_runs_of_different_datasets_have_a_folder_of_plots_each(mmedit_, tmp_path):
    runs = [
        write_run(tmp_path / name, *edits("MEND", [1.0, 0.0]), vlm="embedded", dataset=name)
        for name in ("easyvqa", "easyvqa-caption")
    ]
    shown = mmedit_("plot", *runs, "--out", tmp_path)
    assert "2: embedded, easyvqa-caption" in shown.out
    for folder in (tmp_path / "1", tmp_path / "2"):
        assert (folder / "splits.svg").exists()
        assert {file.suffix for file in folder.iterdir()} == {".svg", ".png"}


def test_compare_shows_differences_and_the_edits_where_methods_disagree(mmedit_):
    shown = mmedit_("compare", f"{VQA}:MEND", f"{VQA}:FT-M", "--show", "1")
    assert shown.code == 0
    assert "I-Loc EM 99.0 86.3 −12.7" in shown.out
    assert "41 questions that only one answered exactly; 1 of them:" in shown.out
    assert shown.out.count("expected") == 1


def test_runs_that_differ_never_share_a_row(mmedit_, run_folder, tmp_path):
    other = tmp_path / "other"
    command = ("bench", "--editor", "ft", "--set", "editor.steps=1", "--limit", "3")
    assert mmedit_(*command, "--out", other).code == 0
    shown = mmedit_("table", run_folder, other)
    assert "| FT-M " in shown.out
    assert f"| FT-M ({other})" in shown.out


def test_a_bad_line_of_records_is_named(mmedit_, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "bad")
    lines = (run_folder / "records.jsonl").read_text().splitlines()
    lines[1] = json.dumps({"case_id": "x"})
    (tmp_path / "bad" / "records.jsonl").write_text("\n".join(lines) + "\n")
    shown = mmedit_("table", tmp_path / "bad")
    assert shown.code == 2
    assert "records.jsonl, row 2" in shown.err


def test_the_demos_write_to_different_folders():
    assert len({show.out for show in cli.demo.SHOWS.values()}) == len(cli.demo.SHOWS)


def test_demo_runs_end_to_end_and_writes_a_report(mmedit_, tmp_path, monkeypatch):
    quick = replace(cli.demo.SHOWS["embedded"], editors=("ft-l", "ft"), shown="FT-M")
    monkeypatch.setitem(cli.demo.SHOWS, "embedded", quick)
    monkeypatch.chdir(tmp_path)
    shown = mmedit_("demo", "--edits", "3")  # into runs/demo
    assert shown.code == 0
    assert "try next" in shown.out
    files = {file.name for file in (tmp_path / "runs" / "demo").iterdir()}
    assert files >= {"records.jsonl", "table.md", "table.tex", "report.html"}
    assert "data:image/webp;base64" in (tmp_path / "runs" / "demo" / "report.html").read_text()
