"""Arguments of the public functions, checked where they come in. A plain form is accepted (one
example in place of a list), and every other one is one error that says what to give.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any

from mmedit.cases import EditCase, Example
from mmedit.errors import ConfigError, DataError, SiteError, UnknownNameError, shortened

Check = Callable[[Any], Any]
"""Returns an argument in the form that a method takes, or raises MmeditError."""
Doors = Mapping[str, Mapping[str, Check]]
"""Checks of a class: by method, and then by parameter."""


def check_arguments(cls: type, doors: Doors) -> None:
    """Put the checks before the methods that a class defines itself.

    A base class calls it for every subclass (`__init_subclass__`), so that each implementation is
    checked and none has to think of it. Costs microseconds per call.
    """
    for name in doors.keys() & vars(cls).keys():
        setattr(cls, name, _checked(vars(cls)[name], doors[name]))


def _checked(method: Callable[..., Any], checks: Mapping[str, Check]) -> Callable[..., Any]:
    order = [checks.get(name) for name in signature(method).parameters]

    @wraps(method)
    def call(*given: Any, **named: Any) -> Any:
        found = [check(value) if check else value for check, value in zip(order, given)]  # noqa: B905
        rest = {name: checks[name](v) if name in checks else v for name, v in named.items()}
        return method(*found, *given[len(order) :], **rest)

    return call


def as_examples(given: Any) -> Sequence[Example]:
    """Return what a VLM is asked, at least one example. Raises DataError."""
    examples = _items(given, Example, "Example(prompt=..., target=...)")
    if not examples:
        raise DataError("no examples were given; a call needs at least one")
    for found in examples:
        if isinstance(found, EditCase):
            raise DataError(
                f"the case {shortened(found.id)} was given where an Example is expected; name what "
                "is asked: case.request, or an example of case.probes"
            )
    return examples


def as_requests(given: Any) -> Sequence[Example]:
    """Return what an editor edits in. A case stands for its requests. Raises DataError."""
    items = _items(given, Example, "Example(prompt=..., target=...)")
    if any(isinstance(item, EditCase) for item in items):
        parts = [item.requests if isinstance(item, EditCase) else (item,) for item in items]
        return [request for part in parts for request in part]
    return items


def as_separate_requests(given: Any) -> Sequence[Example]:
    """Return requests that are edited in one per row. Raises DataError for a case of several."""
    for item in given if isinstance(given, Sequence) else ():
        if isinstance(item, EditCase) and item.also:
            raise DataError(
                f"the case {shortened(item.id)} has {len(item.requests)} requests, which are made "
                "together, and apply_each makes one edit of each request; use apply(vlm, [case])"
            )
    return as_requests(given)


def as_cases(given: Any) -> Sequence[EditCase]:
    """Return edit cases. Raises DataError."""
    cases = _items(given, EditCase, "EditCase(id=..., request=...)")
    for found in cases:
        if isinstance(found, Example):
            raise DataError(
                f"{found!r} was given where a case is expected; make a case of it: "
                'EditCase(id="1", request=...)'
            )
    return cases


def as_count(name: str, *, least: int = 1) -> Check:
    """Make the check of a whole number from `least` on. It raises ConfigError."""

    def check(given: Any) -> int:
        try:
            number = operator.index(given)
        except TypeError:
            number = None
        if number is None or isinstance(given, bool) or number < least:
            raise ConfigError(
                f"{name} is {shortened(given)}; expected a whole number from {least} on"
            )
        return number

    return check


def as_site(given: Any) -> str:
    """Return the name of one edit site. Raises SiteError."""
    if not isinstance(given, str):
        raise SiteError(
            f"{shortened(given)} was given as an edit site; expected the name of a Linear (str)"
        )
    return given


def as_sites(given: Any) -> tuple[str, ...]:
    """Return names of edit sites, at least one; a name alone is accepted. Raises SiteError."""
    sites = (given,) if isinstance(given, str) else given
    if not isinstance(sites, Iterable) or not (sites := tuple(sites)):
        raise SiteError(
            f"the sites are {shortened(given)}; expected names of Linear weights, for example "
            'vlm.sites("language")'
        )
    return sites


def as_rows(given: Any) -> Sequence[int]:
    """Return numbers of rows. Raises SiteError."""
    try:
        return [operator.index(row) for row in given]
    except TypeError:
        raise SiteError(
            f"the rows are {shortened(given)}; expected whole numbers, one for each row of the "
            "next batch: select([0, 0, 1])"
        ) from None


def one_of(kind: str, names: Sequence[str]) -> Check:
    """Make the check of one of a few names. It raises UnknownNameError."""

    def check(given: Any) -> str:
        if given not in names:
            raise UnknownNameError(kind, str(given), names)
        return given

    return check


def _items(given: Any, kind: type, form: str) -> Sequence[Any]:
    """Return examples and cases as a sequence. Raises DataError for anything else."""
    if isinstance(given, Example | EditCase):
        return [given]
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(
            f"{shortened(given)} was given where a list of {kind.__name__}s is expected: [{form}]"
        )
    items = given if isinstance(given, Sequence) else list(given)
    for item in items:
        if not isinstance(item, Example | EditCase):
            raise DataError(
                f"the list holds {shortened(item)}, of type {type(item).__name__}; expected "
                f"{kind.__name__}s: {form}"
            )
    return items
