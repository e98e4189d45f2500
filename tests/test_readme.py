"""The README's example runs, and its promises about commands hold."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmedit.cli import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_the_edit_shows(capsys: pytest.CaptureFixture[str]):
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    before, after, scores = capsys.readouterr().out.splitlines()
    assert before != after
    assert after == str([names["case"].request.target])  # pyright: ignore
    assert "'reliability': 1.0" in scores


def test_every_command_of_the_readme_takes_the_options_that_it_shows():
    commands = re.findall(r"^mmedit (\w+) (.*)$", README, flags=re.MULTILINE)
    assert {name for name, _ in commands} >= {"edit", "fit", "bench", "table", "ls"}
    for name, arguments in commands:
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[\w-]+", arguments):
            assert option in shown, f"mmedit {name} has no {option}"


def test_files_that_the_readme_points_to_exist():
    root = Path(__file__).parent.parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (root / link).exists(), link
