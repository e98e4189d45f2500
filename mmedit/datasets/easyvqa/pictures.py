"""The pictures of easy-VQA, their contents and their questions (PyPI package `easy-vqa`, MIT)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import easy_vqa

from mmedit.cases import Split
from mmedit.datasets.easyvqa.questions import COLORS, SHAPES, Question, Scene, parse_question


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of easy-VQA with its answer, word for word."""

    text: str
    answer: str
    question: Question


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and its questions. `scene` is None if the answers do not settle what is shown."""

    number: int
    path: Path
    asked: tuple[Asked, ...]
    scene: Scene | None


@cache
def load_pictures(split: Split) -> tuple[Picture, ...]:
    """Return all pictures of a split, by number: 4,000 for train, 1,000 for test."""
    texts, answers, numbers = (
        easy_vqa.get_train_questions() if split == "train" else easy_vqa.get_test_questions()
    )
    paths = (
        easy_vqa.get_train_image_paths() if split == "train" else easy_vqa.get_test_image_paths()
    )
    asked: dict[int, list[Asked]] = defaultdict(list)
    for text, answer, number in zip(texts, answers, numbers, strict=True):
        asked[number].append(Asked(text=text, answer=answer, question=parse_question(text)))
    return tuple(
        Picture(
            number=number,
            path=Path(paths[number]),
            asked=tuple(asked[number]),
            scene=_scene(asked[number]),
        )
        for number in sorted(asked)
    )


@cache
def known_pictures(split: Split) -> tuple[tuple[Picture, Scene], ...]:
    """Return the pictures whose answers settle both colour and shape."""
    return tuple((picture, picture.scene) for picture in load_pictures(split) if picture.scene)


@cache
def scenes() -> dict[Path, Scene]:
    """Return what the pictures of both splits show, as far as their answers settle it."""
    known = (*known_pictures("train"), *known_pictures("test"))
    return {picture.path: scene for picture, scene in known}


def _scene(asked: Sequence[Asked]) -> Scene | None:
    fitting = frozenset.intersection(*(_scenes(one.question, one.answer) for one in asked))
    return next(iter(fitting)) if len(fitting) == 1 else None


@cache
def _scenes(question: Question, answer: str) -> frozenset[Scene]:
    """Return the scenes in which a question has this answer."""
    scenes = (Scene(color=color, shape=shape) for color, shape in product(COLORS, SHAPES))
    return frozenset(scene for scene in scenes if question.answer(scene) == answer)
