"""CLIPScore: a measure of how well a text fits an image, without a reference answer.

    CLIPScore = 2.5 max(cos(E_image, E_text), 0)

with the embeddings of a CLIP (Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric
for Image Captioning"), loaded by OpenCLIP. Values of different CLIPs cannot be compared, so
the run records the name.
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
"""The text before every answer, as in the paper."""


class ClipScore:
    """A CLIP with its image transform and tokenizer. One forward of both towers per call."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        self._transform = transform
        self._tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, images: Sequence[Path | Image.Image], texts: Sequence[str]) -> list[float]:
        """Return the score of every image and its text, 0 to 2.5."""
        device = next(self._model.parameters()).device
        pixels = torch.stack([self._transform(open_image(image)) for image in images])
        tokens = self._tokenizer([PROMPT + text for text in texts])
        seen = self._model.encode_image(pixels.to(device))
        return clip_score(seen, self._model.encode_text(tokens.to(device))).tolist()


def clip_score(
    image: Float[Tensor, "batch width"], text: Float[Tensor, "batch width"]
) -> Float[Tensor, " batch"]:
    """Return 2.5 max(cos, 0) of the embeddings of every image and its text, in float32.

    >>> clip_score(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [-1.0, 0.0]]))
    tensor([1.5000, 0.0000])
    """
    return WEIGHT * F.cosine_similarity(image.float(), text.float(), dim=-1).clamp(min=0)


def load_clip_score(name: str, *, device: torch.device | str = "cpu") -> ClipScore:
    """Load a CLIP by "ARCHITECTURE/WEIGHTS" of OpenCLIP. Raises ModelError."""
    return ClipScore(*load_clip(name, device=device, wanted_by="CLIPScore"))


def load_clip(
    name: str, *, device: torch.device | str = "cpu", wanted_by: str
) -> tuple[Any, Any, Any]:
    """Load model, image transform and tokenizer by "ARCHITECTURE/WEIGHTS" of OpenCLIP.

    An example is "ViT-B-32/openai"; WEIGHTS may be a file. `wanted_by` names the user of the CLIP
    in errors. Raises ModelError if OpenCLIP is missing or does not know the name.
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
    """Return the name. Nothing is loaded.

    Raises ModelError if OpenCLIP is missing or the name is not ARCHITECTURE/WEIGHTS.
    """
    architecture, _, weights = name.partition("/")
    if not (architecture and weights):
        raise ModelError(
            f"{wanted_by} by {name!r}: expected ARCHITECTURE/WEIGHTS, for example ViT-B-32/openai"
        )
    if find_spec("open_clip") is None:
        raise ModelError(
            f"{wanted_by} needs OpenCLIP, which is not installed: pip install 'mmedit[clip]'"
        )
    return name
