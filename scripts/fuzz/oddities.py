"""Odd values, and odd changes of sound files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

TEXTS: Sequence[str] = (
    "", " ", "\n", "\0", "a\0b", "\ud83d", "[/b]", "[bold]x", "${HOME}", "../../etc/passwd",
    "/", ".", "..", "~", "-", "--", "--help", "None", "null", "true", "nan", "inf", "1e400", "-1",
    "0", "1e-5", "x" * 5000, "é", "e\u0301", "\u200b", "\u202e", "红色", "أحمر", "สีแดง", "🎉",
    "<image>", "<|endoftext|>", "</s>", "{}", "{0}", "{x}", "%s", "\\", "'", '"', "a/b", "a/b/c",
    "http://localhost:1/x", "file:///etc/passwd", "a=b", "a.b=c", "&x", "*x",
    "!!python/object:os.system", "C++", "?",
)  # fmt: skip
NUMBERS: Sequence[Any] = (
    0, -1, 1, 2, 7, 10**6, 10**12, 2**31, 2**63, 2**64, 10**30, 0.0, -0.5, 0.5, 1.5, 1e-5, 1e30,
    1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

texts = st.one_of(
    st.sampled_from(TEXTS),
    st.text(max_size=40),
    st.text(st.characters(), max_size=20),  # with surrogates
)
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
python_values = st.one_of(
    json_values,
    st.binary(max_size=20),
    st.builds(Path, st.text("ab./", max_size=8)),
    st.builds(object),
    st.tuples(texts, texts),
    st.sets(st.integers(), max_size=3),
    st.complex_numbers(),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values inside a JSON value, by keys and indices."""
    found = [at] if at else []
    if isinstance(value, dict):
        return found + [p for key, inner in value.items() for p in places(inner, (*at, key))]
    if isinstance(value, list):
        return found + [p for key, inner in enumerate(value) for p in places(inner, (*at, key))]
    return found


def changed(data: st.DataObject, value: Any) -> Any:
    """Return a JSON value with one to three odd changes."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.sampled_from((1, 1, 1, 2, 3)))):
        there = places(value)
        if not there:
            return data.draw(json_values)
        place = data.draw(st.sampled_from(there))
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        _change(data, parent, place[-1])
    return value


def _change(data: st.DataObject, parent: Any, key: Any) -> None:
    how = data.draw(
        st.sampled_from(("mix", "mix", "text", "text", "double", "replace", "delete", "add"))
    )
    if how == "delete":
        del parent[key]
    elif how == "add" and isinstance(parent, dict):
        parent[data.draw(texts)] = data.draw(json_values)
    elif how in ("add", "double") and isinstance(parent, list):
        parent.insert(key, parent[key] if how == "double" else data.draw(json_values))
    elif how in ("text", "mix") and isinstance(parent[key], str):
        text, odd = parent[key], data.draw(texts)
        at = data.draw(st.integers(0, len(text)))
        parent[key] = odd if how == "text" else text[:at] + odd + text[at:]
    else:
        parent[key] = data.draw(json_values)


def written(data: st.DataObject, value: Any) -> bytes:
    """Return a JSON value as the bytes of a file, now and then with damaged bytes."""
    content = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode(
        "utf-8", "surrogatepass"
    )
    return damaged(data, content) if data.draw(st.integers(0, 9)) == 0 else content


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Return bytes that are cut off, changed, doubled or in another encoding."""
    how = data.draw(
        st.sampled_from(("cut", "flip", "insert", "bom", "utf-16", "empty", "deep", "nul"))
    )
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    if how == "cut":
        return content[:at]
    if how == "flip" and content:
        return (
            content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
        )
    if how == "insert":
        return content[:at] + data.draw(st.binary(max_size=8)) + content[at:]
    if how == "bom":
        return b"\xef\xbb\xbf" + content
    if how == "utf-16":
        return content.decode("utf-8", "replace").encode("utf-16")
    if how == "deep":
        return b"[" * 20_000 + content
    return b"" if how == "empty" else content[:at] + b"\0" + content[at:]
