"""What is in the Grocery Store Dataset's folder, beside what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mmedit.datasets.audit import SHOWN, Report, corrupt_images
from mmedit.datasets.download import hash_of
from mmedit.datasets.grocery import read_photographs, read_products

PUBLISHED_PHOTOGRAPHS, PUBLISHED_PRODUCTS = 5125, 81
"""Klasson et al. 2019: without the validation split, which the repository has as well."""
SPLITS = ("train", "val", "test")


def audit_grocery(root: Path, command: str, *, decode: bool, report: Report) -> str:
    """As Markdown. Raises DataError where lists or files are missing."""
    folder = root.expanduser()
    products = read_products(folder)
    photographs = {split: read_photographs(folder, split, products) for split in SPLITS}
    total = len(photographs["train"]) + len(photographs["test"])
    lines = [
        f"`{command}`",
        "",
        f"| | {' | '.join(SPLITS)} |",
        "|---|--:|--:|--:|",
        _row("photographs", photographs, lambda found: f"{len(found):,}"),
        _row("products", photographs, lambda found: f"{len({n for _, n in found})}"),
        _row("fewest of a product", photographs, lambda found: f"{min(_counts(found).values())}"),
        _row("most of a product", photographs, lambda found: f"{max(_counts(found).values())}"),
        "",
        f"- photographs in train and test: {total:,} (published: {PUBLISHED_PHOTOGRAPHS:,})",
        f"- products: {len(products)} (published: {PUBLISHED_PRODUCTS}); coarse classes: "
        f"{len({product.coarse for product in products})}",
        f"- products that share a name: {len(products) - len({p.name for p in products})}; a first "
        f"sentence: {len(products) - len({p.description for p in products})}",
        f"- {_shared(photographs)}",
    ]
    lines += [f"- {s}.txt: SHA-256 `{hash_of(folder / f'{s}.txt')}`" for s in SPLITS]
    lines.append(f"- classes.csv: SHA-256 `{hash_of(folder / 'classes.csv')}`")
    if decode:
        every = [path for found in photographs.values() for path, _ in found]
        faults = corrupt_images("grocery", [*every, *(p.iconic for p in products)], report)
        shown = f", for instance {'; '.join(faults[:SHOWN])}" if faults else ""
        lines.append(f"- corrupt images: {len(faults)}{shown}")
    else:
        lines.append("- corrupt images: not opened")
    return "\n".join(lines) + "\n"


Found = list[tuple[Path, int]]


def _row(title: str, by_split: dict[str, Found], value: Callable[[Found], str]) -> str:
    return f"| {title} | {' | '.join(value(by_split[split]) for split in SPLITS)} |"


def _counts(found: Found) -> Counter[int]:
    return Counter(number for _, number in found)


def _shared(photographs: dict[str, Found]) -> str:
    """Photographs of the test split that a training case has as well, by content."""
    hashes = {split: Counter(hash_of(path) for path, _ in photographs[split]) for split in SPLITS}
    both = hashes["train"].keys() & hashes["test"].keys()
    again = sum(n - 1 for n in sum(hashes.values(), Counter()).values())
    return f"photographs in train and in test: {len(both)}; that lie there more than once: {again}"
