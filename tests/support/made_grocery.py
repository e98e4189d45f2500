"""A small Grocery Store Dataset: five products of three kinds."""

from __future__ import annotations

from pathlib import Path

import tiny

CLASSES = (
    ("Golden-Delicious", "Apple"),
    ("Granny-Smith", "Apple"),
    ("Banana", "Banana"),
    ("Arla-Standard-Milk", "Milk"),
    ("Royal-Gala", "Apple"),
)
HEADER = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)


def make_grocery(root: Path) -> Path:
    """Write three photographs of each product in every list. Returns the folder."""
    lines, seed = [HEADER], 0
    for number, (name, coarse) in enumerate(CLASSES):
        place = f"iconic/{name}"
        lines.append(f"{name},{number},{coarse},0,/{place}.jpg,/{place}.txt")
        save(root / f"{place}.jpg", seed := seed + 1)
        text = f"{name} is good. And cheap.\n\nPå svenska."
        (root / f"{place}.txt").write_text(text, encoding="utf-8")
    (root / "classes.csv").write_text("\n".join(lines), encoding="utf-8")
    for split in ("train", "val", "test"):
        listed = []
        for number, (name, _) in enumerate(CLASSES):
            for copy in range(3):
                path = f"{split}/{name}_{copy}.jpg"
                save(root / path, seed := seed + 1)
                listed.append(f"{path}, {number}, 0")
        (root / f"{split}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    return root


def save(path: Path, seed: int) -> None:
    """Save a small random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.random_image(seed).save(path)
