"""A fitted editor as a folder and on the hub, from Python and from the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import tiny
import tiny_families
import torch
from local_hub import Hub, hub_in, not_found
from safetensors.torch import load_file, save_file

from mmedit.cases import EditCase, Example, dataset_hash
from mmedit.config import load_editor
from mmedit.datasets.easyvqa import cases as easyvqa
from mmedit.datasets.easyvqa.pictures import load_pictures
from mmedit.editors import saved
from mmedit.editors.base import Editor
from mmedit.editors.fitting import Fitting
from mmedit.editors.saved import origin_of
from mmedit.errors import EditorError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.methods.ike.context import InContextVLM
from mmedit.methods.mend import MEND, MENDConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.training import loop
from mmedit.training.resume import steps_done
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.outputs import Predictions

SITES = tuple(f"language_model.model.decoder.layers.3.{name}" for name in ("fc1", "fc2"))
FILES = ["editor.json", "editor.safetensors"]


@pytest.fixture(scope="module")
def cases() -> list[EditCase]:
    return list(easyvqa.EasyVQA().load("train", limit=4))


@pytest.fixture(scope="module")
def editor(vlm: NetworkVLM, cases: list[EditCase]) -> MEND:
    training = TrainingConfig(steps=2, batch_size=2)
    made = MEND(MENDConfig(sites=SITES, rank=8, lr=1e-3, edit_lr=1e-2, training=training))
    return made.fit(vlm, Fitting(cases, seed=3))


@pytest.fixture
def folder(editor: MEND, tmp_path: Path) -> Path:
    editor.save(tmp_path / "mend")
    return tmp_path / "mend"


def edited(editor: MEND, vlm: NetworkVLM, cases: list[EditCase]) -> torch.Tensor:
    return editor.apply(vlm, [cases[0].request]).weight(SITES[0])


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    described = json.loads((folder / "editor.json").read_text())
    change(described)
    (folder / "editor.json").write_text(json.dumps(described))


# The folder


def test_a_saved_editor_is_two_files_that_say_what_it_was_fitted_on(
    folder: Path, vlm: NetworkVLM, cases: list[EditCase]
):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    described = json.loads((folder / "editor.json").read_text())
    assert described["method"] == "mend"
    assert described["config"]["training"]["steps"] == 2
    origin = described["origin"]
    assert origin["vlm"] == vlm.identity._asdict()
    assert origin["sites"] == list(SITES)
    assert (origin["dataset"], origin["cases"], origin["seed"]) == (dataset_hash(cases), 4, 3)
    assert origin["versions"].keys() >= {"python", "mmedit", "torch", "transformers"}


def test_what_it_was_fitted_on_is_read_back(folder: Path, editor: MEND):
    assert MEND.load(folder).origin == editor.origin


def test_an_editor_that_an_earlier_version_saved_still_edits(
    folder: Path, vlm: NetworkVLM, cases: list[EditCase], editor: MEND
):
    rewrite(folder, lambda described: described["origin"]["vlm"].pop("processing"))
    assert torch.equal(edited(MEND.load(folder), vlm, cases), edited(editor, vlm, cases))


def test_an_editor_fitted_with_another_tokenizer_or_template_is_refused(
    folder: Path, vlm: NetworkVLM, cases: list[EditCase]
):
    other = vlm.identity.processing[:-1] + "x"
    rewrite(folder, lambda described: described["origin"]["vlm"].update(processing=other))
    with pytest.raises(EditorError, match="of the same weights with another tokenizer, chat templ"):
        edited(MEND.load(folder), vlm, cases)


def test_saving_over_an_editor_replaces_it(folder: Path, editor: MEND):
    other = MEND.load(folder)
    other.state()["edit_lrs"].add_(1.0)
    other.save(folder)
    assert torch.equal(MEND.load(folder).state()["edit_lrs"], editor.state()["edit_lrs"] + 1)
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_dataset_hash_changes_with_every_word_and_their_order(cases: list[EditCase]):
    request = cases[0].request
    changed = [
        cases[:3],
        [*cases[1:], cases[0]],
        [replace(cases[0], id="x"), *cases[1:]],
        [replace(cases[0], request=replace(request, prompt="x"), probes={}), *cases[1:]],
    ]
    hashes = {dataset_hash(each) for each in (cases, *changed)}
    assert len(hashes) == 5


def test_changed_tensors_are_noticed(folder: Path):
    tensors = load_file(folder / "editor.safetensors")
    tensors["edit_lrs"] = tensors["edit_lrs"] + 1
    save_file(tensors, folder / "editor.safetensors")
    with pytest.raises(EditorError, match=r"is not the file that editor\.json was written with"):
        MEND.load(folder)


def test_torn_tensors_are_noticed(folder: Path):
    os.truncate(folder / "editor.safetensors", 200)
    with pytest.raises(EditorError, match=r"editor\.safetensors is not the file"):
        MEND.load(folder)


def test_a_crash_between_the_two_files_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    other = MEND.load(folder)
    other.state()["edit_lrs"].add_(1.0)
    moved: list[Path] = []
    move = os.replace

    def crash(old: Path, new: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(new)
        move(old, new)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        other.save(folder)
    monkeypatch.undo()
    with pytest.raises(EditorError, match="writing was cut off; fit the editor anew"):
        MEND.load(folder)
    other.save(folder)
    assert torch.equal(MEND.load(folder).state()["edit_lrs"], other.state()["edit_lrs"])


def test_missing_tensors_are_named(folder: Path):
    (folder / "editor.safetensors").unlink()
    with pytest.raises(EditorError, match=r"editor\.safetensors cannot be read"):
        MEND.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("origin"),
        lambda d: d.pop("sha256"),
        lambda d: d.update(settings={}),
        lambda d: d["origin"].pop("dataset"),
        lambda d: d["origin"].update(vlm="blip-2"),
        lambda d: d["origin"]["vlm"].pop("weights"),
        lambda d: d["config"].update(learning_rate=1),
        lambda d: d["config"].update(rank="many"),
        lambda d: d.update(notes={}),
        lambda d: d.update(origin=["blip-2"]),
    ],
)
def test_an_editor_of_another_version_says_so(
    change: Callable[[dict[str, Any]], object], folder: Path
):
    rewrite(folder, change)
    with pytest.raises(EditorError, match="or another version of mmedit: fit the editor anew"):
        MEND.load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not valid JSON"),
        ('{"method": "me', "is not valid JSON"),
        ("[]", "is not what `mmedit fit` writes"),
        ("null", "is not what `mmedit fit` writes"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_description_that_is_none_is_refused(text: str, said: str, folder: Path):
    (folder / "editor.json").write_text(text)
    with pytest.raises(EditorError, match=said):
        MEND.load(folder)


def test_wrong_settings_are_named_without_the_text_of_pydantic(folder: Path):
    rewrite(folder, lambda d: d["config"].update(learning_rate=1, rank="many"))
    with pytest.raises(EditorError) as raised:
        MEND.load(folder)
    said = str(raised.value)
    assert "unknown key 'learning_rate'" in said
    assert "rank: " in said
    assert "pydantic" not in said
    assert "\n" not in said


def test_an_editor_that_learns_but_was_fitted_on_nothing_is_refused(folder: Path):
    rewrite(folder, lambda described: described.update(origin=None))
    with pytest.raises(EditorError, match="was never fitted") as raised:
        MEND.load(folder)
    assert "mmedit fit --editor mend" in str(raised.value)


@pytest.mark.parametrize(
    "shapes",
    [{"a": [1]}, "x", [], None, {"a": [10**9, 10**9]}, {"a": [10**12, 10**12]}, {"a": [-1, 2]}],
    ids=repr,
)
def test_shapes_that_are_not_those_of_the_tensors_are_refused_before_anything_is_built(
    shapes: object, folder: Path
):
    """Some of them would take terabytes."""
    rewrite(folder, lambda described: described["notes"]["facts"].update(shapes=shapes))
    with pytest.raises(EditorError, match="fit the editor anew") as raised:
        MEND.load(folder)
    assert "\n" not in str(raised.value)


def test_an_index_of_another_size_than_its_demonstrations_is_refused(
    vlm: NetworkVLM, cases: list[EditCase], tmp_path: Path
):
    IKE(IKEConfig(k=2)).fit(vlm, Fitting(cases)).save(tmp_path)
    rewrite(tmp_path, lambda described: described["notes"]["demonstrations"].pop())
    with pytest.raises(EditorError, match="do not fit the 3 demonstrations"):
        IKE.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(method=["mend"]), "'method' is \\['mend'\\], expected a text"),
        (lambda d: d.update(config=[]), "'config' is \\[\\], expected an object"),
        (lambda d: d.update(notes=None), "'notes' is None, expected an object"),
        (lambda d: d["origin"].update(cases="many"), "'cases' is 'many', expected a whole number"),
        (lambda d: d["origin"].update(sites="fc1"), "'sites' is 'fc1', expected a list"),
        (lambda d: d["origin"].update(sites=[5]), "'0' is 5, expected a text"),
        (lambda d: d["origin"]["vlm"].update(weights=[]), "'weights' is \\[\\], expected a text"),
        (lambda d: d["origin"].update(versions={"torch": 2}), "'torch' is 2, expected a text"),
        (lambda d: d["origin"].update(dataset="\ud83d"), "'dataset' contains half of a character"),
        (lambda d: d.update({"x" * 5_000: 1}), "x\\.\\.\\."),
        (lambda d: d["config"].update(hidden_layers=10**9), "more parameters than its file"),
        (lambda d: d["config"].update(rank=[["a" * 5_000]]), "rank: "),
    ],
)
def test_an_editor_that_anyone_may_have_made_is_refused_in_one_short_line(
    change: Callable[[dict[str, Any]], object], said: str, folder: Path
):
    rewrite(folder, change)
    for load in (lambda: MEND.load(folder), lambda: load_editor(folder, "embedded")):
        with pytest.raises(EditorError, match=said) as raised:
            load()
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t * float("nan"), "holds NaN or infinite values"),
        (lambda t: t / 0, "holds NaN or infinite values"),
        (lambda t: t.half(), "is float16 of shape .*, expected float32 of shape"),
        (lambda t: t.to(torch.int32), "is int32 of shape"),
        (lambda t: torch.zeros(0), r"is float32 of shape \[0\], expected"),
    ],
    ids=["NaN", "infinity", "half", "int32", "empty"],
)
def test_tensors_that_no_training_gives_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], said: str, folder: Path
):
    file = folder / "editor.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "edit_lrs": change(tensors["edit_lrs"])}, file)
    rewrite(folder, lambda described: described.update(sha256=saved.sha256(file)))
    with pytest.raises(EditorError, match=said):
        MEND.load(folder)


# Editors of earlier versions

GOLDEN = Path(__file__).parents[1] / "golden" / "editors"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


def test_an_index_saved_by_an_earlier_version_makes_the_edit_it_made(
    vlm: NetworkVLM, cases: list[EditCase]
):
    loaded = IKE.load(GOLDEN / "ike").apply(vlm, [cases[0].request])
    assert isinstance(loaded, InContextVLM)
    assert loaded.context == EXPECTED["ike"]["context"]


def test_a_network_saved_by_an_earlier_version_makes_the_edit_it_made(
    vlm: NetworkVLM, cases: list[EditCase]
):
    request, made = cases[0].request, EXPECTED["mend"]
    edited = MEND.load(GOLDEN / "mend").apply(vlm, [request])
    change = edited.weight(made["site"]) - vlm.weight(made["site"])
    assert change.norm().item() == pytest.approx(made["norm"], rel=1e-4)
    torch.testing.assert_close(change[:4, :4], torch.tensor(made["block"]), rtol=1e-3, atol=1e-6)
    found = [answer_nll(p.logits, p.target, p.is_answer) for p in predictions(vlm, edited, request)]
    assert torch.cat(found).tolist() == pytest.approx(made["nll"], rel=1e-4)


def predictions(vlm: VLM, edited: VLM, request: Example) -> list[Predictions]:
    return [each.predict([request]) for each in (vlm, edited)]


@pytest.mark.parametrize("method", [IKE, MEND])
def test_an_editor_of_an_earlier_version_is_saved_as_it_was(method: type[Editor], tmp_path: Path):
    golden = GOLDEN / method.method
    method.load(golden).save(tmp_path)
    described, before = (json.loads((f / "editor.json").read_text()) for f in (tmp_path, golden))
    defaults = method.config_class().model_dump(mode="json")  # of settings that came later
    assert described == before | {"config": defaults | before["config"]}
    for name in set(FILES) - {"editor.json"}:
        assert (tmp_path / name).read_bytes() == (golden / name).read_bytes()


def test_tensors_of_other_settings_are_refused(folder: Path):
    rewrite(folder, lambda described: described["config"].update(rank=9))
    with pytest.raises(EditorError, match="tensors do not fit the mend network"):
        MEND.load(folder)


def test_a_folder_that_cannot_be_written_is_one_message(editor: MEND, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EditorError, match=r"cannot be written to .* Free space, or name another"):
        editor.save(tmp_path / "file" / "below")


def test_a_full_disk_leaves_the_editor_that_was_there(
    folder: Path, editor: MEND, monkeypatch: pytest.MonkeyPatch
):
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    other = MEND.load(folder)
    other.state()["edit_lrs"].add_(1.0)
    monkeypatch.setattr(saved, "save_file", full)
    with pytest.raises(EditorError, match="No space left on device"):
        other.save(folder)
    assert torch.equal(MEND.load(folder).state()["edit_lrs"], editor.state()["edit_lrs"])
    assert sorted(path.name for path in folder.iterdir()) == FILES


# Another VLM


def test_a_vlm_of_another_family_is_named(folder: Path, cases: list[EditCase], tmp_path: Path):
    other = load_vlm(tiny_families.save_family("qwen2_5_vl", tmp_path / "qwen"))
    with pytest.raises(EditorError, match="fitted on a 'blip-2' model, and this is a 'qwen2_5_vl'"):
        MEND.load(folder).apply(other, [cases[0].request])


def test_a_vlm_of_another_config_is_named(
    folder: Path, cases: list[EditCase], tiny_vlm: NetworkVLM
):
    with pytest.raises(EditorError, match="fitted on a blip-2 of another config"):
        MEND.load(folder).apply(tiny_vlm, [cases[0].request])


def test_a_vlm_with_other_weights_is_named(tiny_vlm: NetworkVLM, tmp_path: Path):
    origin = origin_of(tiny_vlm, (), [], 0)
    saved.require_same_vlm(tiny_vlm, origin, "mend")
    other = load_vlm(tiny.save_model(tmp_path, seed=1))
    with pytest.raises(EditorError, match="of the same config with other weights") as raised:
        saved.require_same_vlm(other, origin, "mend")
    assert "mmedit fit --editor mend" in str(raised.value)


def test_an_edited_vlm_is_the_one_it_was_fitted_on(
    folder: Path, vlm: NetworkVLM, cases: list[EditCase]
):
    loaded = MEND.load(folder)
    once = loaded.apply(vlm, [cases[0].request])
    assert loaded.apply(once, [cases[1].request]).identity == vlm.identity


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return hub_in(tmp_path / "hub", monkeypatch)


def test_an_editor_from_the_hub_makes_the_same_edit(
    hub: Hub, editor: MEND, vlm: NetworkVLM, cases: list[EditCase]
):
    address = editor.push_to_hub("me/editor")
    assert address == "https://huggingface.co/me/editor/commit/1"
    assert hub.messages == ["MEND editor"]
    loaded = MEND.from_pretrained("me/editor")
    assert loaded.config == editor.config
    assert loaded.origin == editor.origin
    assert torch.equal(edited(loaded, vlm, cases), edited(editor, vlm, cases))


def test_a_folder_is_loaded_without_the_hub(
    hub: Hub, folder: Path, editor: MEND, vlm: NetworkVLM, cases: list[EditCase]
):
    for name in (folder, str(folder)):
        loaded = MEND.from_pretrained(name)
        assert torch.equal(edited(loaded, vlm, cases), edited(editor, vlm, cases))
    assert not hub.fetched


def test_only_the_editor_and_its_card_are_uploaded(hub: Hub, folder: Path):
    """Not the checkpoints and the log of its training, which lie beside it."""
    for name in ("checkpoints/step-000002/state.json", "checkpoints/README.md", "training.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    saved.push(folder, "me/editor", private=True)
    uploaded = [path for path in (hub.root / "me" / "editor").rglob("*") if path.is_file()]
    assert sorted(path.name for path in uploaded) == ["README.md", *FILES]
    assert hub.private == {"me/editor": True}


def test_the_card_says_what_the_editor_is(hub: Hub, editor: MEND, vlm: NetworkVLM):
    editor.push_to_hub("me/editor")
    card = (hub.root / "me" / "editor" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mmedit\n")
    assert "# A MEND editor" in card
    assert editor.origin is not None
    wanted = (*SITES, *vlm.identity, editor.origin.dataset, "4 cases", "seed 3", "mmedit ")
    assert all(text in card for text in wanted)
    assert 'EDITORS["mend"].from_pretrained("me/editor")' in card


def test_the_card_of_a_method_that_is_not_fitted_says_so(tmp_path: Path):
    FT(FTConfig()).save(tmp_path)
    assert "It is not fitted" in saved.model_card(saved.read_description(tmp_path), "me/ft")


def test_another_method_on_the_hub_is_refused(hub: Hub, editor: MEND):
    editor.push_to_hub("me/editor")
    with pytest.raises(EditorError, match="holds a 'mend' editor, not 'ft'"):
        FT.from_pretrained("me/editor")


def test_what_is_not_on_the_hub_is_one_message(hub: Hub):
    with pytest.raises(EditorError, match="me/nothing is not a folder, and cannot be fetched"):
        MEND.from_pretrained("me/nothing")


def test_a_repository_without_an_editor_is_one_message(hub: Hub):
    (hub.root / "me" / "model").mkdir(parents=True)
    (hub.root / "me" / "model" / "config.json").write_text("{}")
    with pytest.raises(EditorError, match=r"has no editor\.json"):
        MEND.from_pretrained("me/model")


REFUSED = {
    "hub": not_found("me/editor"),
    "network": httpx2.ConnectError("no route"),
    "disk": OSError("no token"),
}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_push_that_fails_is_one_message(
    fault: str, call: str, hub: Hub, editor: MEND, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **named: object) -> None:
        raise REFUSED[fault]

    monkeypatch.setattr(hub, call, fail)
    with pytest.raises(EditorError, match=r"cannot be pushed to me/editor: .*hf auth login"):
        editor.push_to_hub("me/editor")


def test_a_name_that_the_hub_does_not_take_is_one_message(editor: MEND):
    with pytest.raises(EditorError, match="is not a valid hub id; expected owner/name"):
        editor.push_to_hub("a/b/c")
    with pytest.raises(EditorError, match="does not exist; expected a folder, or a hub id"):
        MEND.from_pretrained("a/b/c")


def test_a_damaged_editor_is_not_pushed(hub: Hub, folder: Path):
    os.truncate(folder / "editor.safetensors", 200)
    with pytest.raises(EditorError, match="is not the file"):
        saved.push(folder, "me/editor", private=False)
    assert not hub.private


def test_a_card_that_cannot_be_written_is_one_message(hub: Hub, folder: Path):
    (folder / "README.md").mkdir()
    with pytest.raises(EditorError, match="cannot be pushed"):
        saved.push(folder, "me/editor", private=False)


# The command line


def test_push_then_edit_with_the_editor_from_the_hub(mmedit_, hub: Hub, folder: Path):
    pushed = mmedit_("push", folder, "me/editor", "--private")
    assert pushed.code == 0, pushed.err
    assert pushed.out == "pushed: https://huggingface.co/me/editor/commit/1"
    assert hub.private == {"me/editor": True}
    shown = mmedit_(
        "edit", "--editor", "me/editor", "--prompt", "what color is the shape?",
        "--target", "blue", "--image", load_pictures("test")[0].path,
    )  # fmt: skip
    assert shown.code == 0, shown.err
    assert "MEND (editor) took" in shown.out


def test_an_editor_is_loaded_by_its_hub_id(
    hub: Hub, editor: MEND, vlm: NetworkVLM, cases: list[EditCase]
):
    editor.push_to_hub("me/editor")
    loaded = load_editor("me/editor", "embedded")
    assert loaded.label == "MEND (editor)"
    assert isinstance(loaded, MEND)
    assert torch.equal(edited(loaded, vlm, cases), edited(editor, vlm, cases))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", "nowhere", "me/editor"), "has no editor.json"),
        (("edit", "--editor", "me/no", "--prompt", "a", "--target", "b"), "me/no is not a folder"),
        (("fit", "--editor", "me/no", "--out", "x"), "me/no is not a folder"),
    ],
)
def test_what_is_not_there_is_one_message(mmedit_, hub: Hub, arguments, message):
    shown = mmedit_(*arguments)
    assert shown.code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err


FIT = (
    "fit", "--limit", "6", "--set", "editor.training.steps=4",
    "--set", "editor.training.batch_size=2", "--set", "editor.training.check_every=2",
)  # fmt: skip


@pytest.fixture
def stopped_fit(mmedit_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an `mmedit fit` that was interrupted in its last step."""
    step_of = loop._Run._step

    def interrupted(self: Any, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return step_of(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_step", interrupted)
        assert mmedit_(*FIT, "--out", tmp_path / "fit").code == 130
    assert steps_done(tmp_path / "fit") == 2
    return tmp_path / "fit"


def test_fit_into_a_folder_with_checkpoints_wants_resume(mmedit_, stopped_fit: Path):
    before = sorted(stopped_fit.rglob("*"))
    shown = mmedit_(*FIT, "--out", stopped_fit)
    assert shown.code == 2
    assert "holds a training of 2 steps; continue it with --resume" in shown.err
    assert sorted(stopped_fit.rglob("*")) == before


def test_fit_with_resume_ends_where_an_uninterrupted_one_does(
    mmedit_, stopped_fit: Path, tmp_path: Path
):
    resumed = mmedit_(*FIT, "--resume", "--out", stopped_fit)
    assert resumed.code == 0, resumed.err
    assert "(from step 2)" in resumed.out
    assert mmedit_(*FIT, "--out", tmp_path / "whole").code == 0
    found, wanted = (MEND.load(each).state() for each in (stopped_fit, tmp_path / "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_fit_does_not_resume_with_other_settings(mmedit_, stopped_fit: Path):
    shown = mmedit_(*FIT, "--set", "editor.lr=0.5", "--resume", "--out", stopped_fit)
    assert shown.code == 2
    assert "holds another training: its settings.lr is 0.0001, here 0.5" in shown.err


def test_resume_without_checkpoints_begins_and_says_so(mmedit_, tmp_path: Path):
    shown = mmedit_(*FIT, "--resume", "--out", tmp_path / "fit")
    assert shown.code == 0, shown.err
    assert "holds no checkpoint: training starts from the beginning" in shown.err
    assert "(from step" not in shown.out


@pytest.mark.parametrize("validation", ["6", "60"])
def test_validation_that_leaves_no_case_is_refused(mmedit_, validation: str, tmp_path: Path):
    shown = mmedit_(*FIT, "--validation", validation, "--out", tmp_path / "fit")
    assert shown.code == 2
    assert f"--validation {validation} leaves none of the 6 cases to train on" in shown.err


def test_validation_cases_are_kept_aside(mmedit_, tmp_path: Path):
    shown = mmedit_(*FIT, "--validation", "2", "--out", tmp_path / "fit")
    assert "was fitted on 4 cases" in shown.out
    origin = MEND.load(tmp_path / "fit").origin
    assert origin is not None
    assert origin.cases == 4
    assert "validation/score" in (tmp_path / "fit" / "training.jsonl").read_text()
