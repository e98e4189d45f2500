"""What the language model knew and wrote before it was trained here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lessons import AFTER, BEFORE

from mmedit.datasets.facts import PHRASINGS, Fact, load_facts
from mmedit.datasets.grocery.questions import product_facts
from mmedit.progress import Progress
from mmedit.storage import write_atomically

BATCH = 32
TOPICS = (
    "Tell me about {}.", "Write a short story about {}.", "Explain why people like {}.",
    "What should I know about {}?", "Give me three tips about {}.", "What is the history of {}?",
)  # fmt: skip
SUBJECTS = (
    "music", "rivers", "the moon", "football", "trains", "dogs", "mathematics", "winter", "cities",
    "bridges", "painting", "sleep", "computers", "gardens", "money", "language", "the sea",
    "birds", "schools", "friendship", "cooking", "mountains", "the heart", "books", "energy",
    "maps", "clocks", "democracy", "volcanoes", "dance", "paper", "insects",
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """A conversation of two turns as tokens."""

    ids: list[int]
    prompt: int
    """Number of tokens before the reply."""


@dataclass(frozen=True)
class KnownFact:
    """A fact, and the reply that has its answer."""

    fact: Fact
    reply: Reply


def known_facts(network: Any, tokenizer: Any, file: Path, progress: Progress) -> list[KnownFact]:
    """Return the facts of `mmedit.datasets.facts` that the network answers right in 24 tokens.

    Each is asked once, in its first wording; the answer must be in the reply. `file` keeps them.
    """
    if not file.exists():
        facts = load_facts()
        asked = [fact.ask(PHRASINGS[fact.relation].original[0]) for fact in facts]
        replies = generate(network, tokenizer, asked, 24, "known facts", progress)
        known = [
            (asdict(fact), asdict(reply))
            for fact, reply in zip(facts, replies, strict=True)
            if fact.answer.lower() in tokenizer.decode(reply.ids[reply.prompt :]).lower()
        ]
        write_atomically(file, json.dumps(known).encode())
    written = json.loads(file.read_text(encoding="utf-8"))
    return [KnownFact(Fact(**fact), Reply(**reply)) for fact, reply in written]


def held_out(known: Sequence[KnownFact]) -> set[str]:
    """Return every second country: no reply about it is in the training, so it can be tested."""
    return set(sorted({one.fact.subject for one in known})[::2])


def write_replies(network: Any, tokenizer: Any, file: Path, progress: Progress) -> list[Reply]:
    """Return replies of the network to questions about all kinds of things; `file` keeps them."""
    if not file.exists():
        subjects = [*SUBJECTS, *(facts.name for facts in list(product_facts().values())[::3])]
        asked = [
            topic.format(subject)
            for place, subject in enumerate(subjects)
            for topic in (TOPICS[place % len(TOPICS)], TOPICS[(place + 2) % len(TOPICS)])
        ]
        replies = generate(network, tokenizer, asked, 48, "own replies", progress)
        write_atomically(file, json.dumps([asdict(reply) for reply in replies]).encode())
    return [Reply(**reply) for reply in json.loads(file.read_text(encoding="utf-8"))]


@torch.no_grad()
def generate(
    network: Any,
    tokenizer: Any,
    asked: Sequence[str],
    new: int,
    task: str,
    progress: Progress,
) -> list[Reply]:
    """Return greedy replies, without their padding."""
    replies = []
    for first in range(0, len(asked), BATCH):
        texts = [f"{BEFORE}{question}{AFTER}" for question in asked[first : first + BATCH]]
        rows = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        mask = rows["attention_mask"]
        given = network.generate(
            input_ids=rows["input_ids"], attention_mask=mask, max_new_tokens=new, do_sample=False,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        for row, seen in zip(given.tolist(), mask.tolist(), strict=True):
            start, prompt = seen.count(0), len(seen)
            reply = row[prompt:]
            if tokenizer.eos_token_id in reply:
                reply = reply[: reply.index(tokenizer.eos_token_id) + 1]
            replies.append(Reply([*row[start:prompt], *reply], prompt - start))
        progress(task, len(replies), len(asked), "")
    return replies
