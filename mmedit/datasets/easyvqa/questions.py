"""The questions of easy-VQA, other ways to ask them, and captions.

An easy-VQA picture (64 x 64 pixels) shows one shape of one colour on a pale background. Its
questions come in five kinds; `PHRASINGS` holds, for each kind, the wordings of easy-VQA itself,
further wordings, and wordings that are *held out*: neither the embedded VLM nor an editor is ever
trained on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

import numpy as np

from mmedit.datasets.facts import Phrasings

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SIZES = ("small", "large")


class Kind(StrEnum):
    """The kind of a question, by what it asks for."""

    COLOR = "color"
    SHAPE = "shape"
    SHAPE_OF_COLOR = "shape of color"
    PRESENCE = "presence"
    ABSENCE = "absence"


PHRASINGS: dict[Kind, Phrasings] = {
    Kind.COLOR: Phrasings(
        original=("what color is the {noun}?", "what is the color of the {noun}?"),
        further=(
            "which color is the {noun}?",
            "what color does the {noun} have?",
            "which color does the {noun} have?",
            "tell me the color of the {noun}.",
            "name the color of the {noun}.",
            "in what color is the {noun} drawn?",
            "the {noun} in the image is of what color?",
            "the {noun} in the picture has which color?",
            "can you name the color of the {noun} in the picture?",
            "what is the color of the {noun} in the image?",
            "which color is the {noun} shown in?",
        ),
        held_out=(
            "what color is the {noun} in the picture?",
            "in which color is the {noun} shown?",
            "can you tell me the color of the {noun} in the image?",
        ),
    ),
    Kind.SHAPE: Phrasings(
        original=(
            "what shape is in the image?",
            "what shape does the image contain?",
            "what shape is present?",
        ),
        further=(
            "which shape is in the picture?",
            "which shape is shown in the image?",
            "what shape can you see?",
            "what shape do you see in the picture?",
            "name the shape in the image.",
            "tell me the shape in the picture.",
            "what kind of shape is present?",
            "what kind of shape does the picture contain?",
            "the image contains which shape?",
            "can you name the shape shown in the picture?",
        ),
        held_out=(
            "which shape does the picture contain?",
            "what shape is shown in the picture?",
            "can you tell me the shape in the image?",
        ),
    ),
    Kind.SHAPE_OF_COLOR: Phrasings(
        original=("what is the {color} shape?",),
        further=(
            "which shape is {color}?",
            "what shape is {color} in the image?",
            "name the {color} shape.",
            "tell me the {color} shape in the picture.",
            "what kind of shape is {color}?",
            "what kind of shape is the {color} shape?",
            "the {color} shape is of what kind?",
            "can you name the {color} shape in the image?",
            "which shape is the {color} shape in the picture?",
        ),
        held_out=(
            "what is the {color} shape in the image?",
            "which shape is {color} in the picture?",
            "can you tell me the {color} shape in the picture?",
        ),
    ),
    Kind.PRESENCE: Phrasings(
        original=(
            "is there {thing}?",
            "is there {thing} in the image?",
            "does the image contain {thing}?",
            "is {thing} present?",
        ),
        further=(
            "is {thing} in the picture?",
            "do you see {thing}?",
            "can you see {thing} in the image?",
            "does the picture show {thing}?",
            "is {thing} shown?",
            "does the image show {thing}?",
            "can you see {thing}?",
            "is {thing} present in the picture?",
        ),
        held_out=(
            "is there {thing} in the picture?",
            "does the picture contain {thing}?",
            "do you see {thing} in the image?",
        ),
    ),
    Kind.ABSENCE: Phrasings(
        original=(
            "is there not {thing}?",
            "is there not {thing} in the image?",
            "does the image not contain {thing}?",
            "is no {bare} present?",
        ),
        further=(
            "is {thing} not in the picture?",
            "do you not see {thing}?",
            "can you not see {thing} in the image?",
            "does the picture not show {thing}?",
            "is no {bare} shown?",
            "is {thing} not shown?",
            "does the image show no {bare}?",
            "is no {bare} in the picture?",
        ),
        held_out=(
            "is there not {thing} in the picture?",
            "does the picture not contain {thing}?",
            "is no {bare} present in the image?",
        ),
    ),
}

CAPTION_PROMPTS = Phrasings(
    original=("a photo of",),
    further=(
        "a picture of",
        "an image of",
        "this is a picture of",
        "the image shows",
        "the picture shows",
        "describe the image:",
        "tell me what the picture shows:",
        "give a short description of the image:",
    ),
    held_out=(
        "this is a photo of",
        "describe the picture:",
        "give a short description of the picture:",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a picture."""

    color: str
    shape: str

    def caption(self, size: str) -> str:
        """Return a caption, for instance "a small teal triangle on a light background"."""
        return f"a {size} {self.color} {self.shape} on a light background"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a picture, independent of its wording. `noun` is a shape or the word
    "shape".
    """

    kind: Kind
    noun: str = "shape"
    color: str = ""

    def ask(self, phrasing: str) -> str:
        bare = f"{self.color} {self.noun}".strip()
        return phrasing.format(noun=self.noun, color=self.color, bare=bare, thing=f"a {bare}")

    def answer(self, scene: Scene) -> str:
        if self.kind is Kind.COLOR:
            return scene.color
        if self.kind in (Kind.SHAPE, Kind.SHAPE_OF_COLOR):
            return scene.shape
        there = self.noun in (scene.shape, "shape") and self.color in (scene.color, "")
        return "yes" if there == (self.kind is Kind.PRESENCE) else "no"

    def other_answers(self, scene: Scene) -> tuple[str, ...]:
        """Return the wrong answers of the same type."""
        if self.kind is Kind.COLOR:
            pool: tuple[str, ...] = COLORS
        elif self.kind in (Kind.SHAPE, Kind.SHAPE_OF_COLOR):
            pool = SHAPES
        else:
            pool = ("yes", "no")
        return tuple(answer for answer in pool if answer != self.answer(scene))


@cache
def parse_question(text: str) -> Question:
    """Read one of easy-VQA's own questions.

    >>> parse_question("is there not a teal shape?")
    Question(kind=<Kind.ABSENCE: 'absence'>, noun='shape', color='teal')
    """
    for pattern, kind in _original_patterns():
        if match := pattern.fullmatch(text):
            slots = match.groupdict()
            words = (slots.get("thing") or slots.get("bare") or "").removeprefix("a ").split()
            color = slots.get("color") or (words[0] if words and words[0] in COLORS else "")
            noun = slots.get("noun") or (words[-1] if words else "shape")
            return Question(kind=kind, noun=noun, color=color)
    raise ValueError(f"not a question of easy-VQA: {text!r}")


def asks_of(prompt: str) -> str:
    """Return what a question in any wording is about: "color" or "shape".

    >>> asks_of("do you see a red shape?"), asks_of("what is the red shape?")
    ('color', 'shape')
    """
    there = (f"{word} {color} shape" for word in ("a", "no") for color in COLORS)
    return "color" if "color" in prompt or any(thing in prompt for thing in there) else "shape"


@cache
def _original_patterns() -> tuple[tuple[re.Pattern[str], Kind], ...]:
    noun = "|".join((*SHAPES, "shape"))
    color = "|".join(COLORS)
    bare = f"(?:{color}) shape|(?:{'|'.join(SHAPES)})"
    slots = {
        "{noun}": f"(?P<noun>{noun})",
        "{color}": f"(?P<color>{color})",
        "{thing}": f"(?P<thing>a (?:{bare}))",
        "{bare}": f"(?P<bare>{bare})",
    }
    patterns = []
    for kind, phrasings in PHRASINGS.items():
        for phrasing in phrasings.original:
            source = re.escape(phrasing)
            for slot, group in slots.items():
                source = source.replace(re.escape(slot), group)
            patterns.append((re.compile(source), kind))
    return tuple(patterns)


def counterfactual_caption(scene: Scene, size: str, rng: np.random.Generator) -> str:
    """Return a caption with another colour, shape and size: three of its words are wrong."""
    color = str(rng.choice([color for color in COLORS if color != scene.color]))
    shape = str(rng.choice([shape for shape in SHAPES if shape != scene.shape]))
    other_size = next(name for name in SIZES if name != size)
    return replace(scene, color=color, shape=shape).caption(other_size)
