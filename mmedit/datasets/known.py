"""Files that say which questions of a dataset a base model answers right.

`mmedit data known` makes them (`mmedit.bench.known`). A dataset with the setting `known` then makes
edits and probes only of questions that the base model answers right, as far as it can.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmedit.cases import Example
from mmedit.datasets.base import read_text
from mmedit.errors import DataError
from mmedit.storage import write_atomically

FORM = 1
"""Version of the form of these files."""
MAKE = "Make it with: mmedit data known --vlm NAME --dataset NAME --split test --out FILE"


@dataclass(frozen=True, kw_only=True)
class Known:
    """The questions that a base model was asked, and whether it answered each of them right."""

    vlm: str
    """The name of the VLM."""
    identity: Mapping[str, str]
    """The parts of the VLM's identity, by name (`mmedit.vlm.identity.Identity`)."""
    dataset: str
    right: Mapping[str, bool] = field(default_factory=dict)
    """Whether the answer to a question was right, by the question's key."""

    def __contains__(self, key: str) -> bool:
        """Return whether this question was answered right."""
        return self.right.get(key, False)

    @staticmethod
    def read(file: str | Path) -> Known:
        """Read a file. Raises DataError if it is missing or of another form."""
        file = Path(os.path.expanduser(file))
        try:
            content = json.loads(read_text(file, MAKE))
            return _of(content)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{file} is not a file of known questions ({type(error).__name__}: {error}). {MAKE}"
            ) from error

    def write(self, file: str | Path) -> None:
        """Write the file, whole or not at all. Raises RunError."""
        answered = {"right": True, "wrong": False}
        content = {
            "form": FORM,
            "vlm": self.vlm,
            "identity": dict(self.identity),
            "dataset": self.dataset,
            "counts": {name: sum(v == is_right for v in self.right.values())
                       for name, is_right in answered.items()},
            **{name: [key for key, v in self.right.items() if v == is_right]
               for name, is_right in answered.items()},
        }  # fmt: skip
        write_atomically(
            Path(os.path.expanduser(file)),
            json.dumps(content, ensure_ascii=False, indent=0).encode(),
        )


def text_key(example: Example) -> str:
    """Return the key of a question without an image: "... capital of Kenya? Nairobi". Datasets that
    ask the same share it.
    """
    return f"{example.prompt} {example.target}"


def _of(content: Any) -> Known:
    """Return the content of a file. Raises KeyError, TypeError, ValueError for another form."""
    if content["form"] != FORM:
        raise ValueError(f"form {content['form']!r}, expected {FORM}")
    right = {str(key): is_right for is_right, name in ((True, "right"), (False, "wrong"))
             for key in content[name]}  # fmt: skip
    return Known(
        vlm=str(content["vlm"]),
        identity={str(part): str(value) for part, value in content["identity"].items()},
        dataset=str(content["dataset"]),
        right=right,
    )
