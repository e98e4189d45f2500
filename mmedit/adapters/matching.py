"""Whether a processor is one for a network, tried on one small picture."""

from __future__ import annotations

import torch

from mmedit.adapters.base import Adapter
from mmedit.adapters.processing import SAMPLE_SIZES, sample_image
from mmedit.adapters.seen import UNUSABLE, SeenImage
from mmedit.cases import Example
from mmedit.errors import ModelError, one_line


def require_matching_processor(adapter: Adapter) -> None:
    """Raise ModelError unless the processor is one for this network.

    Costs one pass of a small image through vision and bridge.
    """
    picture = sample_image(SAMPLE_SIZES[0])
    example = Example(prompt="a", target="a", image=picture)
    try:
        layout, pixels = adapter.prepare(picture)
        with torch.no_grad():
            features = adapter.encode([SeenImage(example, "sample", layout, lambda: pixels)])
    except UNUSABLE as error:
        raise ModelError(
            "its network cannot read the images that its processor makes: "
            f"{one_line(error)}; expected the processor's files (preprocessor_config.json, "
            "processor_config.json) that belong to this network"
        ) from error
    require_counts(
        layout.placeholder.count(adapter.image_token), adapter.feature_count(features[0])
    )


def require_counts(tokens: int, features: int) -> None:
    """Raise ModelError unless an image has as many tokens in the text as it has features."""
    if tokens != features:
        raise ModelError(
            f"its processor puts {tokens} tokens for an image into the text, and its network makes "
            f"{features} features of that image; expected the same number: the processor's files "
            "(processor_config.json, preprocessor_config.json) are not those of this network, or "
            "lack patch_size, num_additional_image_tokens or image_seq_length"
        )
