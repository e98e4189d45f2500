"""How well a text fits an image, without a reference answer.

    CLIPScore = 2.5 max(cos(E_image, E_text), 0)

with the embeddings of a CLIP (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric
for Image Captioning"), loaded by OpenCLIP. Values of different CLIPs cannot be compared: the name
is kept with the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmedit.errors import ModelError
from mmedit.images import open_image

WEIGHT = 2.5
PROMPT = "A photo depicts "
"""The paper's: it stands before every text."""


class ClipScore:
    """One CLIP with its image transform and tokenizer. One forward of both towers per call."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._transform = transform
        self._tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, images: Sequence[Path | Image.Image], texts: Sequence[str]) -> list[float]:
        """The score of every image and its text, 0 to 2.5."""
        device = next(self._model.parameters()).device
        pixels = torch.stack([self._transform(open_image(image)) for image in images])
        tokens = self._tokenizer([PROMPT + text for text in texts])
        seen = self._model.encode_image(pixels.to(device))
        return clip_score(seen, self._model.encode_text(tokens.to(device))).tolist()


def clip_score(
    image: Float[Tensor, "batch width"], text: Float[Tensor, "batch width"]
) -> Float[Tensor, " batch"]:
    """2.5 max(cos, 0) of every image's embedding and its text's, in float32.

    >>> clip_score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [-1.0, 0.0]]))
    tensor([1.5000, 0.0000])
    """
    return WEIGHT * F.cosine_similarity(image.float(), text.float(), dim=-1).clamp(min=0)


def load_clip_score(name: str, *, device: torch.device | str = "cpu") -> ClipScore:
    """By "ARCHITECTURE/WEIGHTS" of OpenCLIP. Raises ModelError."""
    return ClipScore(*load_clip(name, device=device, wanted_by="CLIPScore"))


def load_clip(
    name: str, *, device: torch.device | str = "cpu", wanted_by: str
) -> tuple[Any, Any, Any]:
    """Model, image transform and tokenizer by "ARCHITECTURE/WEIGHTS" of OpenCLIP, for instance
    "ViT-B-32/openai", where WEIGHTS may be a file. Raises ModelError where OpenCLIP is missing or
    does not know it; `wanted_by` says what for.
    """
    require_clip(name, wanted_by=wanted_by)
    import open_clip

    architecture, _, weights = name.partition("/")
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            architecture, pretrained=weights, device=device, weights_only=True
        )
        return model, transform, open_clip.get_tokenizer(architecture)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"{wanted_by} by {name!r} cannot be loaded: {error}") from error


def require_clip(name: str, *, wanted_by: str = "CLIPScore") -> str:
    """The name itself; ModelError, at no cost, where OpenCLIP is missing or the name is no
    ARCHITECTURE/WEIGHTS.
    """
    architecture, _, weights = name.partition("/")
    if not (architecture and weights):
        raise ModelError(
            f"{wanted_by} by {name!r}: ARCHITECTURE/WEIGHTS was wanted, for instance "
            "ViT-B-32/openai"
        )
    if find_spec("open_clip") is None:
        raise ModelError(
            f"{wanted_by} needs OpenCLIP, which is not installed: pip install 'mmedit[clip]'"
        )
    return name
