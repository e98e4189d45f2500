"""Requests of edits from your own file in MMEdit's keys: only src, alt and image are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmedit.cases import Example
from mmedit.datasets.annotated.annotations import Annotation, read_annotations
from mmedit.datasets.annotated.releases import OwnFiles
from mmedit.errors import DataError, ImageError
from mmedit.images import open_image
from mmedit.progress import Progress, silent

NEEDED = ("src", "alt", "image", "answers", "subject")
"""Keys of a record that an edit reads. Others may be there, also empty ones."""
ADVICE = "Name the folder that the paths begin in: --images DIR."


def read_requests(
    file: str | Path, *, images: Sequence[Path] = (), progress: Progress = silent
) -> list[Example]:
    """Return the request of every record: src is the prompt word for word, alt the new answer.

    Images are looked for in the folders `images`, by default that of the file, and every image is
    opened once. Raises DataError, ImageError.
    """
    source = OwnFiles(test=Path(file), images=tuple(images)).source("test")
    records = read_annotations(source.file, advice="Check the path of the file of requests.")
    requests = list[Example]()
    progress("reading requests", 0, len(records), "")
    for row, record in enumerate(records):
        _require_filled(record, source.file, row)
        path = source.image(row, record, "image")
        try:
            open_image(path)
        except ImageError as error:
            advice = "" if os.path.exists(path) else f" {ADVICE}"
            raise DataError(f"{source.file}, row {row}, image: {error}{advice}") from None
        requests.append(
            Example(
                prompt=record.src,
                target=record.alt.strip(),
                image=path,
                answers=record.answers,
                subject=record.subject or "",
            )
        )
        progress("reading requests", row + 1, len(records), "")
    return requests


def _require_filled(record: Annotation, file: Path, row: int) -> None:
    for key in record.empty:
        if key.partition(".")[0] in NEEDED:
            raise DataError(f"{file}, row {row}: {key} is empty; fill it in, or delete the record")
