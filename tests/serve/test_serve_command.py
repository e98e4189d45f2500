"""Faults of `mmedit serve` that are found before it serves."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest
from command_line import Mmedit

pytest.importorskip("fastapi", reason="mmedit serve needs the extra serve")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--allow-edits",), "MMEDIT_API_KEY"),
        (("--api-key", " "), "--api-key is empty"),
        (("--api-key", "schlüssel"), "not ASCII"),
        (("--image-root", "nowhere"), "not a folder"),
        (("--vlm", "embeded"), "Did you mean 'embedded'?"),
        (("--set", "vlm.dtyp=float16"), "dtyp"),
        (("--host", "256.0.0.1"), "choose another --host"),
    ],
)
def test_a_wrong_option_is_one_sentence(mmedit_: Mmedit, arguments: tuple[str, ...], problem: str):
    result = mmedit_("serve", "--port", 0, *arguments)
    assert result.code == 2
    assert problem in result.err


def test_without_the_extra_the_error_names_it(mmedit_: Mmedit, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    result = mmedit_("serve")
    assert (result.code, "pip install 'mmedit[serve]'" in result.err) == (2, True)


def test_a_port_that_is_taken_is_one_sentence(mmedit_: Mmedit):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = mmedit_("serve", "--port", taken.getsockname()[1])
    assert (result.code, "choose another --port" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--edit", "nowhere"), "nowhere"),
        (("--stack", "both=a+b"), "no edit (--edit) named 'a'"),
        (("--stack", "both"), "NAME=EDIT+EDIT"),
    ],
)
def test_an_edit_that_cannot_be_served_is_one_sentence(
    mmedit_: Mmedit, tmp_path: Path, tiny_folder: Path, arguments: tuple[str, ...], problem: str
):
    result = mmedit_("serve", "--port", 0, "--vlm", tiny_folder, *arguments)
    assert result.code == 2
    assert problem in result.err


def test_two_fitted_editors_of_one_name_are_refused(
    mmedit_: Mmedit, tmp_path: Path, tiny_folder: Path
):
    given = [part for name in ("a", "b") for part in ("--editor", tmp_path / name / "mine")]
    result = mmedit_(
        "serve", "--port", 0, "--vlm", tiny_folder, "--allow-edits", "--api-key", "k", *given
    )
    assert (result.code, "end in the same name" in result.err) == (2, True)
