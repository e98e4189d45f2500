"""Why an example cannot be asked, found before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from mmedit.adapters.base import Adapter, Segments
from mmedit.adapters.rows import row_fault
from mmedit.cases import Example
from mmedit.errors import ImageError


def faults(
    adapter: Adapter, examples: Sequence[Example], *, new_tokens: int = 0
) -> list[str | None]:
    """Return, for every example, why it cannot be asked, or None if it can.

    `new_tokens` is the room for a generation. Texts are tokenised in one call, of an image file
    the header is read, and the image processor sees one blank image of every size. A file that is
    cut off is not noticed.
    """
    texts = adapter.segments(examples)
    return [_fault(adapter, e, t, new_tokens) for e, t in zip(examples, texts, strict=True)]


def tokens_around(adapter: Adapter, example: Example) -> int:
    """Return the number of tokens of an example's image and markers. Of an image file, only the
    header is read. Raises ImageError.
    """
    markers = adapter.format_of(example).markers
    if example.image is None:
        return markers
    return markers + len(adapter.layout_of(example.image).placeholder)


def prompt_tokens(adapter: Adapter, examples: Sequence[Example]) -> list[int]:
    """Return how many tokens the network reads before each answer: image, markers, context and
    prompt. Of an image file, only the header is read. Raises ImageError.
    """
    return [
        tokens_around(adapter, example) + len(text.context) + len(text.prompt)
        for example, text in zip(examples, adapter.segments(examples), strict=True)
    ]


def _fault(adapter: Adapter, example: Example, texts: Segments, new_tokens: int) -> str | None:
    try:
        around = tokens_around(adapter, example)
    except ImageError as error:
        return str(error)
    return row_fault(example, texts, around=around, limits=adapter.limits, new_tokens=new_tokens)
