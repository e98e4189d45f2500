"""SERAC's scope: an embedding of questions that decides which cached edit, if any, applies.

`TextScope`, the paper's, is the [CLS] state of a small encoder of the prompt. It sees no image: a
question in the words of an edit is in its scope, whatever image it is about. `MultimodalScope` has
image and text embeddings of frozen towers (OpenCLIP, or the VLM's own), each followed by a trained
network. Neither sees an answer.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig

from mmedit.cases import Example
from mmedit.errors import ModelError
from mmedit.images import image_key, open_image
from mmedit.methods.serac.counterfactual import depend_on
from mmedit.metrics.clip_score import load_clip
from mmedit.vlm.frozen import Frozen, in_groups


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


def text_scope_facts(name: str | None, width: int, layers: int, frozen: Frozen) -> dict[str, Any]:
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


class Towers(Protocol):
    """Frozen networks that embed images and prompts."""

    def widths(self, frozen: Frozen) -> tuple[int, int]:
        """Return the widths of image and text embeddings."""
        ...

    def images(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        """Return one embedding per example; all examples must have an image."""
        ...

    def texts(self, prompts: Sequence[str], frozen: Frozen) -> Float[Tensor, "batch width"]:
        """Return one embedding per prompt."""
        ...


class OwnTowers:
    """The VLM's own embeddings: the mean of an image's tokens, the mean of a prompt's token
    embeddings.
    """

    def widths(self, frozen: Frozen) -> tuple[int, int]:
        return frozen.hidden, frozen.hidden

    def images(self, examples: Sequence[Example], frozen: Frozen) -> Tensor:
        features = frozen.image_features(examples)
        return torch.stack([tokens.mean(0) for tokens in features if tokens is not None])

    def texts(self, prompts: Sequence[str], frozen: Frozen) -> Tensor:
        rows = [torch.tensor(ids or [0]) for ids in frozen.tokenize(prompts)]
        lengths = torch.tensor([len(row) for row in rows]).unsqueeze(-1)
        ids = pad_sequence(rows, batch_first=True)
        there = (torch.arange(ids.shape[1]) < lengths).to(frozen.device).unsqueeze(-1)
        embedded = frozen.embed(ids.to(frozen.device))
        return embedded.where(there, 0).sum(1) / lengths.to(frozen.device)


class ClipTowers:
    """The towers of an OpenCLIP model, named "ARCHITECTURE/WEIGHTS". Image embeddings are cached by
    content.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loaded: tuple[Any, Any, Any] | None = None

    def widths(self, frozen: Frozen) -> tuple[int, int]:
        width = self.texts(["a photo"], frozen).shape[-1]
        return width, width

    @torch.no_grad()
    def images(self, examples: Sequence[Example], frozen: Frozen) -> Tensor:
        model, transform, _ = self._clip(frozen)

        def embed(positions: Sequence[int]) -> list[Tensor]:
            seen = {
                place: transform(open_image(_image(examples[place]))) for place in set(positions)
            }
            pixels = torch.stack([seen[place] for place in positions]).to(frozen.device)
            return list(model.encode_image(pixels, normalize=True).float())

        def compute(positions: Sequence[int]) -> list[Tensor]:
            return in_groups(positions, embed)

        keys = [f"clip-{_digest(self._name)}-{image_key(_image(e))}" for e in examples]
        found = frozen.features.lookup(keys, compute)
        return torch.stack([embedded.to(frozen.device) for embedded in found])

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], frozen: Frozen) -> Tensor:
        model, _, tokenizer = self._clip(frozen)
        return model.encode_text(tokenizer(list(prompts)).to(frozen.device), normalize=True).float()

    def _clip(self, frozen: Frozen) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            model, transform, tokenizer = load_clip(
                self._name, device=frozen.device, wanted_by="SERAC's multimodal scope"
            )
            self._loaded = model.eval().requires_grad_(False), transform, tokenizer
        return self._loaded


class MultimodalScope(Scope):
    """cat(f(image), g(text)) with a small trained network for each. A question without image has a
    learnt vector in place of f(image).
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        width = facts["width"]
        self._towers: Towers = ClipTowers(facts["clip"]) if facts["clip"] else OwnTowers()
        self.image = _head(facts["image_width"], width)
        self.text = _head(facts["text_width"], width)
        self.no_image = nn.Parameter(torch.randn(width))

    def forward(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        text = self.text(self._towers.texts([example.prompt for example in examples], frozen))
        rows = [row for row, example in enumerate(examples) if example.image is not None]
        image = self.no_image.expand(len(examples), -1)
        if rows:
            seen = self.image(self._towers.images([examples[row] for row in rows], frozen))
            image = image.index_copy(0, torch.tensor(rows, device=seen.device), seen)
        else:
            image = image + depend_on(self.image)
        return torch.cat([image, text], dim=-1)


def multimodal_scope_facts(clip: str | None, width: int, frozen: Frozen) -> dict[str, Any]:
    """Return the facts of a MultimodalScope."""
    towers: Towers = ClipTowers(clip) if clip else OwnTowers()
    image_width, text_width = towers.widths(frozen)
    return {"clip": clip, "width": width, "image_width": image_width, "text_width": text_width}


def _head(width: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * out), nn.GELU(), nn.Linear(2 * out, out)
    )


def _image(example: Example) -> Path | Image.Image:
    assert example.image is not None
    return example.image


def _digest(name: str) -> str:
    """Return a hash of a name that may be a path, for the keys of cached tensors."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
