"""`mmedit ask`: one question, lines from a pipe, and a real terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import Mmedit

import mmedit.vlm.loading
from mmedit.cases import Example
from mmedit.config import load_editor
from mmedit.datasets.easyvqa.pictures import load_pictures
from mmedit.vlm.network import NetworkVLM

PICTURE = load_pictures("test")[0].path
QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def edits(vlm: NetworkVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the edits `blue`, and `both`: blue, then green."""
    folder = tmp_path_factory.mktemp("edits")
    ft = load_editor("ft", vlm, steps=5)
    request = Example(prompt=QUESTION, target="blue", image=PICTURE)
    blue = vlm.with_edit(ft.edit(vlm, [request], name="blue"))
    blue.save(folder / "blue")
    green = Example(prompt=QUESTION, target="green", image=PICTURE)
    blue.with_edit(ft.edit(blue, [green], name="green")).save(folder / "both")
    return folder


@pytest.fixture(autouse=True)
def _one_vlm(vlm: NetworkVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", lambda *_, **__: vlm)


def ask(mmedit_: Mmedit, *given: object):
    return mmedit_("ask", "--image", PICTURE, *given)


def test_the_answer_alone_is_printed(mmedit_: Mmedit, edits: Path, vlm: NetworkVLM):
    assert ask(mmedit_, QUESTION).out == vlm.ask(QUESTION, PICTURE)
    assert ask(mmedit_, "--edit", edits / "blue", QUESTION).out == "blue"
    assert ask(mmedit_, "--edit", edits / "both", QUESTION).out == "green"


def test_an_edit_of_a_stack_is_left_out(mmedit_: Mmedit, edits: Path):
    both = ("--edit", edits / "both")
    assert ask(mmedit_, *both, "--without", "green", QUESTION).out == "blue"
    alone = ask(mmedit_, *both, "--without", "blue", QUESTION)
    assert alone.code == 0
    assert "note: green was made on blue, which is not there before;" in alone.err
    none = ask(mmedit_, *both, "--without", "green", "--without", "blue", QUESTION)
    assert none.out == ask(mmedit_, QUESTION).out


def test_compare_prints_both_answers(mmedit_: Mmedit, edits: Path, vlm: NetworkVLM):
    shown = ask(mmedit_, "--edit", edits / "blue", "--compare", QUESTION)
    assert shown.out == f"base model: {vlm.ask(QUESTION, PICTURE)} edited model: blue"


def test_a_longest_answer_is_kept(mmedit_: Mmedit, vlm: NetworkVLM):
    long = "name the people of Cambodia."
    assert mmedit_("ask", "--max-new-tokens", 1, long).out == vlm.ask(long, max_new_tokens=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((" ",), "the question is empty"),
        (("--edit", "nowhere", QUESTION), "the folder 'nowhere' does not exist"),
        (("--edit", "", QUESTION), "is not a folder of an edit"),
        (("--without", "blue", QUESTION), "name them with --edit"),
        (("--edit", "EDITS/both", "--without", "blu", QUESTION), "Did you mean 'blue'"),
        (("--image", "nowhere.png", QUESTION), "image not found: nowhere.png"),
        (("--vlm", "embeded", QUESTION), "Did you mean 'embedded'"),
        (("--editor", "ike", QUESTION), "--editor makes the edits of a conversation"),
        (("--editor", "mend"), "mend must be fitted before it can edit: mmedit fit --editor mend"),
        (("--set", "editor.steps=3", QUESTION), "editor.* has no effect"),
        (("--max-new-tokens", "0", QUESTION), "max-new-tokens"),
    ],
)
def test_wrong_options_are_one_message_before_the_vlm_is_loaded(
    mmedit_: Mmedit,
    edits: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    message: str,
):
    monkeypatch.setattr(mmedit.vlm.loading, "load_vlm", lambda *_, **__: pytest.fail("was loaded"))
    shown = mmedit_("ask", *(part.replace("EDITS", str(edits)) for part in given))
    assert shown.code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_lines_from_a_pipe_are_answered_one_by_one(
    mmedit_: Mmedit, edits: Path, monkeypatch: pytest.MonkeyPatch, vlm: NetworkVLM
):
    piped(monkeypatch, f"{QUESTION}\n\n/undo\n{QUESTION}\n/quit\n{QUESTION}".encode())
    shown = ask(mmedit_, "--edit", edits / "blue")
    base = vlm.ask(QUESTION, PICTURE)
    assert (shown.code, shown.out) == (0, f"blue took out blue; no edits left {base}")


def test_a_wrong_line_of_a_pipe_is_an_error_and_the_next_is_answered(
    mmedit_: Mmedit, edits: Path, monkeypatch: pytest.MonkeyPatch
):
    piped(monkeypatch, b"bad \xff bytes\n/undo x\n" + QUESTION.encode())
    shown = ask(mmedit_, "--edit", edits / "blue")
    assert (shown.code, shown.out) == (2, "blue")
    assert shown.err.count("error:") == 2
    assert "half of a character" in shown.err


ON_A_TERMINAL = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
os.open(os.ttyname(0), os.O_RDWR)  # the first terminal that a new session opens gives it Ctrl+C
sys.argv[0] = "mmedit"
runpy.run_module("mmedit", run_name="__main__")
"""


class Terminal:
    """A process of mmedit on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self._printed = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )  # fmt: skip
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl+C until there is a prompt again: Python's readline may miss one that comes
        just before it waits for a key.
        """
        for _ in range(30):
            self.type("\x03")
            with suppress(AssertionError):
                self.until("> ", seconds=4)
                return
        raise AssertionError("Ctrl+C brings no prompt")

    def until(self, text: str, seconds: float = 120) -> str:
        """Return what is printed up to a text; the rest is kept for the next call."""
        deadline = time.monotonic() + seconds
        while text not in self._printed:
            assert time.monotonic() < deadline, self._printed
            if select.select([self._master], [], [], 1)[0]:
                self._printed += os.read(self._master, 4096).decode(errors="replace")
        before, _, self._printed = self._printed.partition(text)
        return before


def test_a_new_process_on_a_terminal_gives_the_saved_answer_and_has_a_history(edits: Path):
    terminal = Terminal(
        *("ask", "--edit", str(edits / "both"), "--image", str(PICTURE)),
        *("--set", "editor.steps=5"),
    )
    try:
        assert "embedded: blue, green" in terminal.until("> ")
        terminal.type(f"{QUESTION}\n")
        terminal.until("green\r\n")
        terminal.until("> ")
        terminal.type("/undo\n")
        terminal.until("took out green; 1 edit left")
        terminal.until("> ")
        terminal.type("\x1b[A\x1b[A\n")  # twice the key for an earlier line
        terminal.until("blue\r\n")
        terminal.until("> ")
        terminal.type("/frobnicate\n")
        assert "Traceback" not in terminal.until("no command named")
        terminal.until("> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt()
        terminal.type("/compare\n")
        terminal.until("edited model:  blue")
        terminal.until("> ")
        terminal.type("\x04")  # Ctrl+D
        assert terminal.process.wait(timeout=60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
