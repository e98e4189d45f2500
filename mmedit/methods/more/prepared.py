"""Results of fitting M-ORE: a basis from data, and keys of locality questions of training cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe
from mmedit.chunks import chunks
from mmedit.editors.closed_form.second_moment import directions
from mmedit.editors.closed_form.statistics import questions_of, second_moments
from mmedit.editors.fitting import Fitting
from mmedit.errors import DataError, EditorError, shortened
from mmedit.methods.more.config import MOREConfig
from mmedit.methods.more.readings import readings, reads_text
from mmedit.vlm.interface import VLM

BATCH = 16
"""Locality questions in one capture."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """The result of fitting, by site."""

    bases: Mapping[str, Float[Tensor, "rank _"]] = field(default_factory=dict)
    """A, if it comes from data."""
    keys: Mapping[str, Float[Tensor, "keys rank"]] = field(default_factory=dict)
    """Private codes of locality questions."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file keeps."""
        bases = {f"basis/{site}": basis for site, basis in self.bases.items()}
        return bases | {f"keys/{site}": keys for site, keys in self.keys.items()}

    @staticmethod
    def of_tensors(
        tensors: Mapping[str, Tensor], sites: Sequence[str], config: MOREConfig
    ) -> Prepared:
        """Return what gave these tensors. Raises EditorError if they do not fit the settings."""
        read: dict[str, dict[str, Tensor]] = {"basis": {}, "keys": {}}
        axes = {"basis": (0, config.rows), "keys": (1, config.rank)}
        for name, tensor in tensors.items():
            kind, _, site = name.partition("/")
            known = kind in read and site in sites
            if not known or tensor.ndim != 2 or tensor.dtype != torch.float32:
                raise EditorError(
                    f"the tensor {shortened(name)} is {tensor.dtype} of shape "
                    f"{list(tensor.shape)}; expected a float32 matrix basis/SITE or keys/SITE of "
                    "one of its sites; fit the editor anew"
                )
            axis, rank = axes[kind]
            if tensor.shape[axis] != rank:
                raise EditorError(
                    f"the tensor {shortened(name)} has shape {list(tensor.shape)}; expected "
                    f"{rank} on axis {axis}, as its settings say; fit the editor anew"
                )
            read[kind][site] = tensor
        if config.basis == "data" and read["basis"].keys() != set(sites):
            raise EditorError(
                f"the editor has bases for {len(read['basis'])} of its {len(sites)} sites; "
                "expected one for each; fit the editor anew"
            )
        return Prepared(bases=read["basis"], keys=read["keys"])


def data_bases(
    vlm: VLM, sites: Sequence[str], fitting: Fitting, rows: int
) -> dict[str, Float[Tensor, "rank _"]]:
    """Return the leading directions of what the sites take over the training questions, half text
    and half image tokens. Costs these statistics (`mmedit.editors.closed_form.statistics`).
    """
    examples = questions_of(vlm, fitting.cases, progress=fitting.progress)
    moments = second_moments(vlm, examples, sites, progress=fitting.progress)
    found = {site: directions(moments[site].mean("balanced"), rows) for site in sites}
    return {site: basis.float().contiguous() for site, basis in found.items()}


def locality_keys(
    vlm: VLM,
    fitting: Fitting,
    bases: Mapping[str, Float[Tensor, "rank _"]],
    config: MOREConfig,
) -> dict[str, Float[Tensor, "keys rank"]]:
    """Return the private codes of the first `config.locality_keys` locality questions, by site.
    Costs a capture of each. Raises DataError without training cases that have such questions.
    """
    questions = [question for case in fitting.cases for question in _local(case)]
    questions = questions[: config.locality_keys]
    if config.locality_keys and not questions:
        raise DataError(
            f"editor.locality_keys is {config.locality_keys}, and the training cases have 0 "
            "locality questions; give cases that have some, or set it to 0"
        )
    of_text = {site: basis for site, basis in bases.items() if reads_text(vlm, site)}
    found: dict[str, list[Tensor]] = {}
    for has_image, reached in ((True, bases), (False, of_text)):
        asked = [q for q in questions if (q.image is not None) == has_image]
        for batch in chunks(asked if reached else [], BATCH):
            read = readings(vlm, batch, reached, keys=config.keys, scale=config.scale)
            for site, reading in read.items():
                found.setdefault(site, []).append(reading.code[:, : config.rank].cpu())
    return {site: torch.cat(codes) for site, codes in found.items()}


def _local(case: EditCase) -> Iterator[Example]:
    for probe in (Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY):
        yield from case.probes.get(probe, ())
