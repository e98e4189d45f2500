"""What the embedded VLM is taught: views of pictures, rows of text about them or about facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor
from transformers import Blip2Processor

from mmedit.datasets import facts
from mmedit.datasets.easyvqa import pictures, questions, renderings
from mmedit.datasets.easyvqa.questions import Kind, Question, Scene
from mmedit.datasets.easyvqa.renderings import Rendering
from mmedit.methods.ike import demonstration
from mmedit.methods.ike.context import as_prompt, new_fact

RENDERINGS = 8
Option = TypeVar("Option")


@dataclass
class Gallery:
    """Every training picture as it is and in further renderings: pixel values [picture, rendering,
    3, H, W].
    """

    pixels: Tensor
    scenes: list[Scene]
    sizes: list[str]


def build_gallery(processor: Blip2Processor, seed: int, progress: Progress) -> Gallery:
    known = pictures.known_pictures("train")
    task = progress.add_task("renderings", total=len(known), figures="")
    pixels, scenes, sizes = [], [], []
    for picture, scene in known:
        image = Image.open(picture.path).convert("RGB")
        rng = np.random.default_rng([seed, 7, picture.number])
        views = [image] + [Rendering.draw(rng).apply(image) for _ in range(RENDERINGS - 1)]
        pixels.append(processor.image_processor(images=views, return_tensors="pt")["pixel_values"])
        scenes.append(scene)
        sizes.append(renderings.find_shape(image).size)
        progress.advance(task)
    return Gallery(pixels=torch.stack(pixels), scenes=scenes, sizes=sizes)


@dataclass(frozen=True)
class Row:
    """One line of training text; `view` is (picture, rendering), or None for text alone."""

    context: str
    prompt: str
    target: str
    view: tuple[int, int] | None


@dataclass(frozen=True)
class Statement:
    """One thing to know in two wordings: the truth, and an answer of the same type that a new fact
    may claim.
    """

    prompt: str
    rephrase: str
    truth: str
    answer: str
    view: tuple[int, int] | None
    topic: str


class Curriculum:
    """Draws training rows: questions about pictures, captions, facts, and each of them after new
    facts in the context.
    """

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.facts = facts.load_facts()

    def rows(
        self, rng: np.random.Generator, *, pictures: int, facts: int, contexts: int
    ) -> list[list[Row]]:
        """One batch of rows without context, and one with, where there are any."""
        plain = [self._picture_row(rng) for _ in range(pictures)] + [
            self._fact_row(rng) for _ in range(facts)
        ]
        return [
            batch for batch in (plain, [self._context_row(rng) for _ in range(contexts)]) if batch
        ]

    def _context_row(self, rng: np.random.Generator) -> Row:
        """Up to three demonstrations, then a new fact that holds for the prompt (it wins) or does
        not (it is ignored).
        """
        demonstrations = "".join(self._demonstration(rng) for _ in range(rng.integers(4)))
        stated = self._statement(rng, about_fact=bool(rng.random() < 0.3))
        context = demonstrations + as_prompt(new_fact(stated.prompt, stated.answer))
        if rng.random() < 0.35:
            other = self._statement(rng, about_fact=bool(rng.random() < 0.3))
            if other.topic != stated.topic:
                return Row(context, other.prompt, other.truth, other.view)
        return Row(context, stated.rephrase, stated.answer, stated.view)

    def _demonstration(self, rng: np.random.Generator) -> str:
        """What IKE's demonstrations hold: a new fact, then itself, its rephrase, or an unrelated
        fact.
        """
        new = self._statement(rng, about_fact=bool(rng.random() < 0.2))
        kind = rng.integers(3)
        if kind == 0:
            return demonstration(new.prompt, new.answer, new.prompt, new.answer)
        if kind == 1:
            return demonstration(new.prompt, new.answer, new.rephrase, new.answer)
        unrelated = self._statement(rng, about_fact=True)
        return demonstration(new.prompt, new.answer, unrelated.prompt, unrelated.truth)

    def _picture_row(self, rng: np.random.Generator) -> Row:
        statement = self._statement(rng, about_fact=False)
        return Row("", statement.prompt, statement.truth, statement.view)

    def _fact_row(self, rng: np.random.Generator) -> Row:
        statement = self._statement(rng, about_fact=True)
        return Row("", statement.prompt, statement.truth, None)

    def _statement(self, rng: np.random.Generator, *, about_fact: bool) -> Statement:
        return self._about_fact(rng) if about_fact else self._about_picture(rng)

    def _about_fact(self, rng: np.random.Generator) -> Statement:
        fact = choice(rng, self.facts)
        wordings = facts.PHRASINGS[fact.relation].train
        others = [other.answer for other in self.facts if other.relation == fact.relation]
        return Statement(
            prompt=fact.ask(choice(rng, wordings)),
            rephrase=fact.ask(choice(rng, wordings)),
            truth=fact.answer,
            answer=choice(rng, others),
            view=None,
            topic=f"{fact.relation} {fact.subject}",
        )

    def _about_picture(self, rng: np.random.Generator) -> Statement:
        view = int(rng.integers(len(self.gallery.scenes))), int(rng.integers(RENDERINGS))
        scene, size = self.gallery.scenes[view[0]], self.gallery.sizes[view[0]]
        if rng.random() < 0.12:
            prompts = questions.CAPTION_PROMPTS.train
            return Statement(
                prompt=choice(rng, prompts),
                rephrase=choice(rng, prompts),
                truth=scene.caption(size),
                answer=questions.counterfactual_caption(scene, size, rng),
                view=view,
                topic="caption",
            )
        question = draw_question(rng, scene)
        wordings = questions.PHRASINGS[question.kind].train
        asks_shape = question.kind in (Kind.SHAPE, Kind.SHAPE_OF_COLOR)
        return Statement(
            prompt=question.ask(choice(rng, wordings)),
            rephrase=question.ask(choice(rng, wordings)),
            truth=question.answer(scene),
            answer=choice(rng, question.other_answers(scene)),
            view=view,
            topic="shape"
            if asks_shape
            else f"{question.noun} {question.color}"
            if question.color
            else question.noun,
        )


def choice(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]


def draw_question(rng: np.random.Generator, scene: Scene) -> Question:
    """Half of the time a yes/no question."""
    kind = choice(rng, (*Kind, Kind.PRESENCE, Kind.ABSENCE))
    if kind is Kind.COLOR:
        return Question(kind=kind, noun=choice(rng, ("shape", scene.shape)))
    if kind is Kind.SHAPE:
        return Question(kind=kind)
    if kind is Kind.SHAPE_OF_COLOR:
        return Question(kind=kind, color=scene.color)
    true = rng.random() < 0.5
    if rng.random() < 0.5:
        return Question(kind=kind, noun=scene.shape if true else choice(rng, questions.SHAPES))
    return Question(kind=kind, color=scene.color if true else choice(rng, questions.COLORS))
