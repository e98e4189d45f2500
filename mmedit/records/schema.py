"""Records, one JSON line per tested edit, and the manifest of a run.

Tables and reports are made from records alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import from_json, to_json

from mmedit.cases import Probe

BASE = "base"
"""The editor's name in the records of the base model."""
_MODES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"independent": {}, "batch": {"k": 10}, "sequential": {"orders": 1}}
)
"""The kinds of mode, each with the settings that a table needs, and what they were where a first
version did not write them.
"""


class _Frozen(BaseModel):
    # "strings" keeps NaN and infinity in files that every JSON parser reads
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Scores(_Frozen):
    """Teacher-forced scores of one example against its target (docs/protocol.md)."""

    token_accuracy: float
    exact_match: float
    log_prob: float
    n_tokens: int

    @property
    def is_finite(self) -> bool:
        """Whether the logits of the answer are finite. The scores are NaN where they are not; in
        records of earlier versions the log-probability alone.
        """
        return math.isfinite(self.log_prob)


class Locality(_Frozen):
    """Scores of how far the edit moved the answer of one locality probe (docs/protocol.md)."""

    top1_answer: float
    exact_answer: float
    top1_all: float
    top10_ordered_all: float
    top10_set_answer: float
    kl: float


class Generation(_Frozen):
    """Scores of one greedy generation (docs/protocol.md).

    `unchanged` is set for locality probes after the edit, `leak` too if the case was edited (None
    in earlier versions), `fluency` and `repeated` for the request
    if long continuations were generated, `clip_score` and `judge` if they were turned on.
    """

    contains: float
    exact: float
    rouge_l: float
    unchanged: float | None = None
    leak: float | None = None
    fluency: float | None = None
    repeated: float | None = None
    clip_score: float | None = None
    judge: float | None = None


class JudgeTranscript(_Frozen):
    """The question to a language model that judges an answer, its reply and its verdict."""

    asked: str
    replied: str
    verdict: float


class Content(NamedTuple):
    """A question as it is asked. Two of equal content are one question, whatever their cases are
    called.
    """

    prompt: str
    target: str
    image: str | None


class ProbeRecord(_Frozen):
    """One example, answered before (`pre`) and after (`post`) the edit.

    `locality` and the generations are None if they were not measured.
    """

    prompt: str
    target: str
    image: str | None
    pre: Scores
    post: Scores
    locality: Locality | None = None
    forced: str | None = None
    """The answer that was forced in place of the target: the base model's own; None for probes that
    force the target.
    """
    generated_pre: str | None = None
    generated_post: str | None = None
    cut_off_pre: bool | None = None
    """Whether the generation reached its largest length before an end; None in earlier versions."""
    cut_off_post: bool | None = None
    generation_pre: Generation | None = None
    generation_post: Generation | None = None
    judge_pre: JudgeTranscript | None = None
    judge_post: JudgeTranscript | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the base and the edited model gave finite outputs. No score of a probe without
        them enters a mean.
        """
        if not (math.isfinite(self.pre.log_prob) and math.isfinite(self.post.log_prob)):
            return False
        moved = self.locality
        return moved is None or not any(map(math.isnan, vars(moved).values()))

    @property
    def content(self) -> Content:
        """Prompt, target and image of the question."""
        return Content(self.prompt, self.target, self.image)


Test = Literal["edit", "checkpoint", "gap", "ability"]
"""Time of a test: right after the case's own edit; in a sequence at a checkpoint, with all edits so
far, or a fixed gap of edits later; or a test of ability, on cases that are not edited.
"""


class Record(_Frozen):
    """One test of one edit.

    `seconds` is the wall time of the edit, `batch` the number of edits computed together.
    `peak_memory_bytes` is of this batch of edits on a GPU, of the whole process so far on a CPU.
    `extra_parameters` is the number that the edits in the VLM add to the network.
    """

    case_id: str
    editor: str
    seconds: float
    batch: int = Field(ge=0)
    peak_memory_bytes: int
    extra_parameters: int | None = None
    seed: int
    edits: int = Field(default=1, ge=0)
    """Number of edits in the VLM at the time of the test."""
    place: int = Field(default=1, ge=0)
    """Place of this edit among them, from 1; 0 for a case that was not edited (`ability`)."""
    order: int = Field(default=0, ge=0)
    """Number of the sequence of edits in its run."""
    test: Test = "edit"
    probes: dict[Probe, tuple[ProbeRecord, ...]]

    @property
    def key(self) -> Key:
        """Identity of the record in its run."""
        return Key(self.editor, self.order, self.test, self.edits, self.case_id)

    @property
    def content(self) -> Content:
        """Content of the request. A record without a request has its case id as the prompt."""
        requests = self.probes.get(Probe.RELIABILITY, ())
        return requests[0].content if requests else Content(f"case {self.case_id}", "", None)

    @property
    def is_finite(self) -> bool:
        """Whether all outputs on all probes were finite."""
        return all(example.is_finite for asked in self.probes.values() for example in asked)


class Key(NamedTuple):
    """Identity of a record in its run: editor, sequence, test and case."""

    editor: str
    order: int
    test: Test
    edits: int
    case_id: str


class RunSettings(_Frozen):
    """Settings of a run besides those of its editors."""

    batch_size: int | None = None
    """Batch size of the last command; None in a manifest of a first version, which has none."""
    max_new_tokens: int | None = None
    """Largest length of a free generation in tokens; 0 if there are none."""
    generation: dict[str, Any] = {}
    """Scores of generations that are turned on, with their settings."""
    overrides: tuple[str, ...] = ()
    """The `--set` of the last command."""
    split: Literal["test", "validation"] = "test"
    """The cases that were measured. The run did not train on validation cases."""
    mode: dict[str, Any] = {"kind": "independent"}
    """Kind of the mode, and its settings (`mmedit.bench.modes`)."""
    left_out: dict[str, int] = {}
    """Number of records of the dataset that were left out, by reason."""
    contradictions: dict[str, int] = {}
    """Number of probes that another edit of the run contradicts, by name, and of requests that
    contradict an earlier one as "request" (`mmedit.bench.contradictions`).
    """
    on_contradiction: Literal["error", "skip"] = "error"
    """"skip": these probes and requests were left out; "error": they were only counted."""
    protocol: dict[str, Any] = {}
    """Image size and text format of the VLM (`mmedit.adapters.protocol`); empty in an earlier
    manifest.
    """

    @field_validator("mode")
    @classmethod
    def _known_mode(cls, mode: dict[str, Any]) -> dict[str, Any]:
        needed = _MODES.get(str(mode.get("kind")))
        if needed is None:
            raise ValueError(f"kind must be one of {', '.join(_MODES)}")
        whole = {**mode, **{key: mode.get(key, needed[key]) for key in needed}}
        for key in needed:
            if type(whole[key]) is not int or whole[key] < 1:
                raise ValueError(f"{key} must be a whole number from 1 on")
        return whole

    @model_validator(mode="before")
    @classmethod
    def _of_first_versions(cls, written: Any) -> Any:
        """Read the form in which the settings of generation stood among the others."""
        if not isinstance(written, Mapping) or "generation" in written:
            return written
        costly = {key: written[key] for key in written if key not in cls.model_fields}
        return {key: written[key] for key in written if key not in costly} | {"generation": costly}


class RunPart(_Frozen):
    """One command that measured into a run folder, if it changed something that may change."""

    command: str
    first_record: int
    """Number of records that were there before."""
    batch_size: int | None
    cases: int | None
    editors: tuple[str, ...]
    versions: dict[str, str]
    commit: str | None = None


class RunManifest(_Frozen):
    """Settings, versions and commands that the records of a run folder come from."""

    command: str
    """The last command that measured into the folder."""
    versions: dict[str, str]
    vlm: str
    dataset: str
    limit: int | None
    seed: int
    editors: tuple[str, ...]
    config: dict[str, object]
    """Settings of every editor by its label, as JSON."""
    sites: dict[str, tuple[str, ...]] = {}
    """Weights that each editor edits, by its label, as they were found on the VLM; without those
    that edit no weight. Empty in a manifest of an earlier version.
    """
    run: RunSettings = RunSettings()
    training_seconds: dict[str, float]
    commit: str | None = None
    """Commit of the checkout that mmedit ran from, with "+" if files were changed; else None."""
    hashes: dict[str, str] = {}
    """Hashes of the VLM's weights ("vlm"), of the cases ("dataset"), and of all that each editor
    has learnt.
    """
    cases: int | None = None
    """Number of cases; None in a manifest of a first version."""
    latencies: dict[str, tuple[float, ...]] = {}
    """Seconds of edits that were made one at a time, by editor; in the order of the cases."""
    parts: tuple[RunPart, ...] = ()
    """The commands that the records come from, in order."""

    @model_validator(mode="before")
    @classmethod
    def _of_first_versions(cls, written: Any) -> Any:
        """Read the form in which the settings of the run stood among those of the editors."""
        if not isinstance(written, Mapping) or "run" in written:
            return written
        config = written.get("config")
        if not isinstance(config, Mapping) or "run" not in config:
            return written
        editors = {label: config[label] for label in config if label != "run"}
        return {**written, "config": editors, "run": config["run"]}

    @field_validator("config")
    @classmethod
    def _as_json(cls, config: dict[str, object]) -> dict[str, object]:
        return from_json(to_json(config, inf_nan_mode="strings"))
