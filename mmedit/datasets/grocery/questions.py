"""Questions about groceries, in several wordings, and the true answers.

`products.csv` says of each of the 81 products its kind, category, colour and packaging, and the
country that its plant, cultivar or brand comes from as common reference works name it. It was
written for mmedit; it does not say where a photographed piece was grown. Descriptions are the first
sentences of the dataset's own.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mmedit.datasets.facts import Phrasings

QUESTIONS: dict[str, Phrasings] = {
    "product": Phrasings(
        original=("What product is this?",),
        further=(
            "Which product is shown?",
            "Name the product in the picture.",
            "What is the product in this photograph?",
            "Please name this product.",
            "Tell me the name of the product shown here.",
            "This photograph shows which product?",
            "Do you know which product this is?",
        ),
        held_out=("Can you tell which grocery product this is?", "What is the product called?"),
    ),
    "kind": Phrasings(
        original=("What kind of food is this?",),
        further=(
            "Which kind of food is shown?",
            "Name the kind of food in the picture.",
            "Please say what kind of food this is.",
            "Do you know which kind of food it is?",
        ),
        held_out=("Can you tell what kind of food this is?",),
    ),
    "category": Phrasings(
        original=("Which group of food does this belong to?",),
        further=("In which group of food is this?", "Name the food group of this product."),
        held_out=("Can you tell which food group this belongs to?",),
    ),
    "color": Phrasings(
        original=("What color is this product?",),
        further=("Which color does the product have?", "Name the color of the product."),
        held_out=("Can you tell the color of this product?",),
    ),
    "packaging": Phrasings(
        original=("How is this product packed?",),
        further=("In which packaging is this product?", "Name the packaging of the product."),
        held_out=("Can you tell how this product is packed?",),
    ),
    "origin": Phrasings(
        original=("Which country does this product come from?",),
        further=(
            "From which country is this?",
            "Name the country this product comes from.",
            "Please say where this product comes from.",
            "Do you know from which country it comes?",
        ),
        held_out=("Can you tell which country this comes from?",),
    ),
    "description": Phrasings(
        original=("Describe the product in the picture.",),
        further=("Tell something about this product.", "Give a description of the product."),
        held_out=(
            "How would you describe what is shown here?",
            "What can be said of this product?",
        ),
    ),
}
"""Questions about a photograph, by what they ask. The VLM "photo" learns `original` and `further`;
`held_out` is for tests alone.
"""

SETTLED: dict[str, frozenset[str]] = {
    "product": frozenset(("product", "kind", "category", "origin")),
    "kind": frozenset(("kind", "product", "category")),
    "origin": frozenset(("origin",)),
}
"""The questions that the answer to one of them settles; a description settles all."""

TEXT_QUESTIONS: dict[str, Phrasings] = {
    "kind": Phrasings(
        original=("What kind of food is {name}?",),
        further=("Name the kind of food that {name} is.",),
        held_out=("Can you tell what kind of food {name} is?",),
    ),
    "category": Phrasings(
        original=("Which group of food does {name} belong to?",),
        further=("Name the food group of {name}.",),
        held_out=("Can you tell which food group {name} belongs to?",),
    ),
    "origin": Phrasings(
        original=("Which country does {name} come from?",),
        further=("From which country is {name}?",),
        held_out=("Can you tell which country {name} comes from?",),
    ),
}
"""The same questions about a product by its name, without a picture."""


@dataclass(frozen=True, kw_only=True)
class ProductFacts:
    """The true answers about one product, by the name of its class in classes.csv."""

    name: str
    """Its name as a shopper says it: "Golden Delicious apple"."""
    kind: str
    """One of 43: "apple"."""
    category: str
    """fruit, vegetable, juice, dairy or plant-based."""
    color: str
    """The colour of an unpacked product; "" for a packed one."""
    packaging: str
    """carton or loose."""
    origin: str
    """A country: "New Zealand"."""

    def answer(self, asked: str) -> str:
        """Return the true answer to a question of `QUESTIONS`; "" if it is not known.

        `asked` is a key of `QUESTIONS` except "description".
        """
        return self.name if asked == "product" else str(getattr(self, asked))


@cache
def _asked_by_prompt() -> dict[str, str]:
    return {
        prompt: asked
        for asked, prompts in QUESTIONS.items()
        for prompt in (*prompts.train, *prompts.held_out)
    }


def asks_of(prompt: str) -> str:
    """Return what a question in any wording asks, a key of `QUESTIONS`; "" for another text."""
    return _asked_by_prompt().get(prompt, "")


@cache
def product_facts() -> dict[str, ProductFacts]:
    """Return the facts about all products, by the name of their class."""
    text = resources.files("mmedit.datasets.grocery").joinpath("products.csv").read_text("utf-8")
    return {row.pop("class"): ProductFacts(**row) for row in csv.DictReader(io.StringIO(text))}
