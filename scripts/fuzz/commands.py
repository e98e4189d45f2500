"""Odd command lines, run in this process, and whole runs of odd data."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from oddities import changed, numbers, texts, written
from watch import Kind, Refused, require

from mmedit import cli
from mmedit.errors import MmeditError
from mmedit.records.store import read_records
from mmedit.vlm import loading

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
COMMANDS: dict[str, str] = {
    "bench": "--out --vlm --editor --dataset --mode --limit --batch-size --set --seed --generate T",
    "fit": "--editor --vlm --dataset --out --limit --validation --set --seed --resume",
    "edit": "--prompt --target --image --vlm --editor --dataset --set --seed --requests --images "
    "--together --on --out --overwrite --save-editor",
    "edits": "RUN --all",
    "ask": "QUESTION --edit --without --image --vlm --max-new-tokens --compare --editor --set",
    "table": "RUN --format --columns --published --published-model --published-dataset --edits",
    "compare": "RUN RUN --columns --format",
    "plot": "RUN --out --edits",
    "report": "RUN",
    "ls": "KIND",
    "show": "KIND NAME",
    "data": "KIND NAME --root --images --decode",
    "convert": "KIND --out NAME",
    "help": "KIND",
}
"""Options and arguments of every command."""
SOUND: dict[str, tuple[str, ...]] = {
    "--vlm": ("embedded",),
    "--editor": ("ft", "ike"),
    "--dataset": ("easyvqa", "json"),
    "--mode": ("independent", "batch", "sequential"),
    "--set": ("editor.steps=1", "batch.k=2", "sequential.gaps=[1]", "dataset.task=vqa"),
    "--format": ("md", "csv"),
    "--columns": ("default", "locality"),
    "--published": ("mmedit",),
    "KIND": ("editors", "vlms", "editor", "check", "get"),
    "NAME": ("ft", "embedded", "evqa"),
    "T": ("embedded",),
}
SET = ("editor.lr", "vlm.dtype", "dataset.root", "editor")
MEASURING = (
    "mmedit.suite.run_block",
    "mmedit.cli.fit.fit_editor",
    "mmedit.cli.edit.fit_editor",
)
PLANNED = "measured from here on"
FLAGS = ("--generate", "--resume", "--decode", "--together", "--overwrite", "--compare", "--all")


class Planned(MmeditError):
    """The command would now measure or train: all that can be refused has been read."""


def run(*argv: str) -> str:
    """Run a command in this process and return what it printed. Raises Refused for exit code 2.

    Exit code 1 is a fault: it is Python's own for a traceback.
    """
    out, err = io.StringIO(), io.StringIO()
    quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    typed = mock.patch.object(sys, "stdin", io.StringIO(""))
    with mock.patch.object(sys, "argv", ["mmedit", *argv]), typed, _one_vlm(), quiet[0], quiet[1]:
        code = _code()
    if code == 2:
        raise Refused(err.getvalue())
    require(code == 0, f"exit code {code} of {argv}: {err.getvalue()[-500:]}")
    return out.getvalue()


def plan(*argv: str) -> str:
    """Run a command up to the point where it would measure or train."""

    def planned(*_: Any, **__: Any) -> Any:
        raise Planned(PLANNED)

    with ExitStack() as patched:
        for place in MEASURING:
            patched.enter_context(mock.patch(place, planned))
        try:
            return run(*argv)
        except Refused as refused:
            if PLANNED in str(refused):
                return PLANNED
            raise


def _code() -> int:
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


@contextlib.contextmanager
def _one_vlm() -> Iterator[None]:
    """Load the embedded VLM once for all commands."""
    load = loading.load_vlm

    def cached(name_or_path: Any, **options: Any) -> Any:
        plain = {key: value for key, value in options.items() if value not in (None, False, {})}
        if str(name_or_path) != "embedded" or set(plain) - {"name", "sites"}:
            return load(name_or_path, **options)
        settings = repr(sorted(plain.items()))
        if settings not in _LOADED:
            _LOADED[settings] = load(name_or_path, **options)
        return _LOADED[settings]

    with mock.patch.object(loading, "load_vlm", cached):
        yield


_LOADED: dict[str, Any] = {}


def _arguments(data: st.DataObject, folder: Path) -> None:
    command = data.draw(st.sampled_from(sorted(COMMANDS)))
    options = COMMANDS[command].split()
    argv = [command]
    for option in data.draw(st.lists(st.sampled_from(options), max_size=4)):
        argv += _option(data, option, folder)
    if command == "data" and "get" in argv:
        return  # there is no network
    here = os.getcwd()
    os.chdir(folder)
    try:
        plan(*argv)
    finally:
        os.chdir(here)
    _require_used(argv)


def _option(data: st.DataObject, option: str, folder: Path) -> list[str]:
    if option in FLAGS:
        return [option]
    sound = SOUND.get(option, ())
    odd = st.one_of(texts, numbers.map(str), st.just(str(folder)), st.just(str(folder / "x")))
    value = data.draw(st.one_of(st.sampled_from(sound), odd) if sound else odd)
    if option == "--set" and data.draw(st.booleans()):
        value = f"{data.draw(st.sampled_from(SET))}={value}"
    return [option, value] if option.startswith("--") else [value]


def _require_used(argv: list[str]) -> None:
    """Raise SilentSkip if a command took an empty name: it means nothing."""
    values = dict(zip(argv[1::2], argv[2::2], strict=False))
    for option in ("--vlm", "--editor", "--dataset", "--mode", "--out", "--prompt", "--target"):
        require(values.get(option, "x").strip() != "", f"an empty {option} was taken: {argv}")


def _runs(data: st.DataObject, folder: Path) -> None:
    """Measure odd data of one's own: a record for every case, or one message before the run."""
    root = folder / "json"
    shutil.copytree(SAMPLES / "json", root)
    file = root / "test.json"
    records = changed(data, json.loads(file.read_text()))
    file.write_bytes(written(data, records))
    mode = data.draw(st.sampled_from(("independent", "independent", "batch", "sequential")))
    more = ("--set", "batch.k=2") if mode == "batch" else ()
    there = folder / "run"
    try:
        own = ("--dataset", "json", "--set", f"dataset.test={file}", "--out", str(there))
        run("bench", "--editor", "ft", "--set", "editor.steps=1", "--mode", mode, *more, *own)
    except (Refused, MmeditError):
        measured = (there / "records.jsonl").exists() and (there / "records.jsonl").stat().st_size
        require(not measured, "the run stopped after it had measured something")
        raise
    tested = [r for r in read_records(there) if mode != "sequential" or r.test == "checkpoint"]
    counts = Counter(record.editor for record in tested)
    require(counts["base"] >= 1 and counts["FT-M"] >= 1, f"records: {counts}")
    run("table", str(there))


KINDS = {
    "arguments": Kind(12, _arguments),
    "runs": Kind(2, _runs),
}
