"""Edit cases in the form of E-VQA and E-IC (Cheng et al. 2023), made from easy-VQA: a seeded case
for each picture.

Request: a picture, one of its questions (`task="vqa"`) or a caption prompt (`task="caption"`), and
a wrong answer of the same type. Text generality: the question in another wording; in the test split
a wording that neither the embedded VLM nor an editor was trained on. Image generality: another
rendering of the picture (`renderings.Rendering`). Text locality: a fact without an image; the facts
of the two splits are about different countries. Image locality: a question about another picture of
the same split, with another shape in another colour. Editors train on easy-VQA's train pictures and
are tested on its test pictures.

Every fifth picture is asked about in image locality alone (`is_for_probes`). No case edits it, with
any seed, so no edit contradicts an image-locality probe however many edits a VLM holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image

from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.datasets.base import DatasetSettings, one_of
from mmedit.datasets.easyvqa import questions
from mmedit.datasets.easyvqa.pictures import Asked, Picture, known_pictures, scenes
from mmedit.datasets.easyvqa.questions import Kind, Scene, asks_of, counterfactual_caption
from mmedit.datasets.easyvqa.renderings import Rendering, find_shape
from mmedit.datasets.facts import Phrasings, choose, unrelated_fact
from mmedit.errors import ConfigError
from mmedit.images import open_image
from mmedit.progress import Progress

Task = Literal["vqa", "caption"]
TASKS: tuple[Task, ...] = get_args(Task)


PROBE_PICTURES = 5
"""One picture in so many is for image locality alone."""


class EasyVQA(DatasetSettings):
    """The dataset's settings: what is asked about its pictures, and how often."""

    task: Annotated[Task, one_of("task of easyvqa", TASKS)] = "vqa"
    questions_per_picture: Literal[1, 2] = 1
    """With 2 and the task vqa, every picture comes a second time, after all others, with a question
    of another kind.
    """

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Make all cases of a split, or the first `limit`.

        There are 2,582 for train and 639 for test; with two questions per picture 5,164 and 1,278.
        The order is seeded. The order and every case depend on the seed alone, so a smaller limit
        is a prefix of a larger one, and one question per picture a prefix of two. Raises
        ConfigError for two captions of a picture.
        """
        if self.task == "caption" and self.questions_per_picture > 1:
            raise ConfigError(
                "dataset.questions_per_picture=2 is for the task vqa: a caption has one prompt"
            )
        known = known_pictures(split)
        order = np.random.default_rng([seed, 0]).permutation(len(known))
        subjects = [
            _Subject(split, seed, *known[place]) for place in order if not is_for_probes(place)
        ]
        make = _vqa_case if self.task == "vqa" else _caption_case
        chosen = [(make, subject) for subject in subjects]
        if self.questions_per_picture > 1:
            again = [one for one in subjects if len(_by_kind(one.picture.asked)) > 1]
            chosen += [(_further_vqa_case, subject) for subject in again]
        chosen = chosen[:limit]
        cases = []
        for maker, subject in chosen:
            cases.append(maker(subject))
            progress("reading cases", len(cases), len(chosen), "")
        return Cases(tuple(cases))

    def training_questions(self, seed: int) -> Iterable[Example]:
        """Return easy-VQA's own questions about the pictures of the train split, with their true
        answers: reading the training cases would render every picture.
        """
        for picture, _ in known_pictures("train"):
            for asked in picture.asked:
                yield Example(prompt=asked.text, target=asked.answer, image=picture.path)

    def settles(self, prompt: str, other: str) -> bool:
        """Return whether two questions are both about the colour, or both about the shape. A
        caption has both.
        """
        return self.task == "caption" or asks_of(prompt) == asks_of(other)

    def shows(self, image: Path) -> str:
        """Return colour and shape: another picture of the same is the same thing."""
        scene = scenes()[image]
        return f"{scene.color} {scene.shape}"


def is_for_probes(place: int) -> bool:
    """Tell whether the known picture at this place of its split is for image locality alone."""
    return place % PROBE_PICTURES == PROBE_PICTURES - 1


@dataclass(frozen=True)
class _Subject:
    """A picture that becomes a case, and the seed of the case."""

    split: Split
    seed: int
    picture: Picture
    scene: Scene

    def generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, self.picture.number])


def _vqa_case(subject: _Subject) -> EditCase:
    rng = subject.generator(1)
    return _asked_case(subject, rng, _draw_asked(rng, subject.picture.asked))


def _further_vqa_case(subject: _Subject) -> EditCase:
    """Return a second case of the same picture, with a question of another kind."""
    asked = subject.picture.asked
    first = _draw_asked(subject.generator(1), asked)
    others = [one for one in asked if one.question.kind != first.question.kind]
    rng = subject.generator(4)
    case = _asked_case(subject, rng, _draw_asked(rng, others))
    return replace(case, id=f"{case.id}-2")


def _asked_case(subject: _Subject, rng: np.random.Generator, asked: Asked) -> EditCase:
    target = choose(rng, asked.question.other_answers(subject.scene))
    phrasings = questions.PHRASINGS[asked.question.kind]
    rephrase = asked.question.ask(_other_wording(rng, phrasings, subject.split, asked))
    return _case(subject, rng, "vqa", prompt=asked.text, rephrase=rephrase, target=target)


def _caption_case(subject: _Subject) -> EditCase:
    rng = subject.generator(2)
    size = find_shape(open_image(subject.picture.path)).size
    target = counterfactual_caption(subject.scene, size, rng)
    prompts = questions.CAPTION_PROMPTS
    rephrase = choose(rng, prompts.held_out if subject.split == "test" else prompts.further)
    prompt = prompts.original[0]
    return _case(subject, rng, "caption", prompt=prompt, rephrase=rephrase, target=target)


def _case(
    subject: _Subject,
    rng: np.random.Generator,
    task: Task,
    *,
    prompt: str,
    rephrase: str,
    target: str,
) -> EditCase:
    split, picture = subject.split, subject.picture
    return EditCase(
        id=f"easyvqa-{task}-{split}-{picture.number}",
        request=Example(prompt=prompt, target=target, image=picture.path),
        probes={
            Probe.TEXT_GENERALITY: (Example(prompt=rephrase, target=target, image=picture.path),),
            Probe.IMAGE_GENERALITY: (
                Example(prompt=prompt, target=target, image=_render(rng, picture)),
            ),
            Probe.TEXT_LOCALITY: (unrelated_fact(rng, split),),
            Probe.IMAGE_LOCALITY: (_unrelated_picture(rng, split, subject.scene),),
        },
    )


def _render(rng: np.random.Generator, picture: Picture) -> Image.Image:
    """Return another rendering; draw again if a shape would turn from small to large or back."""
    image = open_image(picture.path)
    box = find_shape(image)
    while True:
        rendered = Rendering.draw(rng).apply(image, box)
        if find_shape(rendered).size == box.size:
            return rendered


def _draw_asked(rng: np.random.Generator, questions: Sequence[Asked]) -> Asked:
    """Draw a kind of question, then one of that kind: else 3 of 4 cases would be yes or no."""
    by_kind = _by_kind(questions)
    return choose(rng, by_kind[choose(rng, list(by_kind))])


def _by_kind(questions: Sequence[Asked]) -> dict[Kind, list[Asked]]:
    by_kind: dict[Kind, list[Asked]] = defaultdict(list)
    for asked in questions:
        by_kind[asked.question.kind].append(asked)
    return by_kind


def _other_wording(
    rng: np.random.Generator, phrasings: Phrasings, split: Split, asked: Asked
) -> str:
    if split == "test":
        return choose(rng, phrasings.held_out)
    return choose(rng, [p for p in phrasings.train if asked.question.ask(p) != asked.text])


def _unrelated_picture(rng: np.random.Generator, split: Split, scene: Scene) -> Example:
    kept = known_pictures(split)[PROBE_PICTURES - 1 :: PROBE_PICTURES]
    while True:
        picture, other = kept[int(rng.integers(len(kept)))]
        if other.color != scene.color and other.shape != scene.shape:
            asked = _draw_asked(rng, picture.asked)
            return Example(prompt=asked.text, target=asked.answer, image=picture.path)
