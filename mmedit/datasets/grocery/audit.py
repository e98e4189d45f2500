"""Contents of the Grocery Store Dataset's folder: photographs per list beside the published counts,
missing and broken files, and photographs that are in two lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedit.datasets.grocery.files import (
    ProductClass,
    first_sentence,
    folder_of,
    read_classes,
    read_list,
)
from mmedit.errors import DataError
from mmedit.images import corrupt_images
from mmedit.progress import Progress
from mmedit.storage import sha256

LISTS = {"train": 2640, "val": 296, "test": 2485}
"""Number of photographs in the released lists."""
PHOTOGRAPHS, CLASSES, COARSE = 5125, 81, 42
"""Numbers from the dataset's README (Klasson et al. 2019); the photographs are those of train.txt
and test.txt together.
"""
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class ListAudit:
    """The counts and faults of one list of photographs."""

    name: str
    file: Path
    sha256: str
    photographs: int
    per_product: Counter[str]
    """Number of photographs, by the name of the class."""
    coarse: int
    """Number of coarse classes with photographs."""
    twice: int
    """Number of photographs whose content (SHA-256) or path is in the list a second time."""
    missing: tuple[str, ...]
    corrupt: tuple[str, ...] | None
    """Errors of photographs that cannot be opened; None if they were not opened."""
    contents: dict[str, str]
    """SHA-256 of the photographs that are there, by path."""

    def shared_paths(self, other: ListAudit) -> list[str]:
        """Return the paths that the other list has as well."""
        return [path for path in self.contents if path in other.contents]

    def shared_contents(self, other: ListAudit) -> list[str]:
        """Return the paths of photographs whose content the other list has as well."""
        known = set(other.contents.values())
        return [path for path, content in self.contents.items() if content in known]


@dataclass(frozen=True, kw_only=True)
class GroceryAudit:
    """The counts and faults of the whole folder."""

    file: Path
    sha256: str
    """SHA-256 of classes.csv."""
    products: int
    coarse: int
    iconic: int
    """Number of iconic pictures that classes.csv names."""
    iconic_missing: tuple[str, ...]
    iconic_corrupt: tuple[str, ...] | None
    descriptions_missing: tuple[str, ...]
    """Descriptions that are missing, not UTF-8, or empty."""
    lists: tuple[ListAudit, ...]


def audit(root: Path, *, decode: bool, progress: Progress) -> GroceryAudit:
    """Read the lists and the products, and hash every photograph; open each one if `decode`.

    Raises DataError if a list cannot be read.
    """
    folder = folder_of(root)
    classes = read_classes(folder)
    there = [name for name in LISTS if name != "val" or (folder / "val.txt").is_file()]
    listed = {n: read_list(folder / f"{n}.txt", folder, len(classes)) for n in there}
    iconic = [found.iconic for found in classes if found.iconic]
    lists = [
        _list_audit(name, folder / f"{name}.txt", found, classes, decode=decode, progress=progress)
        for name, found in listed.items()
    ]
    return GroceryAudit(
        file=folder / "classes.csv",
        sha256=sha256(folder / "classes.csv"),
        products=len(classes),
        coarse=len({found.coarse for found in classes}),
        iconic=len(iconic),
        iconic_missing=tuple(str(path) for path in iconic if not path.is_file()),
        iconic_corrupt=(
            corrupt_images("iconic", [path for path in iconic if path.is_file()], progress)
            if decode
            else None
        ),
        descriptions_missing=_without_description(folder / "classes.csv", classes),
        lists=tuple(lists),
    )


def markdown(found: GroceryAudit, command: str) -> str:
    """Return a table with a column per list, and the details of its counts."""
    train = found.lists[0]
    lines = [
        f"`{command}`",
        "",
        f"| | {' | '.join(one.file.name for one in found.lists)} |",
        f"|---|{'--:|' * len(found.lists)}",
        *(
            f"| {title} | {' | '.join(value(one) for one in found.lists)} |"
            for title, value in _rows(train)
        ),
        "",
        *_totals(found),
        *_instances("classes.csv", "iconic picture missing", found.iconic_missing),
        *_instances("classes.csv", "iconic picture corrupt", found.iconic_corrupt or ()),
        *_instances("classes.csv", "no description", found.descriptions_missing),
    ]
    for one in found.lists:
        shared = [] if one is train else one.shared_contents(train)
        lines += _instances(one.file.name, "missing", one.missing)
        lines += _instances(one.file.name, "corrupt", one.corrupt or ())
        lines += _instances(one.file.name, "content also in train.txt", shared)
    return "\n".join(lines) + "\n"


def _rows(train: ListAudit) -> list[tuple[str, Callable[[ListAudit], str]]]:
    def beside_train(count: Callable[[ListAudit], Sequence[str]]) -> Callable[[ListAudit], str]:
        return lambda one: "–" if one is train else f"{len(count(one)):,}"

    return [
        ("photographs", lambda a: f"{a.photographs:,}"),
        ("published", lambda a: f"{LISTS[a.name]:,}"),
        ("products", lambda a: f"{len(a.per_product):,}"),
        ("coarse classes", lambda a: f"{a.coarse:,}"),
        ("fewest photographs of a product", lambda a: f"{min(_numbers(a)):,}"),
        ("most photographs of a product", lambda a: f"{max(_numbers(a)):,}"),
        ("photographs missing", lambda a: f"{len(a.missing):,}"),
        (
            "photographs corrupt",
            lambda a: "not opened" if a.corrupt is None else f"{len(a.corrupt):,}",
        ),
        ("twice in the list (path or content)", lambda a: f"{a.twice:,}"),
        ("path also in train.txt", beside_train(lambda a: a.shared_paths(train))),
        ("content also in train.txt", beside_train(lambda a: a.shared_contents(train))),
    ]


def _totals(found: GroceryAudit) -> list[str]:
    corrupt = found.iconic_corrupt
    opened = "not opened" if corrupt is None else f"{len(corrupt):,} corrupt"
    photographs = sum(one.photographs for one in found.lists if one.name != "val")
    return [
        f"- train.txt and test.txt together: {photographs:,} photographs (published: "
        f"{PHOTOGRAPHS:,})",
        f"- classes.csv: {found.products:,} products (published: {CLASSES}) of {found.coarse:,} "
        f"coarse classes (published: {COARSE})",
        f"- iconic pictures: {found.iconic:,}, {len(found.iconic_missing):,} missing, {opened}; "
        f"descriptions: {len(found.descriptions_missing):,} missing or empty",
        f"- classes.csv: SHA-256 `{found.sha256}`",
        *(f"- {one.file.name}: SHA-256 `{one.sha256}`" for one in found.lists),
    ]


def _list_audit(
    name: str,
    file: Path,
    photographs: Sequence[tuple[Path, int]],
    classes: Sequence[ProductClass],
    *,
    decode: bool,
    progress: Progress,
) -> ListAudit:
    there = [path for path in dict.fromkeys(path for path, _ in photographs) if path.is_file()]
    contents = {str(path): sha256(path) for path in there}
    return ListAudit(
        name=name,
        file=file,
        sha256=sha256(file),
        photographs=len(photographs),
        per_product=Counter(classes[number].name for _, number in photographs),
        coarse=len({classes[number].coarse for _, number in photographs}),
        twice=_again(str(path) for path, _ in photographs) + _again(contents.values()),
        missing=tuple(dict.fromkeys(str(p) for p, _ in photographs if not p.is_file())),
        corrupt=corrupt_images(name, there, progress) if decode else None,
        contents=contents,
    )


def _numbers(found: ListAudit) -> list[int]:
    """Return the number of photographs of each product that has any; [0] for an empty list."""
    return list(found.per_product.values()) or [0]


def _again(things: Iterable[str]) -> int:
    return sum(number - 1 for number in Counter(things).values())


def _without_description(file: Path, classes: Sequence[ProductClass]) -> tuple[str, ...]:
    lacking = []
    for row, found in enumerate(classes):
        try:
            if found.description is None:
                raise DataError("classes.csv names no description")
            first_sentence(found.description, file, row)
        except DataError:
            lacking.append(str(found.description or found.name))
    return tuple(lacking)


def _instances(file: str, what: str, paths: Sequence[str]) -> list[str]:
    return [f"- {file}: {what}, for instance {', '.join(paths[:SHOWN])}"] if paths else []
