"""What training leaves in its folder: checkpoints that are whole or not there, and that training
goes on from as if it had never stopped.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from processes import start
from safetensors import SafetensorError
from torch import Tensor
from toy_learner import VALIDATION, Meddle, Toy, log_lines, train_toy

from mmedit.cases import EditCase
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.editors.fitting import Fitting
from mmedit.errors import ConfigError, TrainingError
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.training import accelerator, checkpoints, loop
from mmedit.training.checkpoints import Checkpoint, Checkpoints, checkpoints_in
from mmedit.training.resume import seconds_spent, steps_done
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.network import NetworkVLM


class Stopped(Exception):
    """Whatever ends a training from outside."""


def stop_at(step: int) -> Meddle:
    def meddle(now: int, cases: Sequence[EditCase], loss: Tensor) -> Tensor:
        if now == step:
            raise Stopped
        return loss

    return meddle


def nan_at(step: int) -> Meddle:
    return lambda now, cases, loss: loss * (float("nan") if now == step else 1.0)


def stopped(folder: Path, step: int, optimizer: str = "adam", **settings: Any) -> None:
    """A training in the folder that was stopped in that step."""
    with pytest.raises(Stopped):
        train_toy(Toy(optimizer, meddle=stop_at(step)), folder, **settings)


def assert_same(found: Toy | MEND, wanted: Toy | MEND) -> None:
    tensors = [
        each.state_dict() if isinstance(each, Toy) else each.state() for each in (found, wanted)
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[1].items():
        assert torch.equal(tensors[0][name], tensor), name


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def last_checkpoint(folder: Path) -> Checkpoint:
    return checkpoints_in(folder).load(steps_done(folder))


# Going on


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "rmsprop", "momentum", "sgd"])
@pytest.mark.parametrize("validation", [[], VALIDATION], ids=["", "validated"])
def test_a_stopped_training_goes_on_from_its_last_checkpoint_bit_for_bit(
    optimizer: str, validation: list[EditCase], tmp_path: Path
):
    whole, continued = Toy(optimizer), Toy(optimizer)
    assert train_toy(whole, tmp_path / "whole", validation=validation) == 12
    stopped(tmp_path / "cut", 7, optimizer, validation=validation)
    assert steps_done(tmp_path / "cut") == 6
    assert train_toy(continued, tmp_path / "cut", validation=validation) == 12
    assert_same(continued, whole)
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")
    ends = [last_checkpoint(tmp_path / name) for name in ("cut", "whole")]
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    assert all(torch.equal(t, ends[1].tensors[name]) for name, t in ends[0].tensors.items())


def test_what_is_random_in_the_loss_goes_on_too(tmp_path: Path):
    """Else the test above would pass without it."""
    noisy, other, plain = Toy(), Toy(), Toy(noise=0.0)
    for seed, toy in ((0, noisy), (1, other), (0, plain)):
        train_toy(toy, tmp_path / f"{id(toy)}", seed=seed)
    assert not torch.equal(noisy.weight, other.weight)
    assert not torch.equal(noisy.weight, plain.weight)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"mixed_precision": "bf16"}], ids=str)
@pytest.mark.parametrize("schedule", [{}, {"warmup_steps": 5, "final_lr_share": 0.1}], ids=str)
def test_accumulation_precision_and_schedule_go_on_bit_for_bit(
    changes: dict[str, Any], schedule: dict[str, Any], tmp_path: Path
):
    whole, continued = Toy(), Toy()
    train_toy(whole, tmp_path / "whole", **changes, **schedule)
    stopped(tmp_path / "cut", 9, **changes, **schedule)
    train_toy(continued, tmp_path / "cut", **changes, **schedule)
    assert_same(continued, whole)


def test_training_may_be_stopped_many_times(tmp_path: Path):
    whole, continued = Toy(), Toy()
    train_toy(whole, validation=VALIDATION)
    for step in (1, 2, 3, 5, 5, 8, 11):
        stopped(tmp_path, step, validation=VALIDATION)
    train_toy(continued, tmp_path, validation=VALIDATION)
    assert_same(continued, whole)


def test_a_folder_changes_nothing_that_is_learnt(tmp_path: Path):
    with_folder, without = Toy(), Toy()
    train_toy(with_folder, tmp_path)
    train_toy(without)
    assert_same(with_folder, without)


def test_a_finished_training_is_taken_up_as_it_ended(tmp_path: Path):
    whole, again = Toy(), Toy(meddle=stop_at(0))
    train_toy(whole, tmp_path, validation=VALIDATION)
    before = log_lines(tmp_path)
    assert train_toy(again, tmp_path, validation=VALIDATION) == 12
    assert_same(again, whole)
    assert log_lines(tmp_path) == before


def test_a_training_stopped_before_its_first_checkpoint_begins_anew(tmp_path: Path):
    whole, again = Toy(), Toy()
    train_toy(whole)
    stopped(tmp_path, 1)
    assert steps_done(tmp_path) == 0
    train_toy(again, tmp_path)
    assert_same(again, whole)
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(12))


def test_time_spent_before_the_stop_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped(tmp_path, 7, max_seconds=1000.0)
    state = tmp_path / "checkpoints" / "step-000006" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"seconds": 998.0}))
    assert seconds_spent(tmp_path) == 998.0
    monkeypatch.setattr(loop.time, "perf_counter", iter(range(100)).__next__)
    assert train_toy(Toy(), tmp_path, max_seconds=1000.0) < 12


@pytest.mark.parametrize("torn", ["", '{"step": 6, "lo', "[3]\n", "\0\0\0"])
def test_a_log_torn_by_a_kill_is_mended(torn: str, tmp_path: Path):
    train_toy(Toy(), tmp_path / "whole")
    stopped(tmp_path / "cut", 7)
    with (tmp_path / "cut" / "training.jsonl").open("a") as file:
        file.write(torn)
    train_toy(Toy(), tmp_path / "cut")
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


# MEND


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=10))


def mend(**changes: object) -> MEND:
    training = TrainingConfig(steps=5, batch_size=2, check_every=2, report_every=1)
    sites = (
        "language_model.model.decoder.layers.3.fc1",
        "language_model.model.decoder.layers.3.fc2",
    )
    given = {"sites": sites, "rank": 8, "lr": 1e-3, "edit_lr": 1e-3, "training": training}
    return MEND(MENDConfig.model_validate(given | changes))


def stop_in_step_3(task: str, done: int, total: int, figures: str) -> None:
    if done == 4:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stopped_mend(
    vlm: NetworkVLM, cases: list[EditCase], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        mend().fit(
            vlm,
            Fitting(cases[:8], validation=cases[8:], progress=stop_in_step_3, folder=folder),
        )
    assert steps_done(folder) == 2
    return folder


def test_mend_goes_on_from_its_last_checkpoint_bit_for_bit(
    vlm: NetworkVLM, cases: list[EditCase], stopped_mend: Path, tmp_path: Path
):
    whole, continued = mend(), mend()
    whole = whole.fit(vlm, Fitting(cases[:8], validation=cases[8:], folder=tmp_path / "whole"))
    shutil.copytree(stopped_mend, tmp_path / "cut")
    cut = Fitting(cases[:8], validation=cases[8:], folder=tmp_path / "cut")
    continued = continued.fit(vlm, cut)
    assert_same(continued, whole)
    counts = [tensor for name, tensor in whole.state().items() if name.endswith("count")]
    assert counts
    assert all(count > 0 for count in counts)
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.5}, r"its settings\.lr is 0\.001, here 0\.5"),
        ({"training": TrainingConfig(steps=6)}, r"its settings\.training\.\w+ is"),
    ],
)
def test_mend_with_other_settings_does_not_go_on(
    vlm: NetworkVLM,
    cases: list[EditCase],
    stopped_mend: Path,
    changes: dict[str, object],
    named: str,
):
    with pytest.raises(TrainingError, match=named):
        mend(**changes).fit(vlm, Fitting(cases[:8], validation=cases[8:], folder=stopped_mend))


@pytest.mark.parametrize(
    ("trained", "validated", "seed", "named"),
    [
        (slice(7), slice(8, 10), 0, "dataset"),
        (slice(8), slice(9, 10), 0, "validation"),
        (slice(8), slice(8, 10), 1, "seed is 0, here 1"),
    ],
)
def test_mend_on_other_cases_does_not_go_on(
    vlm: NetworkVLM,
    cases: list[EditCase],
    stopped_mend: Path,
    trained: slice,
    validated: slice,
    seed: int,
    named: str,
):
    with pytest.raises(TrainingError, match=f"holds another training: its {named}"):
        mend().fit(
            vlm,
            Fitting(cases[trained], validation=cases[validated], seed=seed, folder=stopped_mend),
        )


def test_mend_on_another_vlm_does_not_go_on(
    vlm: NetworkVLM, cases: list[EditCase], stopped_mend: Path, monkeypatch: pytest.MonkeyPatch
):
    other = vlm.identity._replace(weights="other")
    monkeypatch.setattr(NetworkVLM, "identity", property(lambda self: other))
    with pytest.raises(TrainingError, match=r"its vlm\.weights is .*, here 'other'"):
        mend().fit(vlm, Fitting(cases[:8], validation=cases[8:], folder=stopped_mend))


# Another training in the folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "its seed is 0, here 1"),
        ({"batch_size": 2}, r"its training\.batch_size is 3, here 2"),
        ({"steps": 13}, r"its training\.steps is 12, here 13"),
        ({"identity": {"dataset": "b"}}, "its dataset is 'a', here 'b'"),
        ({"identity": {"dataset": "a", "vlm": "x"}}, "its vlm is None, here 'x'"),
    ],
)
def test_another_training_does_not_go_on_and_harms_nothing(
    changes: dict[str, Any], named: str, tmp_path: Path
):
    stopped(tmp_path, 7, identity={"dataset": "a"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=named) as raised:
        train_toy(Toy(), tmp_path, **{"identity": {"dataset": "a"}, **changes})
    assert "Choose another folder" in str(raised.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "torn tensors": lambda place: os.truncate(place / "tensors.safetensors", 100),
    "no tensors": lambda place: (place / "tensors.safetensors").unlink(),
    "no state": lambda place: (place / "state.json").unlink(),
    "torn state": lambda place: os.truncate(place / "state.json", 20),
    "empty state": lambda place: os.truncate(place / "state.json", 0),
    "a list": lambda place: (place / "state.json").write_text("[]"),
    "nothing said": lambda place: (place / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_once_deleted_an_earlier_one_goes_on(
    damage: str, tmp_path: Path
):
    def best_at_4(step: int, loss: Tensor) -> Tensor:
        return torch.tensor(float(step == 4)) - loss / 1e6

    given: dict[str, Any] = {"validation": VALIDATION}
    whole, continued = Toy(score=best_at_4), Toy(score=best_at_4)
    train_toy(whole, **given)
    with pytest.raises(Stopped):
        train_toy(Toy(score=best_at_4, meddle=stop_at(9)), tmp_path, **given)
    assert names_in(tmp_path) == ["step-000004", "step-000008"]
    newest = tmp_path / "checkpoints" / "step-000008"
    DAMAGE[damage](newest)
    with pytest.raises(TrainingError, match="is damaged") as raised:
        train_toy(Toy(score=best_at_4), tmp_path, **given)
    assert str(newest) in str(raised.value)
    shutil.rmtree(newest)
    train_toy(continued, tmp_path, **given)
    assert_same(continued, whole)


@pytest.mark.parametrize(
    "change", [{"identity": None}, {"optimizer": None}, {"identity": {}}], ids=str
)
def test_a_checkpoint_of_another_version_is_refused_in_words(
    change: dict[str, object], tmp_path: Path
):
    stopped(tmp_path, 7)
    state = tmp_path / "checkpoints" / "step-000006" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | change))
    with pytest.raises(TrainingError, match="Choose another folder"):
        train_toy(Toy(), tmp_path)


def test_a_checkpoint_of_a_network_of_another_shape_is_refused_in_words(tmp_path: Path):
    stopped(tmp_path, 7)
    with pytest.raises(TrainingError, match=r"step 6 .* does not fit this training") as raised:
        train_toy(Toy(width=5), tmp_path)
    assert "size mismatch for weight" in str(raised.value)


# Kills

KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from mmedit.training.checkpoints import checkpoints_in
from mmedit.training.resume import steps_done
from toy_learner import VALIDATION, Toy, log_lines, train_toy

root = Path(sys.argv[1])
given = {"validation": VALIDATION, "check_every": 1, "steps": int(sys.argv[2])}
whole = Toy()
train_toy(whole, root / "whole", **given)
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def killed(folder, *, event=None, step=None, seconds=0.0):
    # The child kills itself at the nth event on the disk of its second checkpoint, or is killed.
    child = os.fork()
    if child == 0:
        left = [event]

        def hook(name, arguments):
            if left[0] is not None and name in EVENTS and steps_done_then < len(seen):
                left[0] -= 1
                if left[0] <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        seen, steps_done_then = [], 2
        sys.addaudithook(hook)
        noted = Toy(meddle=lambda step, cases, loss: (seen.append(step), loss)[1])
        train_toy(noted, folder, **given)
        os._exit(0)
    while step is not None and steps_done(folder) < step:
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit("the child ended by itself")
    if step is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def check(folder):
    for place in (folder / "checkpoints").glob("step-*"):
        loaded = checkpoints_in(folder).load(int(place.name.removeprefix("step-")))
        assert {"learner.weight", "optimizer.0.exp_avg"} <= loaded.tensors.keys()


def finish(folder):
    toy = Toy()
    assert train_toy(toy, folder, **given) == given["steps"]
    assert all(torch.equal(t, whole.state_dict()[k]) for k, t in toy.state_dict().items())
    assert log_lines(folder) == log_lines(root / "whole")
    left = {p.name for p in (folder / "checkpoints").iterdir()}
    assert left == {p.name for p in (root / "whole" / "checkpoints").iterdir()}, left


"""

AT_RANDOM = """
for step, seconds in [(1, 0.0), (6, 0.002), (11, 0.005), (16, 0.011), (22, 0.003)]:
    assert killed(root / "cut", step=step, seconds=seconds)
    check(root / "cut")
finish(root / "cut")
"""

AT_EVENTS = """
for event in range(1, 30):
    folder = root / f"event-{event}"
    assert killed(folder, event=event)
    check(folder)
    if event % 3 == 0:
        finish(folder)
"""


def run_script(script: str, folder: Path, *arguments: object) -> None:
    """Run a script in a process of its own, with the folder as its first argument."""
    file = folder / "script.py"
    file.write_text(script)
    running = start(folder / "printed", file, folder, *arguments)
    assert running.finish() == 0, running.err.read_text()


def test_kills_leave_whole_checkpoints_and_training_ends_as_if_there_were_none(tmp_path: Path):
    run_script(KILLED + AT_RANDOM, tmp_path, 60)


def test_a_kill_at_whatever_point_of_a_checkpoint_leaves_whole_ones(tmp_path: Path):
    run_script(KILLED + AT_EVENTS, tmp_path, 6)


def test_what_a_kill_left_half_deleted_is_not_taken_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remove = shutil.rmtree

    def killed(path: Path, ignore_errors: bool) -> None:
        if "step-000002" in path.name and path.exists():
            (path / "tensors.safetensors").unlink()
            raise Stopped
        remove(path, ignore_errors)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(Stopped):
        train_toy(Toy(), tmp_path)
    assert checkpoints_in(tmp_path).steps() == [4]
    monkeypatch.undo()
    train_toy(Toy(), tmp_path)
    assert names_in(tmp_path) == ["step-000012"]


# Disks

FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("fault", FULL, ids=lambda fault: type(fault).__name__)
def test_a_disk_that_is_full_at_the_second_checkpoint_leaves_the_first(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save, calls = checkpoints.save_file, []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise fault
        save(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(TrainingError, match="No space left on device") as raised:
        train_toy(Toy(), tmp_path)
    for wanted in ("step 4", "Free space", "checkpoint of step 2 is kept", "--resume"):
        assert wanted in str(raised.value)
    assert names_in(tmp_path) == ["step-000002"]
    whole, continued = Toy(), Toy()
    train_toy(whole)
    train_toy(continued, tmp_path)  # there is space again
    assert_same(continued, whole)


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Large(Toy):
        def after_check(self, figures: Any) -> None:
            if self.steps == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))

    try:
        with pytest.raises(TrainingError, match="File too large") as raised:
            train_toy(Large(width=64), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint of step 2 is kept" in str(raised.value)
    assert names_in(tmp_path) == ["step-000002"]
    assert last_checkpoint(tmp_path).step == 2


def test_a_log_that_cannot_be_written_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stopped(tmp_path, 3)
    (tmp_path / "training.jsonl").unlink()
    (tmp_path / "training.jsonl").mkdir()
    with pytest.raises(TrainingError, match="training cannot write to") as raised:
        train_toy(Toy(), tmp_path)
    assert "checkpoint of step 2 is kept" in str(raised.value)


def test_a_disk_that_is_full_when_a_line_is_logged_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def at_3(now: int, cases: Sequence[EditCase], loss: Tensor) -> Tensor:
        if now == 3:
            (tmp_path / "training.jsonl").unlink()
            (tmp_path / "training.jsonl").symlink_to("/dev/full")
        return loss

    with pytest.raises(TrainingError, match="No space left on device"):
        train_toy(Toy(meddle=at_3), tmp_path)
    assert last_checkpoint(tmp_path).step == 2


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path):
    (tmp_path / "file").write_text("")
    toy = Toy(meddle=stop_at(0))
    with pytest.raises(TrainingError, match=r"cannot write to .*file/below.*another folder"):
        train_toy(toy, tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_one_message(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(TrainingError, match=r"Permission denied.*another folder"):
        train_toy(Toy(), tmp_path)


def test_a_checkpoint_may_be_written_over_one_of_the_same_step(tmp_path: Path):
    there = Checkpoints(tmp_path)
    for value in (1.0, 2.0):
        there.save(Checkpoint(step=3, tensors={"a": torch.tensor(value)}, state={"b": value}))
    assert there.load(3).tensors["a"] == 2
    assert there.load(3).state == {"b": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_tensors_that_share_memory_are_written(tmp_path: Path):
    tied = torch.arange(4.0)
    saved = Checkpoint(step=1, tensors={"a": tied, "b": tied, "c": tied[1:]}, state={})
    Checkpoints(tmp_path).save(saved)
    assert torch.equal(Checkpoints(tmp_path).load(1).tensors["c"], tied[1:])


# Losses that are no use


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (nan_at(5), "step 5: loss nan"),
        (lambda step, cases, loss: loss + 1e5 * (step == 5), r"step 5: loss 1000\d\d"),
    ],
    ids=["nan", "exploded"],
)
def test_a_loss_that_is_no_use_names_the_cases_and_the_checkpoint_before(
    meddle: Meddle, said: str, tmp_path: Path
):
    batches: list[list[str]] = []

    def noted(step: int, cases: Sequence[EditCase], loss: Tensor) -> Tensor:
        batches.append([case.id for case in cases])
        return meddle(step, cases, loss)

    with pytest.raises(TrainingError, match=said) as raised:
        train_toy(Toy(meddle=noted), tmp_path)
    assert f"on cases {', '.join(batches[5])}." in str(raised.value)
    assert f"step 4 is kept in {tmp_path}/checkpoints" in str(raised.value)
    kept = last_checkpoint(tmp_path)
    assert kept.step == 4
    assert all(tensor.isfinite().all() for tensor in kept.tensors.values())
    train_toy(Toy(), tmp_path)  # the disturbance has passed


def test_an_exploded_loss_in_the_first_step_says_that_there_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"before that step\. No checkpoint has been written"):
        train_toy(Toy(), tmp_path, max_loss=1e-9)


# The best


def peak(at: int) -> Callable[[int, Tensor], Tensor]:
    return lambda step, loss: torch.tensor(-abs(step - at) / 10)


def test_the_last_checkpoint_is_kept_and_others_are_deleted(tmp_path: Path):
    train_toy(Toy(), tmp_path)
    assert names_in(tmp_path) == ["step-000012"]


def test_best_and_last_checkpoint_are_kept_and_the_best_is_learnt(tmp_path: Path):
    toy, short = Toy(score=peak(6)), Toy(score=peak(6))
    assert train_toy(toy, tmp_path, validation=VALIDATION) == 12
    assert names_in(tmp_path) == ["step-000006", "step-000012"]
    best = checkpoints_in(tmp_path).load(6)
    assert all(torch.equal(best.tensors[f"learner.{k}"], t) for k, t in toy.state_dict().items())
    train_toy(short, validation=VALIDATION, steps=6)
    assert_same(toy, short)


def test_without_validation_the_last_step_is_learnt(tmp_path: Path):
    toy = Toy(score=peak(6))
    train_toy(toy, tmp_path)
    assert toy.steps == 12


def test_of_equal_scores_the_first_is_the_best(tmp_path: Path):
    toy = Toy(score=lambda step, loss: torch.zeros(()))
    train_toy(toy, tmp_path, validation=VALIDATION)
    assert toy.steps == 2


@pytest.mark.parametrize(("patience", "steps"), [(1, 8), (2, 10), (3, 12), (9, 12)])
def test_patience_stops_after_so_many_validations_without_a_better_score(
    patience: int, steps: int, tmp_path: Path
):
    toy = Toy(score=peak(6))
    assert train_toy(toy, tmp_path, validation=VALIDATION, patience=patience) == steps
    assert toy.steps == 6
    assert steps_done(tmp_path) == steps


def test_the_best_and_the_patience_outlive_a_stop(tmp_path: Path):
    given: dict[str, Any] = {"validation": VALIDATION, "patience": 3, "steps": 30}
    whole, continued = Toy(score=peak(4)), Toy(score=peak(4))
    wanted = train_toy(whole, tmp_path / "whole", **given)
    with pytest.raises(Stopped):
        train_toy(Toy(score=peak(4), meddle=stop_at(9)), tmp_path / "cut", **given)
    assert names_in(tmp_path / "cut") == ["step-000004", "step-000008"]
    assert train_toy(continued, tmp_path / "cut", **given) == wanted == 10
    assert continued.steps == 4
    assert_same(continued, whole)


def test_the_best_is_the_same_whether_training_was_stopped_since_or_not(tmp_path: Path):
    """`after_check` changes a buffer: in memory and on disk, the best is as after it."""
    whole, continued = Toy(score=peak(4)), Toy(score=peak(4))
    train_toy(whole, tmp_path / "whole", validation=VALIDATION)
    stop = Toy(score=peak(4), meddle=stop_at(5))
    with pytest.raises(Stopped):
        train_toy(stop, tmp_path / "cut", validation=VALIDATION)
    train_toy(continued, tmp_path / "cut", validation=VALIDATION)
    assert whole.checks != 0
    assert_same(continued, whole)


# Accumulation and precision


def test_accumulated_batches_are_one_large_batch():
    apart, together = Toy("sgd", noise=0.0), Toy("sgd", noise=0.0)
    train_toy(apart, batch_size=2, accumulate=2, check_every=12)
    train_toy(together, batch_size=4, check_every=12)
    torch.testing.assert_close(apart.weight, together.weight)
    torch.testing.assert_close(apart.bias, together.bias)
    assert (apart.steps, together.steps) == (24, 12)


def test_each_training_of_a_process_has_its_own_precision_and_accumulation():
    plain = Toy()
    train_toy(plain)
    half = Toy()
    train_toy(half, mixed_precision="bf16", accumulate=2)
    again = Toy()
    train_toy(again)
    assert half.products == {torch.bfloat16}
    assert plain.products == again.products == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())
    assert_same(again, plain)


def test_precision_is_that_of_this_trainings_device_whatever_was_before():
    PartialState().device = torch.device("meta")
    toy = Toy()
    train_toy(toy, mixed_precision="bf16")
    assert toy.products == {torch.bfloat16}


# Trackers


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a tracker was started")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    train_toy(Toy(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "training.jsonl"]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(accelerator.installed, f"is_{tracker}_available", lambda: False)
    with pytest.raises(ConfigError, match=f"pip install {tracker}"):
        train_toy(Toy(meddle=stop_at(0)), tmp_path, trackers=(tracker,))


@pytest.mark.filterwarnings("ignore:.*no supported trackers are currently installed")
def test_trackers_get_what_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracked: list[dict[str, float]] = []
    calls: list[str] = []
    monkeypatch.setattr(accelerator.installed, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config: calls.append(name))
    monkeypatch.setattr(Accelerator, "end_training", lambda self: calls.append("end"))
    monkeypatch.setattr(
        Accelerator, "log", lambda self, values, step: tracked.append({"step": step, **values})
    )
    train_toy(Toy(), tmp_path, validation=VALIDATION, trackers=("tensorboard",))
    assert calls == ["mmedit", "end"]
    lines = (tmp_path / "training.jsonl").read_text().splitlines()
    assert tracked == [json.loads(line) for line in lines]
    assert {"loss", "score", "s/step"} <= tracked[0].keys()
    assert any("validation/score" in values for values in tracked)


def test_tensorboard_without_a_folder_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accelerator.installed, "is_tensorboard_available", lambda: True)
    with pytest.raises(ConfigError, match="writes into the training's folder"):
        train_toy(Toy(), trackers=("tensorboard",))
