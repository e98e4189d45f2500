"""ADS-Edit (Wang et al., "ADS-Edit: A Multimodal Knowledge Editing Dataset for Autonomous Driving
Systems", 2025): what a driver sees. Records about a single image alone are used.

The keys are MMEdit's; `image_type` says whether `image` is one image, several (a list, or one per
camera) or the frames of a video. Records of the last two kinds are left out and counted. A single
image may be named as CODA-LM names its annotation: SPLIT_NUMBER.json is SPLIT/images/NUMBER.jpg of
CODA (its authors' rule); any other name is a path as it is.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from mmedit.datasets.annotated.annotations import Annotation

SINGLE = "single-image"
CODA = re.compile(r"(?:.*/)?(val|test)_(\w+)\.json")
"""The name of an annotation of CODA-LM: the part of CODA, and the number of the image."""


def _one_name(value: Any) -> Any:
    """Return the name of the only image; "" if there are several, which are not read."""
    if isinstance(value, list | dict):
        names = list(value.values()) if isinstance(value, dict) else value
        value = names[0] if len(names) == 1 else ""
    coda = CODA.fullmatch(value) if isinstance(value, str) else None
    return f"{coda[1]}/images/{coda[2]}.jpg" if coda else value


ImageName = Annotated[str, BeforeValidator(_one_name)]


class ADSEditRecord(Annotation):
    """A record of ADS-Edit."""

    image: ImageName
    image_rephrase: ImageName | None = None
    image_type: str

    @property
    def unused(self) -> str:
        return "" if self.image_type == SINGLE else "a video or several images"

    @property
    def empty(self) -> list[str]:
        return [] if self.unused else super().empty

    @property
    def images(self) -> dict[str, str | None]:
        return {} if self.unused else super().images
