"""The report page of a run, with the images of its dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmedit.cases import EditCase, image_name
from mmedit.config import read_cases
from mmedit.errors import MmeditError
from mmedit.records.schema import Record, RunManifest
from mmedit.records.store import read_run
from mmedit.report.render.page import EXAMPLES, write_report
from mmedit.settings import Overrides


def report_run(folder: Path, *, examples: int = EXAMPLES) -> tuple[Path, str]:
    """Write `report.html` of a finished run from its records, without a model.

    `examples` is the number of edits shown with their images. Returns the path, and why the page
    has no images ("" if it has them). Raises DataError for a folder without records.
    """
    records, manifest = read_run(folder)
    try:
        cases, reason = _pictured_cases(manifest, examples), ""
    except MmeditError as error:
        cases, reason = [], str(error)
    title = folder.resolve().name
    return write_page(folder, records, manifest, cases, title=title, examples=examples), reason


def write_page(
    folder: Path,
    records: Sequence[Record],
    manifest: RunManifest,
    cases: Sequence[EditCase],
    *,
    title: str,
    examples: int = EXAMPLES,
) -> Path:
    """Write `report.html` of a run, with the images of the first cases; returns its path."""
    return write_report(
        folder,
        records,
        images=save_images(cases[:examples], folder / "images"),
        title=title,
        examples=examples,
        manifest=manifest,
    )


def save_images(cases: Sequence[EditCase], folder: Path) -> dict[str, Path]:
    """Return a file for every image of the cases, by the image's name in records.

    Images made in memory are written to `folder` as PNG.
    """
    files: dict[str, Path] = {}
    for example in (e for case in cases for asked in case.probes.values() for e in asked):
        name = image_name(example)
        if name is None or example.image is None:
            continue
        if isinstance(example.image, Path):
            files[name] = example.image
        else:
            folder.mkdir(parents=True, exist_ok=True)
            files[name] = folder / f"{name}.png"
            example.image.save(files[name])
    return files


def _pictured_cases(manifest: RunManifest, number: int) -> Sequence[EditCase]:
    """Read the first cases of a run's dataset again."""
    written = manifest.run.overrides
    overrides = Overrides.parse(text for text in written if text.startswith("dataset."))
    limit = max(1, min(manifest.limit or number, number))
    settings = overrides.of("dataset")
    return read_cases(manifest.dataset, "test", settings, limit=limit, seed=manifest.seed)
