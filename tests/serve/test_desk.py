"""Edits that clients make: their folder, and what is found in it again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import IMAGES, TEXT_ONLY

pytest.importorskip("fastapi", reason="mmedit serve needs the extra serve")

from mmedit.cases import EditCase, Example
from mmedit.config import load_editor
from mmedit.editors.fitting import Fitting
from mmedit.errors import EditError, UnknownNameError
from mmedit.methods.ike import IKE, IKEConfig
from mmedit.serve.desk import Desk, base_model
from mmedit.serve.models import Models
from mmedit.serve.refusals import Refusal
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

REQUEST = Example(prompt="what color is the shape?", target="blue", image=IMAGES[0])
STEPS = {"steps": 2}


def desk_of(vlm: NetworkVLM, folder: Path, **editors: IKE) -> tuple[Desk, Models]:
    models = Models(base_model(vlm))
    return Desk(models, folder, editors), models


def test_edits_on_edits_are_found_again_and_answer_the_same(tiny_vlm: NetworkVLM, tmp_path: Path):
    desk, models = desk_of(tiny_vlm, tmp_path)
    first = desk.make("first", "ft", models.base, [REQUEST], STEPS)
    desk.make("second", "ike", first, [TEXT_ONLY], {"k": 0})
    again, found = desk_of(tiny_vlm, tmp_path)
    assert again.restore() == []
    assert found.names() == [*models.names()[:1], "first", "second"]
    assert [part.name for part in found.get("second").parts] == ["first", "second"]
    for name in ("first", "second"):
        was, now = models.get(name).edited(), found.get(name).edited()
        assert now.generate([REQUEST], max_new_tokens=8) == was.generate(
            [REQUEST], max_new_tokens=8
        )
    assert [found.get(name).is_routable for name in ("first", "second")] == [True, False]


def test_an_edit_that_is_deleted_is_not_found_again(tiny_vlm: NetworkVLM, tmp_path: Path):
    desk, models = desk_of(tiny_vlm, tmp_path)
    for name in ("kept", "gone", "kept.deleted"):
        desk.make(name, "ft", models.base, [REQUEST], STEPS)
    desk.delete("gone")
    (tmp_path / ".half.1.deleted").mkdir()
    again, found = desk_of(tiny_vlm, tmp_path)
    assert again.restore() == []
    assert set(found.names()[1:]) == {"kept", "kept.deleted"}
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "kept.deleted"}


def test_an_edit_whose_folder_was_removed_by_hand_can_be_deleted(
    tiny_vlm: NetworkVLM, tmp_path: Path
):
    desk, models = desk_of(tiny_vlm, tmp_path)
    desk.make("gone", "ft", models.base, [REQUEST], STEPS)
    shutil.rmtree(tmp_path / "gone")
    desk.delete("gone")
    assert "gone" not in models.names()


def test_a_name_is_as_long_as_file_systems_take(tiny_vlm: NetworkVLM, tmp_path: Path):
    desk, models = desk_of(tiny_vlm, tmp_path)
    longest = "é" * 100
    desk.require_name(longest)
    desk.make(longest, "ft", models.base, [REQUEST], STEPS)
    desk.delete(longest)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refusal, match="at most 200 bytes") as refused:
        desk.require_name("語" * 67)
    assert refused.value.status == 400


def test_what_cannot_be_served_is_told_and_left_as_it_is(tiny_vlm: NetworkVLM, tmp_path: Path):
    desk, models = desk_of(tiny_vlm, tmp_path)
    desk.make("whole", "ft", models.base, [REQUEST], STEPS)
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    torn = tmp_path / "torn" / "edit.safetensors"
    torn.write_bytes(torn.read_bytes()[:-5])
    (tmp_path / "notes").mkdir()
    again, found = desk_of(tiny_vlm, tmp_path)
    [fault] = again.restore()
    assert "torn" in fault
    assert found.names()[1:] == ["whole"]
    assert torn.exists()


def test_a_fitted_editor_is_used_by_the_name_it_was_given(tiny_vlm: NetworkVLM, tmp_path: Path):
    fitted = IKE(IKEConfig(k=1)).fit(tiny_vlm, Fitting([EditCase(id="1", request=TEXT_ONLY)]))
    desk, models = desk_of(tiny_vlm, tmp_path, mine=fitted)
    assert desk.make("one", "mine", models.base, [REQUEST], {}).parts[0].method == "ike"
    with pytest.raises(EditError, match="settings are fixed"):
        desk.make("two", "mine", models.base, [REQUEST], {"k": 2})


def test_a_client_can_name_no_folder_as_a_method(tiny_vlm: NetworkVLM, tmp_path: Path):
    load_editor("ike", tiny_vlm, k=0).save(tmp_path / "ike")
    desk, models = desk_of(tiny_vlm, tmp_path / "edits")
    with pytest.raises(UnknownNameError, match="no method named"):
        desk.make("one", str(tmp_path / "ike"), models.base, [REQUEST], {})
    with pytest.raises(EditError, match="must be fitted"):
        desk.make("one", "mend", models.base, [REQUEST], {})


def test_a_name_is_kept_while_its_edit_is_made(tiny_vlm: NetworkVLM, tmp_path: Path):
    _, models = desk_of(tiny_vlm, tmp_path)
    with models.reserved("new"), pytest.raises(Refusal, match="exists"), models.reserved("new"):
        pass
    with models.reserved("new"):
        pass


def test_the_base_models_name_does_not_tell_where_it_lies(tiny_folder: Path):
    assert base_model(load_vlm(tiny_folder)).name == tiny_folder.name
