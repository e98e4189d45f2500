"""One JSON line per edit: everything measured, written to disk as soon as it is known.

Tables and reports are made from these records alone.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import from_json, to_json

from mmedit.cases import Probe


class _Frozen(BaseModel):
    # "strings" keeps NaN and infinity in files that every JSON parser reads
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Scores(_Frozen):
    """Teacher-forced scores of one example against its target (docs/protocol.md)."""

    token_accuracy: float
    exact_match: float
    log_prob: float
    n_tokens: int


class Locality(_Frozen):
    """How far the edit moved the answer of one locality probe (docs/protocol.md)."""

    top1_answer: float
    exact_answer: float
    top1_all: float
    top10_ordered_all: float
    top10_set_answer: float
    kl: float


class Generation(_Frozen):
    """Scores of one greedy generation (docs/protocol.md).

    `unchanged` is there for locality probes after the edit, `fluency` and `repeated` for the
    request where a long continuation was wanted, `clip_score` and `judge` where they were.
    """

    contains: float
    exact: float
    rouge_l: float
    unchanged: float | None = None
    fluency: float | None = None
    repeated: float | None = None
    clip_score: float | None = None
    judge: float | None = None


class JudgeTranscript(_Frozen):
    """What a language model that judges an answer was asked, what it replied, and its verdict."""

    asked: str
    replied: str
    verdict: float


class ProbeRecord(_Frozen):
    """One example asked before and after the edit.

    `locality` and the generated answers are there only where they were measured.
    """

    prompt: str
    target: str
    image: str | None
    pre: Scores
    post: Scores
    locality: Locality | None = None
    generated_pre: str | None = None
    generated_post: str | None = None
    generation_pre: Generation | None = None
    generation_post: Generation | None = None
    judge_pre: JudgeTranscript | None = None
    judge_post: JudgeTranscript | None = None


Test = Literal["edit", "checkpoint", "gap", "ability"]
"""When a case was asked: right after its edit, or in a sequence after further ones (at a
checkpoint, where all edits so far are; a given number later), or of a case that stands for what the
VLM can do beside its edits.
"""


class Record(_Frozen):
    """One edit, tested once. `image` of the request (a path or content hash) is the cluster of the
    bootstrap.

    `peak_memory_bytes` is of this batch of edits on a GPU, of the whole process so far on a CPU;
    `extra_parameters` is what the edits that the VLM held add to the network.
    """

    case_id: str
    editor: str
    seconds: float
    batch: int
    peak_memory_bytes: int
    extra_parameters: int | None = None
    seed: int
    edits: int = 1
    """How many edits the VLM held when it was asked."""
    place: int = 1
    """Which of them this one was, from 1; 0 for a case that was not edited (`ability`)."""
    order: int = 0
    """Which of a run's sequences."""
    test: Test = "edit"
    probes: dict[Probe, tuple[ProbeRecord, ...]]

    @property
    def key(self) -> Key:
        """What no two records of a run share."""
        return Key(self.editor, self.order, self.test, self.edits, self.case_id)

    @property
    def cluster(self) -> str:
        """What the bootstrap resamples: the request's image, or the case where it has none."""
        requests = self.probes.get(Probe.RELIABILITY, ())
        return (requests[0].image if requests else None) or f"case {self.case_id}"


class Key(NamedTuple):
    """Which test of which edit a record tells of."""

    editor: str
    order: int
    test: Test
    edits: int
    case_id: str


class RunManifest(_Frozen):
    """How the records of a run directory were made; `config` is kept as the JSON it becomes."""

    command: str
    versions: dict[str, str]
    vlm: str
    dataset: str
    limit: int | None
    seed: int
    editors: tuple[str, ...]
    config: dict[str, object]
    training_seconds: dict[str, float]
    commit: str | None = None
    """Of the source that mmedit was run from, where that is a git checkout."""
    hashes: dict[str, str] = {}
    """Of what was measured: "vlm" (its weights), "dataset" (what its cases say), and every editor
    that holds something learnt.
    """

    @field_validator("config")
    @classmethod
    def _as_json(cls, config: dict[str, object]) -> dict[str, object]:
        return from_json(to_json(config, inf_nan_mode="strings"))


RUN = "run"
"""In a manifest's config, beside the editors' settings: what else decides the records."""
LEFT_OUT = "left_out"
MODE = "mode"
"""There where the edits were not made each by itself."""


def notes_of(manifest: RunManifest) -> list[str]:
    """What a table of the run must say beside its figures."""
    run = manifest.config.get(RUN)
    settings: dict[str, Any] = run if isinstance(run, dict) else {}
    notes = []
    if left_out := settings.get(LEFT_OUT):
        reasons = ", ".join(f"{why}: {number:,}" for why, number in sorted(left_out.items()))
        notes.append(f"Left out of {manifest.dataset}: {reasons}.")
    mode = settings.get(MODE, {})
    if mode.get("kind") == "batch":
        notes.append(f"Edits were made {mode['k']} at a time, and tested together.")
    if mode.get("kind") == "sequential":
        orders = f", in each of {mode['orders']} orders" if mode["orders"] > 1 else ""
        notes.append(f"Edits were made one after another{orders}, and tested after the last one.")
    return notes
