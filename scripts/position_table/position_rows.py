"""Measure edits at one position and layer, and write the table of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from image_checks import CHECKS, checks_of, judged

from mmedit import EditCase, Editor
from mmedit.bench.costs import timed
from mmedit.bench.protocol import EditState, Meter
from mmedit.cases import Probe, image_name
from mmedit.errors import DataError
from mmedit.records.schema import Record
from mmedit.report.columns import EXACT_ANSWER, EXACT_MATCH
from mmedit.report.intervals import Summary, summarise_share
from mmedit.report.scores import edit_scores

PROBES = (
    Probe.RELIABILITY,
    Probe.TEXT_GENERALITY,
    Probe.IMAGE_GENERALITY,
    Probe.TEXT_LOCALITY,
    Probe.IMAGE_LOCALITY,
)
KINDS = ("leak", "unchanged")
Line = dict[str, Any]
"""One edit at one position and layer, as it stands in the file."""


def measured(
    meter: Meter,
    editor: Editor,
    cases: Sequence[EditCase],
    pool: Sequence[EditCase],
    *,
    max_new_tokens: int,
) -> list[Line]:
    """Return the record and the checks of each case, edited by itself."""
    vlm, number = meter.vlm, len(cases)
    meter.encode_images(cases)
    requests = [case.request for case in cases]
    edited, seconds = timed(lambda: editor.apply_each(vlm, requests), vlm.devices)
    state = EditState(
        vlm=edited,
        seconds=[seconds / number] * number,
        places=[1] * number,
        separate=True,
        batch=number,
    )
    records = meter.records(state, cases)
    checks = checks_of(meter.base, cases, pool, max_new_tokens=max_new_tokens)
    lines: list[Line] = [
        {"record": json.loads(record.model_dump_json()), "checks": {}} for record in records
    ]
    for name in CHECKS:
        rows = [row for row in range(number) if name in checks[row]]
        examples = [checks[row][name].example for row in rows]
        answers = (
            edited.select(rows).generate(examples, max_new_tokens=max_new_tokens) if rows else []
        )
        for row, answer in zip(rows, answers, strict=True):
            asked = checks[row][name]
            lines[row]["checks"][name] = {
                "prompt": asked.example.prompt,
                "image": image_name(asked.example),
                "base": asked.base,
                "edited": answer,
            } | judged(asked.base, answer, cases[row].request)
    return lines


def key_of(line: Line) -> tuple[str, tuple[int, ...], str]:
    return line["position"], tuple(line["layers"]), line["record"]["case_id"]


def table(lines: Sequence[Line]) -> str:
    """Return the table in Markdown: means in percent with 95 % intervals. Raises DataError."""
    if not lines:
        raise DataError("no edit was measured; give at least one with --edits")
    checks = [f"{name}: {kind}" for name in CHECKS for kind in KINDS]
    head = ["position", "layer", "n", *(probe.heading for probe in PROBES), *checks]
    rows = [head, ["---", "--:", *["--:"] * (len(head) - 2)]]
    groups: dict[tuple[str, tuple[int, ...]], list[Line]] = {}
    for line in lines:
        groups.setdefault(key_of(line)[:2], []).append(line)
    for (position, layers), group in sorted(groups.items()):
        records = [Record.model_validate(line["record"]) for line in group]
        row = [position, text_of(layers), str(len(group))]
        for probe in PROBES:
            measure = EXACT_ANSWER if probe.is_locality else EXACT_MATCH
            having = any(probe in record.probes for record in records)
            scores = edit_scores(records, probe, measure) if having else None
            row.append(cell(scores.summary() if scores else None, scale=1))
        for name in CHECKS:
            for kind in KINDS:
                asked = [line for line in group if name in line["checks"]]
                values = [line["checks"][name][kind] for line in asked]
                clusters = [record_cluster(line) for line in asked]
                summary = summarise_share(values, clusters) if values else None
                row.append(cell(summary, scale=100))
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def record_cluster(line: Line) -> str:
    """Return the image of the request: edits of one image succeed and fail together."""
    asked = line["record"]["probes"][Probe.RELIABILITY.value][0]
    return asked["image"] or line["record"]["case_id"]


def cell(summary: Summary | None, *, scale: float) -> str:
    if summary is None or not summary.n:
        return ""
    low, high = (scale * end for end in (summary.low, summary.high))
    return f"{scale * summary.mean:.0f} ({low:.0f}–{high:.0f})"


def text_of(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
