"""An edit as a value, and as a folder."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from local_hub import hub_in
from PIL import Image

from mmedit import Example, load_edit
from mmedit.cases import EditCase, Probe
from mmedit.deltas import Dense, LowRank
from mmedit.editors.fitting import Fitting
from mmedit.edits.loading import model_card, push_edit
from mmedit.errors import DataError, EditError, UnknownNameError
from mmedit.methods.ft import FT, FTConfig
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.methods.serac import SERAC, SERACConfig
from mmedit.training.settings import TrainingConfig
from mmedit.vlm.edit import Edit, stack
from mmedit.vlm.edit_files import is_edit, read_description
from mmedit.vlm.interface import VLM
from mmedit.vlm.network import NetworkVLM
from mmedit.vlm.wrapped import WrappedVLM

EDITOR = FT(FTConfig(lr=1e-3, steps=2), label="FT-M")


@pytest.fixture
def question(tmp_path: Path) -> Example:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return Example(prompt="what animal?", target="dog", image=tmp_path / "cat.png")


@pytest.fixture
def text() -> Example:
    return Example(prompt="the capital of France is", target="Rome", answers=("Roma",))


def test_an_edited_vlm_lists_its_edits_in_order(tiny_vlm: NetworkVLM, question, text):
    once = EDITOR.apply(tiny_vlm, [question])
    twice = EDITOR.apply(once, [text, question])
    assert [edit.name for edit in twice.edits] == ["ft", "ft-2"]
    assert [edit.requests for edit in twice.edits] == [(question,), (text, question)]
    assert twice.edits[1].on == ("ft",)
    assert tiny_vlm.edits == () == twice.base.edits
    assert once.edits == twice.edits[:1]


def test_an_edit_can_be_added_to_a_vlm_by_itself(tiny_vlm, question):
    edit = EDITOR.edit(tiny_vlm, [question], name="paris")
    edited = tiny_vlm.with_edit(edit)
    assert edited.edits == (edit,)
    expected = EDITOR.apply(tiny_vlm, [question]).predict([question]).logits
    assert torch.equal(edited.predict([question]).logits, expected)


def test_deltas_without_a_maker_are_an_edit_too(tiny_vlm, question, tmp_path):
    site = tiny_vlm.sites("language")[0]
    out, in_ = tiny_vlm.shape(site)
    low, dense = LowRank(torch.randn(2, out), torch.randn(2, in_)), Dense(torch.randn(out, in_))
    edited = tiny_vlm.with_deltas({site: low}).with_deltas({site: dense})
    edited.save(tmp_path / "mine")
    again = tiny_vlm.with_edit(load_edit(tmp_path / "mine"))
    assert torch.equal(again.predict([question]).logits, edited.predict([question]).logits)
    assert len(again.edits) == 2


def test_a_folder_keeps_all_that_is_known_of_an_edit(tiny_vlm, question, text, tmp_path):
    EDITOR.apply(tiny_vlm, [question, text]).save(tmp_path / "edits" / "two facts")
    loaded = load_edit(tmp_path / "edits" / "two facts")
    assert (loaded.name, loaded.method, loaded.label) == ("two facts", "ft", "FT-M")
    assert loaded.config["steps"] == 2
    assert loaded.seconds is not None
    first, second = loaded.requests
    assert (first.prompt, first.target) == ("what animal?", "dog")
    assert isinstance(first.image, Path)
    assert first.image.read_bytes() == (tmp_path / "cat.png").read_bytes()
    assert (second.prompt, second.answers, second.image) == (text.prompt, ("Roma",), None)


def test_an_image_in_memory_is_kept_without_loss(tiny_vlm, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    request = Example(prompt="what?", target="a", image=pixels)
    EDITOR.apply(tiny_vlm, [request]).save(tmp_path / "x")
    image = load_edit(tmp_path / "x").requests[0].image
    assert isinstance(image, Path)
    assert np.array_equal(np.asarray(Image.open(image)), pixels)


def test_edits_of_one_serac_editor_share_its_memory_after_loading(
    tiny_vlm, question, text, tmp_path
):
    config = SERACConfig(
        scope="text",
        scope_width=8,
        counterfactual_width=8,
        counterfactual_layers=1,
        training=TrainingConfig(steps=1, batch_size=1),
    )
    about = (Probe.TEXT_GENERALITY, Probe.IMAGE_GENERALITY, Probe.IMAGE_LOCALITY)
    probes = {**dict.fromkeys(about, (question,)), Probe.TEXT_LOCALITY: (text,)}
    cases = [EditCase(id="1", request=question, probes=probes)]
    serac = SERAC(config).fit(tiny_vlm, Fitting(cases))
    serac.apply(tiny_vlm, [question]).save(tmp_path / "a")
    serac.apply(tiny_vlm, [text]).save(tmp_path / "b")
    both = tiny_vlm.with_edit([load_edit(tmp_path / "a"), load_edit(tmp_path / "b")])
    straight = serac.apply(serac.apply(tiny_vlm, [question]), [text])
    assert isinstance(both, WrappedVLM)
    assert isinstance(both.inner, NetworkVLM)  # one memory, not one in another
    asked = [question, text]
    assert torch.equal(both.predict(asked).logits, straight.predict(asked).logits)


def test_a_stack_keeps_the_order_of_its_edits(tiny_vlm, question, text, tmp_path):
    tuned = EDITOR.apply(tiny_vlm, [question])
    both = IKE(IKEConfig(k=0)).apply(tuned, [text])
    both.save(tmp_path / "both")
    loaded = load_edit(tmp_path / "both")
    assert [part.name for part in loaded.parts] == ["ft", "ike"]
    assert [part.label for part in loaded.parts] == ["FT-M", "IKE"]
    assert loaded.deltas is None
    assert loaded.parts[0].deltas is not None
    assert repr(loaded) == "<Edit 'both' by FT-M + IKE: 2 requests, 2 edits>"


def test_an_edit_of_another_vlm_is_refused_with_what_differs(tiny_vlm, vlm, question, tmp_path):
    EDITOR.apply(tiny_vlm, [question]).save(tmp_path / "x")
    with pytest.raises(EditError, match=r"'x' was made on a .*blip-2.* of another config"):
        vlm.with_edit(load_edit(tmp_path / "x"))


def test_a_folder_that_exists_is_not_overwritten_unless_asked(tiny_vlm, question, text, tmp_path):
    EDITOR.apply(tiny_vlm, [question]).save(tmp_path / "x")
    second = EDITOR.apply(tiny_vlm, [text])
    with pytest.raises(EditError, match="holds an edit already"):
        second.save(tmp_path / "x")
    second.save(str(tmp_path / "x"), overwrite=True)
    assert load_edit(tmp_path / "x").requests[0].prompt == text.prompt
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(EditError, match="not a saved edit"):
        second.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_write_that_fails_leaves_what_was_there(tiny_vlm, question, text, tmp_path, monkeypatch):
    EDITOR.apply(tiny_vlm, [question]).save(tmp_path / "x")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmedit.storage.flush", full)
    with pytest.raises(EditError, match="No space left"):
        EDITOR.apply(tiny_vlm, [text]).save(tmp_path / "x", overwrite=True)
    with pytest.raises(EditError, match="No space left"):
        EDITOR.apply(tiny_vlm, [text]).save(tmp_path / "y")
    assert load_edit(tmp_path / "x").requests[0].prompt == question.prompt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.png", "x"]


@pytest.fixture
def folder(tiny_vlm: NetworkVLM, question: Example, tmp_path: Path) -> Path:
    EDITOR.apply(tiny_vlm, [question]).save(tmp_path / "x")
    return tmp_path / "x"


def described(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "edit.json").read_text())
    (folder / "edit.json").write_text(json.dumps(content | changes))


def test_a_half_written_folder_is_not_an_edit(folder: Path):
    (folder / "edit.json").unlink()
    assert not is_edit(folder)
    with pytest.raises(EditError, match=r"has no edit\.json"):
        load_edit(folder)


def test_tensors_that_were_cut_off_are_noticed(folder: Path):
    file = folder / "edit.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(EditError, match="cut off"):
        load_edit(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"edits": []}, "lists no edit"),
        ({"edits": [{"name": 1}]}, "not what mmedit writes"),
        ({"extra": 1}, "not what mmedit writes"),
        ({"name": "../x"}, "cannot be the name"),
    ],
)
def test_a_description_of_another_form_is_one_error(folder: Path, change, message):
    described(folder, **change)
    with pytest.raises(EditError, match=message) as caught:
        load_edit(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "null", '"x"', "[" * 100_000, "\xff"])
def test_a_description_that_is_not_json_is_one_error(folder: Path, text):
    (folder / "edit.json").write_text(text, encoding="latin-1")
    with pytest.raises(EditError):
        load_edit(folder)


def test_no_path_leads_out_of_the_folder(folder: Path):
    content = json.loads((folder / "edit.json").read_text())
    content["edits"][0]["requests"][0]["image"] = "../cat.png"
    (folder / "edit.json").write_text(json.dumps(content))
    with pytest.raises(EditError, match="image"):
        load_edit(folder)
    content["edits"][0] |= {"kind": "memory", "method": "serac", "editor": "../../editor"}
    content["edits"][0]["requests"][0]["image"] = None
    (folder / "edit.json").write_text(json.dumps(content))
    with pytest.raises(EditError, match="editor"):
        load_edit(folder)


@pytest.mark.parametrize("method", ["ft", "ike", "serac", "nonsense"])
def test_an_unknown_kind_of_change_is_one_error(folder: Path, method):
    content = json.loads((folder / "edit.json").read_text())
    content["edits"][0] |= {"kind": "spell", "method": method}
    (folder / "edit.json").write_text(json.dumps(content))
    with pytest.raises(EditError, match="edit 1"):
        load_edit(folder)


def test_a_missing_image_is_named(folder: Path):
    shutil.rmtree(folder / "images")
    with pytest.raises(EditError, match=r"lacks the image images/"):
        load_edit(folder)


def test_a_stack_is_not_saved_under_a_name_that_it_cannot_have(tiny_vlm, question, text, tmp_path):
    both = EDITOR.apply(EDITOR.apply(tiny_vlm, [question]), [text])
    with pytest.raises(EditError, match="'a\\+b' cannot be the name"):
        both.save(tmp_path / "a+b")
    assert not (tmp_path / "a+b").exists()


def test_an_overwrite_that_fails_at_the_last_step_gives_the_edit_back(
    tiny_vlm, question, text, tmp_path, monkeypatch
):
    EDITOR.apply(tiny_vlm, [question]).save(tmp_path / "x")
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(5, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(EditError, match="Input/output error"):
        EDITOR.apply(tiny_vlm, [text]).save(tmp_path / "x", overwrite=True)
    assert load_edit(tmp_path / "x").requests[0].prompt == question.prompt


def test_edits_made_on_one_vlm_are_added_without_reading_its_weights(
    tiny_vlm, question, text, monkeypatch
):
    def read(_: object) -> None:
        raise AssertionError("all weights were read")

    monkeypatch.setattr(NetworkVLM, "identity", property(read))
    twice = EDITOR.apply(EDITOR.apply(tiny_vlm, [question]), [text])
    assert len(twice.without("ft").edits) == 1


@pytest.mark.parametrize("name", ["", " ", "a/b", "a+b", "x\n", "x" * 101, ".."])
def test_a_name_that_no_edit_can_have_is_refused(tiny_vlm, question, name):
    with pytest.raises(EditError, match="cannot be the name"):
        EDITOR.edit(tiny_vlm, [question]).named(name)


def test_a_vlm_without_edits_has_nothing_to_save_and_nothing_to_take_out(tiny_vlm, tmp_path):
    with pytest.raises(EditError, match="nothing to save"):
        tiny_vlm.save(tmp_path / "x")
    with pytest.raises(UnknownNameError, match="edit of this VLM"):
        tiny_vlm.without("ft")
    with pytest.raises(DataError, match="at least one"):
        EDITOR.edit(tiny_vlm, [])
    with pytest.raises(EditError, match="at least one"):
        stack("x", [])
    with pytest.raises(EditError, match="load_edit"):
        tiny_vlm.with_edit(tmp_path)


class Parrot(WrappedVLM):
    """A wrapper that no edit stands for."""

    def rewrap(self, inner: VLM) -> VLM:
        return Parrot(inner)

    def select(self, rows):
        return Parrot(self.inner.select(rows))

    def predict(self, examples, **how):
        return self.inner.predict(examples, **how)

    def answer(self, examples, *, max_new_tokens, **others):
        return self.inner.answer(examples, max_new_tokens=max_new_tokens, **others)

    def capture(self, examples, sites):
        return self.inner.capture(examples, sites)

    def represent(self, examples):
        return self.inner.represent(examples)


def test_a_wrapper_that_would_be_lost_is_not_passed_over(tiny_vlm, question, tmp_path):
    edited = Parrot(EDITOR.apply(tiny_vlm, [question]))
    with pytest.raises(EditError, match="a Parrot in this VLM"):
        edited.save(tmp_path / "x")


def test_a_person_asks_without_a_target(vlm: NetworkVLM, cases: list[EditCase]):
    request = cases[0].request
    [expected] = vlm.generate([request], max_new_tokens=8)
    assert request.image is not None
    assert vlm.ask(request.prompt, request.image, max_new_tokens=8) == expected
    assert vlm.ask(request.prompt, max_new_tokens=100_000)  # as many as there is room for
    with pytest.raises(DataError, match="empty"):
        vlm.ask("  ", request.image)
    with pytest.raises(DataError, match="makes a sequence of"):
        vlm.ask("why? " * 600)


@pytest.fixture
def cases() -> list[EditCase]:
    from mmedit.datasets.easyvqa.cases import EasyVQA

    return list(EasyVQA().load("test", limit=2))


def test_hundreds_of_edits_come_and_go_and_the_base_model_stays(
    tiny_vlm, question, text, tmp_path, monkeypatch
):
    monkeypatch.setattr("mmedit.storage.flush", lambda _: None)  # the disk is not tested
    before = tiny_vlm.predict([question, text]).logits
    site = tiny_vlm.sites("language")[0]
    out, in_ = tiny_vlm.shape(site)
    for number in range(200):
        edited = tiny_vlm.with_deltas({site: LowRank(torch.randn(1, out), torch.randn(1, in_))})
        edited.save(tmp_path / "x", overwrite=True)
        edited = tiny_vlm.with_edit(load_edit(tmp_path / "x"))
        if number % 50 == 0:
            assert not torch.equal(edited.predict([question, text]).logits, before)
    assert torch.equal(tiny_vlm.predict([question, text]).logits, before)
    assert torch.equal(edited.without("x").predict([question, text]).logits, before)


def test_an_edit_from_the_hub_answers_as_the_one_that_was_pushed(
    tiny_vlm, question, folder: Path, tmp_path, monkeypatch
):
    hub = hub_in(tmp_path / "hub", monkeypatch)
    (folder / "notes.txt").write_text("private")
    address = push_edit(folder, "me/cat", private=True)
    assert address == "https://huggingface.co/me/cat/commit/1"
    assert hub.private == {"me/cat": True}
    uploaded = {path.name for path in (hub.root / "me" / "cat").iterdir()}
    assert uploaded == {"README.md", "edit.json", "edit.safetensors", "images"}
    pulled = tiny_vlm.with_edit(load_edit("me/cat")).predict([question]).logits
    assert torch.equal(pulled, tiny_vlm.with_edit(load_edit(folder)).predict([question]).logits)
    with pytest.raises(EditError, match="me/dog is not a folder, and cannot be fetched"):
        load_edit("me/dog")
    with pytest.raises(EditError, match="not a valid hub id"):
        push_edit(folder, "cat", private=True)


def test_the_hub_is_asked_for_the_revision_with_the_token(monkeypatch):
    asked: list[tuple[str, str]] = []

    class Session:
        def head(self, url: str, *, headers: dict[str, str], timeout: float) -> Any:
            asked.append((url, headers["authorization"]))
            return SimpleNamespace(status_code=404)

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(EditError, match="HTTP 404"):
        load_edit("me/cat", revision="v2", token="hf_secret")
    assert asked == [("https://huggingface.co/me/cat/resolve/v2/edit.json", "Bearer hf_secret")]


def test_the_card_of_a_shared_edit_shows_its_requests(folder: Path):
    card = model_card(read_description(folder), "me/edit")
    assert "| FT-M | what animal? | dog |" in card
    assert 'load_edit("me/edit")' in card


def test_an_edit_prints_what_it_is(tiny_vlm, question):
    assert isinstance(edit := EDITOR.edit(tiny_vlm, [question]), Edit)
    assert repr(edit) == "<Edit 'ft' by FT-M: 1 request>"
