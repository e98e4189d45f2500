"""Two processes on this machine's CPU, as `accelerate launch` starts them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finished_all, launch, start_several
from safetensors.torch import load_file
from toy_learner import Toy, log_lines, train_toy

from mmedit import cli
from mmedit.errors import TrainingError
from mmedit.training.resume import steps_done

# The loop

SCRIPT = """
import errno, json, os, sys
from pathlib import Path
from safetensors.torch import save_file
from mmedit.errors import TrainingError
from mmedit.processes import is_main_process, leave, number_of_processes
from mmedit.training import checkpoints
from toy_learner import VALIDATION, Toy, train_toy

root, rank = Path(sys.argv[1]), int(os.environ["RANK"])
said = {"processes": number_of_processes(), "main": is_main_process(), "saved": [], "cases": []}
save = checkpoints.Checkpoints.save


def noted(self, checkpoint, keep=None):
    said["saved"].append(checkpoint.step)
    save(self, checkpoint, keep=keep)


def keep(name, toy):
    save_file(toy.state_dict(), root / f"{name}-{rank}.safetensors")


checkpoints.Checkpoints.save = noted
whole = Toy("sgd", noise=0.0)
train_toy(whole, root / "whole", batch_size=2, check_every=6)
keep("whole", whole)
checkpoints.Checkpoints.save = save

given = {"batch_size": 2, "validation": VALIDATION}
uncut = Toy()
train_toy(uncut, root / "uncut", **given)
keep("uncut", uncut)


def stop(step, cases, loss):
    if step == 7:
        raise KeyboardInterrupt
    return loss


try:
    train_toy(Toy(meddle=stop), root / "cut", **given)
except KeyboardInterrupt:
    pass
cut = Toy()
train_toy(cut, root / "cut", **given)
keep("cut", cut)


def nan_in_the_second(step, cases, loss):
    if step != 3:
        return loss
    said["cases"] += [case.id for case in cases]
    return loss * (float("nan") if rank == 1 else 1.0)


def fault(toy, name):
    try:
        train_toy(toy, root / name, batch_size=2)
    except TrainingError as error:
        return str(error)


def full(tensors, path):
    raise OSError(errno.ENOSPC, "No space left on device")


said["nan"] = fault(Toy(meddle=nan_in_the_second), "nan")
checkpoints.save_file = full
said["full"] = fault(Toy(), "full")
(root / f"said-{rank}.json").write_text(json.dumps(said))
leave(0)
"""


@dataclass(frozen=True)
class Launched:
    """What both processes of the script left."""

    root: Path

    def said(self, rank: int) -> dict[str, Any]:
        return json.loads((self.root / f"said-{rank}.json").read_text())

    def learnt(self, name: str, rank: int) -> dict[str, torch.Tensor]:
        return load_file(self.root / f"{name}-{rank}.safetensors")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    root = tmp_path_factory.mktemp("two")
    (root / "script.py").write_text(SCRIPT)
    launch(root / "script.py", root)
    return Launched(root)


def test_two_processes_are_started_and_one_of_them_speaks(launched: Launched):
    assert [launched.said(rank)["processes"] for rank in (0, 1)] == [2, 2]
    assert [launched.said(rank)["main"] for rank in (0, 1)] == [True, False]


def test_two_processes_are_one_with_twice_the_batch(launched: Launched, tmp_path: Path):
    alone = Toy("sgd", noise=0.0)
    train_toy(alone, tmp_path, batch_size=4, check_every=6)
    for rank in (0, 1):
        learnt = launched.learnt("whole", rank)
        for name in ("weight", "bias"):
            torch.testing.assert_close(learnt[name], alone.state_dict()[name], rtol=1e-6, atol=1e-6)
    for together, one in zip(log_lines(launched.root / "whole"), log_lines(tmp_path), strict=True):
        assert together == pytest.approx(one, rel=1e-5, abs=1e-6)


def test_one_process_writes_the_checkpoints(launched: Launched):
    assert launched.said(0)["saved"] == [6, 12]
    assert launched.said(1)["saved"] == []
    assert steps_done(launched.root / "whole") == 12


def test_two_processes_go_on_from_a_checkpoint_bit_for_bit(launched: Launched):
    for rank in (0, 1):
        cut, uncut = (launched.learnt(name, rank) for name in ("cut", "uncut"))
        assert all(torch.equal(cut[name], tensor) for name, tensor in uncut.items())
    assert log_lines(launched.root / "cut") == log_lines(launched.root / "uncut")


def test_the_noise_of_the_processes_differs(launched: Launched):
    """The running mean of what each saw; that of the first is given to all in every step."""
    first, second = (launched.learnt("uncut", rank)["mean"] for rank in (0, 1))
    assert not torch.equal(first, second)


def test_a_training_of_two_processes_is_not_gone_on_with_by_one(launched: Launched):
    with pytest.raises(TrainingError, match="its processes is 2, here 1"):
        train_toy(Toy("sgd"), launched.root / "whole", batch_size=2, check_every=6)


def test_a_nan_in_one_process_stops_both_and_names_the_cases_of_both(launched: Launched):
    first, second = (launched.said(rank) for rank in (0, 1))
    assert first["nan"] == second["nan"]
    assert "step 3: loss nan" in first["nan"]
    assert len(first["cases"]) == len(second["cases"]) == 2
    assert f"on cases {', '.join(first['cases'] + second['cases'])}." in first["nan"]
    assert "checkpoint of step 2 is kept" in first["nan"]
    assert steps_done(launched.root / "nan") == 2


def test_a_full_disk_stops_both_processes(launched: Launched):
    first, second = (launched.said(rank)["full"] for rank in (0, 1))
    assert first == second
    assert "step 2 cannot be written" in first
    assert "No space left on device" in first


# MEND, from the command line

FIT = (
    "fit", "--limit", "32", "--validation", "8",
    "--set", "editor.training.steps=3", "--set", "editor.training.report_every=1",
)  # fmt: skip
STATISTICS = ("mean", "squares", "count")


@dataclass(frozen=True)
class Fitted:
    """MEND fitted by two processes, and by one with twice the batch."""

    printed: str
    two: Path
    one: Path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    root = tmp_path_factory.mktemp("fitted")
    batch = "editor.training.batch_size"
    two = ("-m", "mmedit", *FIT, "--set", f"{batch}=4", "--out", root / "two")
    printed = finished_all(start_several(root / "printed", *two, processes=2))
    cli.app([*FIT, "--set", f"{batch}=8", "--out", str(root / "one")], standalone_mode=False)
    return Fitted(printed, root / "two", root / "one")


def test_only_one_process_prints(fitted: Fitted):
    printed = " ".join(fitted.printed.split())
    assert printed.count("MEND was fitted on 24 cases by 2 processes in") == 1
    assert printed.count("was fitted on") == printed.count("next: mmedit bench") == 1


def test_figures_of_two_processes_are_those_of_one_with_twice_the_batch(fitted: Fitted):
    two, one = (log_lines(folder)[0] for folder in (fitted.two, fitted.one))
    assert two["step"] == 0
    assert {"loss", "score", "loss/edit"} <= two.keys()
    assert two == pytest.approx(one, rel=1e-4, abs=1e-4)


def test_statistics_of_two_processes_are_those_of_one_with_twice_the_batch(fitted: Fitted):
    two, one = (load_file(each / "editor.safetensors") for each in (fitted.two, fitted.one))
    names = [name for name in one if name.rsplit(".", 1)[-1] in STATISTICS]
    assert len(names) >= 2 * len(STATISTICS)
    for name in names:
        assert one[name].norm() > 0
        assert (two[name] - one[name]).norm() <= 1e-4 * one[name].norm(), name
        if name.endswith("count"):
            assert torch.equal(two[name], one[name])
