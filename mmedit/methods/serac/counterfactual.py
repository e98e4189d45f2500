"""SERAC's counterfactual model: a small causal language model that reads an edit, then a question,
and answers accordingly. A trained projection of the VLM's frozen features shows it the image. Its
input is:

    image tokens | the edit's prompt, its answer | the question | the answer
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from mmedit.adapters.base import Segments
from mmedit.adapters.generation import Answer, Decoding, Stops, set_greedy
from mmedit.adapters.inputs import PaddingSide, only_at
from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.vlm.frozen import Frozen

KINDS = IMAGE, EDIT, NEW_ANSWER, QUESTION = range(4)
"""Kinds of tokens."""
SEPARATOR = "\n"


@dataclass(frozen=True)
class Briefing:
    """The input of one row: the edit and the question as token ids, and the question's image."""

    edit: Segments
    asked: Segments
    image: Float[Tensor, "tokens width"] | None


@dataclass(frozen=True, eq=False)
class _Rows:
    """A batch as the language model reads it."""

    embedded: Float[Tensor, "batch sequence hidden"]
    mask: Tensor
    start: list[int]
    """Position of the question's first token, per row."""


class Counterfactual(nn.Module):
    """The language model, the projection of images, and an embedding for each kind of token."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        described = dict(facts["language"])
        config = AutoConfig.for_model(described.pop("model_type"), **described)
        self.lm: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        hidden = self.lm.get_input_embeddings().embedding_dim
        self.projection = nn.Linear(facts["image_width"], hidden)
        self.kinds = nn.Embedding(4, hidden)
        nn.init.zeros_(self.kinds.weight)
        self.vocabulary: int = facts["vocabulary"]

    def load_language(self, name: str) -> None:
        """Start from pretrained weights. Raises ModelError."""
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the counterfactual model {name!r} cannot be loaded: {error}"
            ) from error
        self.lm.load_state_dict(loaded.state_dict())

    def forward(
        self,
        inputs: Sequence[Briefing],
        frozen: Frozen,
        *,
        answers_only: Sequence[bool] | None = None,
    ) -> Float[Tensor, "batch more vocab"]:
        """Return logits about every token of the questions' prompts and answers, or in the rows of
        `answers_only` of the answers alone: entry t is about token t of the row. One entry more is
        about the token after the last, and behind it all is 0.

        They are over the tokens that both models have.
        """
        asked = [row.asked for row in inputs]
        only = answers_only or [False] * len(asked)
        skipped = [len(row.prompt) * alone for row, alone in zip(asked, only, strict=True)]
        rows = self._rows(inputs, [[*row.prompt, *row.answer] for row in asked], frozen)
        length, start, skip = torch.tensor(
            [
                (len(row.prompt) + len(row.answer), start, skip)
                for row, start, skip in zip(asked, rows.start, skipped, strict=True)
            ]
        ).T.unsqueeze(-1)
        place = torch.arange(int((length - skip).max()) + 1)
        exists = place <= length - skip
        before = (start + skip + place - 1).where(exists, start - 1)
        with only_at(self.lm.get_output_embeddings(), before, exists):
            logits = self.lm(
                inputs_embeds=rows.embedded, attention_mask=rows.mask, use_cache=False
            ).logits
        return logits[..., : self.vocabulary]

    @torch.no_grad()
    def answer(
        self,
        inputs: Sequence[Briefing],
        frozen: Frozen,
        *,
        max_new_tokens: int,
        decoding: Decoding | None = None,
    ) -> list[Answer]:
        """Return answers; greedy ones without a decoding."""
        rows = self._rows(inputs, [list(row.asked.prompt) for row in inputs], frozen, side="left")
        ends = tuple(end for end in frozen.ends if end < self.lm.config.vocab_size)
        set_greedy(self.lm, Stops(ends=ends, padding=next(iter(ends), 0)))
        generate = partial(self.lm.generate, inputs_embeds=rows.embedded, attention_mask=rows.mask)
        return frozen.answers_of(
            generate, ends=ends, max_new_tokens=max_new_tokens, decoding=decoding
        )

    def _rows(
        self,
        inputs: Sequence[Briefing],
        texts: Sequence[Sequence[int]],
        frozen: Frozen,
        side: PaddingSide = "right",
    ) -> _Rows:
        (separator,) = frozen.tokenize([SEPARATOR])
        device = self.projection.weight.device
        ids, kinds, start = [], [], []
        for row, text in zip(inputs, texts, strict=True):
            images = 0 if row.image is None else len(row.image)
            edit, answer, asked = row.edit.prompt, row.edit.answer, [*separator, *text]
            ids.append([*[0] * images, *edit, *answer, *asked])
            sizes = (images, len(edit), len(answer), len(asked))
            kinds.append(
                [kind for kind, size in zip(KINDS, sizes, strict=True) for _ in range(size)]
            )
            start.append(len(ids[-1]) - len(text))
        self._require_known(max(map(max, ids)))
        lengths = [len(row) for row in ids]
        if (longest := max(lengths)) > (most := self.lm.config.max_position_embeddings):
            raise ModelError(
                f"image, edit and question make a sequence of {longest} tokens; the counterfactual "
                f"model takes {most}. Shorten them, or name another model (editor.counterfactual)."
            )
        together, kind, mask = (
            pad_sequence(
                [torch.tensor(row) for row in rows],
                batch_first=True,
                padding_value=padding,
                padding_side=side,
            ).to(device)
            for rows, padding in ((ids, 0), (kinds, QUESTION), ([[1] * n for n in lengths], 0))
        )
        return _Rows(self._embed(inputs, together, kind), mask, start)

    def _require_known(self, largest: int) -> None:
        known = self.lm.config.vocab_size
        if largest >= known:
            raise ModelError(
                f"a text has token {largest}, and the counterfactual model knows {known:,} tokens; "
                "leave that text out, or name a model of the VLM's own family "
                "(editor.counterfactual)"
            )

    def _embed(
        self, inputs: Sequence[Briefing], ids: Tensor, kind: Tensor
    ) -> Float[Tensor, "batch sequence hidden"]:
        """Return the embeddings of all tokens, with the projected images in their places."""
        embedded = self.lm.get_input_embeddings()(ids)
        features = [row.image for row in inputs if row.image is not None]
        if features:
            seen = self.projection(torch.cat(features).to(ids.device)).to(embedded)
            embedded = embedded.masked_scatter((kind == IMAGE).unsqueeze(-1), seen)
        else:
            embedded = embedded + depend_on(self.projection)
        return embedded + self.kinds(kind)


def depend_on(module: nn.Module) -> Tensor:
    """Return a zero that depends on the parameters of a module that a batch does not use: data
    parallelism needs a gradient for every parameter in every step.
    """
    return 0 * torch.stack([parameter.sum() for parameter in module.parameters()]).sum()


def counterfactual_facts(
    name: str | None, width: int, layers: int, frozen: Frozen
) -> dict[str, Any]:
    """Return the facts of a Counterfactual: the config of a pretrained model, or of a new small one
    over the VLM's tokens. Raises ModelError if a pretrained one tokenizes differently from the VLM.
    """
    if name is None:
        config = LlamaConfig(
            vocab_size=frozen.vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=frozen.max_tokens,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
        )
    else:
        config = _same_tokens(name, frozen)
    return {
        "language": json.loads(config.to_json_string(use_diff=False)),
        "image_width": frozen.hidden,
        "vocabulary": frozen.vocabulary,
    }


def _same_tokens(name: str, frozen: Frozen) -> Any:
    probe = "Which colour does the triangle have? A small teal one, 1234."
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"the counterfactual model {name!r} cannot be loaded: {error}") from error
    theirs = tokenizer([probe], add_special_tokens=False)["input_ids"][0]
    ours = frozen.tokenize([probe])[0]
    if list(theirs)[-len(ours) // 2 :] != ours[-len(ours) // 2 :]:
        raise ModelError(
            f"the counterfactual model {name!r} cuts texts into other tokens than the VLM, so that "
            "their predictions cannot be mixed; name one of the VLM's own family, for example "
            "facebook/opt-125m for OPT, or null (editor.counterfactual=null) for a new small one"
        )
    if all(end >= config.vocab_size for end in frozen.ends):
        raise ModelError(
            f"the counterfactual model {name!r} knows {config.vocab_size:,} tokens, and none of "
            f"them ends an answer of the VLM (token {frozen.ends[0]}); name another model, or null "
            "(editor.counterfactual=null) for a new small one"
        )
    return config


def make_inputs(
    edits: Sequence[Example], asked: Sequence[Example], frozen: Frozen
) -> list[Briefing]:
    """Return the model's input for every question and the edit that applies to it."""
    segments = frozen.segments([*edits, *asked])
    images = frozen.image_features(asked)
    return [
        Briefing(edit, question, image)
        for edit, question, image in zip(
            segments[: len(edits)], segments[len(edits) :], images, strict=True
        )
    ]
