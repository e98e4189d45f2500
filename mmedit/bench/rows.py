"""All rows of a run are checked before the first one is measured or trained on: a fault in the last
row would otherwise stop the run after everything before it was computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

from mmedit.cases import EditCase, Example, Probe
from mmedit.chunks import chunks
from mmedit.errors import DataError
from mmedit.progress import Progress, silent
from mmedit.vlm.interface import VLM
from mmedit.vlm.states import content_of

AT_ONCE = 1_000
"""Examples that are tokenised in one call."""
SHOWN = 10
"""Faults that the error lists; the others are counted."""
REQUEST = "request"


def require_sound_rows(
    vlm: VLM,
    cases: Sequence[EditCase],
    *,
    new_tokens: Mapping[Probe, int] | int = 0,
    progress: Progress = silent,
) -> None:
    """Raise DataError, which lists the faults, if the VLM cannot be asked a request or a probe.

    A row is at fault if it is too long, contains the image token, or has an image that is missing,
    not an image, too large, or refused by the image processor. `new_tokens` is the room that its
    generation needs, for all probes or by probe. Costs the tokenisation of each distinct row, about
    a second for 10,000, and the header of each image file; no forward.
    """
    rooms = {p: new_tokens if isinstance(new_tokens, int) else new_tokens.get(p, 0) for p in Probe}
    places: dict[Hashable, list[tuple[str, str]]] = {}
    rows: dict[Hashable, tuple[Example, int]] = {}
    for case, place, example in _rows(cases):
        room = rooms[Probe(place)] if place != REQUEST else 0
        key = (content_of(example), room)
        rows.setdefault(key, (example, room))
        places.setdefault(key, []).append((case.id, place))
    faults: list[str] = []
    done = 0
    for room in sorted({room for _, room in rows.values()}):
        asked = [(key, example) for key, (example, own) in rows.items() if own == room]
        for part in chunks(asked, AT_ONCE):
            found = vlm.frozen.faults([example for _, example in part], new_tokens=room)
            for (key, _), fault in zip(part, found, strict=True):
                if fault is not None:
                    faults += [f"case {case!r}, {place}: {fault}" for case, place in places[key]]
            done += len(part)
            progress("checking the rows", done, len(rows), "")
    if faults:
        raise DataError(_message(faults))


def _rows(cases: Sequence[EditCase]) -> Iterator[tuple[EditCase, str, Example]]:
    """Yield every example of the cases with its place: a probe, or the request if it is not one."""
    for case in cases:
        for request in case.requests:
            if request not in case.probes[Probe.RELIABILITY]:
                yield case, REQUEST, request
        for probe, examples in case.probes.items():
            for example in examples:
                yield case, probe.value, example


def _message(faults: Sequence[str]) -> str:
    number = len(faults)
    shown = "".join(f"\n- {fault}" for fault in faults[:SHOWN])
    more = f"\n- and {number - SHOWN} more" if number > SHOWN else ""
    return (
        f"{number} {'row' if number == 1 else 'rows'} cannot be used with this VLM; repair "
        f"{'it' if number == 1 else 'them'}, or take {'its case' if number == 1 else 'their cases'}"
        f" out of the data:{shown}{more}"
    )
