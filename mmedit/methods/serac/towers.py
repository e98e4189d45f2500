"""Frozen towers of SERAC's multimodal and fused scopes: networks that embed images and prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmedit.cases import Example
from mmedit.editors.sentences import load_sentence_encoder
from mmedit.images import image_key, open_image
from mmedit.metrics.clip_score import load_clip
from mmedit.vlm.frozen import Frozen, in_groups

BLANK = Image.new("RGB", (8, 8))
"""An image to learn sizes from."""


class Towers(Protocol):
    """Frozen networks that embed images and prompts."""

    def widths(self, frozen: Frozen) -> tuple[int, int]:
        """Return the widths of image and text embeddings."""
        ...

    def token_width(self, frozen: Frozen) -> int:
        """Return the width of an image's tokens."""
        ...

    def images(self, examples: Sequence[Example], frozen: Frozen) -> Float[Tensor, "batch width"]:
        """Return one embedding per example; all examples must have an image."""
        ...

    def tokens(
        self, examples: Sequence[Example], frozen: Frozen
    ) -> list[Float[Tensor, "_tokens width"]]:
        """Return the tokens of every example's image; all examples must have one."""
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

    def token_width(self, frozen: Frozen) -> int:
        return frozen.hidden

    def images(self, examples: Sequence[Example], frozen: Frozen) -> Tensor:
        return torch.stack([tokens.mean(0) for tokens in self.tokens(examples, frozen)])

    def tokens(self, examples: Sequence[Example], frozen: Frozen) -> list[Tensor]:
        return [made for made in frozen.image_features(examples) if made is not None]

    def texts(self, prompts: Sequence[str], frozen: Frozen) -> Tensor:
        rows = [torch.tensor(ids or [0]) for ids in frozen.tokenize(prompts)]
        lengths = torch.tensor([len(row) for row in rows]).unsqueeze(-1)
        ids = pad_sequence(rows, batch_first=True)
        there = (torch.arange(ids.shape[1]) < lengths).to(frozen.device).unsqueeze(-1)
        embedded = frozen.embed(ids.to(frozen.device))
        return embedded.where(there, 0).sum(1) / lengths.to(frozen.device)


class ClipTowers:
    """The towers of an OpenCLIP model, named "ARCHITECTURE/WEIGHTS". Image embeddings are cached by
    content. Tokens are the patches as the last block leaves them, normalised, without class token.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loaded: tuple[Any, Any, Any] | None = None

    def widths(self, frozen: Frozen) -> tuple[int, int]:
        width = self.texts(["a photo"], frozen).shape[-1]
        return width, width

    def token_width(self, frozen: Frozen) -> int:
        (tokens,) = self.tokens([Example(prompt="", target="-", image=BLANK)], frozen)
        return tokens.shape[-1]

    def images(self, examples: Sequence[Example], frozen: Frozen) -> Tensor:
        model, _, _ = self._clip(frozen)
        return torch.stack(
            self._cached(
                "clip", examples, frozen, lambda pixels: model.encode_image(pixels, normalize=True)
            )
        )

    def tokens(self, examples: Sequence[Example], frozen: Frozen) -> list[Tensor]:
        model, _, _ = self._clip(frozen)

        def patches(pixels: Tensor) -> Tensor:
            made = model.forward_intermediates(
                pixels, image_indices=1, normalize_intermediates=True, intermediates_only=True
            )
            return made["image_intermediates"][-1].flatten(2).mT  # [batch, patches, width]

        return self._cached("clip-tokens", examples, frozen, patches)

    @torch.no_grad()
    def _cached(
        self,
        kind: str,
        examples: Sequence[Example],
        frozen: Frozen,
        encode: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """Return what `encode` makes of every example's image, once for each distinct one."""
        _, transform, _ = self._clip(frozen)

        def embed(positions: Sequence[int]) -> list[Tensor]:
            seen = {
                place: transform(open_image(_image(examples[place]))) for place in set(positions)
            }
            pixels = torch.stack([seen[place] for place in positions]).to(frozen.device)
            return list(encode(pixels).float())

        def compute(positions: Sequence[int]) -> list[Tensor]:
            return in_groups(positions, embed)

        keys = [f"{kind}-{_digest(self._name)}-{image_key(_image(e))}" for e in examples]
        found = frozen.features.lookup(keys, compute)
        return [embedded.to(frozen.device) for embedded in found]

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], frozen: Frozen) -> Tensor:
        model, _, tokenizer = self._clip(frozen)
        return model.encode_text(tokenizer(list(prompts)).to(frozen.device), normalize=True).float()

    def _clip(self, frozen: Frozen) -> tuple[Any, Any, Any]:
        if self._loaded is None:
            model, transform, tokenizer = load_clip(
                self._name, device=frozen.device, wanted_by="SERAC's scope"
            )
            self._loaded = model.eval().requires_grad_(False), transform, tokenizer
        return self._loaded


class SentenceTowers:
    """Towers whose texts a sentence encoder embeds."""

    def __init__(self, towers: Towers, encoder: str) -> None:
        self._towers = towers
        self._encoder = encoder

    def widths(self, frozen: Frozen) -> tuple[int, int]:
        image, _ = self._towers.widths(frozen)
        return image, load_sentence_encoder(self._encoder, frozen.device).width

    def token_width(self, frozen: Frozen) -> int:
        return self._towers.token_width(frozen)

    def images(self, examples: Sequence[Example], frozen: Frozen) -> Tensor:
        return self._towers.images(examples, frozen)

    def tokens(self, examples: Sequence[Example], frozen: Frozen) -> list[Tensor]:
        return self._towers.tokens(examples, frozen)

    def texts(self, prompts: Sequence[str], frozen: Frozen) -> Tensor:
        return load_sentence_encoder(self._encoder, frozen.device)(prompts)


def choose_towers(clip: str | None, sentence_encoder: str | None) -> Towers:
    """Return OpenCLIP's towers or the VLM's own, with the texts of a sentence encoder if one is
    named. Nothing is loaded.
    """
    towers: Towers = ClipTowers(clip) if clip else OwnTowers()
    return SentenceTowers(towers, sentence_encoder) if sentence_encoder else towers


def _image(example: Example) -> Path | Image.Image:
    assert example.image is not None
    return example.image


def _digest(name: str) -> str:
    """Return a hash of a name that may be a path, for the keys of cached tensors."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
