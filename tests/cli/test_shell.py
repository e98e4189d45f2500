"""The command line as a shell sees it: start-up, help, names, Ctrl+C and progress."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import edits, write_run

from mmedit import catalog
from mmedit.adapters import ADAPTERS
from mmedit.bench.modes import MODES
from mmedit.cli.console import app
from mmedit.cli.progress import PERIOD, show_progress, show_status
from mmedit.convert.conversion import FAMILIES
from mmedit.datasets.audits import AUDITS
from mmedit.datasets.fetch.origins import ORIGINS
from mmedit.errors import ConfigError, UnknownNameError
from mmedit.progress import Progress
from mmedit.report.columns import COLUMN_SETS
from mmedit.report.papers import published_names
from mmedit.report.render import FORMATS

VQA = Path(__file__).parents[2] / "results" / "embedded-vqa"
GROUPS = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
COMMANDS = tuple(
    f"{prefix}{command.name or getattr(command.callback, '__name__', '')}"
    for prefix, group in GROUPS
    for command in (group.registered_commands if group else ())
    if not command.hidden
)

# What runs without torch

TRIED = """
import json, sys
import mmedit.report.render.page  # which bench writes, after it has loaded a VLM
from mmedit.cli import main
done = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["mmedit", *arguments]
    try:
        main()
    except SystemExit as ended:
        done.append([ended.code, "torch" in sys.modules])
print("\\n" + json.dumps(done))
"""


def tried(commands: list[list[str]]) -> list[list[object]]:
    """The exit code of each command, and whether torch was imported by then."""
    arguments = [sys.executable, "-c", TRIED, json.dumps(commands)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_lists_tables_and_plots_import_no_torch(tmp_path: Path):
    run = write_run(tmp_path / "run", *edits("MEND", [1.0, 0.0]), *edits("FT-M", [0.0, 1.0]))
    commands = [
        ["--help"], ["-h"], ["--version"], ["help"], ["data", "--help"],
        *([*command.split(), "--help"] for command in COMMANDS),
        ["ls"], *(["ls", name] for name in catalog.LISTS),
        ["table", str(VQA), "--columns", "locality", "--format", "html"], ["table", str(run)],
        ["compare", f"{run}:MEND", f"{run}:FT-M"], ["plot", str(run), "--out", str(tmp_path)],
    ]  # fmt: skip
    for command, result in zip(commands, tried(commands), strict=True):
        assert result == [0, False], command


def test_wrong_names_are_refused_before_torch_is_imported():
    edit = ["edit", "--prompt", "what?", "--target", "red"]
    commands = [
        [*edit, "--vlm", "embeded"], [*edit, "--editor", "mnd"], [*edit, "--dataset", "easyvq"],
        ["fit", "--vlm", "embeded", "--out", "x"], ["fit", "--editor", "mnd", "--out", "x"],
        ["bench", "--vlm", "embeded", "--out", "x"], ["bench", "--editor", "mnd", "--out", "x"],
        ["bench", "--editor", "ft", "--editor", "", "--out", "x"], ["bench", "--vlm", ""],
        ["bench", "--dataset", "easyvq", "--out", "x"], ["ls", "editor"],
        ["table", str(VQA), "--format", "latx"], ["table", str(VQA), "--published", ""],
        ["data", "get", "evqua"], ["convert", "blip", "--vision", "a", "--language", "b"],
    ]  # fmt: skip
    for command, result in zip(commands, tried(commands), strict=True):
        assert result == [2, False], command


# Names


@pytest.mark.parametrize(
    ("listed", "table"),
    [
        (catalog.FORMATS, FORMATS),
        (catalog.COLUMN_SETS, COLUMN_SETS),
        (catalog.MODES, MODES),
        (catalog.AUDITS, AUDITS),
        (catalog.DOWNLOADS, ORIGINS),
        (catalog.CONVERTED, FAMILIES),
        (catalog.names("published"), published_names()),
        (catalog.FAMILIES.items(), ((name, found.model_types) for name, found in ADAPTERS.items())),
    ],
)
def test_the_catalog_names_what_the_tables_hold(listed, table):
    assert list(listed) == list(table)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vlm", "embedded"),
        ("vlm", str(VQA)),
        ("vlm", "owner/name"),
        ("editor", "mend"),
        ("dataset", "json"),
        ("table", __file__),
        ("published", "mmedit"),
    ],
)
def test_a_name_folder_or_hub_id_is_known(kind, name):
    catalog.require_known(kind, name)


@pytest.mark.parametrize("kind", catalog.LISTS.values())
@pytest.mark.parametrize("name", ["", "a" * 300, "nowhere.yaml", "a\0b"])
def test_other_names_are_unknown(kind, name):
    with pytest.raises(UnknownNameError, match="There are:"):
        catalog.require_known(kind, name)


def test_a_file_in_place_of_a_dataset_is_told_how_to_be_used():
    with pytest.raises(ConfigError, match=f"--dataset json --set dataset.test={__file__}"):
        catalog.require_known("dataset", __file__)


def test_a_broken_file_of_settings_is_named(tmp_path: Path):
    for content in (b"a: [", "a: é".encode("latin-1"), b"just text", b"[" * 5000):
        (tmp_path / "broken.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken\.yaml"):
            catalog.read_yaml(tmp_path / "broken.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        catalog.read_yaml(tmp_path)


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_and_no_swallowed_brackets(mmedit_, command):
    shown = mmedit_(*command.split(), "-h").out
    assert f"Examples: mmedit {command}" in shown
    assert "<bool>" not in shown


def test_help_shows_defaults_and_the_names_of_the_tables(mmedit_):
    shown = mmedit_("table", "--help").out
    assert "md, latex, csv, html or json" in shown
    assert "default, generation or locality" in shown
    published = "ads-edit, ads-edit-real, fgvedit, liveedit, liveedit-1000, memeic, mmedit or unike"
    assert published.replace(" ", "") in "".join(shown.split())  # a line may end at a hyphen
    assert "[default: (the run's --vlm)]" in shown
    assert "[default: embedded]" in mmedit_("fit", "--help").out
    datasets = (
        "evqa, eic, vlkeb, mmke, comprehendedit, fgvedit, cckeb, adsedit, grocery or photo-vlm"
    )
    assert datasets in mmedit_("data", "get", "--help").out


def test_version_and_help_as_a_command(mmedit_):
    assert mmedit_("--version").out.startswith("mmedit ")
    assert mmedit_("help", "table").out == mmedit_("table", "--help").out
    assert mmedit_("help", "data", "get").out == mmedit_("data", "get", "--help").out
    refused = mmedit_("help", "tabel")
    assert refused.code == 2
    assert "Did you mean 'table'" in refused.err


def test_completion_can_be_installed_and_knows_names(mmedit_, monkeypatch):
    assert "--install-completion" in mmedit_("--help").out
    monkeypatch.setenv("_MMEDIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mmedit edit --editor serac")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert mmedit_().out == "serac serac-minilm serac-mscke serac-text"


def test_ls_alone_shows_all_lists(mmedit_):
    shown = mmedit_("ls")
    assert shown.code == 0
    for kind in catalog.LISTS.values():
        for name in catalog.names(kind):
            assert f" {name} " in shown.out


# Tables


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--published-model", "BLIP-2"), "--published-model BLIP-2 names a row of a published"),
        (("--published-dataset", "E-VQA"), "add --published NAME: ads-edit, "),
        (("--published", "mmedit", "--published-model", " "), "--published-model is empty"),
        (("--published", ""), "no published table named ''"),
        (("--format", ""), "no table format named ''"),
        (("--columns", ""), "no set of columns named ''"),
        (("",), "the name of a folder is empty"),
    ],
)
def test_names_that_a_table_cannot_use_are_refused(mmedit_, more, message):
    shown = mmedit_("table", VQA, *more)
    assert shown.code == 2
    assert message in shown.err


def test_a_run_without_a_name_is_not_compared(mmedit_):
    assert mmedit_("compare", VQA, "").code == 2


# Ctrl+C

WAITING = """
import signal, sys
from mmedit import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in background
def wait():
    print("waiting", flush=True)
    signal.pause()
for command in cli.app.registered_commands:
    command.name, command.callback = command.name or command.callback.__name__, wait
cli.main()
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bench", "Stopped. What was finished is kept. The same command continues from there."),
        ("fit", "Stopped. The last checkpoint is kept. The same command with --resume continues"),
        ("table", "Stopped.\n"),
    ],
)
def test_ctrl_c_says_that_the_same_command_continues(command, message):
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == "waiting\n"
            running.send_signal(signal.SIGINT)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert err.startswith(message)
    assert "Traceback" not in err


# Progress


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Steps = Callable[[float, str, int, int], list[str]]


@pytest.fixture
def after() -> Iterator[Steps]:
    """Reports progress some seconds later; returns the lines that it added to a file."""
    clock, file = Clock(), io.StringIO()

    def report(seconds: float, task: str, done: int, total: int) -> list[str]:
        clock.now += seconds
        before = file.tell()
        progress(task, done, total, "")
        return file.getvalue()[before:].splitlines()

    with show_progress(Console(file=file, width=30), clock=clock) as progress:
        yield report


def test_a_file_gets_a_line_at_once_and_one_every_ten_seconds(after: Steps):
    assert after(5, "measuring FT-M", 0, 100) == ["measuring FT-M: 0/100"]
    assert after(PERIOD - 1, "measuring FT-M", 1, 100) == []
    assert after(1, "measuring FT-M", 2, 100) == ["measuring FT-M: 2/100, 5.0 s each, 0:08:10 left"]
    lines = [line for done in range(3, 100) for line in after(1, "measuring FT-M", done, 100)]
    assert len(lines) == 9
    assert lines[-1] == "measuring FT-M: 92/100, 1.1 s each, 0:00:09 left"
    assert after(1, "measuring FT-M", 100, 100) == [
        "measuring FT-M: 100/100, 1.1 s each, took 0:01:48"
    ]


def test_the_time_left_is_right_after_the_first_batch(after: Steps):
    after(0, "measuring base", 0, 100)
    assert after(26, "measuring base", 25, 100) == [
        "measuring base: 25/100, 1.0 s each, 0:01:18 left"
    ]
    assert after(0.1, "measuring FT-M", 0, 100) == ["measuring FT-M: 0/100"]


def test_what_was_done_before_a_resumed_task_does_not_count_as_fast(after: Steps):
    assert after(0, "training", 900, 1000) == ["training: 900/1,000"]
    assert after(20, "training", 910, 1000) == ["training: 910/1,000, 2.0 s each, 0:03:00 left"]


def test_a_task_that_begins_anew_is_told_anew(after: Steps):
    after(0, "reading cases", 0, 5)
    assert after(1, "reading cases", 5, 5) == ["reading cases: 5/5, 5.0/s, took 0:00:01"]
    assert after(1, "reading cases", 5, 5) == []
    assert after(50, "reading cases", 0, 8) == ["reading cases: 0/8"]
    assert after(4, "reading cases", 8, 8) == ["reading cases: 8/8, 2.0/s, took 0:00:04"]


def test_a_task_of_unknown_length_has_no_time_left(after: Steps):
    assert after(0, "fetching [x]", 0, 0) == ["fetching [x]: 0"]
    assert after(10, "fetching [x]", 5000, 0) == ["fetching [x]: 5,000, 500.0/s"]


def test_a_terminal_shows_the_same_rate_and_time_left():
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, color_system=None)

    def report(progress: Progress, seconds: float, done: int, figures: str) -> None:
        clock.now += seconds
        progress("measuring [b]", done, 100, figures)

    with show_progress(console, clock=clock) as progress:
        report(progress, 0, 0, "")
        report(progress, 26, 25, "loss 0.5")
    shown = file.getvalue()
    assert "measuring [b]" in shown
    assert "25/100 0:00:26 1.0 s each, 0:01:18 left" in shown
    assert "loss 0.5" in shown


def test_a_step_without_count_is_said_in_a_file():
    file = io.StringIO()
    with show_status(Console(file=file), "loading [the VLM]"):
        assert file.getvalue() == "loading [the VLM]\n"
