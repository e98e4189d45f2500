"""What is made of a free generation: every score of one text, and which of the costly ones are
wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mmedit.cases import Example
from mmedit.images import image_key
from mmedit.metrics import generation
from mmedit.metrics.clip_score import ClipScore, load_clip_score, require_clip
from mmedit.metrics.judge import Judge, JudgeConfig
from mmedit.records.schema import Generation, JudgeTranscript


class SpeechSettings(BaseModel):
    """Which scores of generations that cost more than a string comparison are wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fluency_tokens: int = Field(default=0, ge=0)
    """Length of the continuation that fluency is measured on; 0: it is not measured."""
    clip_score: Annotated[str, AfterValidator(require_clip)] | None = None
    """ARCHITECTURE/WEIGHTS of OpenCLIP."""
    judge: JudgeConfig | None = None

    @property
    def wanted(self) -> list[str]:
        """The names of the scores that were asked for."""
        return list(self.model_dump(exclude_defaults=True))

    def scorer(self) -> SpeechScorer:
        """Loads the CLIP. Raises ModelError."""
        return SpeechScorer(
            fluency_tokens=self.fluency_tokens,
            clip=load_clip_score(self.clip_score) if self.clip_score else None,
            judge=Judge(self.judge) if self.judge else None,
        )


@dataclass(frozen=True)
class Spoken:
    """One generation, scored."""

    scores: Generation
    transcript: JudgeTranscript | None = None


@dataclass(frozen=True, eq=False)
class SpeechScorer:
    """Scores generations: by their strings always, by CLIP and by a judge where they are given.

    What the unedited model says is scored once for all editors: a text that was scored before costs
    nothing.
    """

    fluency_tokens: int = 0
    clip: ClipScore | None = None
    judge: Judge | None = None
    _known: dict[tuple[str, ...], Spoken] = field(default_factory=dict)

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Spoken]:
        """One entry for every text. At most one forward of CLIP, one request to the judge a
        text.
        """
        keys = [_key(example, text) for example, text in zip(examples, texts, strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        places = list(new.values())
        asked, said = [examples[p] for p in places], [texts[p] for p in places]
        scored = zip(self._by_clip(asked, said), self._by_judge(asked, said), strict=True)
        for key, example, text, (clip, verdict) in zip(new, asked, said, scored, strict=True):
            scores = Generation(
                contains=generation.contains(text, example.accepted),
                exact=generation.exact(text, example.accepted),
                rouge_l=generation.rouge_l(text, example.accepted),
                clip_score=clip,
                judge=None if verdict is None else verdict.verdict,
            )
            self._known[key] = Spoken(scores, verdict)
        return [self._known[key] for key in keys]

    def _by_clip(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float | None]:
        scores: list[float | None] = [None] * len(texts)
        seen = [(place, e.image) for place, e in enumerate(examples) if e.image is not None]
        if self.clip is not None and seen:
            found = self.clip([image for _, image in seen], [texts[place] for place, _ in seen])
            for (place, _), score in zip(seen, found, strict=True):
                scores[place] = score
        return scores

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
