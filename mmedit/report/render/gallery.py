"""The edits that a report shows with their images and answers, and how each of them came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmedit.cases import Probe
from mmedit.records.schema import ProbeRecord, Record
from mmedit.report.render.thumbnails import Thumbnail
from mmedit.report.scores import by_editor, is_base

_PICTURED = {
    Probe.RELIABILITY: "request",
    Probe.IMAGE_GENERALITY: "image rephrase",
    Probe.ICONIC_GENERALITY: "iconic picture",
    Probe.OBJECT_LOCALITY: "object locality",
    Probe.NEAR_LOCALITY: "near locality",
    Probe.IMAGE_LOCALITY: "image locality",
}
TOOK, FAILED, KEPT, BROKEN = "took", "failed", "kept", "broken"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one method's edit: "" where no probe tells it."""

    edit: str
    """`TOOK` if the edit's own question has the new answer, else `FAILED`."""
    locality: str
    """`KEPT` if all answers to locality probes are those of the base model, else `BROKEN`."""


@dataclass(frozen=True)
class Answer:
    """The answers to one question before and after one method's edit."""

    editor: str
    before: str | None
    """None if no answer was generated."""
    after: str | None
    right: bool | None
    """Whether the answer is the expected one: the generated answer or, if none was generated, the
    exact match. None if neither tells it.
    """
    score: str
    """The exact match, shown in place of an answer that was not generated."""
    outcome: Outcome
    """The outcome of the whole edit, which the filter asks for."""


@dataclass(frozen=True)
class Question:
    """One example of the gallery with the answers of all methods."""

    heading: str
    prompt: str
    expected: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Picture:
    """One image of the gallery; `thumbnail` is None if there is no file of the image."""

    caption: str
    thumbnail: Thumbnail | None


@dataclass(frozen=True)
class GalleryCase:
    """One edit of the gallery."""

    id: str
    prompt: str
    target: str
    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """The outcome of every method's edit, by the method."""
        answers = [answer for question in self.questions for answer in question.answers]
        return {answer.editor: answer.outcome for answer in answers}


@dataclass(frozen=True)
class Choice:
    """One choice of the filter, with the number of edits that it shows when it is the only one."""

    value: str
    count: int


def gallery(
    records: Sequence[Record], examples: int, thumbnail: Callable[[str], Thumbnail | None]
) -> list[GalleryCase]:
    """Return the first edits of a run, each under every method that edits."""
    by_case: dict[str, dict[str, Record]] = {}
    for editor, found in by_editor(records).items():
        for record in found:
            if any(record.probes.values()):
                by_case.setdefault(record.case_id, {}).setdefault(editor, record)
    return [_case(by_case[case], thumbnail) for case in list(by_case)[:examples]]


def choices(cases: Sequence[GalleryCase]) -> dict[str, list[Choice]]:
    """Return the choices of the filter by name: method, edit, locality.

    A choice that no edit has is left out, unless it is the opposite of one that has some.
    """
    found = [case.outcomes for case in cases]
    methods = dict.fromkeys(editor for outcomes in found for editor in outcomes)
    counts = {
        "method": {name: sum(name in outcomes for outcomes in found) for name in methods},
        "edit": {
            kind: sum(any(o.edit == kind for o in outcomes.values()) for outcomes in found)
            for kind in (TOOK, FAILED)
        },
        "locality": {
            kind: sum(any(o.locality == kind for o in outcomes.values()) for outcomes in found)
            for kind in (KEPT, BROKEN)
        },
    }
    return {
        name: [Choice(value, count) for value, count in one.items()] if any(one.values()) else []
        for name, one in counts.items()
    }


def _case(
    by_method: Mapping[str, Record], thumbnail: Callable[[str], Thumbnail | None]
) -> GalleryCase:
    methods = {n: record for n, record in by_method.items() if not is_base(n)} or by_method
    first = next(iter(methods.values()))
    request = next(asked[0] for asked in first.probes.values() if asked)
    outcomes = {name: _outcome(record) for name, record in methods.items()}
    return GalleryCase(
        id=first.case_id,
        prompt=request.prompt,
        target=request.target,
        pictures=_pictures(first, thumbnail),
        questions=tuple(
            _question(probe, number, methods, outcomes)
            for probe in Probe
            for number in range(max(len(r.probes.get(probe, ())) for r in methods.values()))
        ),
    )


def _pictures(record: Record, thumbnail: Callable[[str], Thumbnail | None]) -> tuple[Picture, ...]:
    asked = [(caption, record.probes.get(probe, ())) for probe, caption in _PICTURED.items()]
    return tuple(
        Picture(caption, thumbnail(examples[0].image))
        for caption, examples in asked
        if examples and examples[0].image is not None
    )


def _question(
    probe: Probe,
    number: int,
    methods: Mapping[str, Record],
    outcomes: Mapping[str, Outcome],
) -> Question:
    asked = {
        name: record.probes[probe][number]
        for name, record in methods.items()
        if len(record.probes.get(probe, ())) > number
    }
    example = next(iter(asked.values()))
    expected = f"{'old answer' if probe.is_unwanted else 'target'}: {example.target}"
    if probe.is_locality:
        expected = "the answer must not change"
    answers = tuple(_answer(name, probe, one, outcomes[name]) for name, one in asked.items())
    return Question(probe.title, example.prompt, expected, answers)


def _answer(editor: str, probe: Probe, asked: ProbeRecord, outcome: Outcome) -> Answer:
    finite = asked.is_finite
    after = _text(asked.generated_post, asked.cut_off_post)
    return Answer(
        editor=editor,
        before=_text(asked.generated_pre, asked.cut_off_pre),
        after=after if finite else "NaN or infinite output",
        right=_is_right(probe, asked),
        score=_exact_match(asked),
        outcome=outcome,
    )


def _outcome(record: Record) -> Outcome:
    """Return how an edit came out by the same verdicts that its answers are marked with."""
    own = next((p for p in Probe if record.probes.get(p) and not p.is_locality), None)
    took = [_is_right(own, asked) for asked in record.probes[own]] if own else []
    kept = [
        _is_right(p, asked) for p in record.probes if p.is_locality for asked in record.probes[p]
    ]
    return Outcome(_verdict(took, TOOK, FAILED), _verdict(kept, KEPT, BROKEN))


def _verdict(marks: Sequence[bool | None], all_right: str, otherwise: str) -> str:
    known = [mark for mark in marks if mark is not None]
    return "" if not known else all_right if all(known) else otherwise


def _text(generated: str | None, is_cut_off: bool | None) -> str | None:
    """Return a generation as it is shown: with an ellipsis if it was cut off."""
    return f"{generated} …" if generated is not None and is_cut_off else generated


def _is_right(probe: Probe, asked: ProbeRecord) -> bool | None:
    """Return whether a locality answer stayed, an unwanted one is gone, or any other is right."""
    before, after = asked.generated_pre, asked.generated_post
    if not asked.is_finite:
        return False
    if after is None or (probe.is_locality and before is None):
        return _is_right_by_score(probe, asked)
    if probe.is_locality:
        return after == before
    if asked.generation_post is not None:
        return (asked.generation_post.exact == 1) != probe.is_unwanted
    return (after.strip().casefold() == asked.target.strip().casefold()) != probe.is_unwanted


def _is_right_by_score(probe: Probe, asked: ProbeRecord) -> bool | None:
    """Return the verdict of the exact match, for an answer that was not generated."""
    if not probe.is_locality:
        return (asked.post.exact_match == 1) != probe.is_unwanted
    return None if asked.locality is None else asked.locality.exact_answer == 1


def _exact_match(asked: ProbeRecord) -> str:
    if asked.locality is not None:
        return f"EM with the base model {asked.locality.exact_answer:g}"
    return f"EM {asked.pre.exact_match:g} → {asked.post.exact_match:g}"
