"""`mmedit data get` against a real server on this machine."""

from __future__ import annotations

import hashlib
import io
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmedit.datasets import download
from mmedit.datasets.download import fetch, unpack
from mmedit.datasets.origins import RELEASES, Release, Remote, advice
from mmedit.errors import DataError

BODY = bytes(range(256)) * 8192  # 2 MB
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; notes the Range of every request; drops the first connections halfway."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.ranges: list[str | None] = []
        self.drops = 0
        self.failures: list[int] = []
        self.ranged = True

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", server.url("file"))
            self.end_headers()
            return
        body = server.files.get(self.path[1:])
        if body is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranged else 0
        if start >= len(body) > 0 and start:
            self.send_error(416)
            return
        rest = body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.drops:
            server.drops -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.connection.close()
            return
        self.wfile.write(rest)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.01)
    with Server({"file": BODY}) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def get(server: Server, root: Path, **changed: Any) -> list[Path]:
    wanted: dict[str, Any] = {
        "url": server.url("file"),
        "path": "a/file.json",
        "sha256": SHA256,
    } | changed
    told: list[tuple[str, int, int]] = []
    release = Release(files=(Remote(**wanted),))
    new = fetch(release, root, images=False, report=lambda *how_far: told.append(how_far))
    assert not told or told[-1][1] == told[-1][2]
    return new


def test_a_file_is_fetched_once(server, tmp_path):
    assert get(server, tmp_path) == [tmp_path / "a" / "file.json"]
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY
    assert get(server, tmp_path) == []
    assert len(server.ranges) == 1


def test_a_lost_connection_goes_on_where_it_stopped(server, tmp_path):
    server.drops = 2
    get(server, tmp_path)
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY
    assert server.ranges[0] is None
    assert all(asked and int(asked[6:-1]) > 0 for asked in server.ranges[1:])


def test_an_earlier_command_is_gone_on_with(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.json.partial").write_bytes(BODY[:1000])
    get(server, tmp_path)
    assert server.ranges == ["bytes=1000-"]
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY


def test_a_server_that_knows_no_ranges_begins_anew(server, tmp_path):
    server.ranged = False
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.json.partial").write_bytes(b"another")
    get(server, tmp_path)
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.json.partial").write_bytes(BODY + b"more")
    get(server, tmp_path)
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY


def test_redirects_and_busy_servers_are_followed_and_waited_for(server, tmp_path):
    server.failures = [503, 429]
    get(server, tmp_path, url=server.url("moved"))
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY


def test_another_file_than_the_released_one_is_refused(server, tmp_path):
    with pytest.raises(DataError, match="it is another file"):
        get(server, tmp_path, sha256="0" * 64)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_file_that_was_changed_is_fetched_again(server, tmp_path):
    get(server, tmp_path)
    (tmp_path / "a" / "file.json").write_bytes(b"changed")
    assert get(server, tmp_path) == [tmp_path / "a" / "file.json"]
    assert (tmp_path / "a" / "file.json").read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "the server answered 404"), ("file", "answered 500")]
)
def test_a_server_that_does_not_have_it_is_one_error(server, tmp_path, name, message):
    server.failures = [500] * download.TRIES if name == "file" else []
    with pytest.raises(DataError, match=message):
        get(server, tmp_path, url=server.url(name))


def test_no_server_is_one_error(server, tmp_path):
    with pytest.raises(DataError, match="could not be fetched"):
        get(server, tmp_path, url="http://127.0.0.1:9/file")
    with pytest.raises(DataError, match="is no http address"):
        get(server, tmp_path, url="file:///etc/passwd")


def test_a_full_disk_is_one_error_and_keeps_what_is_there(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.json.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device; what was fetched is kept"):
        get(server, tmp_path)


# Archives


def zipped(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, target in (links or {}).items():
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, target)
    return made.getvalue()


def test_an_archive_is_unpacked_once(server, tmp_path):
    server.files["z"] = zipped({"top/data/a.txt": b"a", "top/data/b/c.txt": b"c", "top/x": b"x"})
    wanted = {"url": server.url("z"), "path": "", "sha256": None, "strip": "top/data"}
    assert get(server, tmp_path, **wanted) == [tmp_path]
    shown = sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and p.name[0] != ".")
    assert shown == ["a.txt", "c.txt"]
    assert get(server, tmp_path, **wanted) == []
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (zipped({"../out.txt": b""}), "lies outside"),
        (zipped({"/out.txt": b""}), "lies outside"),
        (zipped({"a\\..\\..\\out.txt": b""}), "lies outside"),
        (zipped({}, {"link": "/etc/passwd"}), "is a link"),
        (zipped({"other/a": b""}), "holds nothing in top"),
        (b"no archive", "no whole zip file"),
    ],
)
def test_a_hostile_or_broken_archive_writes_nothing(tmp_path, archive, message):
    file = tmp_path / "in" / "x.zip"
    file.parent.mkdir()
    file.write_bytes(archive)
    with pytest.raises(DataError, match=message):
        unpack(file, tmp_path / "in" / "out", "top" if "top" in message else "")
    assert not (tmp_path / "in" / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNPACKED", 10)
    (tmp_path / "x.zip").write_bytes(zipped({"a": bytes(11)}))
    with pytest.raises(DataError, match="unpacks to 11 bytes"):
        unpack(tmp_path / "x.zip", tmp_path / "out", "")


# The command


def test_the_command_says_what_came_and_what_comes_by_hand(mmedit_, server, tmp_path, monkeypatch):
    release = Release(
        files=(Remote(server.url("file"), "f.json", SHA256),), by_hand="the rest: ask [them]"
    )
    monkeypatch.setattr("mmedit.datasets.origins.RELEASES", {"evqa": release})
    shown = mmedit_("data", "get", "evqa", "--root", tmp_path)
    assert shown.code == 0
    assert f"fetched: {tmp_path}/f.json" in shown.out
    assert "by hand: the rest: ask [them]" in shown.out
    assert f"next: mmedit data check evqa --root {tmp_path}" in shown.out
    assert "nothing to fetch" in mmedit_("data", "get", "evqa", "--root", tmp_path).out


def test_what_is_fetched_by_hand_is_recognised(mmedit_, tmp_path):
    (tmp_path / "train.json").write_text("[]")
    shown = mmedit_("data", "get", "vlkeb", "--root", tmp_path)
    assert f"{tmp_path}/train.json: not the released file" in shown.out
    assert "kaggle datasets download" in shown.out


def test_an_unknown_benchmark_is_named(mmedit_, tmp_path):
    assert "Did you mean 'evqa'" in mmedit_("data", "get", "evq", "--root", tmp_path).err


def test_every_release_says_how_it_is_had():
    for name, release in RELEASES.items():
        assert release.files or release.hub or release.by_hand
        assert f"mmedit data get {name} --root ROOT" in advice(name)
        assert all(remote.url.startswith("http") for remote in release.files)
