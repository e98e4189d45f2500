"""Edit cases in the form of E-VQA and E-IC (Cheng et al. 2023), made from easy-VQA: one case per
picture, seeded.

request: a picture, one of its questions (`task="vqa"`) or a caption prompt (`task="caption"`), and
a wrong answer of the same type. rephrase: the question in another wording; for the test split one
that neither the embedded VLM nor an editor was trained on. image rephrase: another rendering of the
picture (`renderings.Rendering`). text locality: a fact without image; the facts of the two splits
are about different countries. image locality: a question about another picture of the same split
that shows another shape in another colour. Editors train on easy-VQA's train pictures and are
tested on its test pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image

from mmedit.cases import EditCase, Example, Probe, Split
from mmedit.datasets.easyvqa import questions
from mmedit.datasets.easyvqa.pictures import Asked, Picture, known_pictures
from mmedit.datasets.easyvqa.questions import Kind, Scene, counterfactual_caption
from mmedit.datasets.easyvqa.renderings import Rendering, find_shape
from mmedit.datasets.facts import Phrasings, choose, unrelated_fact
from mmedit.errors import UnknownNameError
from mmedit.images import open_image
from mmedit.progress import Progress, silent

Task = Literal["vqa", "caption"]


"""Called with (cases made, cases in all)."""


def load(
    split: Split,
    *,
    task: Task = "vqa",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[EditCase]:
    """All cases of a split (3,227 for train, 798 for test), or the first `limit` of them, in a
    seeded order. Where `limit` is larger than the number of pictures, and the task is vqa, they
    come once more, each with a question of another kind (up to 1,596 for test).

    The order and every case depend on the seed alone, so a smaller limit is a prefix of a larger
    one.
    """
    if str(task) not in MAKERS:  # a list or number of `--set` too
        raise UnknownNameError("task of easyvqa", str(task), MAKERS)
    known = known_pictures(split)
    order = np.random.default_rng([seed, 0]).permutation(len(known))
    chosen = [(MAKERS[task], known[index]) for index in order]
    if task == "vqa" and limit and limit > len(known):
        again = [known[index] for index in order if len(_by_kind(known[index][0].asked)) > 1]
        chosen += [(_further_vqa_case, one) for one in again]
    chosen = chosen[:limit]
    cases = []
    for make, (picture, scene) in chosen:
        cases.append(make(split, picture, scene, seed))
        progress("reading cases", len(cases), len(chosen), "")
    return cases


def _vqa_case(split: Split, picture: Picture, scene: Scene, seed: int) -> EditCase:
    rng = np.random.default_rng([seed, 1, picture.number])
    return _asked_case("", split, picture, scene, rng, _draw_asked(rng, picture.asked))


def _further_vqa_case(split: Split, picture: Picture, scene: Scene, seed: int) -> EditCase:
    """Of the same picture a question of another kind."""
    first = _draw_asked(np.random.default_rng([seed, 1, picture.number]), picture.asked)
    others = [a for a in picture.asked if a.question.kind != first.question.kind]
    rng = np.random.default_rng([seed, 4, picture.number])
    return _asked_case("-2", split, picture, scene, rng, _draw_asked(rng, others))


def _asked_case(
    suffix: str,
    split: Split,
    picture: Picture,
    scene: Scene,
    rng: np.random.Generator,
    asked: Asked,
) -> EditCase:
    target = choose(rng, asked.question.other_answers(scene))
    phrasings = questions.PHRASINGS[asked.question.kind]
    rephrase = asked.question.ask(_other_wording(rng, phrasings, split, asked))
    case = _case(
        "vqa", split, picture, scene, rng, prompt=asked.text, rephrase=rephrase, target=target
    )
    return replace(case, id=case.id + suffix)


def _caption_case(split: Split, picture: Picture, scene: Scene, seed: int) -> EditCase:
    rng = np.random.default_rng([seed, 2, picture.number])
    target = counterfactual_caption(scene, find_shape(open_image(picture.path)).size, rng)
    prompts = questions.CAPTION_PROMPTS
    rephrase = choose(rng, prompts.held_out if split == "test" else prompts.further)
    return _case(
        "caption",
        split,
        picture,
        scene,
        rng,
        prompt=prompts.original[0],
        rephrase=rephrase,
        target=target,
    )


MAKERS = {"vqa": _vqa_case, "caption": _caption_case}


def _case(
    task: Task,
    split: Split,
    picture: Picture,
    scene: Scene,
    rng: np.random.Generator,
    *,
    prompt: str,
    rephrase: str,
    target: str,
) -> EditCase:
    return EditCase(
        id=f"easyvqa-{task}-{split}-{picture.number}",
        request=Example(prompt=prompt, target=target, image=picture.path),
        probes={
            Probe.TEXT_GENERALITY: (Example(prompt=rephrase, target=target, image=picture.path),),
            Probe.IMAGE_GENERALITY: (
                Example(prompt=prompt, target=target, image=_render(rng, picture)),
            ),
            Probe.TEXT_LOCALITY: (unrelated_fact(rng, split),),
            Probe.IMAGE_LOCALITY: (_unrelated_picture(rng, split, scene),),
        },
    )


def _render(rng: np.random.Generator, picture: Picture) -> Image.Image:
    """Drawn again where a shape near the boundary would turn from small to large or back."""
    image = open_image(picture.path)
    while True:
        rendered = Rendering.draw(rng).apply(image)
        if find_shape(rendered).size == find_shape(image).size:
            return rendered


def _draw_asked(rng: np.random.Generator, questions: Sequence[Asked]) -> Asked:
    """First a kind of question, then one of it: else three quarters of the cases would be yes or
    no.
    """
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
    known = known_pictures(split)
    while True:
        picture, other = known[int(rng.integers(len(known)))]
        if other.color != scene.color and other.shape != scene.shape:
            asked = _draw_asked(rng, picture.asked)
            return Example(prompt=asked.text, target=asked.answer, image=picture.path)
