"""The methods of docs/adding-a-method.md, taken from the page and put through its steps."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_promises
import torch

from mmedit import catalog, config_files, evaluate, load_editor
from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.base import Editor
from mmedit.editors.fitting import Fitting
from mmedit.methods import EDITORS
from mmedit.storage import config_folder
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.network import NetworkVLM

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
ROOT = PAGE.parents[1]
TEXT = PAGE.read_text(encoding="utf-8")
INTRODUCTION = TEXT.partition("\n## ")[0]
FILES = dict(re.findall(r"`mmedit/methods/(\w+)\.py`:\n\n```python\n(.*?)```", TEXT, re.DOTALL))
YAMLS = dict(re.findall(r"`configs/editor/([\w-]+)\.yaml`.*?```yaml\n(.*?)```", TEXT, re.DOTALL))
TOUCHED = re.findall(
    r"`([\w/.-]+)`", "".join(re.findall(r"^\| (`.*?) \|", INTRODUCTION, re.MULTILINE))
)
LINES = dict(re.findall(r'^    "([\w-]+)": (lambda: .*),$', TEXT, re.MULTILINE))
CLASSES = {"step": ("step", "Step"), "learnt-step": ("learnt_step", "LearntStep")}


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """Step 1: the files."""
    folder, made = tmp_path_factory.mktemp("editors"), {}
    for name, code in FILES.items():
        path = folder / f"{name}.py"
        path.write_text(code, encoding="utf-8")
        spec = spec_from_file_location(f"added_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        made[name] = module_from_spec(spec)
        sys.modules[spec.name] = made[name]
        spec.loader.exec_module(made[name])
    yield made
    for module in made.values():
        del sys.modules[module.__name__]


@pytest.fixture(autouse=True)
def added(modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 2 and 3: the rows and the yamls."""
    for method, (module, name) in CLASSES.items():
        monkeypatch.setitem(EDITORS, method, getattr(modules[module], name))
    folder = tmp_path / "configs"
    shutil.copytree(config_folder(), folder)
    for name, content in YAMLS.items():
        (folder / "editor" / f"{name}.yaml").write_text(content, encoding="utf-8")
    for module in (catalog, config_files):
        monkeypatch.setattr(module, "config_folder", lambda: folder)


@pytest.fixture(scope="session")
def train_cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=40))


@pytest.fixture(scope="session")
def editors(modules, vlm: NetworkVLM, train_cases) -> dict[str, Editor]:
    """Step 4: the lines of the promise tests."""
    names: dict[str, Any] = {"LAST": test_promises.LAST, "TrainingConfig": TrainingConfig}
    for module in modules.values():
        names |= vars(module)
    made = {method: eval(line, names)() for method, line in LINES.items()}
    return {method: editor.fit(vlm, Fitting(train_cases)) for method, editor in made.items()}


@pytest.fixture(scope="session", params=CLASSES)
def editor(request: pytest.FixtureRequest, editors: dict[str, Editor]) -> Editor:
    return editors[request.param]


@pytest.fixture(scope="session")
def requests_() -> list[Example]:
    text = Example(prompt="what is the capital of Italy?", target="Santo Domingo")
    return [*(case.request for case in easyvqa.EasyVQA().load("test", limit=3)), text]


@pytest.fixture(scope="session")
def probes() -> list[Example]:
    kinds = (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY, Probe.TEXT_GENERALITY)
    cases = easyvqa.EasyVQA().load("test", limit=3)
    return [case.probes[kind][0] for case, kind in zip(cases, kinds, strict=True)]


edited, each, alone = test_promises.edited, test_promises.each, test_promises.alone
tuned, stacked = test_promises.tuned, test_promises.stacked


def test_the_page_names_the_files_to_touch_and_counts_them():
    new = {"mmedit/methods/step.py", "configs/editor/step.yaml"}
    assert {name for name in TOUCHED if not (ROOT / name).exists()} == new
    there = set(TOUCHED) - new
    assert len(there) == 4
    assert "one new Python file and one new settings file; four existing files" in INTRODUCTION
    for name in there:
        assert "mend" in (ROOT / name).read_text(encoding="utf-8").lower(), name


def test_every_method_is_in_the_tables_of_both_readmes():
    for name in (name for name in TOUCHED if name.startswith("README")):
        text = (ROOT / name).read_text(encoding="utf-8")
        rows = " ".join(line for line in text.splitlines() if line.startswith("| `"))
        missing = [m for m in EDITORS.keys() - CLASSES.keys() if f"`{m}`" not in rows]
        assert missing == [], name


def test_no_file_but_those_named_knows_a_single_method():
    """What else in the package named a method would have to be touched too."""
    for path in [*(ROOT / "mmedit").rglob("*.py"), ROOT / "pyproject.toml"]:
        name = str(path.relative_to(ROOT))
        if not name.startswith("mmedit/methods/"):
            imported = re.findall(r"mmedit\.methods\.[a-z]\w*", path.read_text(encoding="utf-8"))
            assert imported == [], name


def test_the_page_shows_everything_that_the_steps_need():
    assert FILES.keys() == {module for module, _ in CLASSES.values()}
    assert YAMLS.keys() == LINES.keys() == CLASSES.keys()


PROMISES: tuple[Callable[..., None], ...] = (
    test_promises.test_original_model_answers_bit_for_bit_as_before,
    test_promises.test_edits_compose,
    test_promises.test_an_edit_composes_with_a_fine_tuned_vlm,
    test_promises.test_each_edit_answers_every_probe_as_if_it_were_alone,
    test_promises.test_result_does_not_depend_on_batch_size,
    test_promises.test_result_does_not_depend_on_padding_side,
    test_promises.test_nothing_is_left_behind_on_the_network,
    test_promises.test_apply_each_equals_the_loop_of_apply,
    test_promises.test_separate_edits_refuse_a_batch_of_another_size,
    test_promises.test_generation_is_edited_as_prediction_is,
    test_promises.test_reliability_of_the_request_rises,
    test_promises.test_save_and_load_give_the_same_edit,
    test_promises.test_no_requests_no_change,
)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.usefixtures("editor")
def test_added_methods_keep_every_promise(request, promise):
    promise(**{name: request.getfixturevalue(name) for name in signature(promise).parameters})


def test_the_yaml_makes_an_editor_that_can_be_measured(vlm):
    editor = load_editor("step", vlm)
    assert editor.label == "Step"
    assert editor.config.model_dump()["lr"] == 0.3
    cases = easyvqa.EasyVQA().load("test", limit=4)
    records = list(evaluate(vlm, editor, cases, name=editor.label, batch_size=4))
    asked = [record.probes[Probe.RELIABILITY][0] for record in records]
    assert all(one.post.log_prob > one.pre.log_prob for one in asked)


def test_step_sizes_are_learnt(vlm, train_cases, tmp_path: Path):
    editor = load_editor(
        "learnt-step", vlm, lr=0.01, training={"steps": 12, "batch_size": 8, "report_every": 1}
    )
    told: list[float] = []
    fitting = Fitting(
        train_cases,
        progress=lambda _, done, total, figures: told.extend(map(float, figures.split()[1:2])),
        folder=tmp_path,
    )
    editor = editor.fit(vlm, fitting)
    assert sum(told[-3:]) < 0.9 * sum(told[:3])
    sizes = editor.state()["sizes"]
    assert not torch.allclose(sizes, torch.full_like(sizes, 0.01))
    assert (tmp_path / "checkpoints" / "step-000012").is_dir()
