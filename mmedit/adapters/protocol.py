"""How a VLM is asked a question about an image. Two numbers of one model may differ by it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedit.adapters.base import Adapter
from mmedit.adapters.compiled import is_compiled


def protocol_of(adapter: Adapter) -> dict[str, Any]:
    """Return the size of images in pixels, the text around a question about an image, and whether a
    BOS token stands before it; also that vision and bridge are compiled, if they are.
    """
    form, decode = adapter.image_format, adapter.tokenizer.decode
    question = f"{decode(form.before_prompt)}{form.space}{{prompt}}{decode(form.after_prompt)}"
    return {
        "image_size": image_size(adapter.processor.image_processor.to_dict()),
        "text": f"{decode(form.before_image)}{{image}}{question}{form.lead}{{answer}}",
        "bos": adapter.tokenizer.bos_token_id in {*form.before_image, *form.before_prompt},
        **({"compiled": "vision and bridge"} if is_compiled(adapter.network) else {}),
    }


def image_size(settings: Mapping[str, Any]) -> str:
    """Return the size of images behind an image processor with these settings, in pixels.

    >>> image_size({"size": {"shortest_edge": 336}, "do_center_crop": True, "crop_size": 336})
    '336x336'
    >>> image_size({"size": {"width": 364, "height": 364}})
    '364x364'
    """
    is_cropped = settings.get("do_center_crop") and settings.get("crop_size")
    size = settings["crop_size"] if is_cropped else settings.get("size") or {}
    if isinstance(size, int):
        return f"{size}x{size}"
    is_fixed = size.get("width") and size.get("height")
    return f"{size['width']}x{size['height']}" if is_fixed else "by the image's own size"
