"""Checks of names and settings that cost milliseconds and no torch, unless a function says so."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedit.bench.modes import MODES
from mmedit.catalog import FAMILIES, built_in_vlms, names, require_known
from mmedit.config_files import Block, DatasetFile, TableFile, read_named, require_names
from mmedit.errors import ConfigError, UnknownNameError, shortened
from mmedit.report.papers import load_published
from mmedit.settings import Overrides, Values, merged, validate

if TYPE_CHECKING:
    from mmedit.datasets.base import DatasetSettings
    from mmedit.vlm.interface import VLM

PARTS = ("vlm", "editor", "dataset", "generation", *MODES)
"""Parts that `--set PART.KEY=VALUE` may change, beside single editors by name (`mend.lr=1e-5`)."""
DTYPES = ("float32", "float16", "bfloat16")


def plain_name(value: object, kind: str, expected: str) -> str:
    """Return a name that a Python caller gave as a text or a path."""
    if not isinstance(value, str | Path):
        raise ConfigError(f"the {kind} is {shortened(value)}; expected {expected}")
    return str(value)


def require_loadable(dtype: object, adapter: object) -> None:
    """Raise ConfigError or UnknownNameError for a number format or an adapter of another kind."""
    import torch

    from mmedit.adapters.base import Adapter

    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    if isinstance(dtype, torch.dtype) and str(dtype).removeprefix("torch.") not in DTYPES:
        raise ConfigError(f"the dtype is {dtype}; expected one of {', '.join(DTYPES)}")
    if not isinstance(dtype, str | torch.dtype | None):
        raise ConfigError(f"the dtype is {shortened(dtype)}; expected one of {', '.join(DTYPES)}")
    is_class = isinstance(adapter, type) and issubclass(adapter, Adapter)
    if isinstance(adapter, str) and adapter not in FAMILIES:
        raise UnknownNameError("adapter", adapter, FAMILIES)
    if not (adapter is None or isinstance(adapter, str) or is_class):
        raise ConfigError(
            f"the adapter is {shortened(adapter)}; expected a name ({', '.join(FAMILIES)}), or a "
            "class of your own that extends mmedit.adapters.base.Adapter"
        )


def vlm_name(vlm: VLM | str) -> str:
    """Return the name of a VLM, or a name that was given for it. Imports torch."""
    from mmedit.vlm.interface import VLM

    if isinstance(vlm, VLM):
        return vlm.name
    expected = "a VLM (load_vlm(...)), or the name of one"
    name = plain_name(vlm, "editor's vlm", expected)
    require_known("vlm", name)
    return name


def dataset_of(name: str, settings: Mapping[str, Any]) -> DatasetSettings:
    """Return a dataset with its settings. Raises UnknownNameError, ConfigError."""
    from mmedit.datasets import DATASETS

    name = plain_name(name, "dataset", "a name of `mmedit ls datasets`")
    require_known("dataset", name)
    file = validate(DatasetFile, read_named("dataset", name), f"configs/dataset/{name}.yaml")
    if file.loader not in DATASETS:
        raise UnknownNameError("dataset loader", file.loader, DATASETS)
    return validate(DATASETS[file.loader], merged(file.settings, settings), f"dataset {name}")


def require_no_convert(settings: Mapping[str, object]) -> None:
    """Raise ConfigError if a user sets the command that makes a model folder."""
    if "convert" in settings:
        raise ConfigError(
            "vlm.convert is the command that makes a model folder, and no command of mmedit runs "
            "it by itself; run it, and name the folder: --set vlm.name_or_path=DIR"
        )


def require_number(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    """Raise ConfigError unless a value is None or a whole number from `least` to `most`."""
    if value is None:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        upto = f" to {most:,}" if most is not None else ""
        raise ConfigError(
            f"{name} is {shortened(value)}; expected a whole number from {least}{upto}"
        )


def named_as(vlm: str) -> str | None:
    """Return the name in `configs/vlm` of a VLM that is given by its name, hub id or folder.

    None if no file names it, or more than one does.

    >>> named_as("Salesforce/blip2-opt-2.7b")
    'blip2-opt-2.7b'
    """
    if vlm in names("vlm"):
        return vlm
    found = [name for name in names("vlm") if _is_source(vlm, read_named("vlm", name))]
    return found[0] if len(found) == 1 else None


def _is_source(vlm: str, written: Values) -> bool:
    """Return whether a VLM is the hub id or the folder that a file of `configs/vlm` names."""
    source = str(written.get("name_or_path"))
    source = str(built_in_vlms().get(source, source))
    given = os.path.expanduser(vlm)
    return vlm == source or (
        os.path.isdir(given) and os.path.realpath(given) == os.path.realpath(source)
    )


def require_used(
    overrides: Overrides,
    editors: Iterable[str],
    modes: Iterable[str] = (),
    *,
    without: Sequence[str] = (),
) -> None:
    """Raise ConfigError if a setting is for a mode or an editor that is not in the run, or is one
    of those that the command is `without`: a part, or part.key.
    """
    editors, modes = list(dict.fromkeys(editors)), sorted(set(modes))
    for name in without:
        part, _, key = name.partition(".")
        if part in overrides.parts and (not key or key in overrides.parts[part]):
            shown = f"{part}.{key or '*'}"
            raise ConfigError(f"--set {shown} has no effect on this command; leave it out")
    for part in overrides.parts:
        if part in MODES and part not in modes:
            here = (
                f"here the mode is {', '.join(modes)}" if modes else "and this command has no mode"
            )
            raise ConfigError(f"--set {part}.* is for --mode {part}; {here}")
        if part not in PARTS and part not in editors:
            raise ConfigError(
                f"--set {part}.* is for --editor {part}; here the editors are "
                f"{', '.join(editors)} (the settings of a fitted editor are fixed)"
            )


def require_uses(blocks: Collection[Block], overrides: Overrides) -> None:
    """Raise an error for a wrong name in a block, and for a setting that no block uses."""
    for block in blocks:
        require_names(block)
    editors = [editor for block in blocks for editor in block.editors]
    require_used(overrides, editors, {block.mode for block in blocks})


def require_consistent(overrides: Overrides, batch_size: int | None, *, generate: bool) -> None:
    """Raise ConfigError for a setting that another option turns off or repeats."""
    if batch_size is not None and "batch_size" in overrides.of("vlm"):
        raise ConfigError("--batch-size and --set vlm.batch_size are the same; leave out one")
    if not generate and (keys := list(overrides.of("generation"))):
        raise ConfigError(
            f"generation.{keys[0]} is a setting of free generations, which --no-generate turns "
            "off; leave out one of the two"
        )


def named_blocks(blocks: object) -> Mapping[str, Block]:
    """Return the blocks of a Python caller by name. Raises ConfigError."""
    if not isinstance(blocks, Mapping) or not blocks:
        raise ConfigError(
            f"the blocks are {shortened(blocks)}; expected at least one by its name, for example "
            '{"vqa": Block(editors=("ft",))}'
        )
    written = {
        name: block.model_dump() if isinstance(block, Block) else block
        for name, block in blocks.items()
    }
    return validate(TableFile, {"blocks": written}, "the blocks").named_blocks()


def require_published(block: Block) -> None:
    """Raise UnknownNameError if the published table, its model or its dataset does not exist."""
    if block.published is None:
        return
    paper = load_published(block.published)
    for kind, named, chosen in (
        ("model", paper.models, block.published_model),
        ("dataset", paper.datasets, block.published_dataset),
    ):
        known = {name.casefold() for first, others in named.items() for name in (first, *others)}
        if chosen is not None and chosen.casefold() not in known:
            raise UnknownNameError(f"published {kind}", chosen, named)
