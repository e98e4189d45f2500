"""An edited VLM as an ordinary transformers folder: the weights are W + ΔW, and no file needs
mmedit.

Half precision may round ΔW away, which is why the folder is opened with plain transformers before
it gets its name: what was not seen to answer as the edited VLM does is not called an export.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmedit.adapters.base import Adapter
from mmedit.cases import Example
from mmedit.errors import ConfigError, EditError, ModelError, UnknownNameError, shortened
from mmedit.export.check import Check, ask, compare, questions_for
from mmedit.export.files import write_files
from mmedit.export.places import appearing, require_new
from mmedit.export.report import (
    Asked,
    Export,
    ask_edited,
    described,
    exportable,
    finish,
    release_memory,
)
from mmedit.export.shards import HALF, main_dtype, numbers_for, write_shards
from mmedit.progress import Progress, silent
from mmedit.storage import size_of
from mmedit.vlm.interface import VLM
from mmedit.vlm.loading import load_vlm
from mmedit.vlm.network import NetworkVLM

CHECKING = "opening and asking"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats of the weights, by name."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
SIZE = re.compile(r"[1-9]\d{0,8}(KB|MB|GB)")


@dataclass(frozen=True, kw_only=True)
class FolderForm:
    """How a folder is stored, and opened for the check."""

    dtype: str | None = None
    """A name of `DTYPES`; by default the dtype that the VLM was loaded in."""
    keep_float32: bool = False
    """Whether the edited weights alone are stored in float32. Transformers has one dtype for a
    whole network, so `config.json` then tells it to open the folder in float32.
    """
    shard_size: str = "5GB"
    """Largest size of a weight file: as much is in memory beside the network."""
    check_in: tuple[str, ...] = ()
    """Further dtypes to open the folder in. By default bfloat16, if the folder opens in float32."""

    def __post_init__(self) -> None:
        for dtype in (self.dtype, *self.check_in):
            if dtype is not None and dtype not in DTYPES:
                raise UnknownNameError("dtype of an export", dtype, DTYPES)
        if not SIZE.fullmatch(self.shard_size):
            raise ConfigError(
                f"--shard-size is {shortened(self.shard_size)}; expected a number with KB, MB or "
                "GB, for example 5GB"
            )

    @property
    def shard_bytes(self) -> int:
        """Largest size of a weight file, in bytes."""
        return int(self.shard_size[:-2]) * UNITS[self.shard_size[-2:]]

    def dtype_for(self, edited: NetworkVLM) -> str:
        """Return the dtype of the weights that are not edited. Raises ConfigError."""
        loaded = str(main_dtype(edited.adapter.network)).removeprefix("torch.")
        dtype = self.dtype or (loaded if loaded in DTYPES else "float32")
        if self.keep_float32 and DTYPES[dtype] not in HALF:
            raise ConfigError(
                f"--keep-float32 stores the edited weights in float32 and the others in half "
                f"precision, and the dtype is {dtype}; give --dtype bfloat16 or float16"
            )
        return dtype


def export_transformers(
    load: Callable[[], VLM],
    out: str | Path,
    locality: Sequence[Example] = (),
    *,
    form: FolderForm | None = None,
    allow_lost: bool = False,
    progress: Progress = silent,
) -> Export:
    """Write an edited VLM as a transformers folder, open it with plain transformers, and compare.

    `load` returns the edited VLM; it is called once. The requests of its edits and the `locality`
    questions are asked of it, and then of the folder. The edited VLM is let go before the folder is
    opened: memory holds one network and one shard at a time, unless the caller keeps the VLM. The
    folder appears whole or not at all. Raises LostEditError, and leaves no folder, if a request is
    then answered differently (`allow_lost` keeps it); EditError for an edit that is not a change of
    weights; ModelError, SiteError, RunError, ConfigError.

    >>> edited = load_vlm("embedded").with_edit(load_edit("edits/x"))  # doctest: +SKIP
    >>> export_transformers(lambda: edited, "models/edited").checks  # doctest: +SKIP
    """
    out, form = Path(out).expanduser().absolute(), form or FolderForm()
    require_new(out)
    with appearing(out) as folder:
        written = _write(load, folder, locality, form, progress)
        release_memory()
        checks = _checks(folder, written, form.check_in, progress)
        export = Export(
            form="transformers",
            folder=out,
            size=size_of(folder),
            stored=written.stored,
            right=written.asked.right,
            checks=checks,
        )
        finish(export, written.origin, folder, allow_lost=allow_lost)
    return export


@dataclass(frozen=True, kw_only=True)
class _Written:
    """All that is kept of the edited VLM once its weights are written."""

    asked: Asked
    origin: Mapping[str, Any]
    stored: Mapping[str, Any]
    adapter: type[Adapter]
    trust_remote_code: bool
    is_offloaded: bool


def _write(
    load: Callable[[], VLM],
    folder: Path,
    locality: Sequence[Example],
    form: FolderForm,
    progress: Progress,
) -> _Written:
    """Ask the edited VLM, and write its folder. Nothing of the network outlives the call."""
    edited = exportable(load())
    network = edited.adapter.network
    _require_plain_weights(network)
    dtype = form.dtype_for(edited)
    opens_in = "float32" if form.keep_float32 else dtype
    asked = ask_edited(edited, questions_for(edited, locality), progress)
    numbers = numbers_for(network, edited.deltas, DTYPES[dtype], keep_float32=form.keep_float32)
    rounding = write_shards(
        network, edited.deltas, folder, numbers,
        max_shard_size=form.shard_bytes, progress=progress,
    )  # fmt: skip
    write_files(edited.adapter, folder, dtype=opens_in)
    module = type(network).__module__
    is_remote = module.startswith("transformers_modules")
    return _Written(
        asked=asked,
        origin=described(edited),
        stored={
            "dtype": dtype,
            "edited_weights": "float32" if form.keep_float32 else dtype,
            "opens_in": opens_in,
            "rounding": rounding,
            "needs_import": None if module.startswith("transformers.") or is_remote else module,
        },
        adapter=type(edited.adapter),
        trust_remote_code=is_remote,
        is_offloaded=any(tensor.is_meta for tensor in network.parameters()),
    )


def _require_plain_weights(network: Any) -> None:
    """Raise EditError if the weights of a network are quantised."""
    if getattr(network.config, "quantization_config", None) is not None:
        raise EditError(
            "the weights of this VLM are quantised, and adding the edit to them would round it "
            "away; load the VLM without vlm.quantization, or export an adapter (--to peft)"
        )


def _checks(
    folder: Path, written: _Written, check_in: Sequence[str], progress: Progress
) -> tuple[Check, ...]:
    """Open the folder in its own dtype and in others, one after another, and ask."""
    own = written.stored["opens_in"]
    also = check_in or (("bfloat16",) if own == "float32" else ())
    names = tuple(dict.fromkeys((own, *also)))
    checks = []
    for number, name in enumerate(names):
        progress(CHECKING, number, len(names), name)
        checks.append(_check(folder, written, name, "auto" if name == own else name))
        release_memory()
    progress(CHECKING, len(names), len(names), "")
    return tuple(checks)


def _check(folder: Path, written: _Written, name: str, dtype: str) -> Check:
    """Open the folder as plain transformers does ("auto" is the dtype in its config), and ask."""
    with tempfile.TemporaryDirectory() as spare:
        opened = load_vlm(
            folder,
            dtype=dtype,
            adapter=written.adapter,
            trust_remote_code=written.trust_remote_code,
            offload_folder=spare if written.is_offloaded else None,
        )
        asked = written.asked
        found = ask(opened, asked.questions, max_new_tokens=asked.max_new_tokens)
    if (opened_in := main_dtype(opened.adapter.network)) != DTYPES[name]:
        raise ModelError(f"transformers opened the folder in {opened_in}; expected {name}")
    return compare(asked.questions, asked.outputs, found, opened_in=name)
