"""Files of packages in a registry: fetched with pip, checked, and kept."""

import errno
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from package_registry import Registry, write_wheel

from mmedit import registry
from mmedit.errors import DownloadError
from mmedit.registry import PackageFile, fetch

CONTENT = bytes(range(256)) * 500


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry(tmp_path / "wheels")
    monkeypatch.setattr(registry, "_run_pip", made.run_pip)
    return made


@pytest.fixture
def package(wheels: Registry) -> PackageFile:
    return write_wheel(wheels.folder, "some-part==0.1.2", "some_part/a.bin", CONTENT)


def test_pip_fetches_the_wheel_and_the_file_in_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("pip", reason="pip is not installed")
    file = write_wheel(tmp_path / "wheels", "some-part==0.1.2", "some_part/a.bin", CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    seen: list[tuple[str, int, int]] = []
    target = tmp_path / "kept" / "a.bin"
    assert fetch(file, target, lambda *step: seen.append(step[:3]))
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert seen[0] == ("fetching some-part", 0, file.wheel_size)
    assert seen[-1] == ("fetching some-part", file.wheel_size, file.wheel_size)
    missing = replace(file, package="other-part==1")
    with pytest.raises(
        DownloadError, match=r"pip could not download other-part==1: ERROR: .*index"
    ):
        fetch(missing, tmp_path / "kept" / "b.bin")


def test_a_file_that_is_there_is_not_fetched_again(
    package: PackageFile, wheels: Registry, tmp_path: Path
):
    assert fetch(package, tmp_path / "a.bin")
    assert not fetch(package, tmp_path / "a.bin")
    assert wheels.fetched == [package.package]
    (tmp_path / "a.bin").write_bytes(b"cut off")
    assert fetch(package, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("wheel_sha256", "some-part==0.1.2 is not the released package: SHA-256 .*, expected 0"),
        ("sha256", "some_part/a.bin of some-part==0.1.2 is not the released file: SHA-256"),
    ],
)
def test_a_wrong_hash_is_refused_and_nothing_is_kept(
    package: PackageFile, tmp_path: Path, part: str, message: str
):
    with pytest.raises(DownloadError, match=message):
        fetch(replace(package, **{part: "0"}), tmp_path / "kept" / "a.bin")
    assert not list((tmp_path / "kept").iterdir())


def test_a_full_disk_is_found_before_anything_is_fetched(
    package: PackageFile, wheels: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000))
    with pytest.raises(DownloadError, match=r"too full for some-part==0\.1\.2: .* 1,000 are free"):
        fetch(package, tmp_path / "a.bin")
    assert not wheels.fetched


def test_a_disk_that_fills_while_a_file_is_written_is_named(
    package: PackageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fill(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fill)
    with pytest.raises(DownloadError, match=r"cannot be written: No space left .* --root DIR"):
        fetch(package, tmp_path / "kept" / "a.bin")
    assert not list((tmp_path / "kept").iterdir())


def test_an_environment_without_pip_is_told_how_to_get_it(
    package: PackageFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="python -m ensurepip"):
        fetch(package, tmp_path / "a.bin")
