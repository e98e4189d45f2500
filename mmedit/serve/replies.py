"""Answers as JSON, in OpenAI's form: whole, or as the events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from mmedit.serve.models import Model
from mmedit.serve.questions import Ticket, Usage
from mmedit.serve.refusals import of_error

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Reply:
    """The frame of one answer: what all its parts have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, ticket: Ticket) -> dict[str, Any]:
        """Return a finished answer."""
        assert ticket.answer is not None
        message = {"role": "assistant", "content": ticket.answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(ticket),
        }
        return self._frame("chat.completion", [choice]) | {"usage": usage_of(ticket.usage)}

    def event(
        self, delta: dict[str, str], *, finish: str | None = None, with_usage: bool = False
    ) -> str:
        """Return one piece of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        frame = self._frame("chat.completion.chunk", [choice])
        return as_event(frame | ({"usage": None} if with_usage else {}))

    def usage_event(self, usage: Usage) -> str:
        """Return the last event of a stream that tells its usage."""
        return as_event(self._frame("chat.completion.chunk", []) | {"usage": usage_of(usage)})

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def finish_reason(ticket: Ticket) -> str:
    """Return why an answer ended: "stop", or "length" if it was cut off."""
    return "length" if ticket.answer is not None and ticket.answer.is_cut_off else "stop"


def usage_of(usage: Usage) -> dict[str, int]:
    """Return the counts of tokens."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def error_event(error: BaseException) -> str:
    """Return an error as an event: the status of a stream that has begun cannot change."""
    return as_event(of_error(error).body)


def as_event(content: dict[str, Any]) -> str:
    """Return JSON as a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def described_model(model: Model) -> dict[str, Any]:
    """Return a model as /v1/models lists it."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "mmedit",
        "edits": [part.name for part in model.parts],
    }


def described_edit(model: Model) -> dict[str, Any]:
    """Return the edit of a model, as /v1/edits lists it."""
    edits = [
        {
            "name": part.name,
            "method": part.method,
            "label": part.label,
            "requests": [
                {"prompt": r.prompt, "target": r.target, "image": r.image is not None}
                for r in part.requests
            ],
        }
        for part in model.parts
    ]
    return {
        "id": model.name,
        "object": "edit",
        "created": model.created,
        "can_be_deleted": model.folder is not None,
        "edits": edits,
    }
