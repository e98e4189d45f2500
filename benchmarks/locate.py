"""What batches of located edits save, and what an edit of UltraEdit costs beside one capture.

    python benchmarks/locate.py > benchmarks/locate.md
    MMEDIT_HOME=DIR python benchmarks/locate.py --vlm photo >> benchmarks/locate.md

(a) ROME, MEMIT and AlphaEdit: `apply_each` of many requests at once against one by one, and which
    parts of the work take the time: the search for value vectors, reading keys, and the solve;
(b) UltraEdit: `apply` against one `capture` of the same requests at the same weights.

The settings are those of configs/editor for the VLM. What is compared runs in turn in one process,
with one thread; image features and the states below the first edited layer are looked up in both.
Processor time; medians of the ratios of several rounds are what counts, as machines differ.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from importlib.metadata import version
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from measuring import Clock, Work, header, in_turn, ratio

from mmedit import EditCase, Editor, Example, load_cases, load_editor, load_vlm
from mmedit.editors.closed_form import located
from mmedit.editors.fitting import Fitting
from mmedit.methods import alphaedit, memit, rome
from mmedit.vlm.network import NetworkVLM

LOCATED = ("rome", "memit", "alphaedit")
SEARCH, KEYS, SOLVE = "search", "keys", "solve"
PARTS: dict[str, list[tuple[Any, str]]] = {
    SEARCH: [(located, "find_values")],
    KEYS: [(located, "read_all_keys")],
    SOLVE: [
        (rome, "rome_delta"),
        (memit, "memit_delta"),
        (alphaedit, "alphaedit_delta"),
        (located.Located, "factor"),
    ],
}
"""The functions that do each part of an edit, by the place where they are looked up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vlm", default="embedded", help="a name of configs/vlm, or a folder")
    parser.add_argument("--dataset", default="easyvqa")
    parser.add_argument("--root", help="the dataset's folder, where it needs one")
    parser.add_argument("--requests", type=int, default=32, help="edits at once")
    parser.add_argument("--train", type=int, default=200, help="training cases of the fit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=[*LOCATED, "ultraedit"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = load_vlm(options.vlm)
    given = {"root": options.root} if options.root else {}
    training = load_cases(options.dataset, "train", limit=options.train, **given)
    cases = load_cases(options.dataset, "test", limit=options.requests, **given)
    requests = [case.request for case in cases]
    clock = Clock(vlm.device)
    about = {
        "device": vlm.device,
        "Python": platform.python_version(),
        "mmedit": version("mmedit"),
        "VLM": options.vlm,
        "dataset": options.dataset,
        "training cases": len(training),
        "rounds": options.rounds,
    }
    print(header("locate.py", sys.argv[1:], clock, **about))
    names = [name for name in options.methods if name in LOCATED]
    editors = [fitted(name, vlm, training) for name in names]
    report_batches(vlm, editors, requests, options.rounds, clock)
    if "ultraedit" in options.methods:
        editor = fitted("ultraedit", vlm, training)
        report_captures(vlm, editor, requests, options.rounds, clock)


def fitted(name: str, vlm: NetworkVLM, training: Sequence[EditCase]) -> Editor:
    editor = load_editor(name, vlm)
    return editor.fit(vlm, Fitting(training)) if editor.needs_fit else editor


def report_batches(
    vlm: NetworkVLM,
    editors: Sequence[Editor],
    requests: Sequence[Example],
    rounds: int,
    clock: Clock,
) -> None:
    """Print what one pass of all requests saves, and the parts of both ways."""
    number = len(requests)
    print(
        f"| method | one by one, ms an edit | {number} at once, ms an edit | ratio "
        f"| of one by one: {SEARCH} / {KEYS} / {SOLVE} / rest | of {number} at once |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for editor in editors:
        works = {
            "one": Work(partial(one_by_one, vlm, editor, requests)),
            "many": Work(partial(editor.apply_each, vlm, requests)),
        }
        times = in_turn(works, rounds, clock)
        one, many = (1000 * median(times[name]) / number for name in works)
        found = ratio(times["one"], times["many"])
        each, together = (shares(work.run) for work in works.values())
        print(
            f"| {editor.label} | {one:.1f} | {many:.1f} | {found:.1f} | {each} | {together} |",
            flush=True,
        )


def one_by_one(vlm: NetworkVLM, editor: Editor, requests: Sequence[Example]) -> None:
    for request in requests:
        editor.apply_each(vlm, [request])


def report_captures(
    vlm: NetworkVLM, editor: Editor, requests: Sequence[Example], rounds: int, clock: Clock
) -> None:
    """Print what an edit of UltraEdit costs, in captures."""
    sites = editor.edited_sites(vlm)
    print(f"\n| {editor.label}, {len(sites)} weights | capture, ms | apply, ms | ratio |")
    print("|---|--:|--:|--:|")
    for number in (1, len(requests)):
        some = requests[:number]
        works = {
            "capture": Work(partial(vlm.capture, some, sites)),
            "apply": Work(partial(editor.apply, vlm, some)),
        }
        times = in_turn(works, rounds, clock)
        capture, apply = (1000 * median(times[name]) for name in works)
        found = ratio(times["apply"], times["capture"])
        said = f"{number} request{'s' if number > 1 else ''}"
        print(f"| {said} | {capture:.1f} | {apply:.1f} | {found:.2f} |", flush=True)


def shares(work: Callable[[], object]) -> str:
    """Return which shares of the processor time the parts of an edit take, in percent."""
    with timed_parts() as seconds:
        begun = time.process_time()
        work()
        total = time.process_time() - begun
    parts = [seconds[part] / total for part in PARTS]
    return " / ".join(f"{100 * part:.0f}" for part in (*parts, 1 - sum(parts)))


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Count the seconds of processor time in the functions of every part."""
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for home, name in functions:
                stack.enter_context(patch.object(home, name, _timed(home, name, part, seconds)))
        yield seconds


def _timed(home: Any, name: str, part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    function = getattr(home, name)

    @wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[part] += time.process_time() - begun

    return timed


if __name__ == "__main__":
    main()
