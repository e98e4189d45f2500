"""Rules for a command that continues the run in a folder, or lets it grow.

A run may grow by editors, by a larger limit if each edit is made by itself, and its batch size may
change: records that are finished stay, and only missing ones are measured. Nothing else may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from mmedit.bench.modes import READ_MODE, Independent
from mmedit.bench.plan import EDITORS, Plan
from mmedit.cases import HASH_VERSION, EditCase, dataset_hash
from mmedit.editors.base import Editor
from mmedit.errors import RunError
from mmedit.records.schema import RunManifest, RunPart
from mmedit.records.store import MANIFEST, PACKED, RECORDS, read_manifest
from mmedit.storage import make_folder

NOT_SET = "(not set)"
BY_ANSWERS = "(by the accepted answers)"
NOTED_ELSEWHERE = ("vlm.batch_size", "vlm.max_new_tokens")
"""Settings of a VLM, now or earlier, that the manifest holds among those of the run."""


def earlier_manifest(plan: Plan, directory: Path) -> RunManifest | None:
    """Return the manifest of the run that the plan continues; None for a new folder, which is made.

    Raises RunError if the folder holds another run.
    """
    make_folder(directory)
    if not (directory / MANIFEST).exists():
        if (directory / RECORDS).exists():
            raise RunError(f"{directory} holds records without a {MANIFEST}; choose another --out")
        return None
    if (directory / PACKED).exists() and not (directory / RECORDS).exists():
        raise RunError(
            f"{directory} holds packed records; to continue that run, unpack them: "
            f"xz -d {directory / PACKED}"
        )
    earlier = read_manifest(directory)
    if _is_unused(directory):
        return None  # it was refused or stopped before anything was kept: any run may begin here
    now = replace(plan, max_new_tokens=kept_length(plan, earlier)).manifest({})
    shared = {label: plan.editors[label] for label in plan.editors if label in earlier.config}
    difference = _difference(_fixed_settings(earlier, shared), _fixed_settings(now, shared))
    if difference:
        raise _refusal(directory, difference, "Use the same value, or choose another --out.")
    _require_growing_limit(directory, earlier, plan)
    return earlier


def kept_length(plan: Plan, earlier: RunManifest | None) -> int | None:
    """Return the length of generations that the plan asks for, or if it leaves that to the answers,
    the one that the earlier run noted. None if neither says it.
    """
    noted = earlier.run.max_new_tokens if earlier else None
    return plan.max_new_tokens if plan.max_new_tokens is not None else noted or None


def _is_unused(directory: Path) -> bool:
    """Return whether a run folder holds nothing that took time: no record, and no training."""
    records = directory / RECORDS
    has_records = records.is_file() and records.stat().st_size > 0
    return not has_records and not any((directory / EDITORS).glob("*/*"))


def require_same_content(
    directory: Path, earlier: RunManifest, now: RunManifest, cases: Sequence[EditCase]
) -> None:
    """Raise RunError if the VLM, the edited sites or the cases of the earlier run are others."""
    shared = [label for label in now.sites if label in earlier.sites]
    difference = _difference(
        {"sites": {label: list(earlier.sites[label]) for label in shared}},
        {"sites": {label: list(now.sites[label]) for label in shared}},
    )
    if difference:
        raise _refusal(directory, difference, "Use the same value, or choose another --out.")
    for name in ("dataset", "vlm"):  # the first tells a run of an earlier version
        there, here = earlier.hashes.get(name), now.hashes[name]
        if name == "dataset" and there is not None:
            _require_this_version(directory, there)
        if name == "dataset" and earlier.limit != now.limit:
            here = dataset_hash(cases[: earlier.cases or earlier.limit])
        require_same_hash(directory, name, there or here, here)


def _require_this_version(directory: Path, earlier: str) -> None:
    """Raise RunError if a hash of the cases is of an earlier version of mmedit."""
    if not earlier.startswith(HASH_VERSION):
        raise RunError(
            f"{directory} holds a run of an earlier version of mmedit: whether it had the same "
            "images and accepted answers cannot be told. Its tables can be made; to measure, "
            "choose another --out"
        )


def require_same_hash(directory: Path, name: str, earlier: str, now: str) -> None:
    """Raise RunError if something of the same name has another content than before."""
    if earlier != now:
        raise RunError(
            f"{directory} holds a run of another {name} with the same name (hash {earlier}, here "
            f"{now}). Choose another --out, or delete that folder."
        )


def continued(earlier: RunManifest | None, now: RunManifest, records: int) -> RunManifest:
    """Return the manifest of a run that has `records` records and is continued as `now` says."""
    if earlier is None:
        return now.model_copy(update={"parts": (_part(now, records),)})
    parts, part = earlier.parts or (_part(earlier, 0),), _part(now, records)
    if _comparable(part) != _comparable(parts[-1]):
        parts = (*parts, part)
    return now.model_copy(
        update={
            "editors": (*now.editors, *(e for e in earlier.editors if e not in now.editors)),
            "config": {**earlier.config, **now.config},
            "sites": {**earlier.sites, **now.sites},
            "training_seconds": earlier.training_seconds,
            "latencies": earlier.latencies,
            "hashes": {**earlier.hashes, **now.hashes},
            "parts": parts,
        }
    )


def _part(manifest: RunManifest, first_record: int) -> RunPart:
    return RunPart(
        command=manifest.command,
        first_record=first_record,
        batch_size=manifest.run.batch_size,
        cases=manifest.cases,
        editors=manifest.editors,
        versions=manifest.versions,
        commit=manifest.commit,
    )


def _comparable(part: RunPart) -> dict[str, object]:
    """Return what tells two parts apart: the command may be worded in another way."""
    return part.model_dump(exclude={"command", "first_record"})


class _Difference(NamedTuple):
    """A setting that differs, with its two values."""

    name: str
    earlier: object
    now: object


def _difference(
    earlier: Mapping[str, object], now: Mapping[str, object], prefix: str = ""
) -> _Difference | None:
    """Return the first setting that differs, at any depth."""
    for key in dict.fromkeys((*earlier, *now)):
        there, here = earlier.get(key, NOT_SET), now.get(key, NOT_SET)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            deeper = _difference(there, here, f"{prefix}{key}.")
            if deeper:
                return deeper
        elif there != here:
            return _Difference(f"{prefix}{key}", there, here)
    return None


def _fixed_settings(manifest: RunManifest, editors: Mapping[str, Editor]) -> dict[str, object]:
    """Return the settings that must not change, with those of `editors`."""
    run = manifest.run
    return {
        "vlm": manifest.vlm,
        "dataset": manifest.dataset,
        "split": run.split,
        "seed": manifest.seed,
        "max_new_tokens": BY_ANSWERS if run.max_new_tokens is None else run.max_new_tokens,
        "generation": run.generation,
        "on_contradiction": run.on_contradiction if run.contradictions else "error",
        "mode": READ_MODE.validate_python(run.mode).model_dump(mode="json"),
        **_overrides_of_vlm_and_dataset(run.overrides),
        **{
            label: _with_defaults(editor, manifest.config[label])
            for label, editor in editors.items()
        },
    }


def _overrides_of_vlm_and_dataset(overrides: Sequence[str]) -> dict[str, object]:
    """Return the `--set` values that the manifest holds in no other place."""
    values = {name: value for name, _, value in (o.partition("=") for o in overrides)}
    return {
        name: value
        for name, value in values.items()
        if name.startswith(("vlm.", "dataset.")) and name not in NOTED_ELSEWHERE
    }


def _with_defaults(editor: Editor, settings: object) -> object:
    """Return an editor's settings, with the defaults of those that a later version added."""
    try:
        return type(editor.config).model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return settings


def _require_growing_limit(directory: Path, earlier: RunManifest, plan: Plan) -> None:
    there, here = earlier.limit, plan.limit
    if there == here:
        return
    missing = [label for label in earlier.editors if label not in plan.editors]
    if plan.split == "validation":
        advice = (
            "Editors train on the cases beyond it: use the same limit, or choose another --out."
        )
    elif plan.mode != Independent():
        advice = (
            f"In --mode {plan.mode.kind} each record depends on the other edits: use the same "
            "limit, or choose another --out."
        )
    elif there is None or (here is not None and here < there):
        advice = "A limit can only grow: use the same or a larger one, or choose another --out."
    elif missing:
        advice = (
            f"To let the run grow, name all of its editors ({', '.join(missing)} too), or choose "
            "another --out."
        )
    else:
        return
    raise _refusal(directory, _Difference("limit", there, here), advice)


def _refusal(directory: Path, difference: _Difference, advice: str) -> RunError:
    name, earlier, now = difference
    return RunError(
        f"{directory} holds a run with {name}={_text(earlier)}, and this command has "
        f"{name}={_text(now)}. {advice}"
    )


def _text(value: object) -> str:
    return "all" if value is None else str(value)
