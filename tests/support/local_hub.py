"""The Hugging Face hub as folders on this machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects


@dataclass
class Hub:
    """The hub as folders `owner/name`."""

    root: Path
    private: dict[str, bool] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def api(self, token: str | None = None) -> Hub:
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private[repo_id] = private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> str:
        self.messages.append(commit_message)
        copy(Path(folder_path), self.root / repo_id, allow_patterns)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, token: str | None, allow_patterns: list[str]
    ) -> str:
        self.fetched.append(repo_id)
        if not (self.root / repo_id).is_dir():
            raise not_found(repo_id)
        to = self.root / "cache" / repo_id
        copy(self.root / repo_id, to / "files", allow_patterns)
        as_links(to / "files", to / "blobs", to / "snapshots" / "1")
        return str(to / "snapshots" / "1")


def as_links(files: Path, blobs: Path, snapshot: Path) -> None:
    """Lay out files as the hub's cache does: a snapshot of links into a folder of blobs."""
    blobs.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(path for path in sorted(files.rglob("*")) if path.is_file()):
        place = snapshot / file.relative_to(files)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        file.replace(blobs / str(number))
        place.symlink_to(blobs / str(number))


def copy(source: Path, to: Path, patterns: list[str]) -> None:
    there = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    for name in filter_repo_objects(there, allow_patterns=patterns):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, to / name)


def not_found(repo_id: str) -> RepositoryNotFoundError:
    address = f"https://huggingface.co/{repo_id}"
    response = httpx2.Response(404, request=httpx2.Request("GET", address))
    return RepositoryNotFoundError(f"404: no {address}", response=response)


def hub_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Return a hub in a folder, which mmedit takes for the real one."""
    made = Hub(root)
    for module in ("config", "hub"):
        monkeypatch.setattr(f"mmedit.{module}.require_on_hub", lambda *question, **more: None)
    monkeypatch.setattr("huggingface_hub.HfApi", made.api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    return made
