"""Bars in notebooks: what they show, and that a real kernel of Jupyter gets them unasked."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from mmedit.editors.fitting import Fitting
from mmedit.progress import NotebookBars, by_itself, counted, in_notebook, silent

MINUTES = 5
"""The longest that a cell of these tests may take."""


class Shown:
    """What IPython's `display` was given: a list of outputs, each the list of its contents."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def __call__(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        self.outputs.append([bundle])
        return Handle(self.outputs[-1])

    @property
    def texts(self) -> list[str]:
        """The last text of every output."""
        return [contents[-1]["text/plain"] for contents in self.outputs]


class Handle:
    def __init__(self, contents: list[dict[str, str]]) -> None:
        self.contents = contents

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.contents.append(bundle)


class Bars:
    """Bars under a clock that the test moves."""

    def __init__(self, delay: float) -> None:
        self.now = 0.0
        self.bars = NotebookBars(delay=delay, clock=lambda: self.now)

    def after(self, seconds: float, task: str, done: int, total: int, figures: str = "") -> None:
        self.now += seconds
        self.bars.show(task, done, total, figures)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    import IPython.display

    shown = Shown()
    monkeypatch.setattr(IPython.display, "display", shown)
    return shown


@pytest.fixture
def bars(shown: Shown) -> Callable[..., Bars]:
    return lambda delay=0.0: Bars(delay)


def test_a_bar_shows_count_rate_time_left_and_figures(shown: Shown, bars: Callable[..., Bars]):
    one = bars()
    one.after(0, "fitting MEND", 0, 200)
    assert shown.texts == ["fitting MEND: 0/200"]
    one.after(10, "fitting MEND", 50, 200, "loss 0.5")
    assert shown.texts == ["fitting MEND: 50/200 5.0/s, 0:00:30 left\nloss 0.5"]
    one.after(30, "fitting MEND", 200, 200, "loss 0.1")
    assert shown.texts == ["fitting MEND: 200/200 5.0/s, took 0:00:40\nloss 0.1"]
    assert '<progress value="200" max="200">' in shown.outputs[0][-1]["text/html"]


def test_the_tasks_of_one_call_stand_below_each_other_in_one_output(
    shown: Shown, bars: Callable[..., Bars]
):
    one = bars()
    for task in ("checking the rows", "measuring FT"):
        one.after(1, task, 0, 2)
        one.after(1, task, 2, 2)
    assert [text.splitlines() for text in shown.texts] == [
        ["checking the rows: 2/2 2.0/s, took 0:00:01", "measuring FT: 2/2 2.0/s, took 0:00:01"]
    ]


def test_the_screen_changes_five_times_a_second_at_most(shown: Shown, bars: Callable[..., Bars]):
    one = bars()
    for done in range(101):
        one.after(0.01, "reading cases", done, 100)
    assert len(shown.outputs[0]) == pytest.approx(1.0 / 0.2, abs=2)
    assert shown.texts[0].startswith("reading cases: 100/100")


def test_work_that_is_short_is_not_shown_if_a_delay_was_asked_for(
    shown: Shown, bars: Callable[..., Bars]
):
    one = bars(delay=1.0)
    for done in range(3):
        one.after(0.1, "reading cases", done, 2)
    assert shown.outputs == []
    one = bars(delay=1.0)
    for done in range(3):
        one.after(0.6, "reading cases", done, 3)
    assert shown.texts == ["reading cases: 2/3 1.7/s, 0:00:01 left"]


def test_work_that_is_repeated_is_shown_below_the_cell_that_repeats_it(
    shown: Shown, bars: Callable[..., Bars]
):
    one = bars()
    for _ in range(2):
        one.after(0, "training", 0, 5)
        one.after(5, "training", 5, 5)
    assert shown.texts == ["training: 5/5 1.0/s, took 0:00:05"] * 2


def test_a_task_without_a_known_end_has_a_bar_without_an_end(
    shown: Shown, bars: Callable[..., Bars]
):
    bars().after(0, "fetching", 10, 0)
    assert shown.texts == ["fetching: 10"]
    assert "<progress></progress>" in shown.outputs[0][0]["text/html"]


def test_names_and_figures_are_escaped(shown: Shown, bars: Callable[..., Bars]):
    bars().after(0, "measuring <script>", 0, 1, "<b>loss</b>")
    opened: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            opened.add(tag)

    Tags().feed(shown.outputs[0][0]["text/html"])
    assert opened == {"table", "tr", "td", "progress", "div", "small"}


def test_outside_a_notebook_nothing_is_shown():
    assert not in_notebook()
    assert by_itself() is silent
    assert Fitting([]).progress is silent


def test_counted_items_are_reported_before_and_after_each():
    reports: list[tuple[str, int, int, str]] = []
    items = counted("ab", "measuring x", 2, lambda *told: reports.append(told))
    assert reports == []
    assert list(items) == ["a", "b"]
    assert reports == [("measuring x", done, 2, "") for done in range(3)]


Outputs = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def in_kernel() -> Iterator[Outputs]:
    """Runs a cell in a kernel of Jupyter; returns what each of its displays shows last."""
    client = pytest.importorskip("jupyter_client", reason="ipykernel is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    manager, cells = client.manager.start_new_kernel(
        kernel_name="python3", env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )

    def run(cell: str) -> list[dict[str, Any]]:
        shown: dict[str, dict[str, Any]] = {}

        def keep(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                shown[content["transient"]["display_id"]] = content["data"]

        reply = cells.execute_interactive(cell, output_hook=keep, timeout=60 * MINUTES)
        assert reply["content"]["status"] == "ok", "\n".join(reply["content"]["traceback"])
        return list(shown.values())

    yield run
    cells.stop_channels()
    manager.shutdown_kernel(now=True)


PREPARED = """
from mmedit import Block, evaluate, load_cases, load_editor, load_vlm, run_suite
from mmedit.editors.fitting import Fitting
vlm = load_vlm("embedded")
cases = load_cases("easyvqa", "test", limit=4)
ft = load_editor("ft", vlm, steps=2)
mend = load_editor("mend", vlm, training={"steps": 2, "batch_size": 2})
"""


def test_fit_evaluate_and_run_suite_show_bars_in_a_kernel_and_quick_reading_shows_none(
    in_kernel: Outputs, tmp_path: Any
):
    assert in_kernel(PREPARED) == []
    [fitted] = in_kernel("mend = mend.fit(vlm, Fitting(cases))")
    bars_shown = r"reading training cases: 20/20 .+\ntraining: 2/2 .+ took 0:00:\d\d\nloss \d"
    assert re.match(bars_shown, fitted["text/plain"])
    assert '<progress value="2" max="2">' in fitted["text/html"]
    [measured] = in_kernel("records = list(evaluate(vlm, ft, cases, batch_size=2))")
    assert measured["text/plain"].startswith("measuring FT-M: 4/4 ")
    [suite] = in_kernel(
        "block = Block(dataset='easyvqa', editors=('ft',), limit=2, settings=('ft.steps=1',))\n"
        f"results = run_suite({{'x': block}}, {str(tmp_path)!r})"
    )
    tasks = [line.split(":")[0] for line in suite["text/plain"].splitlines()]
    assert tasks[0] == "loading the VLM"
    assert tasks[-2:] == ["measuring base", "measuring FT-M"]


def test_progress_that_a_caller_gives_takes_the_place_of_the_bars(in_kernel: Outputs):
    cell = f"{PREPARED}\ntold = []\nreport = lambda *one: told.append(one)\n"
    cell += "list(evaluate(vlm, ft, cases, batch_size=4, progress=report))\n"
    cell += "assert told[-1] == ('measuring FT-M', 4, 4, ''), told"
    assert in_kernel(cell) == []
