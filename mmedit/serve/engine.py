"""The engine: one thread that owns the network, and answers in one batch all who wait.

A forward adds an edit by hooks on the network that all VLM values share, so only one thread may run
it. While a batch is answered others arrive, and are the next batch: under load batches fill by
themselves, and an idle server answers after `Limits.wait`. Questions about different edits are rows
of one batch (`mmedit.edits.routing`). A wrapper such as IKE has batches of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch

from mmedit.cases import Example
from mmedit.serve.growing import settled
from mmedit.serve.limits import Limits
from mmedit.serve.models import Model, vlm_of
from mmedit.serve.questions import Job, Question, Ticket, Usage
from mmedit.serve.refusals import Refusal, of_error, stopping, too_slow
from mmedit.vlm.decoding import RowDecoding, RowsDecoding
from mmedit.vlm.interface import VLM

logger = logging.getLogger(__name__)

TOO_LONG = "context_length_exceeded"


class Row(NamedTuple):
    """One question as a row of a batch."""

    ticket: Ticket
    example: Example
    new_tokens: int
    """Most new tokens."""


@final
class Engine:
    """Answers questions and does jobs, in the order in which they come."""

    def __init__(self, base: VLM, limits: Limits) -> None:
        self._base = base
        self._limits = limits
        self._waiting: deque[Ticket | Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="mmedit-engine", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it takes questions."""
        return self._thread.is_alive() and not self._is_closed

    @property
    def waiting(self) -> int:
        """Number of questions and jobs that have not begun."""
        return len(self._waiting)

    def ask(self, question: Question, model: Model, changed: Callable[[], None]) -> Ticket:
        """Let a question wait for its answer. Raises Refusal if the engine stops."""
        ticket = Ticket(question, model, seconds=self._limits.seconds, changed=changed)
        self._put(ticket)
        return ticket

    def do(self, work: Callable[[], object], changed: Callable[[], None]) -> Job:
        """Let work wait for its turn. Raises Refusal if the engine stops."""
        job = Job(work, changed)
        self._put(job)
        return job

    def close(self) -> None:
        """Finish what waits, and end the thread. Nothing new is taken from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, one: Ticket | Job) -> None:
        with self._changed:
            if not self.is_running:
                raise stopping()
            self._waiting.append(one)
            self._changed.notify_all()

    def _work(self) -> None:
        while found := self._next():
            if isinstance(found, Job):
                found.run()
            else:
                self._answer(found)

    def _next(self) -> Job | list[Ticket] | None:
        """Wait for the next job or batch; None if the engine was closed and all is done."""
        with self._changed:
            while True:
                self._drop_given_up()
                if not self._waiting:
                    if self._is_closed:
                        return None
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                if isinstance(first, Job):
                    self._waiting.popleft()
                    return first
                together = self._with(first)
                left = first.arrived + self._limits.wait - time.monotonic()
                if len(together) < self._limits.batch and left > 0 and not self._is_closed:
                    self._changed.wait(left)
                    continue
                for one in together:
                    self._waiting.remove(one)
                return together

    def _drop_given_up(self) -> None:
        given_up = [one for one in self._waiting if one.is_given_up]
        for one in given_up:
            self._waiting.remove(one)
            one.fail(too_slow(self._limits.seconds))

    def _with(self, first: Ticket) -> list[Ticket]:
        """Return the questions that can be answered together with the first one, it included. None
        is taken past a job that waits before it.
        """
        found: list[Ticket] = []
        for one in self._waiting:
            if isinstance(one, Job) or len(found) == self._limits.batch:
                break
            both_routed = one.model.is_routable and first.model.is_routable
            if both_routed or one.model is first.model:
                found.append(one)
        return found

    def _answer(self, tickets: Sequence[Ticket]) -> None:
        """Answer a batch. Where it fails, each question is answered by itself, so that only those
        at fault fail.
        """
        try:
            if rows := self._rows(tickets):
                self._answer_together(rows)
        except Exception as error:
            if len(tickets) > 1:
                for ticket in tickets:
                    if not ticket.is_done:
                        self._answer([ticket])
            elif of_error(error).status >= 500:
                logger.exception("a question to %s failed", tickets[0].model.name)
            tickets[0].fail(error)

    def _rows(self, tickets: Sequence[Ticket]) -> list[Row]:
        """Return the questions that can be asked. The others fail here."""
        found = []
        for ticket in tickets:
            try:
                found.append((ticket, ticket.question.example()))
            except Exception as error:
                if of_error(error).status >= 500:
                    logger.exception("the image of a question to %s failed", ticket.model.name)
                ticket.fail(error)
        if not found:
            return []
        frozen = self._base.frozen
        faults = frozen.faults([example for _, example in found], new_tokens=1)
        for (ticket, example), fault in zip(found, faults, strict=True):
            if fault is not None:
                is_long = frozen.prompt_tokens([example])[0] >= frozen.max_tokens
                code = TOO_LONG if is_long else "invalid_prompt"
                ticket.fail(Refusal(400, fault, code=code, param="messages"))
        sound = [(ticket, example) for ticket, example in found if not ticket.is_done]
        return self._with_lengths(sound) if sound else []

    def _with_lengths(self, sound: Sequence[tuple[Ticket, Example]]) -> list[Row]:
        """Return rows with their largest number of new tokens. Those without the room that they ask
        for fail here.
        """
        frozen, rows = self._base.frozen, []
        prompts = frozen.prompt_tokens([example for _, example in sound])
        for (ticket, example), prompt in zip(sound, prompts, strict=True):
            room = max(frozen.max_tokens - prompt, 1)
            asked = ticket.question.new_tokens
            if asked is not None and asked > room:
                ticket.fail(_no_room(asked, room, prompt))
                continue
            # In-context edits need room too: half of it is left to them.
            usual = room if ticket.model.is_routable else max(room // 2, 1)
            rows.append(Row(ticket, example, asked or min(usual, self._limits.new_tokens)))
        return rows

    def _answer_together(self, rows: Sequence[Row]) -> None:
        vlm = vlm_of([row.ticket.model for row in rows])
        decoding = RowsDecoding([self._decoding(row) for row in rows])
        examples, lengths = [row.example for row in rows], [row.new_tokens for row in rows]
        prompts = vlm.prompt_tokens(examples, new_tokens=lengths)
        for row, prompt in zip(rows, prompts, strict=True):
            row.ticket.usage = Usage(prompt, 0)
        answers = vlm.answer(examples, max_new_tokens=max(lengths), decoding=decoding)
        for row, answer in zip(rows, answers, strict=True):
            row.ticket.finish(answer)

    def _decoding(self, row: Row) -> RowDecoding:
        frozen, ticket = self._base.frozen, row.ticket
        stops = (*frozen.stop_texts, *ticket.question.stop)

        def text_of(ids: Sequence[int]) -> str:
            return settled(frozen.decode(torch.tensor([list(ids)]))[0], stops)

        return ticket.decoding(row.new_tokens, text_of)


def _no_room(asked: int, room: int, prompt: int) -> Refusal:
    return Refusal(
        400,
        f"{asked} new tokens were asked for; behind the prompt of {prompt} tokens (its image and "
        f"context included) the model has room for {room}. Ask for fewer, or shorten the prompt",
        code=TOO_LONG,
        param="max_tokens",
    )
