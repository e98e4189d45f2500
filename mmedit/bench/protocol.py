"""Evaluate an editor: edit the base model, test every probe, and record all metrics.

`mmedit.bench.scoring` computes the metrics, `mmedit.bench.run` measures several editors into a
folder, and `mmedit.bench.modes` lists the orders in which edits are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from mmedit.arguments import as_cases, as_count
from mmedit.bench.base_outputs import BaseOutputs, require_finite
from mmedit.bench.batches import ProbedCase, question_batches
from mmedit.bench.costs import forget_peak_memory, peak_memory_bytes, timed
from mmedit.bench.generation import GenerationScorer
from mmedit.bench.scoring import measure
from mmedit.cases import EditCase, Example, Probe, require_distinct_ids
from mmedit.chunks import chunks
from mmedit.editors.base import Editor
from mmedit.editors.config import EditorConfig
from mmedit.editors.given import as_editor, label_of
from mmedit.errors import EditorError, shortened
from mmedit.progress import Progress, by_itself, counted
from mmedit.records.schema import BASE, ProbeRecord, Record, Test
from mmedit.vlm.interface import VLM, as_vlm

IMAGES_AT_ONCE = 16
"""Largest number of images that are decoded before they are encoded."""


class NoEdit(Editor[EditorConfig]):
    """The base model's row of every table: it is measured like an editor that changes nothing."""

    method: ClassVar[str] = "none"
    config_class: ClassVar[type[EditorConfig]] = EditorConfig

    def __init__(self) -> None:
        super().__init__(EditorConfig(), label=BASE)

    def apply(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm

    def apply_each(self, vlm: VLM, requests: Sequence[Example]) -> VLM:
        return vlm


def evaluate(
    vlm: VLM,
    editor: Editor,
    cases: Sequence[EditCase],
    *,
    name: str = "",
    batch_size: int = 1,
    max_new_tokens: int = 0,
    progress: Progress | None = None,
) -> Iterator[Record]:
    """Edit the base model with each case's request alone and test its probes; yield one record per
    case, in order.

    `name` is the editor's name in the records, by default its label. An editor of your own needs
    only `apply_each`, and then a name. With `max_new_tokens` > 0 the
    records also hold free generations before and after the edit, and their scores. Without a
    `progress`, a bar is shown in a Jupyter notebook, and nothing elsewhere. Costs per batch
    of cases: one `apply_each`, and per probe one forward of the base model and, of the layers from
    the first edited one on, one of the edited model.
    Several editors share the forwards of the base through `Meter`. Raises ConfigError, ModelError
    if the base model's outputs are not finite, and an error for an argument of another kind.

    >>> records = list(evaluate(vlm, editor, cases, batch_size=20))  # doctest: +SKIP
    """
    vlm, editor, cases = as_vlm(vlm), as_editor(editor), as_cases(cases)
    batch_size = as_count("batch_size")(batch_size)
    max_new_tokens = as_count("max_new_tokens", least=0)(max_new_tokens)
    require_distinct_ids(cases)
    meter = Meter(
        BaseOutputs(vlm),
        name=name or label_of(editor),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    if cases:
        meter.encode_images(cases[:batch_size])
        require_finite(vlm, cases[0].request)
    records = meter.evaluate(editor, cases)
    return counted(records, f"measuring {meter.name}", len(cases), progress or by_itself())


@dataclass(frozen=True, kw_only=True)
class EditState:
    """State of an edited VLM at the time it is tested."""

    vlm: VLM
    seconds: Sequence[float]
    """Seconds that the edit of each tested case took."""
    places: Sequence[int]
    """Place of each tested case's edit among all edits, from 1; 0 for a case that is not edited."""
    edits: int = 1
    """Number of edits that the VLM holds."""
    separate: bool = False
    """True if each tested case has its own row of the VLM, with its own edit."""
    batch: int = 1
    """Number of edits that were computed together."""
    order: int = 0
    """Number of the sequence of edits."""
    test: Test = "edit"


@dataclass(frozen=True)
class Meter:
    """Measures one editor against the base model."""

    base: BaseOutputs
    _: KW_ONLY
    name: str
    """The editor's name in the records."""
    seed: int = 0
    batch_size: int = 1
    """Maximum number of examples in a forward, and of separate edits that are made together."""
    max_new_tokens: int = 0
    """Length of free generations in tokens; 0 turns them off."""
    scorer: GenerationScorer = field(default_factory=GenerationScorer)

    def __post_init__(self) -> None:
        as_count("batch_size")(self.batch_size)

    @property
    def vlm(self) -> VLM:
        """The base model."""
        return self.base.vlm

    def evaluate(self, editor: Editor, cases: Sequence[EditCase]) -> Iterator[Record]:
        """Yield the record of every case, each edited by itself."""
        for batch in chunks(cases, self.batch_size):
            yield from self.separate_edits(editor, batch)

    def separate_edits(self, editor: Editor, cases: Sequence[EditCase]) -> list[Record]:
        """Return the records of separate edits of the base model, made and tested together.

        `apply_each` makes one request for each row. So where a case has several (`EditCase.also`),
        the edits are made and tested one by one, with one `apply` each.
        """
        if any(case.also for case in cases):
            return [record for case in cases for record in self._edit_alone(editor, case)]
        self.encode_images(cases)
        forget_peak_memory(self.vlm.devices)
        requests = [case.request for case in cases]
        edited, seconds = timed(lambda: editor.apply_each(self.vlm, requests), self.vlm.devices)
        number = len(cases)
        state = EditState(
            vlm=edited,
            seconds=[seconds / number] * number,
            places=[1] * number,
            separate=True,
            batch=number,
        )
        return self.records(state, cases)

    def _edit_alone(self, editor: Editor, case: EditCase) -> list[Record]:
        """Return the record of one edit, all of whose requests are made at once."""
        if not isinstance(editor, Editor):
            raise EditorError(
                f"case {shortened(case.id)} has {len(case.requests)} requests, and {self.name} has "
                "no `apply`, which makes them together; derive your class from mmedit's Editor"
            )
        self.encode_images([case])
        forget_peak_memory(self.vlm.devices)
        edited, seconds = timed(lambda: editor.apply(self.vlm, case.requests), self.vlm.devices)
        return self.records(EditState(vlm=edited, seconds=[seconds], places=[1]), [case])

    def encode_images(self, cases: Sequence[ProbedCase]) -> None:
        """Put the images of all probes through the frozen stages, before they are needed.

        Images go through these stages in groups of a fixed size. Looked up probe by probe, with
        few examples in a batch, most of each group would be filled up.
        """
        examples = [e for case in cases for probe in case.probes.values() for e in probe]
        images = list(self.vlm.frozen.see(examples).values())
        for together in chunks(images, IMAGES_AT_ONCE):
            self.vlm.frozen.stage("bridge", together)

    def records(self, state: EditState, cases: Sequence[ProbedCase]) -> list[Record]:
        """Return the record of every case, tested on the edited model."""
        if not state.separate:
            self.encode_images(cases)
        probed = self._probed(state, cases)
        memory = peak_memory_bytes(self.vlm.devices)
        added = state.vlm.extra_parameters - self.vlm.extra_parameters
        return [
            Record(
                case_id=case.id,
                editor=self.name,
                seconds=state.seconds[row],
                batch=state.batch,
                peak_memory_bytes=memory,
                extra_parameters=added,
                seed=self.seed,
                edits=state.edits,
                place=state.places[row],
                order=state.order,
                test=state.test,
                probes={probe: tuple(probed[row][probe]) for probe in case.probes},
            )
            for row, case in enumerate(cases)
        ]

    def _probed(
        self, state: EditState, cases: Sequence[ProbedCase]
    ) -> list[dict[Probe, list[ProbeRecord]]]:
        """Return what was measured on each case, by probe."""
        found: list[dict[Probe, list[ProbeRecord]]] = [{} for _ in cases]
        separate = state.separate and state.vlm is not self.vlm
        for batch in question_batches(cases, self.batch_size):
            edits = [question.case for question in batch]
            records = measure(
                self.base,
                state.vlm.select(edits) if separate else state.vlm,
                [(question.probe, question.example) for question in batch],
                max_new_tokens=self.max_new_tokens,
                scorer=self.scorer,
                targets=[cases[question.case].edit_target for question in batch],
            )
            for question, record in zip(batch, records, strict=True):
                found[question.case].setdefault(question.probe, []).append(record)
        return found
