"""Edit cases: a request, and the probes that measure the edit. No tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, overload

from PIL import Image

from mmedit.errors import DataError, EmptyAnswerError, UnknownNameError, shortened
from mmedit.image_inputs import as_image
from mmedit.images import image_key
from mmedit.storage import require_text

if TYPE_CHECKING:
    from mmedit.image_inputs import ImageInput


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt, with an image or without, and its answer.

    The language model gets `prompt` verbatim, after the image and inside the model family's own
    conversation markers. `context` is put between image and prompt: it conditions the answer, and
    no metric scores it (in-context editing puts its demonstrations there). `target` is the answer
    without leading space. `answers` are further answers that are right in free generation.
    `subject` is what the prompt is about, as it stands in it ("France"): methods that edit at its
    last token read it, the VLM does not. `image` may be a path, a PIL image, an array or a tensor,
    bytes, or a file object (`mmedit.image_inputs.as_image`). Raises DataError, EmptyAnswerError,
    ImageError.

    >>> Example(prompt="what color is the shape?", target="blue", image=Path("shapes/7.png"))
    Example('what color is the shape?' -> 'blue', image 7.png)
    """

    prompt: str
    target: str
    image: Path | Image.Image | None = None
    context: str = ""
    answers: tuple[str, ...] = ()
    subject: str = ""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            prompt: str,
            target: str,
            image: ImageInput | None = None,
            context: str = "",
            answers: Sequence[str] = (),
            subject: str = "",
        ) -> None: ...

    def __post_init__(self) -> None:
        require_text(self.prompt, "the prompt of an example")
        about = f"of {shortened(self.prompt)}"
        require_text(self.target, f"the target {about}")
        require_text(self.context, f"the context {about}")
        require_text(self.subject, f"the subject {about}")
        if not self.target.strip():
            raise EmptyAnswerError(
                f"the target {about} is empty; give the answer that the model must "
                "learn or is scored on"
            )
        object.__setattr__(self, "answers", _accepted(self.answers, about))
        if self.image is not None:
            object.__setattr__(self, "image", as_image(self.image))

    def __repr__(self) -> str:
        image = ""
        if isinstance(self.image, Path):
            image = f", image {self.image.name}"
        elif self.image is not None:
            image = f", image of {self.image.width} x {self.image.height} pixels"
        context = f", context of {len(self.context)} characters" if self.context else ""
        return f"Example({self.prompt!r} -> {self.target!r}{image}{context})"

    @property
    def accepted(self) -> tuple[str, ...]:
        """All answers that are right in free generation, the target first."""
        return tuple(dict.fromkeys((self.target, *self.answers)))


def _accepted(answers: object, about: str) -> tuple[str, ...]:
    """Return further accepted answers as a tuple of texts. Raises DataError, EmptyAnswerError."""
    if isinstance(answers, str):
        raise DataError(
            f"the accepted answers {about} are the text {shortened(answers)}; expected "
            f"a tuple of texts: ({shortened(answers)},)"
        )
    if not isinstance(answers, Sequence):
        raise DataError(
            f"the accepted answers {about} are of type {type(answers).__name__}; expected a tuple "
            "of texts"
        )
    for answer in answers:
        require_text(answer, f"an accepted answer {about}")
        if not answer.strip():
            raise EmptyAnswerError(
                f"an accepted answer {about} is empty, and an empty answer "
                "would accept silence; leave it out"
            )
    return tuple(answers)


class Probe(StrEnum):
    """Kind of question that measures an edit.

    The value is its name in records, `heading` its name in tables. Text and image reliability ask
    about the content of the edit, without and with its image (MMKE-Bench). Iconic generality asks
    about the clean picture of the edited product (grocery), near locality about an image like the
    edit's, object locality about another photograph of what an edit of one photograph shows. Fine
    generality and locality ask about the edit's own image, in and out of its scope (FGVEdit).
    Compositional reliability needs both edits of a case (CCKEB). Generalization and preservation
    ask records that are near or far by image or text (ComprehendEdit): `among` says which count.

    The last seven tell a deep edit from a shallow one (docs/protocol.md). Binding, after "this is
    X": what follows from X and from what was there before (new and old binding), and whether X also
    took the name of that (old entity). De-VQA: the edit's question about other images (random,
    consistent image) and without any (no image, question alone).

    >>> Probe.TEXT_GENERALITY.value, Probe.TEXT_GENERALITY.heading, Probe.TEXT_GENERALITY.title
    ('text_generality', 'T-Gen', 'Text generality')
    """

    heading: str

    RELIABILITY = "reliability", "Rel"
    TEXT_RELIABILITY = "text_reliability", "T-Rel"
    IMAGE_RELIABILITY = "image_reliability", "I-Rel"
    TEXT_GENERALITY = "text_generality", "T-Gen"
    IMAGE_GENERALITY = "image_generality", "I-Gen"
    ICONIC_GENERALITY = "iconic_generality", "P-Gen"
    TEXT_LOCALITY = "text_locality", "T-Loc"
    OBJECT_LOCALITY = "object_locality", "O-Loc"
    NEAR_LOCALITY = "near_locality", "N-Loc"
    IMAGE_LOCALITY = "image_locality", "I-Loc"
    PORTABILITY = "portability", "Port"
    # FGVEdit, CCKEB, ComprehendEdit
    FINE_GENERALITY = "fine_generality", "FG-Gen"
    FINE_LOCALITY = "fine_locality", "FG-Loc"
    COMPOSITIONAL_RELIABILITY = "compositional_reliability", "C-Rel"
    GENERALIZATION_IMAGE_NEAR = "generalization_image_near", "KGI I-near"
    GENERALIZATION_TEXT_NEAR = "generalization_text_near", "KGI T-near"
    GENERALIZATION_IMAGE_FAR = "generalization_image_far", "KGI I-far"
    GENERALIZATION_TEXT_FAR = "generalization_text_far", "KGI T-far"
    PRESERVATION_IMAGE_NEAR = "preservation_image_near", "KPI I-near"
    PRESERVATION_TEXT_NEAR = "preservation_text_near", "KPI T-near"
    PRESERVATION_IMAGE_FAR = "preservation_image_far", "KPI I-far"
    PRESERVATION_TEXT_FAR = "preservation_text_far", "KPI T-far"
    NEW_BINDING = "new_binding", "N-Bind"
    OLD_BINDING = "old_binding", "O-Bind"
    OLD_ENTITY = "old_entity_locality", "O-Ent"
    RANDOM_IMAGE = "random_image_locality", "RI"
    NO_IMAGE = "no_image_locality", "NI"
    CONSISTENT_IMAGE = "consistent_image_locality", "CI"
    QUESTION_ALONE = "question_alone_locality", "Q-Loc"

    def __new__(cls, value: str, heading: str) -> Probe:
        """Make a member; `Probe("reliability")` finds it by its value alone."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.heading = heading
        return member

    @property
    def title(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # of str
        """The name in words, for people: "Text generality"."""
        return self.value.replace("_", " ").capitalize()

    @property
    def is_locality(self) -> bool:
        """Whether the edit must leave the answer as it was; all other probes ask for the target."""
        return self.value.endswith("_locality")

    @property
    def among(self) -> Literal["right", "wrong"] | None:
        """Answer of the base model (teacher-forced) for which a question counts; None: all count.

        >>> Probe.GENERALIZATION_TEXT_FAR.among, Probe.PRESERVATION_TEXT_FAR.among
        ('wrong', 'right')
        """
        kind = self.value.partition("_")[0]
        return {"generalization": "wrong", "preservation": "right"}.get(kind)  # pyright: ignore

    @property
    def is_unwanted(self) -> bool:
        """Whether the target is an answer that the edited model should no longer give."""
        return self is Probe.OLD_BINDING

    @property
    def forces_own_answer(self) -> bool:
        """Whether the base model's own greedy answer is forced, in place of the example's target:
        what these locality probes ask has no answer in the data.
        """
        return self in OWN_ANSWER


OWN_ANSWER = frozenset(
    (
        Probe.OLD_ENTITY,
        Probe.RANDOM_IMAGE,
        Probe.NO_IMAGE,
        Probe.CONSISTENT_IMAGE,
        Probe.QUESTION_ALONE,
    )
)
"""The locality probes on which the base model's own greedy answer is forced."""


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """One edit of a benchmark: its request, and examples by probe.

    The request itself is the reliability probe, unless `probes` has another one. `also` are further
    requests of the same edit, made together with it: CCKEB edits what an image shows, and a fact
    about it in text. Editors that learn train on `request` alone.
    """

    id: str
    request: Example
    probes: Mapping[Probe, tuple[Example, ...]] = field(default_factory=dict)
    also: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        require_text(self.id, "the id of a case")
        if not isinstance(self.request, Example):
            raise DataError(
                f"the request of case {shortened(self.id)} is of type "
                f"{type(self.request).__name__}; expected an Example"
            )
        also = _examples("further requests", self.also, self.id)
        object.__setattr__(self, "also", also)
        if not isinstance(self.probes, Mapping):
            raise DataError(
                f"the probes of case {shortened(self.id)} are of type "
                f"{type(self.probes).__name__}; expected a dictionary of Examples by Probe"
            )
        given = {
            _probe(name): _examples(f"probe {name}", e, self.id) for name, e in self.probes.items()
        }
        probes = {Probe.RELIABILITY: (self.request,), **given}
        ordered = {probe: tuple(probes[probe]) for probe in Probe if probes.get(probe)}
        object.__setattr__(self, "probes", MappingProxyType(ordered))

    @property
    def edit_target(self) -> str:
        """The answer that the edit sets."""
        return self.request.target

    def __repr__(self) -> str:
        probes = ", ".join(f"{probe} {len(examples)}" for probe, examples in self.probes.items())
        also = f"and {len(self.also)} more, " if self.also else ""
        return f"EditCase({self.id!r}, {self.request!r}, {also}probes: {probes})"

    @property
    def requests(self) -> tuple[Example, ...]:
        """All requests of the edit, which are made together; mostly one."""
        return (self.request, *self.also)


def _probe(name: object) -> Probe:
    """Return a probe by its name. Raises UnknownNameError."""
    try:
        return Probe(name)
    except ValueError:
        raise UnknownNameError("probe", str(name), [probe.value for probe in Probe]) from None


def _examples(name: str, given: object, case: str) -> tuple[Example, ...]:
    """Return the examples of a probe; one alone is accepted. Raises DataError."""
    examples = [given] if isinstance(given, Example) else given
    if isinstance(examples, Sequence) and all(isinstance(e, Example) for e in examples):
        return tuple(examples)
    raise DataError(
        f"the {name} of case {shortened(case)} is not a list of Examples; expected "
        "(Example(...), ...)"
    )


@dataclass(frozen=True)
class Cases(Sequence[EditCase]):
    """Edit cases as a dataset gives them, and how many of its records were left out, by reason.

    Raises DataError if two of them have one id.
    """

    cases: tuple[EditCase, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_distinct_ids(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> EditCase: ...

    @overload
    def __getitem__(self, index: slice) -> Cases: ...

    def __getitem__(self, index: int | slice) -> EditCase | Cases:
        if isinstance(index, slice):
            return Cases(self.cases[index], self.left_out)
        return self.cases[index]


SPLIT_FOLDERS = frozenset({"train", "val", "test"})
"""Folders from which on the name of an image counts."""


def image_name(example: Example) -> str | None:
    """Return the name of an example's image in records, or None without an image.

    It is the end of the path, which is the same on every machine: the last three parts, or all from
    the folder of a split (`SPLIT_FOLDERS`), in which photographs may have the names of others. An
    image made in memory has its content hash.
    """
    if example.image is None:
        return None
    if isinstance(example.image, Path):
        end = example.image.parts[-5:]
        splits = [place for place, part in enumerate(end[:-1]) if part in SPLIT_FOLDERS]
        begin = max(0, min([len(end) - 3, *splits[-1:]]))
        return "/".join(end[begin:])
    return image_key(example.image)


Split = Literal["train", "test"]


def require_distinct_ids(cases: Iterable[EditCase]) -> None:
    """Raise DataError if two cases have one id, by which their records would be mixed up."""
    rows: dict[str, int] = {}
    for row, case in enumerate(cases):
        earlier = rows.setdefault(case.id, row)
        if earlier != row:
            raise DataError(
                f"two cases have the id {shortened(case.id)}: rows {earlier} and {row} (from 0). "
                "Records are told apart by the id; give every case its own"
            )


HASH_VERSION = "2:"
"""The beginning of a `dataset_hash`. Without it, a hash is of mmedit 0.1, which left out accepted
answers, contexts and the contents of images.
"""


def dataset_hash(cases: Iterable[EditCase]) -> str:
    """Return a hash of all that the cases say and show, in their order: ids, prompts, contexts,
    targets, accepted answers, and the names and contents of images.

    Costs one reading of every image file, which the process keeps (`image_key`): about a second
    per 500 MB that the system has in memory. Raises ImageError if an image cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for case in cases:
        asked = [("request", case.request), *(("also", example) for example in case.also)]
        asked += [(probe, example) for probe in case.probes for example in case.probes[probe]]
        content = [case.id, *([role, *_content(example)] for role, example in asked)]
        digest.update(json.dumps(content).encode() + b"\n")
    return HASH_VERSION + digest.hexdigest()


def _content(example: Example) -> list[object]:
    """Return all of an example that can change what a VLM answers, or how it is scored."""
    key = None if example.image is None else image_key(example.image)
    name = image_name(example) if isinstance(example.image, Path) else key
    return [
        example.prompt,
        example.context,
        example.target,
        list(example.answers),
        name,
        key,
        *([example.subject] if example.subject else []),
    ]
