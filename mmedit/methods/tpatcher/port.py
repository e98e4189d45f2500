"""The search of LiveEdit's port of T-Patcher to VLMs, with its faults (`paper_faults`).

One neuron for an edit, which starts at 0, is searched for by Adam on

    NLL(answer) + λ_a · mean exp(-a) + λ_m · mean exp(relu(a_mem))

a is the activation at every token of the text of a step, a_mem that at every token of a text of the
memory. Only the first step is about the request, and there the neuron is 0, so that its NLL has no
gradient. Each later step has the memory's text of the step before in its place, and the answer is
scored where that text ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmedit.cases import EditCase, Example, Probe
from mmedit.chunks import chunks
from mmedit.editors.closed_form.statistics import questions_of
from mmedit.errors import DataError, EditorError
from mmedit.methods.tpatcher.block import Block
from mmedit.methods.tpatcher.config import TPatcherConfig
from mmedit.metrics.multiclass_log_probs import answer_nll
from mmedit.neurons import Neurons
from mmedit.vlm.interface import VLM
from mmedit.vlm.outputs import Predictions

TEXTS = 200
"""Texts that `fit` keeps; a search begins with the first one, and begins anew after the last."""
CASES = 64
"""Training cases whose questions are answered together."""


def foreign_texts(vlm: VLM, cases: Sequence[EditCase], seed: int) -> tuple[Example, ...]:
    """Return training questions without image, in random order, each with the base model's own
    answer. The port has sentences of Wikipedia here. Raises DataError if there are none.

    Costs a generation for each, which is kept on disk.
    """
    found: list[Example] = []
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(seed)).tolist()
    for some in chunks([n for n in order if has_text(cases[n])], CASES):
        asked = questions_of(vlm.base, [cases[number] for number in some])
        found += [example for example in asked if example.image is None]
        if len(found) >= TEXTS:
            break
    if not found:
        raise DataError(
            "with paper_faults T-Patcher needs texts, and no training case has a question without "
            "image to which the base model says anything; take cases that have one (text locality)"
        )
    return tuple(found[:TEXTS])


def has_text(case: EditCase) -> bool:
    """Tell whether the request or a text-locality question of a case has no image."""
    asked = [case.request, *case.probes.get(Probe.TEXT_LOCALITY, ())]
    return any(example.image is None for example in asked)


def notes_of(texts: Sequence[Example]) -> dict[str, Any]:
    """Return the texts as plain JSON."""
    return {"texts": [[text.context, text.prompt, text.target] for text in texts]}


def texts_in(notes: Mapping[str, Any]) -> tuple[Example, ...]:
    """Return the texts of `notes_of`. Raises EditorError."""
    try:
        texts = [Example(context=c, prompt=p, target=t) for c, p, t in notes["texts"]]
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise EditorError(
            "the editor's notes do not hold the texts that paper_faults needs; fit it anew"
        ) from error
    if not texts:
        raise EditorError("the editor's notes hold no texts for paper_faults; fit it anew")
    return tuple(texts)


def find_port(
    vlm: VLM,
    requests: Sequence[Example],
    block: Block,
    texts: Sequence[Example],
    config: TPatcherConfig,
    *,
    separate: bool,
) -> Neurons:
    """Return the neuron of every request (`separate`), or one for all requests together.

    Costs two forwards, and a forward, a backward and the forward of a text in each of `steps`.
    """
    neuron = _at_zero(vlm, block, (len(requests), 1) if separate else (1,))
    parameters = [neuron.key, neuron.bias, neuron.value]
    optimizer = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    wanted = vlm.predict(requests, answers_only=[True] * len(requests))
    asked, inside = requests, _Read.by(vlm, requests, block)
    for number in range(config.steps):
        foreign = [texts[number % len(texts)]] * len(requests)
        outside = _Read.by(vlm, foreign, block)
        with torch.enable_grad():
            predictions = vlm.with_deltas({block.site: neuron}).predict(asked)
            loss = (
                nll_at_the_end(predictions, wanted.target, wanted.is_answer)
                + config.a_weight * inside.mean((-neuron.activation(inside.x)).exp())
                + config.m_weight * outside.mean(neuron.activation(outside.x).relu().exp())
            )
            total = loss.sum() if separate else loss.mean()
        gradients = torch.autograd.grad(total, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        asked, inside = foreign, outside  # the fault: the request is not asked again
    for parameter in parameters:
        parameter.requires_grad_(False).grad = None
    return neuron


def nll_at_the_end(
    predictions: Predictions,
    target: Int[Tensor, "rows tokens"],
    is_answer: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, " rows"]:
    """Return the mean NLL of every row's answer, scored on the last logits of the row's text,
    whatever the text is. A text that is shorter than the answer takes its last tokens.
    """
    place = torch.arange(predictions.is_text.shape[1], device=target.device)
    end = place.where(predictions.is_text, -1).amax(1, keepdim=True) + 1
    first = predictions.is_text.int().argmax(1, keepdim=True)
    at = end - is_answer.sum(1, keepdim=True) + torch.arange(target.shape[1], device=end.device)
    scored = is_answer & (at >= first)
    index = at.clamp(0, len(place) - 1).unsqueeze(-1)
    logits = predictions.logits.gather(1, index.expand(-1, -1, predictions.logits.shape[-1]))
    return answer_nll(logits, target, scored)


class _Read:
    """Inputs of the block at all tokens of a batch."""

    def __init__(
        self, x: Float[Tensor, "rows tokens read"], is_real: Bool[Tensor, "rows tokens"]
    ) -> None:
        self.x, self._is_real = x, is_real

    @staticmethod
    def by(vlm: VLM, examples: Sequence[Example], block: Block) -> _Read:
        x = vlm.observe(examples, [block.reads]).x[block.reads].float()
        is_real = vlm.places(examples).is_real.to(x.device)
        return _Read(x.masked_fill(~is_real.unsqueeze(-1), 0), is_real)

    def mean(self, values: Float[Tensor, "rows tokens 1"]) -> Float[Tensor, " rows"]:
        """Return the mean of every row's real tokens."""
        return values.squeeze(-1).where(self._is_real, 0).sum(1) / self._is_real.sum(1)


def _at_zero(vlm: VLM, block: Block, shape: tuple[int, ...]) -> Neurons:
    out, width = vlm.shape(block.site)
    key, bias, value = (
        torch.zeros(*shape, *size, device=vlm.device, requires_grad=True)
        for size in ((vlm.shape(block.reads)[1],), (), (out,))
    )
    return Neurons(key, bias, value, block.reads, width)
