"""Odd files: annotations, configs, records, editors, model folders."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml
from commands import plan, run
from hypothesis import strategies as st
from oddities import changed, damaged, json_values, numbers, texts, written
from values import vlm
from watch import Kind, require

from mmedit import load_cases, load_editor, load_vlm
from mmedit.bench.generation import GenerationSettings
from mmedit.bench.modes import MODES
from mmedit.config import load_table
from mmedit.config_files import VLMFile
from mmedit.datasets.easyvqa.cases import EasyVQA
from mmedit.editors.fitting import Fitting
from mmedit.records.store import read_records

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data" / "samples"
EMBEDDED = ROOT / "mmedit" / "assets" / "embedded-vlm"
ANNOTATIONS: Mapping[str, Mapping[str, str]] = {
    "evqa": {"train": "vqa/vqa_train.json", "test": "vqa/vqa_eval.json"},
    "eic": {"train": "caption/caption_train_edit.json", "test": "caption/caption_eval_edit.json"},
    "vlkeb": {"train": "train.json", "test": "eval.json"},
    "json": {"train": "train.json", "test": "test.json"},
}


def _copied(source: Path, folder: Path) -> Path:
    return shutil.copytree(source, folder / source.name)


def _annotations(data: st.DataObject, folder: Path) -> None:
    name = data.draw(st.sampled_from(sorted(ANNOTATIONS)))
    split = data.draw(st.sampled_from(("train", "test")))
    root = _copied(SAMPLES / name, folder)
    file = root / ANNOTATIONS[name][split]
    records = changed(data, json.loads(file.read_text()))
    content = written(data, records)
    file.write_bytes(content)
    there: dict[str, Any] = {split: file} if name == "json" else {"root": root}
    way = data.draw(st.sampled_from(("error", "skip")))
    cases = load_cases(name, split, on_missing_image=way, **there)
    number = len(json.loads(content.decode("utf-8-sig")))
    counted = len(cases) + sum(cases.left_out.values())
    require(counted == number, f"{counted} cases and records left out, of {number} records")
    if name != "json" or split == "test":
        run("data", "check", name, "--root", str(file if name == "json" else root))


def _grocery(data: st.DataObject, folder: Path) -> None:
    root = _copied(SAMPLES / "grocery", folder)
    file = root / data.draw(st.sampled_from(("classes.csv", "train.txt", "test.txt")))
    lines = file.read_bytes().splitlines(keepends=True)
    row = data.draw(st.integers(0, len(lines) - 1))
    odd = data.draw(texts).encode("utf-8", "surrogatepass") + b"\n"
    forms = (damaged(data, lines[row]), lines[row] * 2, b"", odd)
    lines[row] = data.draw(st.sampled_from(forms))
    file.write_bytes(b"".join(lines))
    load_cases("grocery", data.draw(st.sampled_from(("train", "test"))), root=root)


def _tables(data: st.DataObject, folder: Path) -> None:
    sound = {
        "editors": ["ft"],
        "blocks": {
            "a": {
                "dataset": "easyvqa",
                "limit": 2,
                "mode": "sequential",
                "settings": ["editor.steps=1"],
            },
            "b": {"vlm": "embedded", "editors": ["ike"], "published": "mmedit", "title": "B"},
        },
    }
    value = changed(data, sound)
    text = yaml.safe_dump(value, allow_unicode=data.draw(st.booleans()))
    content = text.encode("utf-8", "surrogatepass")
    file = folder / data.draw(st.sampled_from(("t.yaml", "t.png", "t")))
    file.write_bytes(damaged(data, content) if data.draw(st.booleans()) else content)
    _, table = load_table(str(file))
    blocks = table.named_blocks()
    if isinstance(value, dict) and isinstance(value.get("blocks"), dict):
        require(len(blocks) == len(table.blocks), f"{len(blocks)} blocks of {len(table.blocks)}")


@cache
def _runs() -> Path:
    """Measure two small runs: independent, and in sequence."""
    folder = Path(mkdtemp())
    steps = ("--limit", "3", "--set", "editor.steps=1", "--editor", "ft", "--editor", "ft-l")
    run("bench", *steps, "--out", str(folder / "independent"))
    run("bench", *steps, "--mode", "sequential", "--no-generate", "--set", "sequential.gaps=[1]",
        "--out", str(folder / "sequential"))  # fmt: skip
    return folder


def _records(data: st.DataObject, folder: Path) -> None:
    kind = data.draw(st.sampled_from(("independent", "sequential")))
    there = _copied(_runs() / kind, folder)
    file = there / "records.jsonl"
    lines = file.read_bytes().splitlines()
    sound = len(lines)
    what = data.draw(
        st.sampled_from(("line", "line", "double", "foreign", "bytes", "manifest", "pack", "lose"))
    )
    row = data.draw(st.integers(0, len(lines) - 1))
    if what == "line":
        lines[row] = written(data, changed(data, json.loads(lines[row])))
    elif what == "double":
        lines.insert(row, lines[data.draw(st.integers(0, len(lines) - 1))])
    elif what == "foreign":
        other = "sequential" if kind == "independent" else "independent"
        lines.insert(row, (_runs() / other / "records.jsonl").read_bytes().splitlines()[0])
    elif what == "lose":
        del lines[row]
    content = b"".join(line + b"\n" for line in lines)
    file.write_bytes(damaged(data, content) if what == "bytes" else content)
    if what == "pack":
        file.with_name("records.jsonl.xz").write_bytes(damaged(data, lzma.compress(content)))
        file.unlink()
    if what == "manifest":
        manifest = there / "manifest.json"
        manifest.write_bytes(written(data, changed(data, json.loads(manifest.read_text()))))
    _report(data, there)
    if what in ("double", "foreign"):
        read = len(read_records(there))
        require(read == sound, f"a {what} record was read as one more: {read} of {sound}")


def _report(data: st.DataObject, there: Path) -> None:
    """Make something of the records: mostly the table, as plots take long."""
    command = data.draw(st.sampled_from(("table",) * 12 + ("compare", "report", "plot")))
    more = {
        "table": ["--format", data.draw(st.sampled_from(("md", "latex", "csv", "html", "json")))],
        "compare": [f"{there}:FT-L"],
        "report": [],
        "plot": ["--out", str(there / "plots")],
    }[command]
    run(command, f"{there}:FT-M" if command == "compare" else str(there), *more)


@cache
def _saved_editor() -> Path:
    folder = Path(mkdtemp()) / "ike"
    cases = load_cases("easyvqa", "train", limit=8)
    load_editor("ike", vlm(), k=2).fit(vlm(), Fitting(cases)).save(folder)
    return folder


def _editors(data: st.DataObject, folder: Path) -> None:
    there = folder / "ike"
    shutil.copytree(_saved_editor(), there)
    name = data.draw(st.sampled_from(("editor.json", "editor.json", "editor.safetensors")))
    file = there / name
    if name == "editor.json":
        file.write_bytes(written(data, changed(data, json.loads(file.read_text()))))
    else:
        file.write_bytes(damaged(data, file.read_bytes()))
    [case] = load_cases("easyvqa", "test", limit=1)
    load_editor(there, vlm()).apply(vlm(), [case.request])


def _models(data: st.DataObject, folder: Path) -> None:
    there = folder / "vlm"
    there.mkdir()
    for path in EMBEDDED.iterdir():
        (there / path.name).hardlink_to(path) if path.suffix == ".safetensors" else shutil.copy(
            path, there
        )
    files = sorted(path.name for path in there.iterdir() if path.suffix == ".json")
    file = there / data.draw(st.sampled_from([*files, "chat_template.jinja", "model.safetensors"]))
    if file.suffix == ".json":
        value = json.loads(file.read_text())
        if file.stat().st_size > 50_000:  # a vocabulary: a change of its bytes is enough
            file.write_bytes(damaged(data, file.read_bytes()))
        else:
            file.write_bytes(written(data, changed(data, value)))
    elif file.exists():
        content = file.read_bytes()[:100_000]
        file.unlink()
        file.write_bytes(damaged(data, content))
    else:
        file.write_text(data.draw(texts), encoding="utf-8", errors="replace")
    load_vlm(there)


def _settings(data: st.DataObject, folder: Path) -> None:
    """Set one key after `--set`, often a known one, to an odd value; nothing is measured."""
    part = data.draw(st.sampled_from(sorted(_keys())))
    key = data.draw(
        st.one_of(st.sampled_from(_keys()[part]), st.sampled_from(_keys()[part]), texts)
    )
    value = data.draw(st.one_of(texts, numbers.map(json.dumps), json_values.map(json.dumps)))
    mode = part if part in MODES else data.draw(st.sampled_from(sorted(MODES)))
    editor = part if part in EDITED else data.draw(st.sampled_from(EDITED))
    setting = ("--set", f"{part}.{key}={value}", "--limit", "12")
    plan("bench", "--editor", editor, "--mode", mode, *setting, "--out", str(folder / "x"))


EDITED = ("ft", "ft-l", "ike", "mend", "ke", "serac")


@cache
def _keys() -> dict[str, list[str]]:
    """Return the known keys by part."""
    editors = {name: _flat(load_editor(name, vlm()).config.model_dump()) for name in EDITED}
    modes = {name: sorted(mode.model_fields) for name, mode in MODES.items() if mode.model_fields}
    return {
        **editors,
        **modes,
        "editor": editors["mend"],
        "dataset": sorted(EasyVQA.model_fields),
        "vlm": sorted(VLMFile.model_fields),
        "generation": sorted(GenerationSettings.model_fields),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


KINDS = {
    "annotations": Kind(15, _annotations),
    "grocery": Kind(3, _grocery),
    "tables": Kind(7, _tables),
    "records": Kind(7, _records),
    "editors": Kind(5, _editors),
    "models": Kind(1, _models),
    "settings": Kind(6, _settings),
}
