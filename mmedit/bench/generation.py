"""Free generations: how long they may be, their scores, and the settings of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import AfterValidator, Field

from mmedit.cases import EditCase, Example
from mmedit.images import image_key
from mmedit.metrics import generation
from mmedit.metrics.clip_score import ClipScore, load_clip_score, require_clip
from mmedit.metrics.judge import Judge, JudgeConfig
from mmedit.records.schema import Generation, JudgeTranscript
from mmedit.settings import Settings
from mmedit.vlm.interface import VLM

MARGIN, MARGIN_SHARE = 10, 0.25
"""Tokens that a generation may be longer than the longest accepted answer: at least so many, or
this share of it. They leave room for a short sentence around the answer.
"""
AT_ONCE = 4096
"""Answers in one call of the tokenizer."""
IMAGES_AT_ONCE = 32
"""Images in memory while the room behind the prompts is measured."""


class GenerationSettings(Settings):
    """Length of generations, and scores that cost more than comparing strings: none by default."""

    max_new_tokens: int | None = Field(default=None, ge=1)
    """Largest length of a generation in tokens; by default the longest accepted answer of the run
    and a margin.
    """
    fluency_tokens: int = Field(default=0, ge=0)
    """Length in tokens of the continuation that fluency is measured on; 0 turns it off."""
    clip_score: Annotated[str, AfterValidator(require_clip)] | None = None
    """ARCHITECTURE/WEIGHTS of an OpenCLIP model."""
    judge: JudgeConfig | None = None

    @property
    def costly_scores(self) -> list[str]:
        """Names of the scores that are turned on."""
        return list(self.model_dump(exclude_defaults=True, exclude={"max_new_tokens"}))

    def scorer(self) -> GenerationScorer:
        """Load the CLIP, if there is one, and return the scorer. Raises ModelError."""
        return GenerationScorer(
            fluency_tokens=self.fluency_tokens,
            clip=load_clip_score(self.clip_score) if self.clip_score else None,
            judge=Judge(self.judge) if self.judge else None,
        )


def answer_length(vlm: VLM, cases: Iterable[EditCase]) -> int:
    """Return how many tokens a generation of a run may have: the longest accepted answer of its
    requests and probes, in tokens of this VLM, and a margin.

    The margin is 10 tokens or a quarter of that answer, whichever is more. The length is less where
    the VLM has no room for it behind its longest prompt. Reads every image whose size decides the
    number of its tokens.
    """
    return length_for(vlm, list(examples_of(cases)))


def length_for(vlm: VLM, examples: Sequence[Example]) -> int:
    """Return how many tokens a generation may have, as `answer_length` does for these examples."""
    longest = longest_answer(vlm, examples)
    length = longest + max(MARGIN, round(MARGIN_SHARE * longest))
    return max(1, min(length, room_behind(vlm, examples)))


def longest_answer(vlm: VLM, examples: Iterable[Example]) -> int:
    """Return the length of the longest accepted answer in tokens of this VLM."""
    # The format around a text depends on whether there is an image, not on which one.
    distinct = {
        (example.image is None, answer): replace(example, target=answer, context="")
        for example in examples
        for answer in example.accepted
    }
    asked = list(distinct.values())
    return max(
        len(segments.answer)
        for at in range(0, len(asked), AT_ONCE)
        for segments in vlm.frozen.segments(asked[at : at + AT_ONCE])
    )


def room_behind(vlm: VLM, examples: Sequence[Example]) -> int:
    """Return how many new tokens fit behind the longest of these prompts."""
    parts = (examples[at : at + IMAGES_AT_ONCE] for at in range(0, len(examples), IMAGES_AT_ONCE))
    return min(_room(vlm, part) for part in parts)


def _room(vlm: VLM, examples: Sequence[Example]) -> int:
    contexts = (len(text.context) for text in vlm.frozen.segments(examples))
    left = vlm.frozen.room(examples, new_tokens=1)
    return min(room + 1 - context for room, context in zip(left, contexts, strict=True))


def examples_of(cases: Iterable[EditCase]) -> Iterable[Example]:
    """Yield the requests and probes of cases."""
    for case in cases:
        yield from case.requests
        for examples in case.probes.values():
            yield from examples


@dataclass(frozen=True)
class ScoredGeneration:
    """The scores of one generation, and what the judge said of it."""

    scores: Generation
    transcript: JudgeTranscript | None = None


@dataclass(frozen=True, eq=False)
class GenerationScorer:
    """Scores generations: always by comparing strings, and by CLIP and a judge if they are given.

    Each text is scored once for all editors of a run.
    """

    fluency_tokens: int = 0
    clip: ClipScore | None = None
    judge: Judge | None = None
    _known: dict[tuple[str, ...], ScoredGeneration] = field(default_factory=dict)

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[ScoredGeneration]:
        """Return the scores of every text. At most one forward of CLIP and one request to the judge
        per text.
        """
        keys = [_key(example, text) for example, text in zip(examples, texts, strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        scored = self._scored(
            [examples[place] for place in new.values()], [texts[place] for place in new.values()]
        )
        self._known.update(zip(new, scored, strict=True))
        return [self._known[key] for key in keys]

    def _scored(self, examples: Sequence[Example], texts: Sequence[str]) -> list[ScoredGeneration]:
        clip, verdicts = self._by_clip(examples, texts), self._by_judge(examples, texts)
        return [
            ScoredGeneration(
                Generation(
                    contains=generation.contains(text, example.accepted),
                    exact=generation.exact(text, example.accepted),
                    rouge_l=generation.rouge_l(text, example.accepted),
                    clip_score=clip_score,
                    judge=verdict.verdict if verdict else None,
                ),
                verdict,
            )
            for example, text, clip_score, verdict in zip(
                examples, texts, clip, verdicts, strict=True
            )
        ]

    def _by_clip(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float | None]:
        """Return CLIP's score of every text about an image, each computed alone: beside others its
        last digits would depend on which texts were known already.
        """
        if self.clip is None:
            return [None] * len(texts)
        return [
            None if example.image is None else self.clip([example.image], [text])[0]
            for example, text in zip(examples, texts, strict=True)
        ]

    def _by_judge(
        self, examples: Sequence[Example], texts: Sequence[str]
    ) -> Sequence[JudgeTranscript | None]:
        if self.judge is None:
            return [None] * len(texts)
        prompts, answers = [e.prompt for e in examples], [e.accepted for e in examples]
        return [JudgeTranscript(**vars(t)) for t in self.judge(prompts, answers, texts)]


def _key(example: Example, text: str) -> tuple[str, ...]:
    image = "" if example.image is None else image_key(example.image)
    return (image, example.prompt, text, *example.accepted)
