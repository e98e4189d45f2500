"""Saved edits: a folder of safetensors, JSON and images. No pickle.

edit.json           the edits in order: requests, method, settings; the VLM; versions
edit.safetensors    the tensors of all edits, as `number/name`
images/             the images of the requests, named by their content
editors/            fitted editors that an edit cannot do without (SERAC's networks)
README.md           the model card, if it is pushed to the hub

The folder is written beside its place and then renamed, and edit.json holds the SHA-256 of the
tensors, so a half-written folder is never taken for an edit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.cases import Example
from mmedit.errors import DataError, EditError, EmptyAnswerError, MmeditError, one_line, shortened
from mmedit.images import image_key, open_image
from mmedit.storage import replaced_folder, require_path, sha256
from mmedit.vlm.edit import Edit, Seen, require_name
from mmedit.vlm.edit_schema import SavedEdit, SavedEdits, SavedRequest, SavedSeen, SavedVLM
from mmedit.vlm.identity import Identity

DESCRIPTION, TENSORS, CARD = "edit.json", "edit.safetensors", "README.md"
IMAGES, EDITORS = "images", "editors"
FORMAT = 1
"""Version of the folder's format."""
MAX_DESCRIPTION = 256 * 2**20
"""Maximum size of an edit.json, in bytes."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Opened:
    """A folder of edits as it was read: its description, and tensors by number of the edit."""

    path: Path
    description: SavedEdits
    tensors: tuple[Mapping[str, Tensor], ...]

    def requests(self, edit: SavedEdit) -> tuple[Example, ...]:
        """Return the requests of an edit. Raises EditError if an image is missing."""
        return tuple(_example(self.path, request) for request in edit.requests)


def is_edit(path: Path) -> bool:
    """Tell whether a folder holds saved edits."""
    return (path / DESCRIPTION).is_file()


def write_edits(
    path: str | Path,
    edits: Sequence[Edit],
    identity: Identity,
    *,
    vlm_name: str,
    overwrite: bool = False,
) -> None:
    """Write edits of one VLM as a folder. One edit alone takes the folder's name. Raises EditError:
    the folder exists (unless it is one of edits, and `overwrite`), or cannot be written.
    """
    place = free_place(path, overwrite=overwrite)
    require_name(place.name)
    if len(edits) == 1:
        edits = [edits[0].named(place.name)]
    try:
        with replaced_folder(place, overwrite=overwrite) as partial:
            tensors = {
                f"{number}/{name}": tensor.detach().cpu().contiguous()
                for number, edit in enumerate(edits)
                for name, tensor in edit.change.tensors().items()
            }
            save_file(tensors, partial / TENSORS)
            described = SavedEdits(
                format=FORMAT,
                mmedit=version("mmedit"),
                name=place.name,
                vlm=SavedVLM(name=vlm_name, **identity._asdict()),
                edits=tuple(_saved(partial, edit) for edit in edits),
                sha256=sha256(partial / TENSORS),
            )
            text = json.dumps(described.model_dump(mode="json"), indent=1, ensure_ascii=False)
            (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise EditError(
            f"the edit cannot be written to {path}: {one_line(error)}. Free space, or name another "
            "folder"
        ) from error


def read_edits(path: Path) -> Opened:
    """Read a folder of edits. Raises EditError if it is damaged, or of another kind."""
    described = read_description(path)
    file = path / TENSORS
    try:
        if sha256(file) != described.sha256:
            raise EditError(
                f"{file} is not the file that {DESCRIPTION} was written with: one of them was "
                "changed, or writing was cut off; make the edit anew, or fetch both again"
            )
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise EditError(f"{file} cannot be read: {one_line(error)}") from error
    tensors: list[dict[str, Tensor]] = [{} for _ in described.edits]
    for key, tensor in found.items():
        number, _, name = key.partition("/")
        if not number.isdecimal() or int(number) >= len(tensors):
            raise EditError(f"{file}: the tensor {shortened(key)} belongs to no edit of its folder")
        tensors[int(number)][name] = tensor
    return Opened(path, described, tuple(tensors))


def read_description(path: Path) -> SavedEdits:
    """Read the edit.json of a folder. Raises EditError."""
    file = path / DESCRIPTION
    try:
        if file.stat().st_size > MAX_DESCRIPTION:
            raise EditError(f"{file} is larger than {MAX_DESCRIPTION // 2**20} MiB")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditError(
            f"{path} has no {DESCRIPTION}; expected a folder that `mmedit edit --out` or "
            "`edited.save` wrote"
        ) from None
    except OSError as error:
        raise EditError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EditError(f"{file} is not valid JSON: {one_line(error)}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if number != FORMAT:
        raise EditError(
            f"{file} has format {shortened(number)}; this version of mmedit reads format {FORMAT}"
        )
    try:
        described = SavedEdits.model_validate(content)
    except (ValidationError, ValueError) as error:
        raise EditError(f"{file} is not what mmedit writes: {one_line(error)}") from None
    if not described.edits:
        raise EditError(f"{file} lists no edit")
    return described


def edit_fields(opened: Opened, saved: SavedEdit) -> dict[str, Any]:
    """Return all fields of an `Edit` but its change."""
    return {
        "name": saved.name,
        "method": saved.method,
        "label": saved.label,
        "requests": opened.requests(saved),
        "config": saved.config,
        "seconds": saved.seconds,
        "made": saved.made,
        "on": saved.on,
        "seen": tuple(Seen(**seen.model_dump()) for seen in saved.seen),
        "vlm_name": opened.description.vlm.name,
        "source": opened.description.identity,
    }


def _saved(folder: Path, edit: Edit) -> SavedEdit:
    """Write images and the editor of an edit, and return its entry in edit.json."""
    editor = edit.change.editor
    return SavedEdit(
        name=edit.name,
        method=edit.method,
        label=edit.label,
        kind=edit.change.kind,
        config=dict(edit.config),
        requests=tuple(_saved_request(folder, request) for request in edit.requests),
        made=edit.made,
        seconds=edit.seconds,
        on=edit.on,
        seen=tuple(SavedSeen(**asdict(seen)) for seen in edit.seen),
        notes=edit.change.notes(),
        editor=None if editor is None else _save_editor(folder, editor),
    )


def _save_editor(folder: Path, editor: Any) -> str:
    """Write a fitted editor once for all edits that need it, and return its path."""
    made = folder / EDITORS / "new"
    editor.save(made)
    name = f"{EDITORS}/{sha256(made / 'editor.json')[:16]}"
    if (folder / name).exists():
        shutil.rmtree(made)
    else:
        made.rename(folder / name)
    return name


def _saved_request(folder: Path, request: Example) -> SavedRequest:
    return SavedRequest(
        prompt=request.prompt,
        target=request.target,
        image=None if request.image is None else _save_image(folder, request.image),
        context=request.context,
        answers=request.answers,
        subject=request.subject,
    )


def _save_image(folder: Path, image: Any) -> str:
    """Write an image once: a file as it is, pixels in memory as PNG. Return its path."""
    suffix = image.suffix.lower() if isinstance(image, Path) else ".png"
    keeps = isinstance(image, Path) and suffix in SUFFIXES
    name = f"{IMAGES}/{image_key(image)}{suffix if keeps else '.png'}"
    if not (folder / name).exists():
        (folder / IMAGES).mkdir(exist_ok=True)
        if keeps:
            shutil.copyfile(image, folder / name)
        else:
            open_image(image).save(folder / name, format="PNG")
    return name


def _example(path: Path, request: SavedRequest) -> Example:
    image = None if request.image is None else path / request.image
    if image is not None and not image.is_file():
        raise EditError(f"{path} lacks the image {request.image} of a request")
    try:
        return Example(
            prompt=request.prompt,
            target=request.target,
            image=image,
            context=request.context,
            answers=request.answers,
            subject=request.subject,
        )
    except (DataError, EmptyAnswerError) as error:
        raise EditError(f"{path / DESCRIPTION}: {error}") from error


def free_place(path: str | Path, *, overwrite: bool) -> Path:
    """Return the place of a new folder of edits. Raises EditError if it is taken."""
    if not isinstance(path, str | Path):
        raise EditError(f"{shortened(path)} is not a path; expected the name of a new folder")
    try:
        require_path(path)
    except MmeditError as error:
        raise EditError(str(error)) from None
    place = Path(path).expanduser().absolute()
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return place
    if not is_edit(place):
        raise EditError(f"{path} exists and is not a saved edit; name another folder")
    if not overwrite:
        raise EditError(
            f"{path} holds an edit already; name another folder, or replace it with overwrite=True "
            "(--overwrite)"
        )
    return place
