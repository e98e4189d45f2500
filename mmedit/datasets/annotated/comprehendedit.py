"""ComprehendEdit (Ma et al., AAAI 2025): questions of five datasets, with the records that are
near to each edit and far from it.

Each test record names other records, nearest and farthest by image and by text. Those of the test
file, which the authors' VLMs got wrong, ask what else became right (KGI, generalization); those of
ComprehendEdit_ori_right.json, which they got right, ask what stayed right (KPI, preservation):

    KGI = P(right after the edit | wrong before)      KPI = P(right after the edit | right before)

Differences from the published code:
- The base model's answers are those of the VLM at hand, not the stored predictions of BLIP-2 and
  MiniGPT-4 (`Probe.among`); right is teacher-forced exact match, as there.
- Text locality is scored with its answer; there the question stands in the answer's place.
- A record is not among its own neighbours, and image generality, there a copy of reliability, is
  left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from mmedit.cases import EditCase, Example, Probe
from mmedit.datasets.annotated.annotations import Annotation
from mmedit.datasets.annotated.cases import MMEDIT, Source, usual_case
from mmedit.errors import DataError

REQUIRED = ("rephrase", "loc", "m_loc")
TEMPLATES = {
    "tallyqa": "Question: {} Answer with a number. Short answer:",
    "vsr": "Question: Is this description true or false? Description: {} Short answer:",
    "mathvista": "{} Short answer:",
}
"""Prompts of the sources that are not asked in `MMEDIT`'s words."""
GROUPS = {
    "img_topk": (Probe.GENERALIZATION_IMAGE_NEAR, Probe.PRESERVATION_IMAGE_NEAR),
    "txt_topk": (Probe.GENERALIZATION_TEXT_NEAR, Probe.PRESERVATION_TEXT_NEAR),
    "img_last_topk": (Probe.GENERALIZATION_IMAGE_FAR, Probe.PRESERVATION_IMAGE_FAR),
    "txt_last_topk": (Probe.GENERALIZATION_TEXT_FAR, Probe.PRESERVATION_TEXT_FAR),
}
"""The keys of neighbours, and what they ask: as such, and behind "ori_rt_" in the other file."""
RIGHT = "ori_rt_"


class ComprehendEditRecord(Annotation):
    """A record of ComprehendEdit. Those of the training file, and of the file of answers that were
    right, name no neighbours.
    """

    src: str = Field(alias="question")
    alt: str = Field(alias="answer")
    loc: str | None = Field(default=None, alias="locality_prompt")
    loc_ans: str | None = Field(default=None, alias="locality_ground_truth")
    m_loc: str | None = Field(default=None, alias="multimodal_locality_image")
    m_loc_q: str | None = Field(default=None, alias="multimodal_locality_prompt")
    m_loc_a: str | None = Field(default=None, alias="multimodal_locality_ground_truth")
    source: str
    pid: int | None = None
    img_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    txt_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    img_last_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    txt_last_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    ori_rt_img_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    ori_rt_txt_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    ori_rt_img_last_topk: tuple[int, ...] | None = Field(default=None, strict=False)
    ori_rt_txt_last_topk: tuple[int, ...] | None = Field(default=None, strict=False)

    def neighbours(self, key: str, number: int, where: str) -> tuple[int, ...]:
        """Return the pids of so many neighbours under a key: the first of the nearest, the last of
        the farthest. Raises DataError if the record lacks the key.
        """
        pids: tuple[int, ...] | None = getattr(self, key)
        if pids is None:
            raise DataError(
                f"{where}: {key} is missing; a test record names its neighbours there. To leave "
                "KGI and KPI out: --set dataset.per_group=0"
            )
        if not key.startswith(RIGHT):
            pids = tuple(pid for pid in pids if pid != self.pid)
        return pids[-number:] if "last" in key else pids[:number]


def comprehendedit_case(source: Source, row: int, record: Annotation) -> EditCase:
    """Return the case of a record without its neighbours."""
    return usual_case(_of_source(source, record), row, record)


@dataclass(frozen=True)
class Neighbours:
    """Makes cases with the questions of the neighbours."""

    number: int
    """Number of neighbours of each group."""
    wrong: tuple[Source, Mapping[int, tuple[int, Annotation]]]
    """The test file, and its rows and records by pid."""
    right: tuple[Source, Mapping[int, tuple[int, Annotation]]]
    """The file of answers that were right."""

    @classmethod
    def read(cls, number: int, wrong: Source, right: Source) -> Neighbours:
        """Read both files. Raises DataError."""
        return cls(number, (wrong, _by_pid(wrong.read())), (right, _by_pid(right.read())))

    def case(self, source: Source, row: int, record: Annotation) -> EditCase:
        """Return the case of a record. Raises DataError if it names a record that is not there."""
        assert isinstance(record, ComprehendEditRecord)
        usual = comprehendedit_case(source, row, record)
        probes = dict(usual.probes)
        for group, (generalization, preservation) in GROUPS.items():
            probes[generalization] = self._asked(source, row, record, group)
            probes[preservation] = self._asked(source, row, record, RIGHT + group)
        return replace(usual, probes=probes)

    def _asked(
        self, source: Source, row: int, record: ComprehendEditRecord, key: str
    ) -> tuple[Example, ...]:
        where = f"{source.file}, row {row}"
        found, records = self.right if key.startswith(RIGHT) else self.wrong
        asked = []
        for pid in record.neighbours(key, self.number, where):
            if pid not in records:
                raise DataError(
                    f"{where}: {key} names pid {pid}, which {found.file} lacks; expected one of "
                    f"its {len(records):,} records: use the files of one release"
                )
            place, other = records[pid]
            if not other.empty:
                asked.append(usual_case(_of_source(found, other), place, other).request)
        return tuple(asked)


def _by_pid(records: Sequence[Annotation]) -> dict[int, tuple[int, Annotation]]:
    """Return rows and records by pid. A record without one has its row."""
    found: dict[int, tuple[int, Annotation]] = {}
    for row, record in enumerate(records):
        assert isinstance(record, ComprehendEditRecord)
        found[row if record.pid is None else record.pid] = (row, record)
    return found


def _of_source(source: Source, record: Annotation) -> Source:
    """Return how a record is asked: by the dataset that it is from, unless another template than
    the usual one is set.
    """
    assert isinstance(record, ComprehendEditRecord)
    if source.template != MMEDIT:
        return source
    return replace(source, template=TEMPLATES.get(record.source.lower(), MMEDIT))
