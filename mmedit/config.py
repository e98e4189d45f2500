"""YAML to typed settings, strictly: an unknown name or key is an error that tells the nearest right
one.

`configs/vlm`, `configs/editor` and `configs/dataset` are composed by name. An editor's file may
extend another one and holds what differs for a VLM under `per_vlm`; `--set editor.lr=1e-5`
overrides any value last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import product, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mmedit.adapters.base import Adapter, Stage
from mmedit.bench.generation import SpeechSettings
from mmedit.bench.modes import MODES, Mode
from mmedit.cache import TensorCache
from mmedit.cases import EditCase, Split
from mmedit.datasets import DATASETS
from mmedit.editors.base import Editor
from mmedit.editors.saved import pull, read_description
from mmedit.errors import ConfigError, UnknownNameError
from mmedit.methods import EDITORS
from mmedit.progress import Progress, silent
from mmedit.storage import config_folder, is_hub_id
from mmedit.vlm import loading
from mmedit.vlm.loading import DeviceMap, Quantization, resolve_vlm
from mmedit.vlm.network import NetworkVLM

Kind = Literal["vlm", "editor", "dataset", "table"]
PARTS = ("vlm", "editor", "dataset", "speech", *MODES)
"""What `--set PART.KEY=VALUE` may change, beside the editor of a name: `mend.lr=1e-5`."""
Settings = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VLMFile(_Strict):
    """`configs/vlm/*.yaml`."""

    name_or_path: str
    convert: str | None = None
    """The command that makes the folder, where it comes from original checkpoint files."""
    sites: dict[Stage, tuple[str, ...]] = {}
    """Edit sites by stage; `layers.{1,2}.{fc1,fc2}` stands for four."""
    adapter: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device_map: str | None = None
    max_memory: dict[Annotated[int, BeforeValidator(int)] | str, int | str] | None = None
    """By device: a GPU's number, or "cpu"."""
    offload_folder: str | None = None
    quantization: Quantization | None = None
    trust_remote_code: bool = False
    max_new_tokens: int = Field(default=12, ge=1)
    batch_size: int = Field(default=1, ge=1)
    """Separate edits per pass. FT keeps a whole weight per edit: large models want few."""

    def expanded_sites(self) -> dict[Stage, tuple[str, ...]]:
        """The sites, each by its own name."""
        return {
            stage: tuple(site for pattern in patterns for site in _expanded(pattern))
            for stage, patterns in self.sites.items()
        }


class EditorFile(_Strict):
    """`configs/editor/*.yaml`."""

    method: str
    label: str
    settings: Settings = {}
    per_vlm: dict[str, Settings] = {}


class DatasetFile(_Strict):
    """`configs/dataset/*.yaml`."""

    loader: str
    settings: Settings = {}


class Block(_Strict):
    """One run of a table: editors by rows, on one dataset."""

    vlm: str = "embedded"
    dataset: str = "easyvqa"
    editors: Annotated[tuple[str, ...], Field(min_length=1)] = ()
    mode: str = "independent"
    limit: int | None = Field(default=None, ge=1)
    settings: tuple[str, ...] = ()
    """As after `--set`; those of the command line come last."""
    title: str = ""
    published: str | None = None
    """A table of configs/published, where it is another than the whole table's."""
    published_model: str | None = None
    published_dataset: str | None = None


class TableFile(_Strict):
    """`configs/table/*.yaml`."""

    editors: tuple[str, ...] = ()
    """Of the blocks that name none."""
    published: str | None = None
    blocks: Annotated[dict[str, Settings], Field(min_length=1)]

    def named_blocks(self) -> dict[str, Block]:
        """By name, which is their folder's. Raises ConfigError."""
        made = {}
        for name, written in self.blocks.items():
            if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
                raise ConfigError(f"block {name!r}: a name that can be a folder's was wanted")
            settings = {"editors": self.editors, "published": self.published, **written}
            made[name] = _validate(Block, settings, f"block {name}")
        return made


def load_table(name: str) -> tuple[str, TableFile]:
    """A table by name, or by the path of its file: its name, and what it says."""
    path = config_folder() / "table" / f"{name}.yaml" if name in names("table") else Path(name)
    if not path.is_file():
        raise UnknownNameError("table (nor file)", name, names("table"))
    return path.stem, _validate(TableFile, _read_yaml(path), str(path))


def names(kind: Kind) -> list[str]:
    """The names that `load_*` and the command line take."""
    return sorted(file.stem for file in (config_folder() / kind).glob("*.yaml"))


def describe(kind: Kind) -> list[tuple[str, str]]:
    """Every name with the comment at the head of its file."""
    described = []
    for name in names(kind):
        lines = (config_folder() / kind / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        head = takewhile(lambda line: line.startswith("#"), lines)
        described.append((name, " ".join(line.removeprefix("#").strip() for line in head)))
    return described


def named_vlms() -> dict[str, VLMFile]:
    """The files of `configs/vlm`, by name."""
    return {name: _validate(VLMFile, _read("vlm", name), f"vlm {name}") for name in names("vlm")}


def load_vlm_file(name: str, overrides: Sequence[str] = ()) -> VLMFile:
    """A named VLM, or a model folder or hub id as it is. The model is not loaded."""
    written = _read("vlm", name) if name in names("vlm") else {"name_or_path": name}
    file = _validate(VLMFile, _overridden(written, "vlm", overrides), f"vlm {name}")
    if file.convert and not Path(file.name_or_path).is_dir():
        raise ConfigError(
            f"vlm {name}: there is no folder {file.name_or_path}. Make it from the original files "
            f"(docs/converting.md): {file.convert}; or name yours: --set vlm.name_or_path=DIR"
        )
    try:
        resolve_vlm(file.name_or_path)
    except UnknownNameError:
        raise UnknownNameError(
            "VLM (nor model folder, nor hub id like owner/name)", name, names("vlm")
        ) from None
    return file


def load_vlm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    adapter: str | type[Adapter] | None = None,
    overrides: Sequence[str] = (),
    features: TensorCache | None = None,
) -> NetworkVLM:
    """A VLM by a name of `configs/vlm`, or from a transformers folder or a hub id.

    `dtype` ("bfloat16", torch.float16, ...), `device_map` and `adapter` come before what the file
    says; `overrides` are those of the command line, for instance "vlm.quantization=4bit". Defaults
    and errors: `mmedit.vlm.loading.load_vlm`.
    """
    return load_vlm_of(
        load_vlm_file(str(name_or_path), overrides),
        dtype=dtype,
        device_map=device_map,
        adapter=adapter,
        features=features,
    )


def load_vlm_of(
    file: VLMFile,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    adapter: str | type[Adapter] | None = None,
    features: TensorCache | None = None,
) -> NetworkVLM:
    """The VLM that a file of settings describes; what is given here comes before what it says."""
    return loading.load_vlm(
        file.name_or_path,
        dtype=dtype or file.dtype,
        device_map=device_map or file.device_map,
        adapter=adapter or file.adapter,
        quantization=file.quantization,
        max_memory=file.max_memory,
        offload_folder=file.offload_folder,
        sites=file.expanded_sites(),
        trust_remote_code=file.trust_remote_code,
        features=features,
    )


def load_editor(name: str, vlm: str, overrides: Sequence[str] = ()) -> tuple[str, Editor]:
    """Label and editor: by name with its settings for this VLM, or as saved by `mmedit fit` in a
    folder, or pushed to the hub from there.
    """
    if name not in names("editor") and (Path(name).is_dir() or is_hub_id(name)):
        return _load_saved_editor(name, overrides)
    file = _validate(EditorFile, _extended(name), f"configs/editor/{name}.yaml")
    if file.method not in EDITORS:
        raise UnknownNameError("editing method", file.method, EDITORS)
    settings = _merged(file.settings, file.per_vlm.get(vlm, {}))
    method = EDITORS[file.method]
    for part in ("editor", name):
        settings = _overridden(settings, part, overrides)
    config = _validate(method.config_class, settings, f"editor {name}")
    return file.label, method(config)


def load_editors(
    wanted: Sequence[str], vlm: str, overrides: Sequence[str] = ()
) -> dict[str, Editor]:
    """Several editors by label. Raises ConfigError where two of them would share a row."""
    editors: dict[str, Editor] = {}
    for name in wanted:
        label, editor = load_editor(name, vlm, overrides)
        if label in editors:
            raise ConfigError(
                f"two editors are called {label!r}; name each once, fitted folders differently"
            )
        editors[label] = editor
    return editors


def load_cases(
    name: str,
    split: Split,
    *,
    limit: int | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    progress: Progress = silent,
) -> Sequence[EditCase]:
    """The edit cases of a named dataset; `progress` is called with (cases made, cases in all)."""
    file = _validate(DatasetFile, _read("dataset", name), f"configs/dataset/{name}.yaml")
    if file.loader not in DATASETS:
        raise UnknownNameError("dataset loader", file.loader, DATASETS)
    settings = _overridden(file.settings, "dataset", overrides)
    try:
        return DATASETS[file.loader](split, limit=limit, seed=seed, progress=progress, **settings)
    except TypeError as error:
        raise ConfigError(f"dataset {name}: {error}") from error


def check_cases(name: str, overrides: Sequence[str] = ()) -> None:
    """Raise what `load_cases` would raise for a wrong name or setting, at the cost of one case."""
    load_cases(name, "test", limit=1, overrides=overrides)


def load_speech(overrides: Sequence[str]) -> SpeechSettings:
    """How generations are scored beyond their strings; nothing more, without overrides."""
    return _validate(SpeechSettings, _overridden({}, "speech", overrides), "speech")


def load_mode(kind: str, overrides: Sequence[str] = ()) -> Mode:
    """In what order edits are made: a name of `MODES`, with its settings."""
    if kind not in MODES:
        raise UnknownNameError("mode", kind, MODES)
    return _validate(MODES[kind], _overridden({}, kind, overrides), f"mode {kind}")


def require_used(overrides: Sequence[str], modes: Iterable[str]) -> None:
    """Raise ConfigError where a mode is set that no run has."""
    check_overrides(overrides)
    known = set(modes)
    for part in (override.partition(".")[0] for override in overrides):
        if part in MODES and part not in known:
            raise ConfigError(
                f"--set {part}.* is for --mode {part}; here the mode is {', '.join(sorted(known))}"
            )


def check_overrides(overrides: Sequence[str]) -> None:
    """Every `--set` must be `part.key=value` with a part of `PARTS`."""
    for override in overrides:
        path, equals, _ = override.partition("=")
        part, dot, key = path.partition(".")
        if not (equals and dot and key):
            raise ConfigError(
                f"--set {override!r}: part.key=value was wanted, for instance editor.lr=1e-5"
            )
        if part not in (known := (*PARTS, *names("editor"))):
            raise UnknownNameError("part of the configuration", part, known)


def _load_saved_editor(name: str, overrides: Sequence[str]) -> tuple[str, Editor]:
    if any(override.startswith("editor.") for override in overrides):
        raise ConfigError(
            f"{name} is a fitted editor; its settings are fixed, so --set editor.* cannot change "
            "them"
        )
    folder = pull(name)
    method = read_description(folder).method
    if method not in EDITORS:
        raise UnknownNameError("editing method", str(method), EDITORS)
    return f"{method.upper()} ({Path(name).name})", EDITORS[method].load(folder)


def _extended(name: str) -> Settings:
    written = _read("editor", name)
    parent = written.pop("extends", None)
    return _merged(_extended(parent), written) if parent else written


def _expanded(pattern: str) -> list[str]:
    """As a shell expands braces: `a.{1,2}.{x,y}` is four names."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [part.split(",") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _read(kind: Kind, name: str) -> Settings:
    if name not in names(kind):
        raise UnknownNameError(kind, name, names(kind))
    return _read_yaml(config_folder() / kind / f"{name}.yaml")


def _read_yaml(file: Path) -> Settings:
    try:
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(written, dict):
        raise ConfigError(f"{file} must hold keys and values")
    return written


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Settings:
    """The second over the first, key by key at every depth."""
    result = dict(first)
    for key, value in second.items():
        there = result.get(key)
        result[key] = (
            _merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
        )
    return result


def _overridden(settings: Mapping[str, Any], part: str, overrides: Sequence[str]) -> Settings:
    check_overrides(overrides)
    result = dict(settings)
    for override in overrides:
        path, _, text = override.partition("=")
        owner, *keys = path.split(".")
        if owner != part:
            continue
        nested: Any = _value(text, override)
        for key in reversed(keys):
            nested = {key: nested}
        result = _merged(result, nested)
    return result


def _value(text: str, override: str) -> Any:
    """As YAML reads it, but 1e-5 is a number (YAML 1.1 wants 1.0e-5)."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _validate(model: type[Model], settings: Mapping[str, Any], source: str) -> Model:
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_faults(model, error))}") from None


def _faults(model: type[BaseModel], error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _keys(model)
            near = get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            faults.append(f"unknown key {key!r}.{hint} There are: {', '.join(known)}")
        elif not key:  # settings that exclude each other
            faults.append(fault["msg"].removeprefix("Value error, "))
        else:
            faults.append(f"{key}: {fault['msg']} (found {fault.get('input')!r})")
    return faults


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += _keys(info.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
