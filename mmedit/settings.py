"""Settings: frozen pydantic models in which an unknown key is an error, and the values that change
them after `--set`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mmedit.errors import ConfigError, did_you_mean

Values = dict[str, Any]
"""Settings by key, as YAML gives them: numbers, texts, lists, and further keys."""
RENAMED = {"speech": "generation", "vlm.max_new_tokens": "generation.max_new_tokens"}
"""Parts and keys of `--set` that have a new name."""


class Settings(BaseModel):
    """The base of all settings that a user may write in YAML or after `--set`.

    The text below a field is its description (`mmedit show editor`). Numbers are finite.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Overrides:
    """Settings that the user changes, by part of the configuration.

    >>> Overrides.parse(["editor.lr=1e-5", "mend.training.steps=7"]).of("editor", "mend")
    {'lr': 1e-05, 'training': {'steps': 7}}
    """

    written: tuple[str, ...] = ()
    """The texts after `--set`, for the manifest."""
    parts: Mapping[str, Values] = field(default_factory=dict)
    """The settings by part: "vlm", "editor", "dataset", a mode, or the name of an editor."""

    @classmethod
    def parse(cls, written: Iterable[str]) -> Overrides:
        """Read texts of the form part.key=value. Raises ConfigError."""
        written = tuple(written)
        parts: dict[str, Values] = {}
        for text in written:
            part, values = _parsed(text)
            parts[part] = merged(parts.get(part, {}), values)
        return cls(written, parts)

    def __or__(self, later: Overrides) -> Overrides:
        """Return both; the later ones win."""
        parts = {p: merged(self.of(p), later.of(p)) for p in (*self.parts, *later.parts)}
        return Overrides((*self.written, *later.written), parts)

    def of(self, *parts: str) -> Values:
        """Return the settings of these parts; a later part wins."""
        found: Values = {}
        for part in parts:
            found = merged(found, self.parts.get(part, {}))
        return found


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Values:
    """Return the first settings with the second over them, key by key at every depth."""
    result = dict(first)
    for key, value in second.items():
        there = result.get(key)
        result[key] = (
            merged(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
        )
    return result


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """Return the settings as a `model`. Raises ConfigError, which names `source` and all faults."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_faults(model, error))}") from None


def _parsed(text: str) -> tuple[str, Values]:
    """Return the part, and its settings, of part.key=value."""
    path, equals, value = text.partition("=")
    part, dot, key = path.partition(".")
    if not (equals and dot and part and all(key.split("."))):
        raise ConfigError(
            f"--set {text!r} is not of the form part.key=value, for example editor.lr=1e-5"
        )
    for old, new in RENAMED.items():
        if path == old or path.startswith(f"{old}."):
            every = "" if "." in old else ".*"
            raise ConfigError(
                f"--set {old}{every} is now called {new}{every}: write --set "
                f"{new}{text[len(old) :]}"
            )
    nested: Any = _read_value(value, text)
    for name in reversed(key.split(".")):
        nested = {name: nested}
    return part, nested


def _read_value(value: str, text: str) -> Any:
    """Read a value as YAML does; but 1e-5 is a number (YAML 1.1 expects 1.0e-5)."""
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML") from error
    if isinstance(read, str):
        try:
            return float(read)
        except ValueError:
            return read
    return read


def _faults(model: type[BaseModel], error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = _keys(model)
            hint = did_you_mean(key, known)
            faults.append(f"unknown key {key!r}.{hint} There are: {', '.join(known)}")
        elif not key:  # settings that exclude each other
            faults.append(message)
        else:
            faults.append(f"{key}: {message} (found {fault.get('input')!r})")
    return faults


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += _keys(info.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
