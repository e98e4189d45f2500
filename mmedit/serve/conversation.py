"""A conversation as one question, which is what a VLM of mmedit is asked.

The last message is the prompt, word for word. All that stands before it becomes a text between
image and prompt (`Example.context`): a system message as it is, earlier turns after "User: " and
"Assistant: ". The image stands before both, whichever message it comes with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmedit.errors import DataError, one_line
from mmedit.serve.forms import Message
from mmedit.serve.refusals import Refusal
from mmedit.storage import require_text

SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "system": "", "developer": ""}
"""The beginning of an earlier turn, by role."""


@dataclass(frozen=True)
class Conversation:
    """The parts of one question."""

    prompt: str
    context: str = ""
    image_url: str | None = None


def as_one_question(messages: Sequence[Message]) -> Conversation:
    """Return a conversation as one question. Raises Refusal."""
    *earlier, last = messages
    if last.role != "user":
        raise _refused(f"the last message is of role {last.role!r}; expected 'user'")
    for number, message in enumerate(messages):
        _require_sound(message, number)
    images = [url for message in messages for url in message.images]
    if len(images) > 1:
        raise _refused(f"the messages hold {len(images)} images; this server takes at most one")
    turns = [f"{SPEAKERS[message.role]}{message.text}\n" for message in earlier]
    return Conversation(last.text, "".join(turns), *images)


def _require_sound(message: Message, number: int) -> None:
    if message.role != "user" and message.images:
        raise _refused(f"message {number} is of role {message.role!r} and holds an image; only "
                       "messages of role 'user' may")  # fmt: skip
    if not message.text.strip() and not message.images:
        raise _refused(f"message {number} is empty; give it a text, or leave it out")
    try:
        require_text(message.text, f"message {number}")
    except DataError as error:
        raise _refused(one_line(error)) from None


def _refused(message: str, **more: Any) -> Refusal:
    return Refusal(400, message, param="messages", **more)
