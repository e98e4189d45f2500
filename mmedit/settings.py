"""Settings: frozen pydantic models in which an unknown key is an error, and the values that change
them after `--set`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from mmedit.errors import ConfigError, did_you_mean, shortened
from mmedit.storage import broken_text

Values = dict[str, Any]
"""Settings by key, as YAML gives them: numbers, texts, lists, and further keys."""
RENAMED = {"speech": "generation", "vlm.max_new_tokens": "generation.max_new_tokens"}
"""Parts and keys of `--set` that have a new name."""
MAX_INTEGER = 10**9
"""Largest whole number of a setting. A larger one can only be a slip of the keyboard."""
MAX_SEED = 2**63 - 1
"""Largest seed that every generator of random numbers takes."""
MAX_VALUES = 10_000
"""Most values that a YAML text may hold, those that an alias repeats included."""
MAX_DEPTH = 20
"""Most keys inside each other that `--set` takes."""
MAX_FAULTS = 10
"""Most faults that one message names."""


class Settings(BaseModel):
    """The base of all settings that a user may write in YAML or after `--set`.

    The text below a field is its description (`mmedit show editor`). Numbers are finite.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:  # the type checker knows the fields

        def __init__(self, **values: Any) -> None:
            """Make settings by keywords. Raises ConfigError, which names all faults."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                faults = "; ".join(_faults(type(self), error))
                raise ConfigError(f"{type(self).__name__}: {faults}") from None

        # pydantic validates nested settings without this method, as if it were its own
        __init__.__pydantic_base_init__ = True

    def idle(self) -> dict[str, str]:
        """Return the settings that have no effect beside the others, and why, by dotted key."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _require_sane_numbers(cls, values: Any) -> Any:
        """Refuse true and false for a number, and a whole number beyond any sane size."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            kinds = _kinds(cls.model_fields[key].annotation) if key in cls.model_fields else set()
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, bool) and bool not in kinds and kinds & {int, float}:
                    raise ValueError(f"{key}: expected a number, found {one}")
                if isinstance(one, int) and int in kinds and abs(one) > MAX_INTEGER:
                    raise ValueError(
                        f"{key}: expected a number up to {MAX_INTEGER:,}, found {shortened(one)}"
                    )
        return values


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
        """Read texts of the form part.key=value, or one such text. Raises ConfigError."""
        written = (written,) if isinstance(written, str) else tuple(written)
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


def expanded(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return names with braces expanded as a shell does. Raises ValueError for too many names.

    >>> expanded(["a.{1,2}.{x,y}", "b.{0..3}"])
    ('a.1.x', 'a.1.y', 'a.2.x', 'a.2.y', 'b.0', 'b.1', 'b.2', 'b.3')
    """
    found: list[str] = []
    for pattern in patterns:
        parts = re.split(r"\{([^{}]*)\}", pattern)
        choices = [_choices(part) if n % 2 else [part] for n, part in enumerate(parts)]
        if (count := len(found) + prod(map(len, choices))) > MAX_VALUES:
            raise ValueError(
                f"the braces stand for {count:,} names; expected at most {MAX_VALUES:,}"
            )
        found += map("".join, product(*choices))
    return tuple(found)


def _choices(inside: str) -> list[str]:
    """Return the texts that stand between two braces: `1,2`, or all whole numbers of `0..31`."""
    if limits := re.fullmatch(r"(\d{1,4})\.\.(\d{1,4})", inside):
        return [str(number) for number in range(int(limits[1]), int(limits[2]) + 1)]
    return inside.split(",")


Names = Annotated[tuple[str, ...], AfterValidator(expanded)]
"""Names of Linear modules; `layers.{0..3}.{fc1,fc2}` stands for eight."""


def validate(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """Return the settings as a `model`. Raises ConfigError, which names `source` and all faults."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_faults(model, error))}") from None


def validate_set(
    model: type[Model], written: Mapping[str, Any], chosen: Mapping[str, Any], source: str
) -> Model:
    """Return the settings as `validate` does: what a file has `written`, and over it what the user
    has `chosen`. Raises ConfigError also for a chosen setting that has no effect.
    """
    settings = validate(model, merged(written, chosen), source)
    idle = settings.idle() if isinstance(settings, Settings) else {}
    for key, why in idle.items():
        if _is_in(chosen, key):
            raise ConfigError(f"{source}: {key} has no effect {why}; leave out one of the two")
    return settings


def read_yaml_text(text: str, source: str) -> Any:
    """Return what a YAML text holds. Raises ConfigError, which names `source`."""
    try:
        read = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date of month 13
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source} is not valid YAML: {reason}") from None
    if fault := _fault_of(read):
        raise ConfigError(f"{source} holds {fault}")
    return read


def _parsed(text: str) -> tuple[str, Values]:
    """Return the part, and its settings, of part.key=value."""
    path, equals, value = text.partition("=")
    part, dot, key = path.partition(".")
    if not (equals and dot and part and all(key.split(".")) and key.count(".") < MAX_DEPTH):
        raise ConfigError(
            f"--set {shortened(text)} is not of the form part.key=value, for example editor.lr=1e-5"
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
    return number_or_same(read_yaml_text(value, f"--set {shortened(text)}: the value"))


def number_or_same(read: Any) -> Any:
    """Return what YAML has read; but 1e-5 is a number (YAML 1.1 expects 1.0e-5).

    >>> number_or_same("1e-5"), number_or_same("vision")
    (1e-05, 'vision')
    """
    if isinstance(read, str):
        try:
            return float(read)
        except ValueError:
            return read
    return read


def _faults(model: type[BaseModel], error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors():
        key = ".".join(_plain(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = _keys(model)
            hint = did_you_mean(key, known)
            faults.append(f"unknown key {key!r}.{hint} There are: {', '.join(known)}")
        elif fault["type"] == "value_error" and isinstance(fault.get("input"), Mapping | BaseModel):
            faults.append(f"{key}: {message}" if key else message)  # of several settings together
        else:
            faults.append(f"{key}: {message} (found {shortened(fault.get('input'))})")
    if len(faults) > MAX_FAULTS:
        faults = [*faults[:MAX_FAULTS], f"and {len(faults) - MAX_FAULTS} more"]
    return faults


def _plain(part: object) -> str:
    """Return a part of a key as it is, unless it is long."""
    return str(part) if len(str(part)) <= 60 else shortened(str(part))[1:-1]


def _kinds(annotation: Any) -> set[Any]:
    """Return all types that an annotation names, at any depth."""
    inner = get_args(annotation)
    return {kind for part in inner for kind in _kinds(part)} if inner else {annotation}


def _is_in(values: Any, key: str) -> bool:
    """Return whether nested settings hold a dotted key."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _fault_of(value: Any) -> str:
    """Return why a value read from YAML cannot be used, or "".

    The walk ends after `MAX_VALUES`, so aliases that multiply (or lead in a circle) cost nothing.
    """
    waiting, seen = [value], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen + len(waiting) > MAX_VALUES:
            return f"more than {MAX_VALUES:,} values, aliases included"
        if isinstance(one, str) and (fault := broken_text(one)):
            return f"a text that {fault}: {shortened(one)}"
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            waiting += one
    return ""


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += _keys(info.annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys
