"""A fitted editor as a folder, and on the hub: safetensors and readable JSON, never pickle.

editor.json           method, settings, the VLM and data it was fitted on, versions
editor.safetensors    what it has learnt
README.md             the model card, where it is pushed to the hub
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.cases import EditCase, dataset_hash
from mmedit.errors import EditorError
from mmedit.storage import flush, is_hub_id
from mmedit.vlm.interface import VLM, Identity

DESCRIPTION, TENSORS, CARD = "editor.json", "editor.safetensors", "README.md"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an editor was fitted on."""

    vlm: Identity
    sites: tuple[str, ...]
    dataset: str
    """`dataset_hash` of the training cases."""
    cases: int
    seed: int
    versions: Mapping[str, str]

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Origin:
        return cls(
            **{
                **described,
                "vlm": Identity(**described["vlm"]),
                "sites": tuple(described["sites"]),
            }
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "vlm": self.vlm._asdict(), "sites": list(self.sites)}


@dataclass(frozen=True, kw_only=True)
class Described:
    """What `editor.json` says."""

    method: str
    config: Mapping[str, Any]
    origin: Origin | None
    notes: Mapping[str, Any]
    sha256: str


def require_same_vlm(vlm: VLM, origin: Origin, method: str) -> None:
    """A learnt editor works on the network it was fitted on, edited or not, and on no other.

    Raises EditorError, which says what differs.
    """
    here, there = vlm.identity, origin.vlm
    if here == there:
        return
    if here.family != there.family:
        differs = f"a {there.family!r} model, and this is a {here.family!r}"
    elif here.config != there.config:
        differs = (
            f"a {there.family} of another config ({there.config[:12]}, here {here.config[:12]})"
        )
    else:
        differs = (
            f"a {there.family} of the same config with other weights, or the same in another "
            f"number format ({there.weights[:12]}, here {here.weights[:12]})"
        )
    raise EditorError(
        f"this {method} editor was fitted on {differs}. Load that VLM, or fit the editor on this "
        f"one: mmedit fit --editor {method} --vlm ..."
    )


def write_editor(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    method: str,
    config: Mapping[str, Any],
    origin: Origin | None,
    notes: Mapping[str, Any],
) -> None:
    """Write the folder. Each file is replaced as a whole, and `editor.json` names the other's
    SHA-256, so that a crash between the two is noticed. Raises EditorError where it cannot be
    written.
    """
    new = {name: path / f".{name}.partial" for name in (TENSORS, DESCRIPTION)}
    try:
        path.mkdir(parents=True, exist_ok=True)
        # safetensors refuses memory that two names share (tied weights)
        save_file({k: t.detach().cpu().clone() for k, t in tensors.items()}, new[TENSORS])
        described = {
            "method": method,
            "config": dict(config),
            "origin": origin.as_json() if origin else None,
            "notes": dict(notes),
            "sha256": _sha256(new[TENSORS]),
        }
        new[DESCRIPTION].write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        for name, file in new.items():
            flush(file)
            os.replace(file, path / name)
    except (OSError, SafetensorError) as error:
        for file in new.values():
            with suppress(OSError):
                file.unlink()
        raise EditorError(
            f"the editor cannot be written to {path}: {error}. Free space, or name another folder."
        ) from error


def read_description(path: Path) -> Described:
    """The `editor.json` of a saved editor. Raises EditorError."""
    file = path / DESCRIPTION
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditorError(
            f"{path} has no {DESCRIPTION}; a folder written by `mmedit fit` was wanted"
        ) from None
    except OSError as error:
        raise EditorError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise EditorError(f"{file} is not valid JSON: {error}") from error
    try:
        origin = described.pop("origin")
        return Described(**described, origin=Origin.from_json(origin) if origin else None)
    except (TypeError, KeyError, AttributeError) as error:
        raise other_version(path, error) from error


def other_version(path: Path, error: Exception) -> EditorError:
    """What to say of an `editor.json` without what is read here."""
    return EditorError(
        f"{path / DESCRIPTION} does not say what `mmedit fit` writes ({error}); it comes from "
        "another program, or another version of mmedit: fit the editor anew"
    )


def read_tensors(path: Path, described: Described) -> dict[str, Tensor]:
    """The `editor.safetensors` that belongs to a description. Raises EditorError."""
    file = path / TENSORS
    try:
        if _sha256(file) != described.sha256:
            raise EditorError(
                f"{file} is not the file that {DESCRIPTION} was written with: one of them was "
                "changed, or writing was cut off; fit the editor anew, or fetch both again"
            )
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise EditorError(f"{file} cannot be read: {error}") from error


def push(path: Path, repo_id: str, *, private: bool, token: str | None = None) -> str:
    """Upload a saved editor; the address of the commit. Raises EditorError."""
    described = read_description(path)
    read_tensors(path, described)
    if not is_hub_id(repo_id):
        raise EditorError(f"{repo_id!r} is no name on the hub; owner/name was wanted")
    api = HfApi(token=token)
    try:
        (path / CARD).write_text(model_card(described, repo_id), encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=path,
            allow_patterns=[DESCRIPTION, TENSORS, CARD],
            commit_message=f"{described.method.upper()} editor",
        )
    except (HTTPError, HFValidationError, OSError) as error:
        raise EditorError(
            f"{path} cannot be pushed to {repo_id}: {error}. Are you online, and logged in "
            "(hf auth login)?"
        ) from error
    return str(commit)


def pull(name: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a saved editor: as given, or fetched from the hub (only the two files of an
    editor). Raises EditorError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                token=token,
                allow_patterns=[DESCRIPTION, TENSORS],
            )
        )
    except (HTTPError, OSError, ValueError) as error:
        raise EditorError(
            f"{name} is no folder, and cannot be fetched from the hub: {error}"
        ) from error


def model_card(described: Described, repo_id: str) -> str:
    """The README.md of a pushed editor."""
    origin = described.origin
    fitted = (
        f"Fitted on {origin.cases} cases (dataset {origin.dataset}, seed {origin.seed}) for a "
        f"`{origin.vlm.family}` network (config {origin.vlm.config}, weights "
        f"{origin.vlm.weights}); it works on no other.\n\nSites: "
        f"{', '.join(f'`{site}`' for site in origin.sites) or 'none'}.\n\nMade with "
        f"{', '.join(f'{name} {version}' for name, version in origin.versions.items())}.\n"
        if origin
        else "It was fitted on nothing.\n"
    )
    return (
        "---\nlibrary_name: mmedit\ntags:\n- knowledge-editing\n- mmedit\n---\n\n"
        f"# A {described.method.upper()} editor\n\n{fitted}\n"
        f"```python\nfrom mmedit.methods import EDITORS\n\n"
        f'editor = EDITORS["{described.method}"].from_pretrained("{repo_id}")\n```\n\n'
        f"```json\n{json.dumps(dict(described.config), indent=1)}\n```\n"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def origin_of(vlm: VLM, sites: Sequence[str], cases: Sequence[EditCase], seed: int) -> Origin:
    """What is noted of a fit."""
    packages = ("mmedit", "torch", "transformers", "accelerate")
    return Origin(
        vlm=vlm.identity,
        sites=tuple(sites),
        dataset=dataset_hash(cases),
        cases=len(cases),
        seed=seed,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    )
