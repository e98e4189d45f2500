"""Made records of causal tracing, and a small trace of the embedded VLM."""

from __future__ import annotations

from pathlib import Path

import mmedit
from mmedit.cases import Example
from mmedit.trace.items import Candidates, requests_of
from mmedit.trace.records import (
    Cells,
    Group,
    Restored,
    Scores,
    TraceManifest,
    TraceRecord,
)
from mmedit.trace.settings import TraceSettings
from mmedit.trace.summary import Trace

SETTINGS = TraceSettings(corruption="image_noise", draws=2, cells=2)


def candidates(number: int = 3) -> Candidates:
    return requests_of(mmedit.load_cases("easyvqa", "test", limit=number), {})


def made_record(
    name: str, *, clean: float, corrupt: float, restored: float, prompt: str = "what?"
) -> TraceRecord:
    """Return a record of two layers, in which the image brings back `restored` in layer 1."""
    values = ((corrupt, restored), (corrupt, corrupt))
    whole = Restored(first=values, answer=values)
    of_cells = ((corrupt,), (restored,), (corrupt,), (corrupt,))
    return TraceRecord(
        id=name,
        prompt=prompt,
        answer="blue",
        image="a.png",
        groups=(Group(name="image", tokens=4), Group(name="last prompt token", tokens=1)),
        clean=Scores(first=(clean,), answer=(clean,)),
        corrupt=Scores(first=(corrupt, corrupt), answer=(corrupt, corrupt)),
        restored={"block": whole},
        cells=Cells(
            grid=(2, 2),
            tokens=(1, 1, 1, 1),
            layers=(1,),
            restored=Restored(first=of_cells, answer=of_cells),
        ),
    )


def made_trace(*records: TraceRecord) -> Trace:
    manifest = TraceManifest(
        vlm="made",
        identity={},
        layers=2,
        window=1,
        settings=TraceSettings(components=("block",), draws=2),
        sigma=1.0,
        items=tuple(record.id for record in records),
        content="",
        left_out={},
    )
    return Trace(tuple(records), manifest)


def lines_of(folder: Path) -> list[str]:
    return (folder / "trace.jsonl").read_text(encoding="utf-8").splitlines()


WRONG = Example(prompt="what color is the shape?", target="a wrong answer")
