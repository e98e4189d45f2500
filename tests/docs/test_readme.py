"""The examples of README and docs run, and the README's promises about commands hold."""

import re
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
    commands = re.findall(r"^mmedit (data \w+|\w+) (.*)$", README, flags=re.MULTILINE)
    assert {name for name, _ in commands} >= {"edit", "fit", "bench", "table", "ls", "data get"}
    for name, arguments in commands:
        shown = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[\w-]+", arguments):
            assert option in shown, f"mmedit {name} has no {option}"


def test_files_that_the_readme_points_to_exist():
    root = Path(__file__).parents[2]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (root / link).exists(), link


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
