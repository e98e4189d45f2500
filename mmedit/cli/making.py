"""The steps of `mmedit edit`: what to edit, where to keep it, and the answers before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedit.adapters.generation import Answer
from mmedit.bench.base_outputs import are_finite, require_finite
from mmedit.bench.generation import length_for
from mmedit.cases import EditCase, Example, Probe
from mmedit.chunks import chunks
from mmedit.cli.console import err, say
from mmedit.cli.progress import show_progress
from mmedit.datasets.annotated.requests import read_requests
from mmedit.edits.sequence import Unfinished, begin, edit_in_turn, is_begun, numbered
from mmedit.errors import ConfigError, DataError, MmeditError, shortened
from mmedit.images import open_image
from mmedit.processes import is_main_process
from mmedit.progress import silent
from mmedit.storage import make_folder
from mmedit.vlm.edit import Edit, Seen, require_name
from mmedit.vlm.edit_files import free_place
from mmedit.vlm.interface import VLM

if TYPE_CHECKING:
    from mmedit.editors.base import Editor

UNRELATED = (
    (0, Probe.TEXT_LOCALITY),
    (0, Probe.IMAGE_LOCALITY),
    (1, Probe.IMAGE_LOCALITY),
)
"""The unrelated questions that an edit is shown with: the number of the case, and its probe."""
AT_ONCE = 4
"""Questions that are asked in one batch, at least."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The requests of one command, and the place that keeps their edits."""

    requests: tuple[Example, ...]
    together: bool
    place: Path | None
    """The folder of --out; None if nothing is kept."""
    overwrite: bool

    @property
    def in_turn(self) -> bool:
        """Whether every request gets an edit of its own, one after another."""
        return len(self.requests) > 1 and not self.together

    @property
    def name(self) -> str:
        """Name of the edits that are kept; "" if nothing is kept."""
        return "" if self.place is None else self.place.expanduser().absolute().name

    def require_place(self, earlier: Sequence[str]) -> None:
        """Raise an error if the edits cannot be kept in their place."""
        if self.place is None:
            if self.overwrite:
                raise ConfigError("--overwrite replaces what is in --out; name --out too")
            return
        require_name(self.name)
        if self.in_turn:
            require_name(numbered(self.name, len(self.requests) - 1))
        place = free_place(self.place, overwrite=self.overwrite)
        for path in earlier:
            if Path(path).expanduser().absolute() == place:
                raise ConfigError(
                    f"--on and --out are both {path}, and the new edits need the earlier one; "
                    "name another --out"
                )
        make_folder(place.parent)


def given_request(
    prompt: str | None, target: str | None, image: Path | None, subject: str | None
) -> Example | None:
    """Return the request of --prompt, --target, --image and --subject; None if none was given.

    Raises ConfigError if one is missing or the subject is not in the prompt, and ImageError for an
    image that cannot be opened.
    """
    if (prompt, target, image, subject) == (None, None, None, None):
        return None
    if (prompt, target, image) == (None, None, None):
        raise ConfigError("--subject goes with --prompt; in a file of requests it is a key subject")
    if prompt is None or target is None:
        lacking = "--prompt" if prompt is None else "--target"
        raise ConfigError(f"{lacking} is missing; an edit needs --prompt and --target")
    if image is not None:
        open_image(image)
    if subject is not None and subject.lower() not in prompt.lower():
        raise ConfigError(
            f"--subject is {shortened(subject)}, which is not in the prompt {shortened(prompt)}; "
            "write it as it stands there, or leave it out"
        )
    return Example(prompt=prompt, target=target, image=image, subject=subject or "")


def requests_of(
    given: Example | None, file: Path | None, images: Sequence[Path], *, together: bool
) -> tuple[Example, ...]:
    """Return what is to be edited. Raises ConfigError for options that exclude each other."""
    if given is not None and file is not None:
        raise ConfigError(
            "--requests holds the edits, and so do --prompt, --target and --image; use one of both"
        )
    if given is not None:
        if together or images:
            option = "--together" if together else "--images"
            raise ConfigError(f"{option} is for many edits; name their file with --requests")
        return (given,)
    if file is None:
        raise ConfigError(
            "there is nothing to edit; give --prompt and --target, or a file with --requests"
        )
    with show_progress(err) as progress:
        return tuple(read_requests(file, images=images, progress=progress))


def unrelated(cases: Sequence[EditCase]) -> list[Example]:
    """Return the unrelated questions that the cases have; a minimal dataset has none."""
    return [
        cases[number].probes[probe][0]
        for number, probe in UNRELATED
        if number < len(cases) and probe in cases[number].probes
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """The questions of one command, and the answers before the edits."""

    vlm: VLM
    """The VLM that is edited."""
    requests: Sequence[Example]
    others: Sequence[Example]
    """Unrelated questions."""
    before: Sequence[Answer]
    length: int
    """Largest length of an answer, in tokens."""
    batch_size: int

    @property
    def examples(self) -> list[Example]:
        """All questions, those of the requests first."""
        return [*self.requests, *self.others]


def ask_before(
    vlm: VLM, requests: Sequence[Example], others: Sequence[Example], *, batch_size: int
) -> Asked:
    """Check that the VLM can be asked, and ask it. Raises DataError, ModelError."""
    examples = [*requests, *others]
    length = length_for(vlm, examples)
    for fault in vlm.frozen.faults(examples, new_tokens=length):
        if fault is not None:
            raise DataError(fault)
    require_finite(vlm, requests[0])
    asked = Asked(
        vlm=vlm, requests=requests, others=others, before=(), length=length, batch_size=batch_size
    )
    return replace(asked, before=_answers(vlm, asked, "asking before"))


def ask_after(asked: Asked, edited: VLM) -> tuple[list[Edit], set[str], int]:
    """Return the new edits with what was seen of them, answers that were cut off, and the number of
    questions whose outputs are not finite.

    The unrelated questions are noted with the last edit.
    """
    examples, after = asked.examples, _answers(edited, asked, "asking after")
    seen = [
        Seen(
            prompt=example.prompt,
            target=example.target if number < len(asked.requests) else "",
            answers=example.answers if number < len(asked.requests) else (),
            before=old.text,
            after=new.text,
            has_image=example.image is not None,
        )
        for number, (example, old, new) in enumerate(
            zip(examples, asked.before, after, strict=True)
        )
    ]
    cut_off = {answer.text for answer in (*asked.before, *after) if answer.is_cut_off}
    broken = sum(
        are_finite(edited, part).count(False) for part in chunks(examples, asked.batch_size)
    )
    return _with_seen(edited.edits[len(asked.vlm.edits) :], seen), cut_off, broken


def _with_seen(edits: Sequence[Edit], seen: Sequence[Seen]) -> list[Edit]:
    """Return edits with the answers to their requests; the last one gets all that are left."""
    noted, at = [], 0
    for number, edit in enumerate(edits):
        end = at + len(edit.requests) if number + 1 < len(edits) else len(seen)
        noted.append(replace(edit, seen=tuple(seen[at:end])))
        at = end
    return noted


def _answers(vlm: VLM, asked: Asked, task: str) -> list[Answer]:
    """Ask in batches; one batch takes a moment, so it shows no progress."""
    examples, answers = asked.examples, list[Answer]()
    is_long = len(examples) > asked.batch_size
    with show_progress(err) if is_long else nullcontext(silent) as progress:
        progress(task, 0, len(examples), "")
        for part in chunks(examples, asked.batch_size):
            answers += vlm.answer(part, max_new_tokens=asked.length)
            progress(task, len(answers), len(examples), "")
    return answers


def was_begun(wanted: Wanted, plan: Mapping[str, Any]) -> bool:
    """Return whether this command was given before, and stopped before its end."""
    place = wanted.place
    return place is not None and wanted.in_turn and is_begun(place.expanduser().absolute(), plan)


def unfinished_sequence(wanted: Wanted, plan: Mapping[str, Any]) -> Unfinished | None:
    """Return the folder that keeps the finished edits of a sequence; None if nothing is kept.

    The first process of `accelerate launch` writes; all of them make the same edits.
    """
    if wanted.place is None or not wanted.in_turn or not is_main_process():
        return None
    unfinished = begin(wanted.place.expanduser().absolute(), plan)
    if done := unfinished.finished:
        say(f"{done} of {len(wanted.requests)} edits are finished already; going on", to=err)
    return unfinished


def edit_all(editor: Editor, vlm: VLM, wanted: Wanted, unfinished: Unfinished | None) -> VLM:
    """Return the VLM with all edits. Says where the finished ones are if one fails."""
    name = wanted.name or editor.method
    if not wanted.in_turn:
        return vlm.with_edit(editor.edit(vlm, wanted.requests, name=name))
    try:
        with show_progress(err) as progress:
            return edit_in_turn(
                editor, vlm, wanted.requests, name=name, unfinished=unfinished, progress=progress
            )
    except MmeditError:
        if unfinished is not None and (done := unfinished.finished):
            say(f"Finished edits ({done}) are in {unfinished.path}", to=err)
        raise
