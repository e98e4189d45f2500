"""The examples of README and docs run, and the README's promises about commands hold."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from tiny import SEEN, TEXT_ONLY
from typer.testing import CliRunner

from mmedit.cli.console import app
from mmedit.deltas import Dense
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

README_FILE = Path(__file__).parents[2] / "README.md"
README = README_FILE.read_text(encoding="utf-8")
ROOT = README_FILE.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("results/*.md"),
        *ROOT.glob("data/*.md"),
    ]
)


def test_the_python_example_runs_and_the_edit_shows(capsys: pytest.CaptureFixture[str]):
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    before, after, scores = capsys.readouterr().out.splitlines()
    assert before != after
    assert after == str([names["case"].request.target])  # pyright: ignore
    assert "'reliability': 1.0" in scores


def shown_commands(page: Path) -> list[tuple[str, str]]:
    """The mmedit commands of a page, in blocks and in sentences, each with its arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join(re.split(r"^```.*\n", text, flags=re.MULTILINE)[1::2])
    lines = re.findall(r"^mmedit ((?:data |show )?[a-z]+)\b(.*)$", blocks, flags=re.MULTILINE)
    return lines + re.findall(r"`mmedit ((?:data |show )?[a-z]+)\b([^`]*)`", text)


@cache
def help_of(name: str) -> str:
    """Return the help of a command, which several pages show."""
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, f"there is no command mmedit {name}"
    return shown.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_takes_the_options_that_it_shows(page: Path):
    for name, arguments in shown_commands(page):
        known = help_of(name)
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", arguments):
            assert option in known, f"mmedit {name} has no {option}"


def test_the_readme_shows_the_main_commands():
    names = {name for name, _ in shown_commands(README_FILE)}
    assert names >= {"fit", "bench", "table", "ls", "show editor", "report", "data get"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_points_to_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", text):
        assert "://" in link or (page.parent / link).exists(), link


def blocks_and_numbers(text: str) -> tuple[list[str], list[str], list[str]]:
    """The code blocks, the inline commands and the table rows of numbers of a README."""
    code = re.findall(r"```.*?```", text, flags=re.DOTALL)
    commands = re.findall(r"`((?:mmedit|make|pip) [^`]+)`", text)
    numbers = [line for line in text.splitlines() if line.startswith("|") and "–" in line + "–"]
    return code, commands, [line for line in numbers if re.search(r"\d / \d|--:", line)]


def test_the_chinese_readme_says_the_same():
    chinese = README_FILE.with_name("README.zh-CN.md").read_text(encoding="utf-8")
    assert blocks_and_numbers(chinese) == blocks_and_numbers(README)
    assert len(re.findall(r"^## ", chinese, re.M)) == len(re.findall(r"^## ", README, re.M))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130


def test_the_adapter_of_the_page_on_adding_a_model_asks_in_its_format(tmp_path: Path):
    page = (README_FILE.parent / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "adding-a-model.md", "exec"), names)
    folder = tiny_families.save_family("llava", tmp_path)
    vlm = load_vlm(folder, adapter=names["QuestionAdapter"])
    examples = [SEEN[0], TEXT_ONLY]
    images = {0: vlm.adapter.see(SEEN[0])}
    asked = vlm.adapter.inputs(examples, images, padding_side="left").input_ids
    texts = vlm.adapter.tokenizer.batch_decode(asked)
    assert re.fullmatch(rf"(<pad>)*<s>(<image>)+Q: {re.escape(SEEN[0].prompt)} A: blue", texts[0])
    assert texts[1].endswith(f"<s>Q: {TEXT_ONLY.prompt} A: {TEXT_ONLY.target}")
    edited = vlm.with_deltas({site: delta_for(vlm, site) for site in vlm.sites("bridge")})
    assert not torch.equal(edited.predict(SEEN).logits, vlm.predict(SEEN).logits)


def delta_for(vlm: NetworkVLM, site: str) -> Dense:
    return Dense(torch.full(vlm.shape(site), 0.1))
