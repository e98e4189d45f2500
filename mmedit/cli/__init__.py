"""The command line: the only package that prints. Every command stands in the file of its kind."""

from __future__ import annotations

import os
import sys

from rich.markup import escape

from mmedit.cli import bench, data, demo, edit, fit, models, show, tables
from mmedit.cli.console import app, err, out
from mmedit.errors import MmeditError

# Waiting threads of torch must sleep: spinning ones keep the core from the thread that they wait
# for, when another process is busy (benchmarks/threads.md). OpenMP reads this as torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# torch and transformers take seconds to import: each command imports what it needs.


def main() -> None:
    """Run the command line: errors raised on purpose are one message and exit code 2."""
    if int(os.environ.get("RANK", "0")):  # of `accelerate launch`: one process speaks for all
        out.quiet = err.quiet = True
    code = _run()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from mmedit.processes import leave

        leave(code)
    sys.exit(code)


def _run() -> int:
    """The exit code."""
    try:
        app()
    except MmeditError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        err.print(
            "stopped; what was finished is kept, and the same command (of fit: with --resume) "
            "continues from there"
        )
        return 130
    except SystemExit as ended:  # typer ends every command so
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


__all__ = ["bench", "data", "demo", "edit", "fit", "main", "models", "show", "tables"]
