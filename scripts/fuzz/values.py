"""Odd values for the Python functions: texts, examples, images, calls."""

from __future__ import annotations

import io
import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from oddities import NUMBERS, damaged, json_values, numbers, python_values, texts
from PIL import Image
from watch import Kind, require

from mmedit import evaluate, load_cases, load_editor, load_vlm
from mmedit.cases import EditCase, Example, Probe
from mmedit.editors.base import Editor
from mmedit.images import image_key, open_image
from mmedit.metrics.generation import contains, exact, fluency, normalise, repeated, rouge_l
from mmedit.vlm.network import NetworkVLM

MARKS = (
    "{}",
    "**{}**",
    "'{}'",
    "({})",
    "{}:",
    "It is {}.",
    "“{}”",
    "{}, I think",
    "The answer:\n{}",
)


def _metrics(data: st.DataObject, folder: Path) -> None:
    answer, said = data.draw(texts), data.draw(st.sampled_from(MARKS))
    text = said.format(answer) if data.draw(st.booleans()) else data.draw(texts)
    normalise(text)
    fluency(text)
    repeated(text)
    scores = (contains(text, [answer]), exact(text, [answer]), rouge_l(text, [answer]))
    require(all(0 <= score <= 1 for score in scores), f"{text!r}, {answer!r}: {scores}")
    if any(unicodedata.category(letter)[0] in "LN" for letter in answer):
        shown = said.format(answer)
        require(contains(shown, [answer]) == 1, f"{answer!r} is not found in {shown!r}")


@cache
def _request() -> Example:
    return load_cases("easyvqa", "test", limit=1)[0].request


def _examples(data: st.DataObject, folder: Path) -> None:
    several = st.lists(texts, max_size=2).map(tuple)
    odd = st.one_of(texts, texts, texts, several, python_values, st.just(_request()))
    fields: dict[str, Any] = {"prompt": "what?", "target": "red"}
    for name in data.draw(
        st.sets(st.sampled_from(("prompt", "target", "image", "context", "answers")))
    ):
        fields[name] = data.draw(odd)
    example = Example(**fields)
    for name in ("prompt", "target", "context"):
        if name in fields:
            require(getattr(example, name) == fields[name], f"{name} is {fields[name]!r}")
    require(all(isinstance(answer, str) for answer in example.accepted), repr(example.accepted))
    probes: Any = {
        data.draw(st.one_of(st.sampled_from(Probe), texts)): data.draw(
            st.one_of(python_values, st.just((example,)), st.just([example]))
        )
    }
    case = EditCase(id=data.draw(st.one_of(texts, python_values)), request=example, probes=probes)
    given = {str(getattr(name, "value", name)) for name, asked in probes.items() if asked}
    require(given <= {probe.value for probe in case.probes}, f"probes {given} of {case!r}")


def _images(data: st.DataObject, folder: Path) -> None:
    image = data.draw(st.sampled_from((_drawn_file, _array, _special_file)))(data, folder)
    example = Example(prompt="what?", target="red", image=image)
    if example.image is not None:
        opened = open_image(example.image)
        require(opened.mode == "RGB" and min(opened.size) > 0, f"{opened.mode}, {opened.size}")
        require(image_key(example.image) == image_key(example.image), "two keys of one image")


def _drawn_file(data: st.DataObject, folder: Path) -> Path:
    mode = data.draw(st.sampled_from(("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA")))
    size = (data.draw(st.sampled_from((1, 3, 40))), data.draw(st.sampled_from((1, 3, 40, 2000))))
    saved, kind = (
        io.BytesIO(),
        data.draw(st.sampled_from(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))),
    )
    try:
        Image.new(mode, size).save(saved, kind)
    except (OSError, KeyError, ValueError):  # Pillow does not write this mode in this format
        Image.new("RGB", size).save(saved, "PNG")
    content = saved.getvalue()
    path = folder / "image.png"
    path.write_bytes(damaged(data, content) if data.draw(st.booleans()) else content)
    return path


def _array(data: st.DataObject, folder: Path) -> Any:
    shape = tuple(data.draw(st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 8)), max_size=4)))
    kind = data.draw(st.sampled_from(("uint8", "float32", "float64", "int64", "bool", "complex64")))
    with np.errstate(all="ignore"):
        array = np.full(
            shape, data.draw(st.sampled_from((0, 0.5, 1, 255, -1, 300, np.nan)))
        ).astype(kind)
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    forms = (
        lambda: array,
        lambda: torch.from_numpy(np.array(array)),
        lambda: png.getvalue(),
        lambda: png,
        lambda: {"bytes": png.getvalue(), "path": None},
        lambda: {"path": data.draw(texts)},
        lambda: data.draw(python_values),
    )
    return data.draw(st.sampled_from(forms))()


def _special_file(data: st.DataObject, folder: Path) -> Any:
    path = folder / "special.png"
    how = data.draw(st.sampled_from(("fifo", "folder", "link", "loop", "device", "text", "name")))
    if how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to(folder / "nowhere.png")
    elif how == "loop":
        path.symlink_to(path)
    elif how == "text":
        path.write_text("no image")
    elif how == "device":
        return Path(data.draw(st.sampled_from(("/dev/zero", "/dev/null", "/dev/tty"))))
    else:
        return data.draw(texts)
    return path if data.draw(st.booleans()) else str(path)


@cache
def vlm() -> NetworkVLM:
    """Return the embedded VLM, loaded once."""
    return load_vlm("embedded")


@cache
def _editor() -> Editor:
    return load_editor("ft", vlm(), steps=1)


def _calls(data: st.DataObject, folder: Path) -> None:
    """Call a function of VLM and editor with one odd argument."""
    odd = data.draw(
        st.one_of(
            python_values,
            st.just(_request()),
            st.just([_request()]),
            st.just("ft"),
            st.just("embedded"),
            st.just(load_cases("easyvqa", "test", limit=1)[0]),
            st.builds(vlm),
            st.builds(_editor),
            st.just(torch.zeros(2)),
        )
    )
    number = data.draw(st.one_of(st.sampled_from(NUMBERS[:6]), python_values))
    site = vlm().sites("language")[-1]
    calls = {
        "predict": lambda: vlm().predict(odd),
        "generate": lambda: vlm().generate(odd, max_new_tokens=2),
        "new tokens": lambda: vlm().generate([_request()], max_new_tokens=number),
        "capture": lambda: vlm().capture(odd, [site]),
        "sites of capture": lambda: vlm().capture([_request()], odd),
        "represent": lambda: vlm().represent(odd),
        "sites": lambda: vlm().sites(odd),
        "shape": lambda: vlm().shape(odd),
        "select": lambda: vlm().select(odd),
        "apply": lambda: _editor().apply(vlm(), odd),
        "apply to": lambda: _editor().apply(odd, [_request()]),
        "apply each": lambda: _editor().apply_each(vlm(), odd),
        "evaluate": lambda: list(evaluate(vlm(), _editor(), odd)),
        "evaluate with": lambda: list(evaluate(vlm(), odd, load_cases("easyvqa", "test", limit=1))),
        "batch size": lambda: list(
            evaluate(vlm(), _editor(), load_cases("easyvqa", "test", limit=1), batch_size=number)),
        "load editor": lambda: load_editor(odd, vlm()),
        "editor for": lambda: load_editor("mend", odd),
        "load vlm": lambda: load_vlm(odd),
        "load cases": lambda: load_cases(odd, "test", limit=1),
        "split": lambda: load_cases("easyvqa", odd, limit=1),
        "limit": lambda: load_cases("easyvqa", "test", limit=number),
        "save": lambda: _editor().save(str(folder / "e")),
    }  # fmt: skip
    name = data.draw(st.sampled_from(sorted(calls)))
    made = calls[name]()
    if name == "evaluate" and isinstance(odd, list | tuple):
        require(len(made) == len(odd), f"{len(made)} records of {len(odd)} cases")


def _keywords(data: st.DataObject, folder: Path) -> None:
    """Load an editor with odd settings: what is set must be what the editor has."""
    name = data.draw(st.sampled_from(("ft", "ft-l", "ike", "mend", "ke", "serac")))
    fields = sorted(load_editor(name, vlm()).config.model_dump())
    key = data.draw(st.one_of(st.sampled_from(fields), texts))
    value = data.draw(st.one_of(numbers, st.integers(0, 100), st.floats(0, 1), json_values))
    config = load_editor(name, vlm(), **{key: value}).config.model_dump()
    if isinstance(value, int | float) and not isinstance(value, bool):
        same = config[key] in (value, float(value))  # a whole number may become the nearest float
        require(same, f"{key}={value!r} became {config[key]!r}")


KINDS = {
    "metrics": Kind(20, _metrics),
    "examples": Kind(15, _examples),
    "images": Kind(10, _images),
    "calls": Kind(7, _calls),
    "keywords": Kind(5, _keywords),
}
