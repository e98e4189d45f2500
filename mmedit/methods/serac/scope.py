"""SERAC's scope: an embedding of questions that decides which cached edit, if any, applies.

`TextScope`, the paper's, is the [CLS] state of a small encoder of the prompt, which is trained.
`SentenceScope` is a trained map of a frozen sentence encoder's embedding of the prompt. Both see no
image: a question in the words of an edit is in their scope, whatever image it is about.
`MultimodalScope` has image and text embeddings of frozen towers (`mmedit.methods.serac.towers`),
each followed by a trained network. `FusedScope`, MSCKE's, lets the text choose among the tokens of
its own image. None of them sees an answer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig

from mmedit.cases import Example
from mmedit.editors.sentences import load_sentence_encoder
from mmedit.errors import ModelError
from mmedit.methods.serac.config import SERACConfig
from mmedit.methods.serac.counterfactual import depend_on
from mmedit.methods.serac.similarity import fuse
from mmedit.methods.serac.towers import choose_towers
from mmedit.vlm.frozen import Frozen


class Scope(nn.Module, ABC):
    """A network that embeds questions; two questions with near embeddings share an edit."""

    @abstractmethod
    def forward(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        """Return one embedding per question."""


class TextScope(Scope):
    """The first state of a pretrained encoder with its own tokenizer, or of a new encoder over the
    VLM's tokens.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        described = dict(facts["encoder"])
        config = AutoConfig.for_model(described.pop("model_type"), **described)
        self.encoder = AutoModel.from_config(config, dtype=torch.float32)
        self._tokenizer_name = facts["tokenizer"]
        self._tokenizer: Any = None
        for name, parameter in self.encoder.named_parameters():
            if "pooler" in name:  # the scope is the [CLS] state itself
                parameter.requires_grad_(False)

    def load_encoder(self, name: str) -> None:
        """Start from pretrained weights. Raises ModelError."""
        try:
            self.encoder.load_state_dict(
                AutoModel.from_pretrained(
                    name, dtype=torch.float32, use_safetensors=True
                ).state_dict()
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"the scope's encoder {name!r} cannot be loaded: {error}") from error

    def forward(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        ids, mask = self._read([example.prompt for example in examples], frozen)
        device = next(self.parameters()).device
        states = self.encoder(input_ids=ids.to(device), attention_mask=mask.to(device))
        return states.last_hidden_state[:, 0]

    def _read(self, prompts: Sequence[str], frozen: Frozen) -> tuple[Tensor, Tensor]:
        longest = self.encoder.config.max_position_embeddings
        if self._tokenizer_name is None:
            first = frozen.vocabulary  # one token more than the VLM has, as [CLS]
            rows = [torch.tensor([first, *ids][:longest]) for ids in frozen.tokenize(prompts)]
            lengths = torch.tensor([len(row) for row in rows])
            ids = pad_sequence(rows, batch_first=True)
            return ids, torch.arange(ids.shape[1]) < lengths[:, None]
        if self._tokenizer is None:
            self._tokenizer = AutoTokenizer.from_pretrained(self._tokenizer_name)
        read = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        return read["input_ids"], read["attention_mask"]


def _text_facts(name: str | None, width: int, layers: int, frozen: Frozen) -> dict[str, Any]:
    """Return the facts of a TextScope: the config of a pretrained or of a new small encoder."""
    if name is None:
        config = DistilBertConfig(
            vocab_size=frozen.vocabulary + 1,
            dim=width,
            hidden_dim=4 * width,
            n_layers=layers,
            n_heads=4,
            dropout=0.0,
            attention_dropout=0.0,
            max_position_embeddings=512,
        )
    else:
        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ModelError(f"the scope's encoder {name!r} cannot be loaded: {error}") from error
    return {"encoder": json.loads(config.to_json_string(use_diff=False)), "tokenizer": name}


class SentenceScope(Scope):
    """A trained linear map of a frozen sentence encoder's embedding. It starts as the identity, so
    that untrained, with the squared Euclidean distance, s = exp(-2 · scale · (1 - cosine)). Its
    size, which is learnt, says how near a question in scope must be.

    A prompt costs one forward of the encoder, the first time; a training step none.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self._encoder = facts["sentence_encoder"]
        self.map = nn.Parameter(torch.eye(facts["width"]))

    def forward(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        encode = load_sentence_encoder(self._encoder, frozen.device)
        return encode([example.prompt for example in examples]) @ self.map


class PairScope(Scope):
    """An image part and a text part, cat(image, g(text)), with trained networks over frozen towers.
    A question without image has a learnt vector in place of the image part.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        width = facts["width"]
        self.towers = choose_towers(facts["clip"], facts.get("sentence_encoder"))
        self.image = _head(facts["image_width"], width)
        self.text = _head(facts["text_width"], width)
        self.no_image = nn.Parameter(torch.randn(width))

    def forward(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        text = self.text(self.towers.texts([example.prompt for example in examples], frozen))
        rows = [row for row, example in enumerate(examples) if example.image is not None]
        image = self.no_image.expand(len(examples), -1)
        if rows:
            seen = self.image_part([examples[row] for row in rows], text[rows], frozen)
            image = image.index_copy(0, torch.tensor(rows, device=seen.device), seen)
        else:
            image = image + depend_on(self.image)
        return torch.cat([image, text], dim=-1)

    @abstractmethod
    def image_part(
        self, examples: Sequence[Example], text: Float[Tensor, "batch width"], frozen: Frozen
    ) -> Float[Tensor, "batch width"]:
        """Return the image parts of questions about images, whose text parts are given."""


class MultimodalScope(PairScope):
    """cat(f(image), g(text)): the image part knows nothing of the question."""

    def image_part(
        self, examples: Sequence[Example], text: Float[Tensor, "batch width"], frozen: Frozen
    ) -> Float[Tensor, "batch width"]:
        return self.image(self.towers.images(examples, frozen))


class FusedScope(PairScope):
    """cat(softmax(t I^T) I, t) with t = g(text) and a row of I = f(token) for each token of the
    question's own image: the text chooses what of its image counts.
    """

    def image_part(
        self, examples: Sequence[Example], text: Float[Tensor, "batch width"], frozen: Frozen
    ) -> Float[Tensor, "batch width"]:
        tokens = self.towers.tokens(examples, frozen)
        lengths = [len(image) for image in tokens]
        made = self.image(torch.cat(tokens)).split(lengths)
        ends = torch.tensor(lengths, device=text.device).unsqueeze(-1)
        there = torch.arange(max(lengths), device=text.device) < ends
        return fuse(text, pad_sequence(list(made), batch_first=True), there)


def _pair_facts(config: SERACConfig, frozen: Frozen) -> dict[str, Any]:
    """Return the facts of a PairScope."""
    towers = choose_towers(config.clip, config.sentence_encoder)
    image, text = towers.widths(frozen)
    if config.scope == "fused":
        image = towers.token_width(frozen)
    width = config.scope_width
    return {"clip": config.clip, "width": width, "image_width": image, "text_width": text}


def _head(width: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * out), nn.GELU(), nn.Linear(2 * out, out)
    )


def scope_facts(config: SERACConfig, frozen: Frozen) -> dict[str, Any]:
    """Return what `build_scope` must know about VLM and encoders, as plain JSON."""
    name, used = config.sentence_encoder, {}
    if name:
        encoder = load_sentence_encoder(name, frozen.device)
        used = {"sentence_encoder": name, "sha256": encoder.sha256}
        if config.scope == "text":
            return used | {"width": encoder.width}
    if config.scope != "text":
        return used | _pair_facts(config, frozen)
    return _text_facts(config.scope_encoder, config.scope_width, config.scope_layers, frozen)


def build_scope(config: SERACConfig, facts: Mapping[str, Any]) -> Scope:
    """Return the scope that the settings choose, with fresh parameters."""
    if config.scope != "text":
        return MultimodalScope(facts) if config.scope == "multimodal" else FusedScope(facts)
    return SentenceScope(facts) if config.sentence_encoder else TextScope(facts)
