"""Measure where an edit of an image question is written best: a table by position rule and layer.

    python scripts/position_table --vlm embedded --dataset easyvqa --method rome \\
        --edits 100 --layers 1 3 --out runs/positions
    python scripts/position_table --vlm photo --dataset grocery-object --method memit \\
        --set dataset.root=grocery --set dataset.known=known.json --layers 8 8,9,10 --out runs/photo

For every position and layer each edit is made by itself and tested on the probes of its case: share
of exact answers (Rel, T-Gen, I-Gen), and of answers as the base model gives them (T-Loc, I-Loc).
Three checks show whether the edit follows the image:

- no image: the request's question without its image;
- other image: the request's question about the image of another case;
- other question: another question about the request's image.

leak: the edited model's greedy answer is the target of the edit, and the base model's was not.
unchanged: the greedy answer is the base model's. Of other images and questions the first counts
whose base answer is not the target, and if possible not that to the request.

Every edit is a line of OUT/edits.jsonl as soon as its batch is measured; the same command goes on
where it was stopped. The table is printed and written to OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from position_rows import Line, key_of, measured, table, text_of

from mmedit import EditCase, Editor, load_cases, load_editor, load_vlm
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.protocol import Meter
from mmedit.chunks import chunks
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.positions import Position
from mmedit.editors.fitting import Fitting
from mmedit.errors import ConfigError, MmeditError
from mmedit.settings import Overrides
from mmedit.vlm.interface import VLM

POSITIONS: tuple[Position, ...] = get_args(Position)
SAME = ("vlm", "dataset", "method", "edits", "train", "batch_size", "max_new_tokens", "set")
"""Options that a command which goes on may not change."""
OTHERS = 100
"""Least number of cases that other images and questions are taken from."""


def main() -> None:
    options = parsed()
    try:
        run(options)
    except MmeditError as error:
        sys.exit(f"error: {error}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default="embedded")
    parser.add_argument("--dataset", default="easyvqa", help="a dataset whose requests have images")
    parser.add_argument("--method", default="rome", help="rome, memit, alphaedit, or a yaml of one")
    parser.add_argument("--edits", type=int, default=100, help="cases of the test split")
    parser.add_argument("--train", type=int, default=200, help="training cases of the fit")
    parser.add_argument("--positions", nargs="+", choices=POSITIONS, default=[])
    parser.add_argument(
        "--layers", nargs="+", default=[], help="each a layer, or several as 2,3; default: every"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="edits made together")
    parser.add_argument("--max-new-tokens", type=int, default=8, help="length of greedy answers")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PART.KEY=VALUE", help="as of mmedit bench"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Measure what is missing in the file, then write the table."""
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "edits.jsonl"
    lines = resumed(file, {name: getattr(options, name) for name in SAME})
    overrides = Overrides.parse(options.set)
    vlm = load_vlm(options.vlm, **overrides.of("vlm"))
    given = overrides.of("dataset")
    training = load_cases(options.dataset, "train", limit=options.train, **given)
    pool = load_cases(options.dataset, "test", limit=max(options.edits, OTHERS), **given)
    cases = list(pool)[: options.edits]
    positions: list[Position] = options.positions or fitting_positions(cases)
    meter = Meter(BaseOutputs(vlm), name=options.method, batch_size=options.batch_size)
    known = {key_of(line) for line in lines}
    for layers in layers_of(options.layers, len(vlm.value_sites)):
        missing: list[tuple[Position, Sequence[EditCase]]] = [
            (position, batch)
            for position in positions
            for batch in chunks(cases, options.batch_size)
            if any((position, layers, case.id) not in known for case in batch)
        ]
        if missing:
            editor = fitted(options.method, vlm, layers, training, overrides)
        for number, (position, batch) in enumerate(missing, 1):
            at, length = at_position(editor, position), options.max_new_tokens
            found = measured(meter, at, batch, pool, max_new_tokens=length)
            named = [{"position": position, "layers": list(layers), **line} for line in found]
            new = [line for line in named if key_of(line) not in known]
            with file.open("a", encoding="utf-8") as out:
                out.write("".join(json.dumps(line) + "\n" for line in new))
            lines += new
            done = f"layer {text_of(layers)}, {position}: batch {number} of {len(missing)}"
            print(done, file=sys.stderr)
    written = table(lines)
    (options.out / "table.md").write_text(written, encoding="utf-8")
    print(written)


def resumed(file: Path, said: Line) -> list[Line]:
    """Return the whole lines of an earlier run, and start the file if there is none. Raises
    ConfigError if that run had other settings.
    """
    content = file.read_text(encoding="utf-8") if file.exists() else ""
    whole = content[: content.rfind("\n") + 1]
    if not whole:
        file.write_text(json.dumps(said) + "\n", encoding="utf-8")
        return []
    before, *lines = map(json.loads, whole.splitlines())
    if before != said:
        other = [name for name in said if before.get(name) != said[name]]
        raise ConfigError(
            f"{file} was measured with other settings ({', '.join(other)}); give another --out"
        )
    if whole != content:  # a line that was cut off
        file.write_text(whole, encoding="utf-8")
    return lines


def fitting_positions(cases: Sequence[EditCase]) -> list[Position]:
    """Return the positions that the requests have."""
    without = {"last_subject": not any(case.request.subject for case in cases)}
    without["image_mean"] = any(case.request.image is None for case in cases)
    return [position for position in POSITIONS if not without.get(position)]


def layers_of(written: Sequence[str], depth: int) -> list[tuple[int, ...]]:
    """Return the layers that are written together, by row of the table. Raises ConfigError."""
    try:
        found = [tuple(sorted(int(layer) for layer in text.split(","))) for text in written]
    except ValueError:
        raise ConfigError(
            f"--layers {' '.join(written)}: expected numbers, or several with commas: 1 3 2,3"
        ) from None
    return found or [(layer,) for layer in range(depth)]


def fitted(
    method: str,
    vlm: VLM,
    layers: tuple[int, ...],
    training: Sequence[EditCase],
    overrides: Overrides,
) -> Editor:
    """Return the editor of some layers, which serves every position. Raises ConfigError."""
    settings = overrides.of("editor", method) | {"layers": list(layers)}
    editor = load_editor(method, vlm, **settings)
    if not isinstance(editor.config, LocatedConfig):
        raise ConfigError(f"{method} has no position; expected rome, memit or alphaedit")
    return editor.fit(vlm, Fitting(list(training))) if editor.needs_fit else editor


def at_position(editor: Editor, position: Position) -> Editor:
    """Return a fitted editor with another position: nothing that it has learnt depends on it."""
    config = editor.config.model_copy(update={"position": position})
    return type(editor)(config, label=editor.label, origin=editor.origin, learnt=editor.learnt)


if __name__ == "__main__":
    main()
