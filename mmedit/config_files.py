"""The files of `configs/{vlm,editor,dataset,table}`: their keys, and reading them by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mmedit.bench.contradictions import OnContradiction
from mmedit.bench.modes import MODES
from mmedit.catalog import FAMILIES, Kind, is_file_of, names, read_yaml, require_known
from mmedit.errors import ConfigError, UnknownNameError, shortened
from mmedit.settings import Names, Settings, Values, merged, validate
from mmedit.storage import config_folder

MAX_BATCH = 100_000
"""Largest number of separate edits per pass."""
Where = Literal["language", "bridge", "vision"]
"""`mmedit.adapters.base.Stage`, written out because that module imports torch."""


def _known_adapter(name: str) -> str:
    if name not in FAMILIES:
        raise UnknownNameError("adapter", name, FAMILIES)
    return name


def _listed(value: object) -> object:
    """Take a text where a list of texts is expected: it is the only one."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


def _text_of_path(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class VLMFile(Settings):
    """A file of `configs/vlm`: a VLM and how to load it."""

    name_or_path: str
    """A built-in name ("embedded", "photo"), a transformers folder, or a hub id."""
    convert: str | None = None
    """The command that makes the folder from original checkpoint files."""
    sites: dict[Where, Names] = Field(default_factory=dict)
    """Edit sites by stage; `layers.{1,2}.{fc1,fc2}` stands for four sites."""
    adapter: Annotated[str, AfterValidator(_known_adapter)] | None = None
    """Name of the model family's adapter; by default it follows from the model type."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device_map: str | None = None
    """Placement of the weights by Accelerate, for example auto or cuda:1."""
    max_memory: dict[Annotated[int, BeforeValidator(int)] | str, int | str] | None = None
    """Memory limit by device: a GPU's number, or "cpu"."""
    offload_folder: Annotated[str, BeforeValidator(_text_of_path)] | None = None
    """Folder for the weights that do not fit into memory."""
    quantization: Literal["8bit", "4bit"] | None = None
    trust_remote_code: bool = False
    """Run code of the checkpoint."""
    compile: bool = False
    """Make the layers of vision and bridge faster by `torch.compile`, which needs a C++ compiler.
    It pays for thousands of images, and not on every processor: docs/benchmarks.md.
    """
    batch_size: int = Field(default=1, ge=1, le=MAX_BATCH)
    """Separate edits per pass. FT keeps a whole weight per edit: a large model needs few."""


class EditorFile(Settings):
    """A file of `configs/editor`: a method with its settings."""

    method: str
    label: str
    paper: str = ""
    """Short citation. `mmedit ls editors` shows it and the next two."""
    edits: str = ""
    """Part that an edit changes."""
    learns: str = ""
    """Part that is trained before the first edit, or "nothing"."""
    settings: Values = Field(default_factory=dict)
    per_vlm: dict[str, Values] = Field(default_factory=dict)


class DatasetFile(Settings):
    """A file of `configs/dataset`: a loader with its settings."""

    loader: str
    settings: Values = Field(default_factory=dict)


class Block(Settings):
    """One run of a table: some editors on one VLM and one dataset."""

    vlm: str = "embedded"
    dataset: str = "easyvqa"
    editors: Annotated[Texts, Field(min_length=1)] = ()
    mode: str = "independent"
    split: Literal["test", "validation"] = "test"
    """The cases that are measured. Editors do not train on validation cases in the same run."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many cases."""
    train_limit: int | None = Field(default=None, ge=1)
    """Editors learn from at most this many training cases."""
    settings: Texts = ()
    """Settings in the form that `--set` takes. Those of the command line come after them."""
    on_contradiction: OnContradiction = "error"
    """"skip": leave out probes that another edit of the run contradicts; "error": refuse them, if
    the mode holds several edits at once.
    """
    title: str = ""
    published: str | None = None
    """A table of configs/published, to compare with."""
    published_model: str | None = None
    published_dataset: str | None = None

    def limited(self, limit: int | None, train_limit: int | None) -> Block:
        """Return the block with limits that are at most these."""
        limits = {
            "limit": smallest(self.limit, limit),
            "train_limit": smallest(self.train_limit, train_limit),
        }
        return self.model_copy(update=limits)


def smallest(*limits: int | None) -> int | None:
    """Return the smallest limit; None stands for no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


class TableFile(Settings):
    """A file of `configs/table`: several runs."""

    editors: Texts = ()
    """Editors of the blocks that name none."""
    published: str | None = None
    """Published table of the blocks that name none."""
    blocks: Annotated[dict[str, Values], Field(min_length=1)]

    def named_blocks(self) -> dict[str, Block]:
        """Return the blocks by name, which is the name of their folder. Raises ConfigError."""
        named = {}
        for name, written in self.blocks.items():
            if not re.fullmatch(r"[\w.-]{1,100}", name) or name.startswith("."):
                raise ConfigError(
                    f"the block name {shortened(name)} cannot be the name of a folder; use up to "
                    "100 letters, digits, '-', '_' and '.'"
                )
            values = {"editors": self.editors, "published": self.published, **written}
            named[name] = validate(Block, values, f"block {name}")
        return named


def read_named(kind: Kind, name: str) -> Values:
    """Return what a file of `configs`, or one of your own, holds, with that of the file it extends
    below it.
    """
    if name not in names(kind) and not is_file_of(kind, name):
        raise UnknownNameError(kind, name, names(kind))
    written = read_yaml(file_of(kind, name))
    parent = written.pop("extends", None)
    if parent is None:
        return written
    if parent not in names(kind):  # a file of your own could extend itself
        raise UnknownNameError(kind, str(parent), names(kind))
    return _extended(read_named(kind, parent), written)


def read_editor(name: str) -> EditorFile:
    """Return the file of an editor, by its name or its path. Raises ConfigError."""
    return validate(EditorFile, read_named("editor", name), str(file_of("editor", name)))


def file_of(kind: Kind, name: str) -> Path:
    """Return the file of a name: that of `configs`, or else the one of your own."""
    return config_folder() / kind / f"{name}.yaml" if name in names(kind) else Path(name)


def merged_sites(first: Values, second: Values) -> Values:
    """Return the settings of an editor with the second ones over the first, as `merged` does.

    Sites lie in one part of a VLM, so a later `where` without `sites` takes the earlier sites away.
    """
    kept = {key: first[key] for key in first if key != "sites"} if _moves(second) else first
    return merged(kept, second)


def _moves(settings: Values) -> bool:
    return "where" in settings and "sites" not in settings


def _extended(parent: Values, child: Values) -> Values:
    """Return a file over the one that it extends. Its general settings keep their place below the
    parent's for a VLM, except `where`, which those of the parent must not contradict.
    """
    over = merged(parent, child)
    settings = child.get("settings") or {}
    if _moves(settings):
        over["settings"] = merged_sites(parent.get("settings") or {}, settings)
        over["per_vlm"] = {
            vlm: merged(
                {key: value for key, value in values.items() if key not in ("where", "sites")},
                (child.get("per_vlm") or {}).get(vlm) or {},
            )
            for vlm, values in (over.get("per_vlm") or {}).items()
        }
    return over


def require_names(block: Block) -> None:
    """Raise an error for a wrong name in a block, at no cost: nothing is loaded."""
    require_known("vlm", block.vlm)
    for name in block.editors:
        require_known("editor", name)
    require_known("dataset", block.dataset)
    if block.mode not in MODES:
        raise UnknownNameError("mode", block.mode, MODES)
