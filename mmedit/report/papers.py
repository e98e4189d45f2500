"""The published values of papers: the files configs/published/*.yaml.

`published` compares tables with them. This module imports nothing that makes tables, so checking a
name is quick.
"""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from mmedit.cases import Probe
from mmedit.errors import DataError, UnknownNameError
from mmedit.settings import Settings
from mmedit.storage import config_folder

Names = dict[str, tuple[str, ...]]


class PaperProtocol(Settings):
    """How a paper asked its model; None if it is not known."""

    image_size: str | None = None
    """Width and height of the images in pixels, as in "364x364"."""
    text: str | None = None
    """The text around a question about an image, with {image}, {prompt} and {answer}."""
    bos: bool | None = None
    """True if a begin-of-text token stands before it."""


class Published(Settings):
    """A file of configs/published. `models`, `datasets` and `methods` hold other names of each."""

    source: str
    notes: tuple[str, ...] = ()
    protocol: dict[str, PaperProtocol] = Field(default_factory=dict)
    """By model: what the paper used."""
    metrics: dict[Probe | Literal["specificity"], str]
    models: Names
    datasets: Names
    methods: Names = Field(default_factory=dict)
    values: dict[str, dict[str, dict[str, tuple[float | None, ...]]]]
    """By model, dataset and method: one value for each of `metrics`, in order, or null."""

    @model_validator(mode="after")
    def _complete(self) -> Published:
        if unknown := sorted(set(self.protocol) - set(self.models)):
            raise ValueError(f"protocol: {', '.join(unknown)} not among models")
        for model, by_dataset in self.values.items():
            for dataset, by_method in by_dataset.items():
                if model not in self.models or dataset not in self.datasets:
                    raise ValueError(f"{model} or {dataset} is not among models and datasets")
                for method, values in by_method.items():
                    if len(values) != len(self.metrics):
                        raise ValueError(
                            f"{model}, {dataset}, {method}: {len(values)} values for "
                            f"{len(self.metrics)} metrics; write null where none is published"
                        )
        return self


def published_names() -> list[str]:
    """List the tables that `--published` can name."""
    return sorted(file.stem for file in (config_folder() / "published").glob("*.yaml"))


def load_published(name: str) -> Published:
    """Read the published values of one paper. Raises UnknownNameError and DataError."""
    if name not in published_names():
        raise UnknownNameError("published table", name, published_names())
    file = config_folder() / "published" / f"{name}.yaml"
    try:
        return Published.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{file} is not a valid table of published values: {error}") from error
