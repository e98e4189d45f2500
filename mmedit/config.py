"""Names of `configs/{vlm,editor,dataset,table}` to objects. Unknown names and keys are errors.

An editor's file may extend another one, and holds the settings for particular VLMs under
`per_vlm`. What the user sets comes last. Importing this module imports no torch: a wrong name is
found at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedit.bench.modes import MODES, Mode
from mmedit.cases import Cases, Example, Split
from mmedit.catalog import (
    is_file_of,
    names,
    read_yaml,
    require_known,
    require_made,
)
from mmedit.config_checks import (
    PARTS,
    dataset_of,
    named_as,
    plain_name,
    require_loadable,
    require_no_convert,
    require_number,
    vlm_name,
)
from mmedit.config_files import (
    TableFile,
    VLMFile,
    file_of,
    merged_sites,
    read_editor,
    read_named,
)
from mmedit.errors import ConfigError, UnknownNameError, shortened
from mmedit.hub import require_on_hub
from mmedit.progress import Progress, by_itself, silent
from mmedit.settings import MAX_SEED, Overrides, Values, merged, validate, validate_set
from mmedit.storage import is_hub_id

if TYPE_CHECKING:
    import torch

    from mmedit.adapters.base import Adapter
    from mmedit.bench.generation import GenerationSettings
    from mmedit.cache import TensorCache
    from mmedit.datasets.base import CaseSplit
    from mmedit.editors.base import Editor
    from mmedit.vlm.interface import VLM
    from mmedit.vlm.loading import DeviceMap
    from mmedit.vlm.network import NetworkVLM

logger = logging.getLogger(__name__)

LOADED = (
    "dtype", "device_map", "adapter", "quantization", "max_memory", "offload_folder",
    "trust_remote_code", "compile",
)  # fmt: skip
"""Fields of `VLMFile` that loading takes as they are."""
PLACES = ("where", "sites")
"""Settings of an editor that choose weights."""


def load_table(name: str) -> tuple[str, TableFile]:
    """Return the name and the content of a table, by its name or by the path of its file."""
    path = file_of("table", name)
    if not path.is_file():
        raise UnknownNameError("table (nor file)", name, names("table"))
    return path.stem, validate(TableFile, read_yaml(path), str(path))


def named_vlms() -> dict[str, VLMFile]:
    """Return the files of `configs/vlm` by name."""
    return {
        name: validate(VLMFile, read_named("vlm", name), f"vlm {name}") for name in names("vlm")
    }


def load_vlm_file(name: str, settings: Mapping[str, Any] | None = None) -> VLMFile:
    """Return the settings of a VLM by name, model folder or hub id; `settings` change them.

    A folder or hub id that a file of `configs/vlm` names has the settings of that file. The model
    is not loaded. Raises ConfigError, UnknownNameError, ModelError.
    """
    require_known("vlm", name)
    known = named_as(name)
    written = read_named("vlm", known) if known else {"name_or_path": name}
    file = validate(VLMFile, merged(written, settings or {}), f"vlm {name}")
    require_no_convert(settings or {})
    if file.convert and not Path(file.name_or_path).is_dir():
        raise ConfigError(
            f"vlm {name}: the folder {file.name_or_path} does not exist. Make it from the original "
            f"files (docs/converting.md): {file.convert}; or name yours: --set vlm.name_or_path=DIR"
        )
    if file.compile:
        from mmedit.adapters.compiled import require_compiler

        require_compiler()
    require_known("vlm", file.name_or_path)
    require_made(file.name_or_path)
    if file.name_or_path not in names("vlm"):
        from mmedit.vlm.loading import resolve_vlm

        source = resolve_vlm(file.name_or_path)
        if not os.path.isdir(source) and is_hub_id(source):
            require_on_hub(source, "config.json", "model")
    return file


def load_vlm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
    adapter: str | type[Adapter] | None = None,
    features: TensorCache | None = None,
    **settings: Any,
) -> NetworkVLM:
    """Load a VLM by a name of `configs/vlm`, or from a transformers folder or a hub id.

    `dtype` is "bfloat16", torch.float16, ...; `adapter` is a name or a class of your own.
    `settings` are the other fields of `VLMFile`, for example `quantization="4bit"`. Defaults and
    errors: `mmedit.vlm.loading.load_vlm`.

    >>> load_vlm("embedded", dtype="bfloat16")  # doctest: +SKIP
    """
    name = plain_name(name_or_path, "VLM", "a name, a model folder or a hub id")
    require_loadable(dtype, adapter)
    given = {"dtype": dtype, "device_map": device_map, "adapter": adapter, "features": features}
    return load_vlm_of(name, load_vlm_file(name, settings), **given)


def load_vlm_of(name: str, file: VLMFile, **given: Any) -> NetworkVLM:
    """Load the VLM that a file of settings describes; what is `given` and not None comes first."""
    from mmedit.vlm import loading

    options: dict[str, Any] = file.model_dump(include={*LOADED})
    options |= {key: value for key, value in given.items() if value is not None}
    return loading.load_vlm(file.name_or_path, name=name, sites=file.sites, **options)


def load_editor(name: str | Path, vlm: VLM | str, **settings: Any) -> Editor:
    """Return an editor with its settings for this VLM, by its name or from a YAML file, or a fitted
    one from a folder or the hub.

    `vlm` is a VLM from `load_vlm`, or the name of one; `settings` change the editor's, for example
    `load_editor("mend", vlm, lr=1e-5, training={"steps": 100})`. With `where` and without `sites`,
    the family's default sites of that part are edited. Raises UnknownNameError, ConfigError,
    EditorError.
    """
    name = plain_name(name, "editor", "a name, the folder of a fitted editor, or its hub id")
    return _editor(name, vlm_name(vlm), settings)


def load_editors(
    wanted: Sequence[str], vlm: str, overrides: Overrides | None = None
) -> dict[str, Editor]:
    """Return several editors by label. Raises ConfigError if two of them would share a row."""
    overrides, editors = overrides or Overrides(), {}
    for name in [wanted] if isinstance(wanted, str) else wanted:
        editor = _editor(name, vlm_name(vlm), overrides.of("editor", name))
        if editor.label in editors:
            raise ConfigError(
                f"two editors are called {editor.label!r}; name each once, and give fitted ones "
                "folders of different names"
            )
        editors[editor.label] = editor
    return editors


def load_cases(
    name: str,
    split: CaseSplit,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Cases:
    """Return the edit cases of a dataset, or the first `limit` of them.

    `settings` are the dataset's, for example `load_cases("evqa", "test", root="editing-data")`.
    Without a `progress`, a Jupyter notebook shows a bar if reading takes longer than a second.
    Raises UnknownNameError for the dataset or the split, ConfigError, DataError.
    """
    progress = progress or by_itself(delay=1.0)
    return read_cases(name, split, settings, limit=limit, seed=seed, progress=progress)


def read_cases(
    name: str,
    split: CaseSplit,
    settings: Mapping[str, Any],
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Cases:
    """Return the edit cases of a dataset as `load_cases` does, with the settings as a mapping."""
    require_number("limit", limit, least=1)
    require_number("seed", seed, least=0, most=MAX_SEED)
    return dataset_of(name, settings).load(split, limit=limit, seed=seed, progress=progress)


def load_questions(
    name: str, split: Split, settings: Mapping[str, Any]
) -> Iterator[tuple[str, Example]]:
    """Return all questions that `mmedit.bench.known.find_known` asks. Raises ConfigError."""
    return dataset_of(name, settings).questions(split)


def load_generation(overrides: Overrides) -> GenerationSettings:
    """Return which scores of generations are measured beyond string comparisons."""
    from mmedit.bench.generation import GenerationSettings

    return validate_set(GenerationSettings, {}, overrides.of("generation"), "generation")


def load_mode(kind: str, overrides: Overrides | None = None) -> Mode:
    """Return the order in which edits are made, by a name of `MODES`, with its settings."""
    if kind not in MODES:
        raise UnknownNameError("mode", kind, MODES)
    return validate_set(MODES[kind], {}, (overrides or Overrides()).of(kind), f"mode {kind}")


def read_overrides(written: Iterable[str]) -> Overrides:
    """Read what was written after `--set`. Raises UnknownNameError for a part that does not exist,
    ConfigError for other faults.
    """
    overrides = Overrides.parse(written)
    known = (*PARTS, *names("editor"))
    for part in overrides.parts:
        if part not in known:
            raise UnknownNameError("part of the configuration", part, known)
    return overrides


def require_trainable(
    editor: Editor, dataset: str, overrides: Overrides, *, validation: int = 0
) -> None:
    """Raise an error if an editor must be fitted and its training cases or trackers are missing, or
    if its settings need `validation` cases and there are none.

    Costs the reading of one training case.
    """
    if not editor.needs_fit or editor.is_fitted:
        return
    from mmedit.editors.learned import LearnedConfig
    from mmedit.training.accelerator import require_trackers

    if isinstance(editor.config, LearnedConfig):
        require_trackers(editor.config.training)
        if editor.config.training.patience is not None and not validation:
            raise ConfigError(
                "training.patience stops a training by its validation cases, and here are none; "
                "leave it out, or fit the editor with: mmedit fit --validation N"
            )
    read_cases(dataset, "train", overrides.of("dataset"), limit=1)


def _editor(name: str, vlm: str, settings: Values) -> Editor:
    from mmedit.methods import EDITORS

    require_known("editor", name)
    if name not in names("editor") and not is_file_of("editor", name):
        return _saved_editor(name, settings)
    file = read_editor(name)
    if file.method not in EDITORS:
        raise UnknownNameError("editing method", file.method, EDITORS)
    known = named_as(vlm)
    if known is None and file.per_vlm:
        logger.warning(
            "No settings of %s are known for %s: its general ones are used. See them with: "
            "mmedit show editor %s --vlm %s",
            name, shortened(vlm), name, vlm,
        )  # fmt: skip
    written = merged_sites(file.settings, file.per_vlm.get(known or vlm, {}))
    written = merged_sites(written, {key: settings[key] for key in settings if key in PLACES})
    method = EDITORS[file.method]
    config = validate_set(method.config_class, written, settings, f"editor {name}")
    return method(config, label=file.label)


def _saved_editor(name: str, settings: Values) -> Editor:
    from mmedit.editors.saved import pull, read_description
    from mmedit.methods import EDITORS

    if settings:
        raise ConfigError(
            f"{name} is a fitted editor: its settings are fixed, so {', '.join(settings)} cannot "
            "be set (--set editor.*)"
        )
    if not os.path.isdir(os.path.expanduser(name)) and is_hub_id(name):
        require_on_hub(name, "editor.json", "fitted editor")
    folder = pull(name)
    method = read_description(folder).method
    if method not in EDITORS:
        raise UnknownNameError("editing method", str(method), EDITORS)
    kind = EDITORS[method]
    return kind.load(folder, label=f"{kind.title or method.upper()} ({Path(name).name})")
