"""The command line: the only package that prints. A command is in the file of its kind.

torch and transformers take seconds to import, so each command imports what it needs itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from rich.markup import escape

from mmedit.cli import (
    ask,
    bench,
    data,
    demo,
    edit,
    edits,
    export,
    fit,
    known,
    models,
    neighbours,
    play,
    serve,
    show,
    stats,
    tables,
    trace,
    tune,
)
from mmedit.cli.console import app, err, out, say
from mmedit.errors import ConfigError, MmeditError, shortened

# Waiting threads of torch spin only shortly: when another process is busy, spinning ones keep the
# core from the thread that they wait for (benchmarks/threads.md). OpenMP reads this as torch loads.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

STOPPED = 130
"""Exit code after Ctrl+C."""
_CONTINUES = " What was finished is kept. The same command continues from there."
AFTER_STOP: Mapping[str, str] = {
    "bench": _CONTINUES,
    "demo": _CONTINUES,
    "stats": _CONTINUES,
    "trace": _CONTINUES,
    "tune": _CONTINUES,
    "data": _CONTINUES,
    "edit": " With --out the finished edits of a sequence are kept. The same command goes on.",
    "fit": " The last checkpoint is kept. The same command with --resume continues from there.",
}
"""Advice after Ctrl+C, by command. Other commands leave nothing to continue."""


def main() -> None:
    """Run the command line. An error raised on purpose is one message and exit code 2."""
    if int(os.environ.get("RANK", "0")):  # `accelerate launch`: only the first process prints
        out.quiet = err.quiet = True
    code = _run()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from mmedit.processes import leave

        leave(code)
    sys.exit(code)


def _require_text(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument that is not text: it could be neither kept nor shown."""
    for argument in arguments:
        fault = "a NUL" if "\0" in argument else ""
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            fault = "half of a character"
        if fault:
            raise ConfigError(
                f"the argument {shortened(argument)} contains {fault}: it is not text in UTF-8"
            )


def _run() -> int:
    """Run the command and return its exit code."""
    try:
        _require_text(sys.argv[1:])
        app(prog_name="mmedit")
    except MmeditError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except SystemExit as ended:  # typer ends every command with it, also after Ctrl+C
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code == STOPPED:
            command = next((word for word in sys.argv[1:] if word in AFTER_STOP), "")
            say(f"Stopped.{AFTER_STOP.get(command, '')}", to=err)
        return code
    return 0


__all__ = [
    "ask",
    "bench",
    "data",
    "demo",
    "edit",
    "edits",
    "export",
    "fit",
    "known",
    "main",
    "models",
    "neighbours",
    "play",
    "serve",
    "show",
    "stats",
    "tables",
    "trace",
    "tune",
]
