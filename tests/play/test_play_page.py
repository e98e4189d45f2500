"""The playground as a person uses it: `mmedit play` in a process of its own, and Chromium."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest
from chromium import open_browser
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed (pip install mmedit[play])")

WAIT = 30_000
"""Milliseconds that a step may take; the machine may be busy."""


@dataclass(frozen=True)
class Server:
    """A running `mmedit play`."""

    address: str
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("play")
    with (folder / "stderr").open("w") as errors, started(folder, errors) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + (folder / "stderr").read_text()
        yield Server(found[0], folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    left = {path.name for path in folder.iterdir()}
    assert left <= {"stderr", "edits", "torchinductor_root"}, "files were left behind"
    assert "Traceback" not in (folder / "stderr").read_text()


def started(folder: Path, errors: IO[str]) -> subprocess.Popen[str]:
    """Start `mmedit play` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "mmedit", "play", "--port", "0", "--set", "ft.steps=8"],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@dataclass
class Tab:
    """The playground in one tab."""

    page: Any
    requested: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def text(self, part: str) -> str:
        return " ".join(self.page.locator(f"#{part}").inner_text().split())

    def wait_for(self, part: str, text: str) -> None:
        self.page.locator(f"#{part}", has_text=text).wait_for(timeout=WAIT)

    def make_edit(self) -> None:
        self.button("Make the edit").click()
        self.wait_for("make-note", "was made in")


@pytest.fixture
def open_tab(browser, server: Server) -> Iterator[Any]:
    """Opens the playground in a tab of its own profile."""
    contexts = []

    def open_one(width: int = 1280) -> Tab:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.set_default_timeout(WAIT)
        tab.page.on("request", lambda request: tab.requested.append(request.url))
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.goto(server.address)
        tab.button("Make the edit").wait_for()
        return tab

    yield open_one
    for context in contexts:
        context.close()


def test_a_person_asks_edits_undoes_saves_and_loads_after_a_reload(open_tab, server: Server):
    tab = open_tab()
    assert "Base model black" in tab.text("answers")
    assert "no edit yet" in tab.text("answers")
    tab.page.get_by_label("Question", exact=True).fill("is there a circle?")
    tab.button("Ask").click()
    tab.wait_for("answers", "is there a circle?")
    assert "Base model yes" in tab.text("answers")

    tab.page.locator("#gallery button").first.click()
    tab.wait_for("answers", "what color is the circle?")
    tab.make_edit()
    tab.wait_for("answers", "brown")
    assert "Base model black Edited model brown" in tab.text("answers")
    tab.wait_for("changes", "3 of 3 questions about the edit get the new answer")
    assert "tok 75 · EM 0 brown tok 100 · EM 100" in tab.text("changes")

    tab.button("Undo the last edit").click()
    tab.wait_for("edits-note", "edit-1 is taken out")
    tab.wait_for("answers", "no edit yet")
    tab.page.get_by_role("checkbox", name=re.compile("edit-1")).check()
    tab.wait_for("answers", "brown")

    tab.page.get_by_label("Name to save under").fill("circle-is-brown")
    tab.button("Save the edits").click()
    tab.wait_for("edits-note", "Saved 1 edit to edits/circle-is-brown")
    assert (server.folder / "edits" / "circle-is-brown" / "edit.json").is_file()

    tab.page.reload()
    tab.wait_for("answers", "no edit yet")
    tab.page.get_by_label("Saved edits").click()
    tab.page.get_by_role("option", name="circle-is-brown").click()
    tab.button("Load").click()
    tab.wait_for("edits-note", "Loaded 1 edit from circle-is-brown")
    tab.wait_for("answers", "brown")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 1280
    elsewhere = [url for url in tab.requested if not url.startswith((server.address, "data:"))]
    assert elsewhere == []
    assert tab.errors == []


def test_wrong_input_is_a_sentence(open_tab, tmp_path: Path):
    tab = open_tab()
    tab.button("Save the edits").click()
    tab.wait_for("edits-note", "Make an edit first")
    tab.button("Undo the last edit").click()
    tab.wait_for("edits-note", "nothing can be undone")
    tab.page.get_by_label("New answer").fill("")
    tab.button("Make the edit").click()
    tab.wait_for("make-note", "The new answer is empty")
    assert tab.text("edits-note") == ""
    tab.page.get_by_label("New answer").fill("brown")
    tab.page.get_by_label("Method").click()
    tab.page.get_by_role("option", name="MEND: must be fitted first").click()
    tab.wait_for("make-note", "mmedit fit --editor mend --vlm embedded --out editors/mend")
    tab.page.get_by_label("Method").click()
    tab.page.get_by_role("option", name="IKE").click()
    tab.make_edit()
    tab.page.get_by_label("Name to save under").fill("../outside")
    tab.button("Save the edits").click()
    tab.wait_for("edits-note", "cannot be the name of a folder")
    tab.button("Export the edited model").click()
    tab.wait_for("edits-note", "cannot be the name of a folder")

    (tmp_path / "broken.png").write_text("not a picture")
    tab.page.get_by_role("button", name="Remove Image").click()
    tab.page.locator("#picture input[type=file]").set_input_files(tmp_path / "broken.png")
    tab.wait_for("ask-note", "broken.png is not an image that Pillow can read")
    tab.page.get_by_label("Question", exact=True).fill("")
    tab.button("Ask").click()
    tab.wait_for("ask-note", "The question is empty")
    assert "Traceback" not in tab.page.locator("body").inner_text()


def test_a_dropped_picture_is_asked_about_and_edited(open_tab, tmp_path: Path):
    Image.new("RGB", (90, 60), "purple").save(tmp_path / "own.png")
    tab = open_tab()
    tab.page.get_by_role("button", name="Remove Image").click()
    tab.page.locator("#picture input[type=file]").set_input_files(tmp_path / "own.png")
    tab.page.get_by_label("Question", exact=True).fill("what color is the picture?")
    tab.button("Ask").click()
    tab.wait_for("answers", "what color is the picture?")
    tab.page.get_by_label("New answer").fill("red")
    tab.make_edit()
    tab.wait_for("answers", "red")
    assert "Another picture of it" not in tab.text("changes")
    assert "The edit itself" in tab.text("changes")
    assert tab.text("changes").count("Unrelated") == 4


def test_two_tabs_do_not_share_edits(open_tab):
    one, other = open_tab(), open_tab()
    one.make_edit()
    one.wait_for("answers", "brown")
    other.button("Ask").click()
    other.page.wait_for_timeout(500)
    other.wait_for("answers", "no edit yet")
    assert "none yet" in other.text("edits")
    assert "edit-1" in one.text("edits")


def test_the_page_fits_a_narrow_window(open_tab):
    tab = open_tab(390)
    tab.make_edit()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.errors == []


def test_every_control_has_a_name_and_is_reached_with_the_tab_key(open_tab):
    tab = open_tab()
    reached = set()
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        reached.add(tab.page.evaluate(NAME_OF_FOCUS))
    assert "" not in reached
    assert reached >= {
        *("Thumbnail 1 of 8", "Upload file", "Question", "Ask", "New answer", "In other words"),
        *("Method", "Make the edit", "Undo the last edit", "Name to save under"),
        *("Save the edits", "Saved edits", "Load", "Export as", "Export the edited model"),
    }
    tree = tab.page.locator("body").aria_snapshot()
    for control in re.findall(r"- (?:button|textbox|combobox|checkbox)(.*)", tree):
        assert control.startswith(' "'), f"a control without a name: {control}"
    assert 'table "Answers to the questions that test the edit"' in tree
    tab.page.get_by_label("Question", exact=True).focus()
    tab.page.keyboard.press("Enter")
    tab.wait_for("answers", "black")


NAME_OF_FOCUS = """() => {
    const e = document.activeElement;
    const label = e.closest("label") ?? e;
    return (e.getAttribute("aria-label") ?? label.innerText ?? "").trim().split("\\n")[0];
}"""


def test_requests_that_are_addressed_to_another_name_are_refused(server: Server):
    with httpx2.Client(trust_env=False) as client:
        assert client.get(server.address).status_code == 200
        answer = client.get(server.address, headers={"Host": "evil.example"})
        assert answer.status_code == 400
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        listed = client.get(f"{server.address}/gradio_api/info").json()
        assert listed["named_endpoints"] == {}


def test_files_of_this_machine_are_not_given_out(server: Server):
    with httpx2.Client(trust_env=False) as client:
        for path in ("/etc/passwd", str(server.folder / "stderr"), "../../etc/passwd"):
            answer = client.get(f"{server.address}/gradio_api/file={path}")
            assert answer.status_code in (403, 404), path
