"""Names of everything that mmedit offers, read without importing torch.

`configs/KIND/NAME.yaml` holds one editor, VLM, dataset, table of runs or table of published values.
The comment at the top of the file describes it. The tuples below repeat the names of tables whose
modules are slow to import; tests/cli/test_shell.py holds them equal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from mmedit.errors import ConfigError, ModelError, UnknownNameError
from mmedit.settings import read_yaml_text
from mmedit.storage import config_folder, is_hub_id, user_folder

Kind = Literal["vlm", "editor", "dataset", "table", "published"]

LISTS: Mapping[str, Kind] = {
    "editors": "editor",
    "vlms": "vlm",
    "datasets": "dataset",
    "tables": "table",
    "published": "published",
}
"""The lists of `mmedit ls`."""
MAX_BYTES = 1_000_000
"""Maximum size of a file of settings, in bytes."""
MODES = ("independent", "batch", "sequential")
FORMATS = ("md", "latex", "csv", "html", "json")
COLUMN_SETS = ("default", "generation", "locality")
RELEASES = ("evqa", "eic", "vlkeb", "mmke", "comprehendedit", "fgvedit", "cckeb", "adsedit")
"""Published datasets that are read from annotation files."""
DOWNLOADS = (*RELEASES, "grocery")
"""Datasets that `mmedit data get` fetches."""
DOWNLOADED_VLMS = ("photo-vlm",)
"""VLMs that `mmedit data get` makes, by the name of their folder."""
AUDITS = (*RELEASES, "grocery", "json")
"""Datasets that `mmedit data check` checks."""
CONVERTED = ("blip2", "minigpt4")
"""Families whose original files `mmedit convert` reads."""
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "blip2": ("blip-2",),
    "minigpt4": ("minigpt4",),
    "instructblip": ("instructblip",),
    "llava": ("llava",),
    "llava-next": ("llava_next",),
    "llava-onevision": ("llava_onevision",),
    "qwen2-vl": ("qwen2_vl",),
    "qwen2.5-vl": ("qwen2_5_vl",),
    "qwen3-vl": ("qwen3_vl",),
    "paligemma": ("paligemma",),
    "fast-vlm": ("fast_vlm",),
    "auto": (),
}
"""Model types of each adapter, as `config.json` names them."""

_ALLOWED: Mapping[Kind, str] = {
    "vlm": "VLM, model folder or hub id (owner/name)",
    "editor": "editor, file of its settings, folder of a fitted editor or hub id (owner/name)",
    "dataset": "dataset",
    "table": "table or file of a table",
    "published": "published table",
}
_FOLDERS: Mapping[Kind, str] = {
    "vlm": "a transformers model folder",
    "editor": "the folder of a fitted editor (mmedit fit --out FOLDER)",
}


def names(kind: Kind) -> list[str]:
    """Return the names of a kind, in alphabetical order."""
    return sorted(file.stem for file in (config_folder() / kind).glob("*.yaml"))


def describe(kind: Kind) -> list[tuple[str, str]]:
    """Return each name with the comment at the top of its file."""
    described = []
    for name in names(kind):
        lines = (config_folder() / kind / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        head = takewhile(lambda line: line.startswith("#"), lines)
        described.append((name, " ".join(line.removeprefix("#").strip() for line in head)))
    return described


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values. Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not valid YAML in UTF-8: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_BYTES:,} bytes; expected a file of settings")
    written = read_yaml_text(text, str(file))
    if not isinstance(written, dict):
        raise ConfigError(f"{file} must hold keys and values")
    return written


def edit_sites(vlm: str) -> dict[str, Sequence[str]]:
    """Return the edit sites of a named VLM by stage, as its file has them. Raises ConfigError."""
    sites = read_yaml(config_folder() / "vlm" / f"{vlm}.yaml").get("sites", {})
    if not isinstance(sites, dict):
        raise ConfigError(f"vlm {vlm}: `sites` must hold a list of names for each stage")
    return sites


def built_in_vlms() -> dict[str, Path]:
    """Return the folders of the VLMs of mmedit itself by name; that of `photo` may not exist yet.

    They are ordinary transformers folders.
    """
    assets = Path(str(resources.files("mmedit"))) / "assets"
    return {"embedded": assets / "embedded-vlm", "photo": user_folder() / "photo-vlm"}


def require_made(vlm: str) -> None:
    """Raise ModelError if a VLM is one of mmedit itself and its folder must be made first."""
    folder = built_in_vlms().get(vlm)
    if folder is not None and not folder.is_dir():
        raise ModelError(
            f"the VLM {vlm} is not on this machine: the folder {folder} does not exist. Make it "
            f"with: mmedit data get {folder.name}"
        )


def require_known(kind: Kind, name: str) -> None:
    """Raise UnknownNameError if `name` is no name of this kind and cannot be a folder, file or hub
    id of that kind either. Costs milliseconds.
    """
    if name in names(kind) or (name and _may_be_elsewhere(kind, name)):
        return
    if kind == "dataset" and os.path.isfile(name):
        raise ConfigError(
            f"--dataset {name} is a file, not the name of a dataset. Use your own file with: "
            f"--dataset json --set dataset.test={name}"
        )
    if kind in _FOLDERS and _is_path(name):
        raise ConfigError(
            f"the folder {name} does not exist; expected {_FOLDERS[kind]}, a name of "
            f"`mmedit ls {kind}s`, or a hub id like owner/name"
        )
    raise UnknownNameError(_ALLOWED[kind], name, names(kind))


def is_file_of(kind: Kind, name: str) -> bool:
    """Return whether a name is a file of your own, in the form of those in `configs`."""
    return os.path.isfile(name) and (
        kind == "table" or (kind == "editor" and name.endswith(".yaml"))
    )


def _may_be_elsewhere(kind: Kind, name: str) -> bool:
    if is_file_of(kind, name):
        return True
    if kind not in _FOLDERS:
        return False
    return os.path.isdir(os.path.expanduser(name)) or (is_hub_id(name) and not _is_path(name))


def _is_path(name: str) -> bool:
    """Return whether a name can only be a path. Such a name is not looked for on the hub, which
    would take half a minute without a network.
    """
    first, slash, _ = name.partition("/")
    return name.startswith(("/", "./", "../", "~")) or bool(slash and os.path.isdir(first))
