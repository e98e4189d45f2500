"""A language model as judge of generated answers: the question, the accepted answers and the text
go to an OpenAI-compatible endpoint, which answers YES or NO. Off by default.

Question and reply are kept, so that verdicts can be checked. For any other reply the question is
sent again; after three tries it is an error.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import Field

from mmedit.errors import JudgeError
from mmedit.settings import Settings

INSTRUCTION = (
    "You compare an answer with the accepted answers to a question about an image that you cannot "
    "see. Say YES if the answer means the same as one of the accepted answers, NO if not. Reply "
    "with that one word."
)
QUESTION = "Question: {prompt}\nAccepted answers:\n{accepted}\nAnswer: {text}"
VERDICT = re.compile(r"""^[\W_]*(yes|no)(?=[ \t]*([.,:;!*_`"'’”)\]}<\r\n]|$))""", re.IGNORECASE)
"""The word alone, or before a mark or the end of a line. "No idea" does not match."""
_THOUGHTS = "think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis"
OPENED = re.compile(rf"[<\[◁](\w+:)?({_THOUGHTS})[>\]▷]", re.IGNORECASE)
CLOSED = re.compile(rf"[<\[◁]/(\w+:)?({_THOUGHTS})[>\]▷]", re.IGNORECASE)
"""The tags around the thoughts of a reasoning model: <think>, [THINK], <seed:think>, ◁think▷."""
TRIES = 3


class JudgeConfig(Settings):
    """Settings of the judge. The key is read from an environment variable and never written."""

    url: str = Field(pattern=r"^https?://[^/]+")
    """Address with the version: https://api.openai.com/v1, http://localhost:8000/v1."""
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = Field(default=60.0, gt=0)
    at_once: int = Field(default=8, ge=1)


@dataclass(frozen=True)
class Transcript:
    """One question to the judge, and its reply."""

    asked: str
    replied: str
    verdict: float
    """1 for YES, 0 for NO."""


def question(prompt: str, answers: Sequence[str], text: str) -> str:
    """Return the question to the judge, after `INSTRUCTION`. Each accepted answer has a line."""
    accepted = "\n".join(f"- {answer}" for answer in answers)
    return QUESTION.format(prompt=prompt, accepted=accepted, text=text)


def verdict(reply: str) -> float | None:
    """Return 1 for YES, 0 for NO, None for anything else. Text after a mark is an explanation.

    Thoughts do not count: the verdict is what follows their last closing tag, also if the opening
    one was part of the prompt. Thoughts that never end give None.

    >>> verdict("Yes."), verdict("NO, not yes."), verdict("No idea"), verdict("Yes or no?")
    (1.0, 0.0, None, None)
    >>> verdict("<think>No. Wait: the same.</think> **YES**"), verdict("<think>Yes, but")
    (1.0, None)
    """
    closed = list(CLOSED.finditer(reply))
    said = reply[closed[-1].end() :] if closed else reply
    found = None if OPENED.search(said) else VERDICT.match(said)
    return None if found is None else float(found[1].lower() == "yes")


class Judge:
    """The judge behind an endpoint. Costs one request per text, several at once."""

    def __init__(self, config: JudgeConfig) -> None:
        key = os.environ.get(config.key_variable, "")
        self.config = config
        self._client = httpx2.Client(
            base_url=config.url.rstrip("/"),
            timeout=config.timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[Sequence[str]], texts: Sequence[str]
    ) -> list[Transcript]:
        """Return a verdict for every text.

        Raises JudgeError if after three tries the endpoint cannot be reached, refuses, or answers
        neither YES nor NO.
        """
        with ThreadPoolExecutor(self.config.at_once) as pool:
            return list(pool.map(self._judge, prompts, answers, texts))

    def _judge(self, prompt: str, answers: Sequence[str], text: str) -> Transcript:
        asked = question(prompt, answers, text)
        problem = ""
        for attempt in range(TRIES):
            try:
                replied = self._ask(asked)
            except httpx2.HTTPStatusError as error:
                problem = f"it answered {error.response.status_code}: {error.response.text[:200]}"
                if (
                    error.response.status_code not in (408, 429)
                    and not error.response.is_server_error
                ):
                    break
            except (httpx2.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if (right := verdict(replied)) is not None:
                    return Transcript(asked=asked, replied=replied, verdict=right)
                problem = f"it said neither YES nor NO: {replied[:200]!r}"
            time.sleep(0.1 * 2**attempt)
        raise JudgeError(
            f"the judge {self.config.model} at {self.config.url} gives no verdict; {problem}. "
            f"Check URL, model and ${self.config.key_variable}; the records made so far are kept."
        )

    def _ask(self, asked: str) -> str:
        messages = [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": asked},
        ]
        response = self._client.post(
            "/chat/completions",
            json={"model": self.config.model, "messages": messages, "temperature": 0},
        )
        response.raise_for_status()
        return _text(response.json()["choices"][0]["message"]["content"])


def _text(content: Any) -> str:
    """Return the text of a reply, which some endpoints give in parts beside their thoughts.

    It is empty if there are only thoughts, which stand in another field then.
    """
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    return "".join(str(part["text"]) for part in parts if part["type"] == "text")
