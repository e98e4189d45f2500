"""What is said and seen in easy-VQA: its questions, other ways to ask them, captions, and
renderings that keep the answer.

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
from PIL import Image, ImageFilter

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
SIZES = ("small", "large")

LARGE_FROM_PIXELS = 22
"""A shape whose longer side has at least this many pixels is called large: the median of the
training images.
"""


class Kind(StrEnum):
    """What a question asks for."""

    COLOR = "color"
    SHAPE = "shape"
    SHAPE_OF_COLOR = "shape of color"
    PRESENCE = "presence"
    ABSENCE = "absence"


@dataclass(frozen=True, kw_only=True)
class Phrasings:
    """Wordings of one kind of question. `{thing}` is "a red shape" or "a circle", `{bare}` the same
    without "a".
    """

    original: tuple[str, ...]
    further: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def train(self) -> tuple[str, ...]:
        return self.original + self.further


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
    """What a picture shows."""

    color: str
    shape: str

    def caption(self, size: str) -> str:
        """For instance "a small teal triangle on a light background"."""
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
        """Wrong answers of the same answer type."""
        if self.kind is Kind.COLOR:
            pool: tuple[str, ...] = COLORS
        elif self.kind in (Kind.SHAPE, Kind.SHAPE_OF_COLOR):
            pool = SHAPES
        else:
            pool = ("yes", "no")
        return tuple(answer for answer in pool if answer != self.answer(scene))


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


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where the shape is, in pixels, and the colour behind it."""

    left: int
    top: int
    right: int
    bottom: int
    background: tuple[int, int, int]

    @property
    def size(self) -> str:
        longer = max(self.right - self.left, self.bottom - self.top)
        return "large" if longer >= LARGE_FROM_PIXELS else "small"


def find_shape(image: Image.Image) -> Box:
    """The bounding box of the one shape: the pixels that differ from the most frequent colour."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    rows, columns = np.where(np.abs(pixels - background).sum(-1) > 120)
    if len(rows) == 0:
        raise ValueError("the image shows no shape: every pixel is near the background colour")
    red, green, blue = (int(channel) for channel in background)
    return Box(
        left=int(columns.min()),
        top=int(rows.min()),
        right=int(columns.max()) + 1,
        bottom=int(rows.max()) + 1,
        background=(red, green, blue),
    )


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Another rendering of the same content. No setting changes the right answer to any question; a
    shape near the boundary may turn from small to large.
    """

    flip: bool = False
    degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0

    @staticmethod
    def draw(rng: np.random.Generator) -> Rendering:
        """Flip half the time; up to 12 degrees, 12 % of size, 5 pixels, 6 % of each colour channel,
        blur 0.6, noise 6/255.
        """
        gain = rng.uniform(0.94, 1.06, size=3)
        return Rendering(
            flip=bool(rng.random() < 0.5),
            degrees=float(rng.uniform(-12, 12)),
            scale=float(rng.uniform(0.88, 1.12)),
            shift=(float(rng.uniform(0, 5)), float(rng.uniform(0, 5))),
            gain=(float(gain[0]), float(gain[1]), float(gain[2])),
            blur=float(rng.uniform(0, 0.6)),
            noise=float(rng.uniform(0, 6)),
            seed=int(rng.integers(2**31)),
        )

    def apply(self, image: Image.Image) -> Image.Image:
        """Turn and scale about the shape's centre, shift towards the middle (the shape stays in the
        picture), then the rest.
        """
        image = image.convert("RGB")
        box = find_shape(image)
        moved = self._move(image, box)
        if self.flip:
            moved = moved.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.blur:
            moved = moved.filter(ImageFilter.GaussianBlur(self.blur))
        pixels = np.asarray(moved).astype(np.float32) * np.asarray(self.gain, dtype=np.float32)
        pixels += np.random.default_rng(self.seed).normal(0, self.noise, pixels.shape)
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))

    def _move(self, image: Image.Image, box: Box) -> Image.Image:
        center = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
        toward = [
            shift if middle < side / 2 else -shift
            for shift, middle, side in zip(self.shift, center, image.size, strict=True)
        ]
        angle = np.deg2rad(self.degrees)
        cos, sin = np.cos(angle) / self.scale, np.sin(angle) / self.scale
        x, y = center[0] + toward[0], center[1] + toward[1]
        matrix = (
            cos, sin, center[0] - cos * x - sin * y,
            -sin, cos, center[1] + sin * x - cos * y,
        )  # fmt: skip
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            resample=Image.Resampling.BICUBIC,
            fillcolor=box.background,
        )


def counterfactual_caption(scene: Scene, size: str, rng: np.random.Generator) -> str:
    """A caption with another colour, shape and size: wrong in three of its words."""
    color = str(rng.choice([color for color in COLORS if color != scene.color]))
    shape = str(rng.choice([shape for shape in SHAPES if shape != scene.shape]))
    other_size = next(name for name in SIZES if name != size)
    return replace(scene, color=color, shape=shape).caption(other_size)
