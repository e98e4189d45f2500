"""Saved editors: a folder on disk or a repository of the hub. Safetensors and JSON, no pickle.

editor.json           method, settings, the VLM and data it was fitted on, versions
editor.safetensors    the learnt tensors
README.md             the model card, if it is pushed to the hub
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmedit.cases import EditCase, dataset_hash
from mmedit.editors.checks import require_description, require_finite
from mmedit.errors import EditorError, ModelError
from mmedit.hub import pull_files, push_files
from mmedit.settings import Settings, validate
from mmedit.storage import replaced, sha256
from mmedit.vlm.identity import Identity
from mmedit.vlm.interface import VLM

DESCRIPTION, TENSORS, CARD = "editor.json", "editor.safetensors", "README.md"
UNREADABLE = (
    KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ArithmeticError,
    StrictDataclassError,
)  # fmt: skip
"""Errors of building an editor from a description that does not describe one."""
REASON = 300
"""Maximum length of the reason in the error for a description, in characters."""
Config = TypeVar("Config", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The VLM and the data that an editor was fitted on."""

    vlm: Identity
    sites: tuple[str, ...]
    """Names of the edited weights; empty if the method edits none."""
    dataset: str
    """`dataset_hash` of the training cases."""
    cases: int
    """Number of training cases."""
    seed: int
    versions: Mapping[str, str]
    """Versions of Python and of the packages used, by name."""

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Origin:
        """Read what `as_json` gives. Raises KeyError or TypeError."""
        return cls(
            **{
                **described,
                "vlm": Identity(**described["vlm"]),
                "sites": tuple(described["sites"]),
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Return the origin as plain JSON."""
        vlm = self.vlm._asdict()
        if not self.vlm.processing:  # an earlier version did not note it
            del vlm["processing"]
        return {**asdict(self), "vlm": vlm, "sites": list(self.sites)}


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of `editor.json`."""

    method: str
    config: Mapping[str, Any]
    origin: Origin | None
    notes: Mapping[str, Any]
    sha256: str
    """SHA-256 of `editor.safetensors`, in hexadecimal digits."""


def require_same_vlm(vlm: VLM, origin: Origin, method: str) -> None:
    """Raise EditorError, which says what differs, unless the editor was fitted on this VLM.

    An edited VLM counts as the VLM it was made from.
    """
    differs = vlm.identity.described(origin.vlm)
    if differs is None:
        return
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
    """Write the folder. Raises EditorError if it cannot be written.

    Each file is replaced as a whole, and `editor.json` holds the SHA-256 of the other file, so that
    a crash between the two is noticed.
    """
    try:
        with replaced(path / DESCRIPTION) as description, replaced(path / TENSORS) as file:
            save_file(_apart(tensors), file)
            described = {
                "method": method,
                "config": dict(config),
                "origin": origin.as_json() if origin else None,
                "notes": dict(notes),
                "sha256": sha256(file),
            }
            description.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise EditorError(
            f"the editor cannot be written to {path}: {error}. Free space, or name another folder."
        ) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: it refuses memory that two names share (tied
    weights), so such tensors are copied. Others are not: those of a large VLM would not fit.
    """
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in found.values())
    return {
        name: tensor.clone() if shared[tensor.untyped_storage().data_ptr()] > 1 else tensor
        for name, tensor in found.items()
    }


def as_folder(path: str | Path) -> Path:
    """Return the folder of an editor. Raises EditorError for anything but a path."""
    if not isinstance(path, str | Path) or not str(path).strip():
        raise EditorError(f"{path!r} is not a folder; expected the path of an editor's folder")
    return Path(path).expanduser()


def read_description(path: Path) -> Description:
    """Read the `editor.json` of a saved editor. Raises EditorError."""
    file = path / DESCRIPTION
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EditorError(
            f"{path} has no {DESCRIPTION}; expected a folder that `mmedit fit` wrote"
        ) from None
    except OSError as error:
        raise EditorError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise EditorError(f"{file} is not valid JSON: {error}") from error
    try:
        require_description(described)
        origin = described.pop("origin")
        origin = None if origin is None else Origin.from_json(origin)
        return Description(**described, origin=origin)
    except UNREADABLE as error:
        raise other_version(path, error) from error


def read_config(path: Path, described: Description, model: type[Config]) -> Config:
    """Return the settings in a description. Raises EditorError, which names each wrong key."""
    try:
        return validate(model, described.config, "config")
    except (TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise other_version(path, error) from error


def other_version(path: Path, fault: object) -> EditorError:
    """Return the error for an `editor.json` that this version of mmedit did not write."""
    reason = " ".join(str(fault).split())
    if len(reason) > REASON:
        reason = f"{reason[:REASON]}..."
    return EditorError(
        f"{path / DESCRIPTION} is not what `mmedit fit` writes ({reason}); it comes from another "
        "program, or another version of mmedit: fit the editor anew"
    )


def read_tensors(path: Path, described: Description) -> dict[str, Tensor]:
    """Read the `editor.safetensors` that belongs to a description. Raises EditorError."""
    file = path / TENSORS
    try:
        if sha256(file) != described.sha256:
            raise EditorError(
                f"{file} is not the file that {DESCRIPTION} was written with: one of them was "
                "changed, or writing was cut off; fit the editor anew, or fetch both again"
            )
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise EditorError(f"{file} cannot be read: {error}") from error
    require_finite(tensors)
    return tensors


def push(path: Path, repo_id: str, *, private: bool, token: str | None = None) -> str:
    """Upload a saved editor and return the address of the commit. Raises EditorError."""
    described = read_description(path)
    read_tensors(path, described)
    files, message = (DESCRIPTION, TENSORS, CARD), f"{described.method.upper()} editor"
    try:
        (path / CARD).write_text(model_card(described, repo_id), encoding="utf-8")
        return push_files(path, repo_id, files, message=message, private=private, token=token)
    except ModelError as error:
        raise EditorError(str(error)) from error
    except OSError as error:
        raise EditorError(f"{path} cannot be pushed to {repo_id}: {error}") from error


def pull(name: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a saved editor: as given, or fetched from the hub (only the two files of
    an editor). Raises EditorError.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    files = (DESCRIPTION, TENSORS)
    try:
        return pull_files(str(name), files, kind="fitted editor", revision=revision, token=token)
    except ModelError as error:
        raise EditorError(str(error)) from error


def model_card(described: Description, repo_id: str) -> str:
    """Return the README.md of a pushed editor."""
    origin = described.origin
    fitted = (
        f"Fitted on {origin.cases} cases (dataset {origin.dataset}, seed {origin.seed}) for a "
        f"`{origin.vlm.family}` network (config {origin.vlm.config}, weights "
        f"{origin.vlm.weights}, processing {origin.vlm.processing or 'not noted'}); it works with "
        "no other VLM.\n\nSites: "
        f"{', '.join(f'`{site}`' for site in origin.sites) or 'none'}.\n\nMade with "
        f"{', '.join(f'{name} {version}' for name, version in origin.versions.items())}.\n"
        if origin
        else "It is not fitted: it has nothing to learn.\n"
    )
    return (
        "---\nlibrary_name: mmedit\ntags:\n- knowledge-editing\n- mmedit\n---\n\n"
        f"# A {described.method.upper()} editor\n\n{fitted}\n"
        f"```python\nfrom mmedit.methods import EDITORS\n\n"
        f'editor = EDITORS["{described.method}"].from_pretrained("{repo_id}")\n```\n\n'
        f"```json\n{json.dumps(dict(described.config), indent=1)}\n```\n"
    )


def origin_of(vlm: VLM, sites: Sequence[str], cases: Sequence[EditCase], seed: int) -> Origin:
    """Return the origin of an editor that is fitted now. Reads all weights of the VLM."""
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
