"""What the VLM "photo" is taught: questions about photographs, and facts about products in text.

Questions about one image share a row: the tokens of the image come first, and every question with
its answer is a block of its own after them. A block sees the image and itself alone, at the
positions that it would have if it were the only one, so a row of three questions gives what
three rows would give and costs half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmedit.datasets.facts import choose
from mmedit.datasets.grocery.questions import QUESTIONS, TEXT_QUESTIONS, ProductFacts

BEFORE, AFTER, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
"""The text before an image or a question, between question and answer, and after the answer."""
OFTEN, SELDOM = ("product", "kind"), ("category", "color", "packaging", "origin", "description")
"""Questions that are asked of every photograph, and those of which one is drawn for each."""
DRAWN = 1
FACTS_IN_ROW = 5
"""Number of questions about text in one row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a batch: an image or none, then blocks of question and answer."""

    image: bool
    asked: tuple[tuple[str, str], ...]
    """Questions with their answers."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as tensors, padded on the right."""

    ids: Int[Tensor, "rows tokens"]
    positions: Int[Tensor, "rows tokens"]
    mask: Float[Tensor, "rows 1 tokens tokens"]
    """0 where a token sees another one, a very negative number where it does not."""
    answer: Bool[Tensor, "rows tokens"]
    """Tokens that the answers and their ends consist of."""
    before: Int[Tensor, "rows tokens"]
    """The place of the token that predicts each token."""
    weight: Float[Tensor, "rows tokens"]
    """1 / the number of tokens of its answer, at tokens of an answer."""


def states_before_answers(
    language: Any, batch: Batch, images: Tensor | None, image_token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states that predict the tokens of all answers, and each token's row and place.

    `images` are the projected features of the rows with an image. One forward.
    """
    embedded = language.get_input_embeddings()(batch.ids)
    if images is not None:
        embedded = embedded.masked_scatter((batch.ids == image_token)[:, :, None], images)
    states = language(
        inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions
    ).last_hidden_state
    row, token = batch.answer.nonzero(as_tuple=True)
    return states[row, batch.before[row, token]], row, token


def photograph_row(facts: ProductFacts, description: str | None, rng: np.random.Generator) -> Row:
    """Return a row of questions about a photograph, in the training wordings."""
    known = [q for q in SELDOM if (description if q == "description" else facts.answer(q))]
    drawn = [known[i] for i in rng.permutation(len(known))[:DRAWN]]
    asked = []
    for question in (*OFTEN, *drawn):
        answer = description if question == "description" else facts.answer(question)
        asked.append((choose(rng, QUESTIONS[question].train), str(answer)))
    return Row(image=True, asked=tuple(asked))


def product_text_row(products: Sequence[ProductFacts], rng: np.random.Generator) -> Row:
    """Return a row of questions about products by their names, without an image."""
    asked = []
    for _ in range(FACTS_IN_ROW):
        facts = products[int(rng.integers(len(products)))]
        question = choose(rng, list(TEXT_QUESTIONS))
        wording = choose(rng, TEXT_QUESTIONS[question].train).format(name=facts.name)
        asked.append((wording, facts.answer(question)))
    return Row(image=False, asked=tuple(asked))


def pack(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], cells: int, dtype: torch.dtype
) -> Batch:
    """Return the rows as tensors; `cells` is the number of image tokens."""

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    image, before, after, end = (
        tokenizer.vocab["<image>"], tokens(BEFORE), tokens(AFTER), tokens(END),
    )  # fmt: skip
    packed = []
    for row in rows:
        ids = [*before, *([image] * cells if row.image else [])]
        positions, block = list(range(len(ids))), [0] * len(ids)
        answer, weight = [False] * len(ids), [0.0] * len(ids)
        predicted, prefix = [0] * len(ids), len(ids)
        for number, (question, reply) in enumerate(row.asked, start=1):
            asked, said = [*tokens(question), *after], [*tokens(reply), *end]
            size = len(asked) + len(said)
            predicted += [prefix - 1, *range(len(ids), len(ids) + size - 1)]
            ids += asked + said
            positions += range(prefix, prefix + size)
            block += [number] * size
            answer += [False] * len(asked) + [True] * len(said)
            weight += [0.0] * len(asked) + [1 / len(said)] * len(said)
        packed.append((ids, positions, block, answer, weight, predicted))
    width = max(len(one[0]) for one in packed)

    def padded(place: int, value: float) -> Tensor:
        return torch.tensor([[*one[place], *[value] * (width - len(one[place]))] for one in packed])

    blocks = padded(2, -1)
    same = (blocks[:, :, None] == blocks[:, None, :]) | (blocks[:, None, :] == 0)
    seen = same & torch.ones(width, width, dtype=torch.bool).tril()
    seen |= torch.eye(width, dtype=torch.bool)  # a row of the softmax must not be empty
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return Batch(
        ids=padded(0, end[0]),
        positions=padded(1, 0),
        mask=mask[:, None],
        answer=padded(3, False).bool(),
        before=padded(5, 0),
        weight=padded(4, 0.0),
    )
