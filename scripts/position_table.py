"""Measure where an edit of an image question is written best: a table by position rule and layer.

    python scripts/position_table.py --vlm embedded --dataset easyvqa --method rome \\
        --edits 100 --layers 1 3 --out runs/positions
    python scripts/position_table.py --vlm photo --dataset grocery-object --method memit \\
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from mmedit import EditCase, Editor, Example, load_cases, load_editor, load_vlm
from mmedit.bench.base_outputs import BaseOutputs
from mmedit.bench.batches import chunks
from mmedit.bench.costs import timed
from mmedit.bench.protocol import EditState, Meter
from mmedit.cases import Probe, image_name
from mmedit.editors.closed_form.config import LocatedConfig
from mmedit.editors.closed_form.positions import Position
from mmedit.editors.fitting import Fitting
from mmedit.errors import ConfigError, DataError, MmeditError
from mmedit.images import image_key
from mmedit.metrics.generation import exact, unchanged
from mmedit.records.schema import Record
from mmedit.report.columns import EXACT_ANSWER, EXACT_MATCH
from mmedit.report.intervals import Summary, summarise_share
from mmedit.report.scores import edit_scores
from mmedit.settings import Overrides
from mmedit.vlm.interface import VLM

NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION = CHECKS = ("no image", "other image", "other question")
PROBES = (
    Probe.RELIABILITY,
    Probe.TEXT_GENERALITY,
    Probe.IMAGE_GENERALITY,
    Probe.TEXT_LOCALITY,
    Probe.IMAGE_LOCALITY,
)
POSITIONS: tuple[Position, ...] = get_args(Position)
CANDIDATES = 4
"""Other images and other questions that the base model is asked about, for each edit."""
OTHERS = 100
"""Least number of cases that other images and questions are taken from."""
Line = dict[str, Any]
"""One edit at one position and layer, as it stands in the file."""


@dataclass(frozen=True)
class Check:
    """A question that the edit should leave, and the base model's greedy answer."""

    example: Example
    base: str


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
    overrides = Overrides.parse(options.set)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "edits.jsonl"
    said = {
        name: getattr(options, name)
        for name in ("vlm", "dataset", "method", "edits", "train", "batch_size", "set")
    } | {"max_new_tokens": options.max_new_tokens}
    lines = resumed(file, said)
    vlm = load_vlm(options.vlm, **overrides.of("vlm"))
    given = overrides.of("dataset")
    training = load_cases(options.dataset, "train", limit=options.train, **given)
    pool = load_cases(options.dataset, "test", limit=max(options.edits, OTHERS), **given)
    cases = list(pool)[: options.edits]
    positions = options.positions or fitting_positions(cases)
    meter = Meter(BaseOutputs(vlm), name=options.method, batch_size=options.batch_size)
    known = {key_of(line) for line in lines}
    with file.open("a", encoding="utf-8") as out:
        for layers in layers_of(options.layers, len(vlm.value_sites)):
            editor: Editor | None = None
            for position in positions:
                for batch in chunks(cases, options.batch_size):
                    if all((position, layers, case.id) in known for case in batch):
                        continue
                    if editor is None:
                        editor = fitted(options.method, vlm, layers, training, overrides)
                    moved, length = at_position(editor, position), options.max_new_tokens
                    found = measured(meter, moved, batch, list(pool), max_new_tokens=length)
                    new = [{"position": position, "layers": list(layers), **line} for line in found]
                    out.write("".join(json.dumps(line) + "\n" for line in new))
                    out.flush()
                    lines += new
                print(f"layer {text_of(layers)}, {position}: measured", file=sys.stderr)
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


def key_of(line: Line) -> tuple[str, tuple[int, ...], str]:
    return line["position"], tuple(line["layers"]), line["record"]["case_id"]


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


def judged(base: str, edited: str, request: Example) -> dict[str, float]:
    """Return whether the edit leaked into an answer, and whether the answer is the base model's.

    >>> judged("red", "blue", Example(prompt="what color is it?", target="blue"))
    {'leak': 1.0, 'unchanged': 0.0}
    """
    is_target = [exact(text, [request.target]) for text in (base, edited)]
    return {"leak": is_target[1] * (1 - is_target[0]), "unchanged": unchanged(base, edited)}


def checks_of(
    base: BaseOutputs,
    cases: Sequence[EditCase],
    pool: Sequence[EditCase],
    *,
    max_new_tokens: int,
) -> list[dict[str, Check]]:
    """Return the checks of each case. An edit without an image, or for which every candidate's base
    answer is the target, lacks a check. The base model answers each batch once.
    """

    def answered(asked: Sequence[Example]) -> list[Check]:
        said = base.answer(asked, max_new_tokens=max_new_tokens) if asked else []
        return [Check(one, answer.text.strip()) for one, answer in zip(asked, said, strict=True)]

    requests = [case.request for case in cases]
    own = [check.base for check in answered(requests)]
    found: list[dict[str, Check]] = [{} for _ in cases]
    for name in CHECKS:
        candidates = [
            candidates_of(request, pool) if request.image is not None else {}
            for request in requests
        ]
        asked = [(row, one) for row, by in enumerate(candidates) for one in by.get(name, [])]
        answers: list[Check] = []
        for part in chunks([one for _, one in asked], 4 * len(cases)):
            answers += answered(part)
        for row, request in enumerate(requests):
            mine = [check for (at, _), check in zip(asked, answers, strict=True) if at == row]
            chosen = first_apart(mine, request, own[row], must_differ=name == OTHER_QUESTION)
            if name == NO_IMAGE:
                chosen = mine[0] if mine else None
            if chosen is not None:
                found[row][name] = chosen
    return found


def candidates_of(request: Example, pool: Sequence[EditCase]) -> dict[str, list[Example]]:
    """Return the questions that may serve for each check, the best first: images of cases that ask
    the same, or begin alike; questions that begin otherwise.
    """
    key = image_key(request.image) if request.image is not None else ""
    others = [
        case.request
        for case in pool
        if case.request.image is not None and image_key(case.request.image) != key
    ]
    begin = beginning(request.prompt)
    alike = sorted(
        (other for other in others if beginning(other.prompt) == begin),
        key=lambda other: other.prompt != request.prompt,
    )
    prompts = dict.fromkeys(other.prompt for other in others if beginning(other.prompt) != begin)
    return {
        NO_IMAGE: [replace(request, image=None)],
        OTHER_IMAGE: [replace(request, image=other.image) for other in alike[:CANDIDATES]],
        OTHER_QUESTION: [
            replace(request, prompt=prompt, subject="") for prompt in list(prompts)[:CANDIDATES]
        ],
    }


def beginning(prompt: str) -> tuple[str, ...]:
    """Return the first two words, which tell what kind of question it is: "what color"."""
    return tuple(prompt.lower().split()[:2])


def first_apart(
    checks: Sequence[Check], request: Example, own: str, *, must_differ: bool
) -> Check | None:
    """Return the first check whose base answer is neither the target nor that to the request; if
    there is none, the first whose base answer is not the target, unless it must differ.
    """
    possible = [check for check in checks if not exact(check.base, [request.target])]
    apart = [check for check in possible if check.base != own]
    return next(iter(apart or ([] if must_differ else possible)), None)


def table(lines: Sequence[Line]) -> str:
    """Return the table in Markdown: means in percent with 95 % intervals. Raises DataError."""
    if not lines:
        raise DataError("no edit was measured; give at least one with --edits")
    checks = [f"{name}: {kind}" for name in CHECKS for kind in ("leak", "unchanged")]
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
            for kind in ("leak", "unchanged"):
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


if __name__ == "__main__":
    main()
