"""`mmedit edit` keeps edits, and `mmedit edits` shows what is kept."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
from command_line import Mmedit
from PIL import Image
from processes import start
from rich.console import Console

import mmedit.vlm.loading
from mmedit.cli.edit_folders import edit_folders
from mmedit.cli.edit_views import answers_view, plain, summary
from mmedit.datasets.easyvqa.pictures import load_pictures
from mmedit.edits.loading import load_edit
from mmedit.errors import EditError
from mmedit.methods.ike import IKE as IKE_METHOD
from mmedit.vlm.edit import Seen
from mmedit.vlm.edit_files import read_description
from mmedit.vlm.network import NetworkVLM

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
PICTURES = [picture.path for picture in load_pictures("test")[:3]]
QUESTION = "what color is the shape?"
FAST = ("--set", "ft.steps=5")
ONE = ("edit", "--prompt", QUESTION, "--target", "blue", "--image", PICTURES[0], *FAST)
EMBEDDED: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _one_vlm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the embedded VLM once for all commands of this file."""
    load = mmedit.vlm.loading.load_vlm

    def cached(source: str, **options: Any) -> NetworkVLM:
        if source != "embedded":
            return load(source, **options)
        if source not in EMBEDDED:
            EMBEDDED[source] = load(source, **options)
        return EMBEDDED[source]

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", cached)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Three requests about pictures in the folder of the file."""
    records = []
    for number, (picture, answer) in enumerate(zip(PICTURES, ("blue", "red", "gray"), strict=True)):
        shutil.copy(picture, tmp_path / f"{number}.png")
        records.append({"src": QUESTION, "alt": answer, "image": f"{number}.png", "loc": None})
    (tmp_path / "facts.json").write_text(json.dumps(records))
    return tmp_path / "facts.json"


def next_command(printed: str) -> list[str]:
    return shlex.split(printed.partition("next: mmedit ")[2])


def test_an_edit_is_kept_and_the_command_for_asking_it_is_shown(mmedit_: Mmedit, tmp_path: Path):
    place = tmp_path / "my edits" / "blue"
    made = mmedit_(*ONE, "--out", place)
    assert made.code == 0, made.err
    assert "as expected" in made.out
    assert f"kept: {place} (1 edit, 1.2 MB)" in made.out
    asked = mmedit_(*next_command(made.out))
    assert (asked.code, asked.out) == (0, "blue")
    edit = load_edit(place)
    assert (edit.name, edit.vlm_name, edit.on) == ("blue", "embedded", ())
    assert [(one.prompt, one.target, one.after) for one in edit.seen[:1]] == [
        (QUESTION, "blue", "blue")
    ]
    assert [one.target for one in edit.seen[1:]] == ["", "", ""]


def test_without_a_place_the_edit_is_gone_and_that_is_said(mmedit_: Mmedit, tmp_path: Path):
    made = mmedit_(*ONE)
    assert "is not saved; --out DIR keeps it" in made.out
    assert "next:" not in made.out


def test_requests_of_a_file_become_edits_one_after_another(
    mmedit_: Mmedit, facts: Path, tmp_path: Path
):
    made = mmedit_("edit", "--requests", facts, "--out", tmp_path / "x", *FAST)
    assert made.code == 0, made.err
    edit = load_edit(tmp_path / "x")
    assert [part.name for part in edit.parts] == ["x-1", "x-2", "x-3"]
    assert [part.on for part in edit.parts] == [(), ("x-1",), ("x-1", "x-2")]
    assert [len(part.seen) for part in edit.parts] == [1, 1, 4]
    right = sum(part.seen[0].after == part.seen[0].target for part in edit.parts)
    assert f"{right} of 3 requests" in made.out
    assert "of 3 unrelated answers unchanged" in made.out
    assert not (tmp_path / "x.unfinished").exists()
    answers = {part.requests[0].target: part.seen[0].after for part in edit.parts}
    for number, answer in enumerate(answers.values()):
        asked = mmedit_(
            "ask", "--edit", tmp_path / "x", "--image", tmp_path / f"{number}.png", QUESTION
        )
        assert asked.out == answer


def test_requests_together_are_one_edit_on_top_of_earlier_ones(
    mmedit_: Mmedit, facts: Path, tmp_path: Path
):
    mmedit_(*ONE, "--out", tmp_path / "a")
    mmedit_(*ONE, "--on", tmp_path / "a", "--out", tmp_path / "b")
    made = mmedit_(
        "edit", "--requests", facts, "--together", "--out", tmp_path / "c", *FAST,
        "--on", tmp_path / "a", "--on", tmp_path / "b",
    )  # fmt: skip
    assert made.code == 0, made.err
    edit = load_edit(tmp_path / "c")
    assert [(part.name, len(part.requests), part.on) for part in edit.parts] == [
        ("c", 3, ("a", "b"))
    ]
    shown = next_command(made.out)
    assert shown[1:7] == [
        *("--edit", str(tmp_path / "a"), "--edit", str(tmp_path / "b")),
        *("--edit", str(tmp_path / "c")),
    ]
    assert mmedit_(*shown).out == edit.seen[0].after
    alone = mmedit_("ask", "--edit", tmp_path / "c", QUESTION)
    assert "note: c was made on a, b, which are not there before;" in alone.err


def test_an_edit_is_replaced_only_if_that_is_asked_for(mmedit_: Mmedit, tmp_path: Path):
    assert mmedit_(*ONE, "--out", tmp_path / "a").code == 0
    refused = mmedit_(*ONE, "--out", tmp_path / "a")
    assert refused.code == 2
    assert "holds an edit already" in refused.err
    assert mmedit_(*ONE, "--target", "green", "--out", tmp_path / "a", "--overwrite").code == 0
    assert load_edit(tmp_path / "a").requests[0].target == "green"


def options(*given: object) -> Callable[[Path], tuple[object, ...]]:
    """Make the arguments of `mmedit edit`, with the folder of the test for DIR."""
    return lambda folder: (
        "edit",
        *(str(part).replace("DIR", str(folder)) for part in given),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (options(), "there is nothing to edit; give --prompt and --target, or a file"),
        (options("--target", "blue"), "--prompt is missing"),
        (options("--prompt", "what?"), "--target is missing"),
        (options("--image", "DIR/0.png"), "--prompt is missing"),
        (options("--requests", "DIR/facts.json", "--target", "x"), "--prompt is missing"),
        (
            options("--requests", "DIR/facts.json", "--prompt", "what?", "--target", "x"),
            "--requests holds the edits, and so do --prompt",
        ),
        (options("--prompt", "a", "--target", "b", "--together"), "--together is for many edits"),
        (options("--prompt", "a", "--target", "b", "--images", "DIR"), "--images is for many"),
        (options("--requests", "DIR/nowhere.json"), "nowhere.json does not exist"),
        (options("--requests", "DIR"), "is not a regular file"),
        (options("--requests", "DIR/0.png"), "is not UTF-8"),
        (
            options("--requests", "DIR/facts.json", "--images", "DIR/more"),
            "more/0.png. Check the path.",
        ),
        (options("--requests", "DIR/facts.json", "--overwrite"), "name --out too"),
        (options("--requests", "DIR/facts.json", "--out", "DIR"), "is not a saved edit"),
        (options("--requests", "DIR/facts.json", "--out", "DIR/a+b"), "cannot be the name"),
        (options("--requests", "DIR/facts.json", "--out", "DIR/0.png/x"), "cannot make the folder"),
        (options("--requests", "DIR/facts.json", "--on", "DIR/x"), "does not exist"),
        (options("--requests", "DIR/facts.json", "--on", "DIR"), "has no edit.json"),
        (
            options("--requests", "DIR/facts.json", "--save-editor", "DIR/e"),
            "--save-editor keeps a new editor, and ft has nothing to learn",
        ),
    ],
)
def test_wrong_options_are_one_message_before_the_vlm_is_loaded(
    mmedit_: Mmedit, facts: Path, monkeypatch: pytest.MonkeyPatch, arguments, message: str
):
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", load)
    before = sorted(facts.parent.iterdir())
    shown = mmedit_(*arguments(facts.parent))
    assert shown.code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sorted(facts.parent.iterdir()) == before


def test_edits_of_two_vlms_need_the_name_of_one(mmedit_: Mmedit, tmp_path: Path):
    mmedit_(*ONE, "--out", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / "edit.json"
    described = json.loads(file.read_text())
    described["vlm"]["name"] = "blip2-opt-2.7b"
    file.write_text(json.dumps(described))
    both = ("--edit", tmp_path / "a", "--edit", tmp_path / "b")
    shown = mmedit_("ask", *both, QUESTION)
    assert "the edits were made on embedded, blip2-opt-2.7b; name one VLM with --vlm" in shown.err
    assert mmedit_("ask", *both, "--vlm", "embedded", QUESTION).code == 0
    described["vlm"]["name"] = "/nowhere/model"
    file.write_text(json.dumps(described))
    gone = mmedit_("ask", "--edit", tmp_path / "b", QUESTION)
    assert gone.code == 2
    assert "was made on the VLM '/nowhere/model', which is not here; name its folder" in gone.err


IKE = ("--editor", "ike", "--set", "ike.k=1", "--dataset", "evqa")
FITTED = (*IKE, "--set", f"dataset.root={SAMPLES / 'evqa'}")
TEXT = ("edit", "--prompt", QUESTION, "--target", "blue", *FITTED)


def test_an_editor_that_is_fitted_for_an_edit_can_be_kept(mmedit_: Mmedit, tmp_path: Path):
    made = mmedit_(*TEXT, "--save-editor", tmp_path / "ike", "--out", tmp_path / "a")
    assert made.code == 0, made.err
    assert f"The fitted editor is kept in {tmp_path / 'ike'}" in made.err
    assert "thrown away" not in made.err
    uses = ("--editor", tmp_path / "ike", "--out", tmp_path / "b")
    again = mmedit_("edit", "--prompt", QUESTION, "--target", "blue", *uses)
    assert again.code == 0, again.err
    assert load_edit(tmp_path / "b").seen[0] == load_edit(tmp_path / "a").seen[0]
    twice = mmedit_(*TEXT, "--save-editor", tmp_path / "ike")
    assert twice.code == 2
    assert "holds a fitted editor already; use it with --editor" in twice.err


def test_a_stopped_command_goes_on_with_the_editor_that_it_kept(
    mmedit_: Mmedit, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keeps = ("--save-editor", tmp_path / "ike", "--out", tmp_path / "x")
    command = ("edit", "--requests", facts, *FITTED, *keeps)
    made: list[object] = []
    change = IKE_METHOD.change

    def stopping(self: Any, vlm: Any, requests: Any):
        made.append(requests)
        if len(made) == 2:
            raise EditError("stopped here")
        return change(self, vlm, requests)

    monkeypatch.setattr(IKE_METHOD, "change", stopping)
    stopped = mmedit_(*command)
    assert stopped.code == 2
    assert f"Finished edits (1) are in {tmp_path / 'x.unfinished'}" in stopped.err
    monkeypatch.setattr("mmedit.cli.edit.fit_editor", lambda *_, **__: pytest.fail("was fitted"))
    again = mmedit_(*command)
    assert again.code == 0, again.err
    assert f"The fitted editor in {tmp_path / 'ike'} is used" in again.err
    assert len(load_edit(tmp_path / "x").parts) == 3
    assert len(made) == 4


@pytest.mark.parametrize(("typed", "is_kept"), [("\n", True), ("n\n", False)])
def test_at_a_terminal_a_person_is_asked_whether_the_editor_is_kept(
    mmedit_: Mmedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, is_kept: bool
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmedit.cli.kept_editors._is_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    made = mmedit_(*TEXT)
    assert made.code == 0, made.err
    assert "Keep the fitted editor in editors/ike? [Y/n]" in made.err
    assert (tmp_path / "editors" / "ike" / "editor.json").exists() == is_kept
    assert ("thrown away" in made.err) != is_kept


def test_a_wrapper_is_kept_and_asked_like_any_edit(mmedit_: Mmedit, tmp_path: Path):
    made = mmedit_(
        "edit", "--prompt", QUESTION, "--target", "blue", "--image", PICTURES[0],
        "--editor", "ike", "--set", "ike.k=0", "--out", tmp_path / "a",
    )  # fmt: skip
    assert made.code == 0, made.err
    after = load_edit(tmp_path / "a").seen[0].after
    assert mmedit_(*next_command(made.out)).out == after
    assert "around the VLM" in mmedit_("edits", tmp_path / "a").out


def test_wrappers_made_one_after_another_are_asked_as_one_stack(
    mmedit_: Mmedit, facts: Path, tmp_path: Path
):
    ike = ("--editor", "ike", "--set", "ike.k=0")
    made = mmedit_("edit", "--requests", facts, *ike, "--out", tmp_path / "x")
    assert made.code == 0, made.err
    parts = load_edit(tmp_path / "x").parts
    assert [(part.name, part.on) for part in parts[:2]] == [("x-1", ()), ("x-2", ("x-1",))]
    for number, part in enumerate(parts):
        image = ("--image", tmp_path / f"{number}.png")
        assert mmedit_("ask", "--edit", tmp_path / "x", *image, QUESTION).out == part.seen[0].after


# mmedit edits


def test_the_shell_completes_the_folders_of_edits(
    mmedit_: Mmedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert edit_folders("") == []
    for place in ("edits/blue", "edits/more/red", "kept/green"):
        mmedit_(*ONE, "--out", place)
    assert edit_folders("") == ["edits/blue", "edits/more/red"]
    assert edit_folders("edits/m") == ["edits/more/red"]
    assert edit_folders("kept/") == ["kept/green"]


def test_the_list_has_a_row_for_every_edit_below_a_folder(
    mmedit_: Mmedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    none = mmedit_("edits")
    assert none.code == 2
    assert "there are no edits in edits; make one: mmedit edit" in none.err
    mmedit_(*ONE, "--out", "edits/colours/blue")
    shutil.copytree("edits/colours/blue", "edits/damaged")
    Path("edits/damaged/edit.json").write_text("{")
    shown = mmedit_("edits")
    assert shown.code == 0
    assert "edits/colours/blue FT-M 1 1 embedded 1.2 MB 20" in shown.out
    assert "damaged: edits/damaged/edit.json is not valid JSON" in shown.out
    gone = mmedit_("edits", "nowhere")
    assert gone.code == 2
    assert "the folder nowhere does not exist" in gone.err


def test_one_edit_is_shown_with_all_that_is_in_it(mmedit_: Mmedit, facts: Path, tmp_path: Path):
    mmedit_("edit", "--requests", facts, "--out", tmp_path / "x", *FAST)
    shown = mmedit_("edits", tmp_path / "x").out
    identity = read_description(tmp_path / "x").vlm
    assert f"VLM embedded: blip-2, config {identity.config[:12]}, weights" in shown
    assert "x-1 FT-M 1" in shown
    assert "the base model 2 weights" in shown
    assert "those above 2 weights" in shown
    assert "steps=5" in shown
    assert f"x-3 {QUESTION} gray images/" in shown
    assert "dense full" in shown
    assert "fc1" in shown
    assert "of 3 requests" in shown
    torn = tmp_path / "x" / "edit.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    damaged = mmedit_("edits", tmp_path / "x")
    assert damaged.code == 2
    assert "is not the file that edit.json was written with" in damaged.err


def seen(number: int, *, after: str = "yes") -> Seen:
    return Seen(prompt=f"question {number}?", target="yes", before="no", after=after)


def test_a_long_table_is_cut_and_all_requests_are_counted():
    asked = [seen(n, after="yes" if n < 93 else "no") for n in range(100)]
    others = [Seen(prompt=f"other {n}?", target="", before="a", after="a") for n in range(3)]
    console = Console(file=io.StringIO(), width=120)
    console.print(answers_view("FT-M", [*asked, *others]))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "question 19?" in text
    assert "question 20?" not in text
    assert "and 80 more" in text
    assert "other 2?" in text
    counted = "93 of 100 requests are answered as asked; 3 of 3 unrelated answers unchanged"
    assert counted in text
    assert summary(asked[:1]) == "1 of 1 requests is answered as asked"


def test_what_an_edit_says_cannot_steer_the_terminal(mmedit_: Mmedit, tmp_path: Path):
    assert plain("a\x1b[2Jb\nc") == "a [2Jb c"
    mmedit_(
        "edit", "--prompt", "what\x1b[2J?", "--target", "x\x07y", "--out", tmp_path / "a", *FAST
    )
    shown = mmedit_("edits", tmp_path / "a").out
    assert "\x1b" not in shown
    assert "\x07" not in shown


# other VLMs, other processes


def test_an_edit_of_another_family_is_asked_without_naming_its_vlm(mmedit_: Mmedit, tmp_path: Path):
    folder = tiny_families.save_family("qwen2_5_vl", tmp_path / "model")
    made = mmedit_(*ONE, "--vlm", folder, "--out", tmp_path / "a")
    assert made.code == 0, made.err
    edited = mmedit.vlm.loading.load_vlm(folder).with_edit(load_edit(tmp_path / "a"))
    answer = edited.ask(QUESTION, PICTURES[0])
    assert mmedit_(*next_command(made.out)).out == " ".join(plain(answer).split())
    other = mmedit_("ask", "--edit", tmp_path / "a", "--vlm", "embedded", QUESTION)
    assert other.code == 2
    assert "was made on a 'qwen2_5_vl' model, and this is a 'blip-2'" in other.err


def test_a_killed_sequence_loses_no_finished_edit_and_goes_on(
    mmedit_: Mmedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_families.save_family("llava", tmp_path / "model")
    Image.open(PICTURES[0]).save(tmp_path / "0.png")
    records = [{"src": f"question {n}?", "alt": "blue", "image": "0.png"} for n in range(4)]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    command = [
        *("edit", "--requests", str(tmp_path / "facts.json"), "--vlm", str(model)),
        *("--out", str(tmp_path / "x"), "--set", "ft.steps=20"),
    ]
    second = tmp_path / "x.unfinished" / "x-2" / "edit.json"
    running = start(tmp_path / "printed", "-m", "mmedit", *command)
    deadline = time.monotonic() + 120
    while not second.exists() and time.monotonic() < deadline and running.is_running():
        time.sleep(0.01)
    running.kill()
    assert second.exists()
    assert not (tmp_path / "x").exists()
    first = load_edit(tmp_path / "x.unfinished" / "x-1")
    monkeypatch.chdir(tmp_path)
    listed = mmedit_("edits", ".")
    assert "x.unfinished/x-2 FT-M" in listed.out
    other = mmedit_(*command, "--set", "ft.lr=1")
    assert "holds the finished edits of another command: its settings are" in other.err
    made = mmedit_(*command)
    assert made.code == 0, made.err
    assert "of 4 edits are finished already; going on" in made.err
    edit = load_edit(tmp_path / "x")
    assert [part.name for part in edit.parts] == ["x-1", "x-2", "x-3", "x-4"]
    assert edit.parts[0].made == first.made
    assert not (tmp_path / "x.unfinished").exists()


# mmedit push


def test_push_takes_the_folder_of_an_edit(
    mmedit_: Mmedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pushed: list[tuple[object, ...]] = []

    def upload(path: Path, repo: str, files: object, **options: object) -> str:
        pushed.append((path, repo, options["private"]))
        return "https://hub/me/blue"

    monkeypatch.setattr("mmedit.edits.loading.push_files", upload)
    mmedit_(*ONE, "--out", tmp_path / "blue")
    shown = mmedit_("push", tmp_path / "blue", "me/blue", "--private")
    assert (shown.code, shown.out) == (0, "pushed: https://hub/me/blue")
    assert pushed == [(tmp_path / "blue", "me/blue", True)]
    assert "# An edit of a `blip-2` network" in (tmp_path / "blue" / "README.md").read_text()
    assert mmedit_("push", tmp_path, "me/blue").code == 2
