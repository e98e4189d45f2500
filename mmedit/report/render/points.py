"""The table of a search of settings: Markdown, CSV, and a table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import pandas
from rich.table import Table

from mmedit.cases import Probe
from mmedit.report.columns import COSTS
from mmedit.report.intervals import Summary
from mmedit.report.points import PointScores, exact_match
from mmedit.report.render.cells import MISSING, TIED, summary_cell
from mmedit.report.render.markdown import markdown_table

MEAN = "mean EM"


def rows_of(points: Sequence[PointScores]) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a row of texts for every point."""
    keys, probes = setting_names(points), _probes(points)
    trains = any(point.training_seconds is not None for point in points)
    numbers = {
        probe: max(p.scores[probe].n for p in points if probe in p.scores) for probe in probes
    }
    heads = [f"{probe.heading} (n={numbers[probe]})" for probe in probes]
    header = ["", *keys, *heads, MEAN, "s/edit", *(["train s"] if trains else [])]
    rows = []
    for place, point in enumerate(points):
        mark = (
            "failed" if point.failure else "best" if place == 0 else TIED if point.is_tied else ""
        )
        seconds = [point.seconds, *([point.training_seconds] if trains else [])]
        rows.append(
            [
                mark,
                *(point.settings.get(key, MISSING) for key in keys),
                *(_share(point.scores.get(probe), numbers[probe]) for probe in probes),
                _with_interval(point.mean),
                *map(_seconds, seconds),
            ]
        )
    return header, rows


def markdown(title: str, points: Sequence[PointScores], notes: Sequence[str]) -> str:
    """Write the table of a search in Markdown, with notes below it."""
    header, rows = rows_of(points)
    rows = [[f"**{text}**" if text and row[0] == "best" else text for text in row] for row in rows]
    left = 1 + len(setting_names(points))
    blocks = [
        f"# {title}",
        markdown_table(header, rows, left=left),
        "\n".join(f"- {n}" for n in notes),
    ]
    return "\n\n".join(blocks) + "\n"


def as_csv(points: Sequence[PointScores]) -> str:
    """Write the table of a search as CSV, one line per point, not rounded."""
    rows = []
    for place, point in enumerate(points):
        scores = {probe.heading: one for probe, one in point.scores.items()} | {"mean": point.mean}
        rows.append(
            {
                **{key: point.settings.get(key) for key in setting_names(points)},
                **{
                    f"{name}{f' {of}' if of else ''}": value
                    for name, one in scores.items()
                    for of, value in (
                        ("", one.mean),
                        ("low", one.low),
                        ("high", one.high),
                        ("n", one.n),
                    )
                },
                "s/edit": point.seconds,
                "train s": point.training_seconds,
                "p_to_best": point.p_to_best,
                "best": place == 0 and not point.failure,
                "failure": point.failure,
            }
        )
    return pandas.DataFrame(rows).to_csv(index=False)


def points_view(points: Sequence[PointScores]) -> Table:
    """Show the table of a search in a terminal."""
    header, rows = rows_of(points)
    table = Table(box=None, pad_edge=False)
    left = 1 + len(setting_names(points))
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == "best" else None)
    return table


def setting_names(points: Sequence[PointScores]) -> list[str]:
    """Return the names of all settings that the points have."""
    return list(dict.fromkeys(key for point in points for key in point.settings))


def _probes(points: Sequence[PointScores]) -> list[Probe]:
    return [probe for probe in Probe if any(probe in point.scores for point in points)]


def _share(found: Summary | None, usual: int) -> str:
    if found is None or isnan(found.mean):
        return MISSING
    fewer = f" (n={found.n})" if found.n != usual else ""
    return f"{found.mean:{exact_match(Probe.RELIABILITY).format}}{fewer}"


def _with_interval(mean: Summary) -> str:
    cell = summary_cell(mean, ".1f")
    return f"{cell.value} {cell.spread}".strip()


def _seconds(seconds: float | None) -> str:
    return MISSING if seconds is None or isnan(seconds) else COSTS[0].text(seconds)
