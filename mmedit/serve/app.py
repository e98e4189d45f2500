"""The routes of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mmedit.cases import Example
from mmedit.errors import MmeditError
from mmedit.serve.conversation import as_one_question
from mmedit.serve.desk import Desk
from mmedit.serve.engine import Engine
from mmedit.serve.forms import ChatRequest, NewEdit, read_form
from mmedit.serve.guard import Guard, refused, too_large
from mmedit.serve.limits import Limits
from mmedit.serve.models import Model, Models
from mmedit.serve.pictures import Picture, Pictures
from mmedit.serve.questions import Job, Question, Ticket
from mmedit.serve.refusals import Refusal, of_error, of_status, too_slow
from mmedit.serve.replies import (
    DONE,
    Reply,
    described_edit,
    described_model,
    error_event,
    finish_reason,
)
from mmedit.serve.waiting import BODY_SECONDS, Bell, until

EDIT_IMAGES = 10
"""The images of one edit may have this many times the pixels of one image."""
GONE = 499
"""Status of an answer that nobody reads, as the client has gone."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """All that the routes need."""

    engine: Engine
    models: Models
    pictures: Pictures
    limits: Limits
    desk: Desk | None = None
    """Makes edits; None where clients may make none."""
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    """Names of the server that a request may be addressed to; empty: any."""

    async def ask(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        form = read_form(ChatRequest, await self._body(request))
        model = self.models.get(form.model)
        question = await self._question(form)
        bell = Bell()
        ticket = self.engine.ask(question, model, bell.ring)
        try:
            async with asyncio.timeout(self.limits.seconds):
                # A stream begins with its first text, so that an error has its own status.
                is_ready = (lambda: ticket.has_begun) if form.stream else (lambda: ticket.is_done)
                await until(is_ready, bell, request)
        except TimeoutError:
            ticket.cancel()
            raise too_slow(self.limits.seconds) from None
        except BaseException:
            ticket.cancel()
            raise
        if ticket.error is not None:
            raise of_error(ticket.error)
        reply = Reply(model.name)
        if not form.stream:
            return JSONResponse(reply.whole(ticket))
        events = _events(reply, ticket, bell, with_usage=form.stream_options.include_usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def make_edit(self, request: Request) -> Response:
        """Answer POST /v1/edits."""
        desk = self.require_desk()
        form = read_form(NewEdit, await self._body(request))
        desk.require_name(form.name)
        on = self.models.get(form.on) if form.on else self.models.base
        with self.models.reserved(form.name):
            examples = await self._requests(form)
            model = await self._done(
                request, lambda: desk.make(form.name, form.method, on, examples, form.settings)
            )
        assert isinstance(model, Model)
        return JSONResponse(described_edit(model), 201)

    async def delete_edit(self, request: Request) -> Response:
        """Answer DELETE /v1/edits/{name}."""
        desk, name = self.require_desk(), request.path_params["name"]
        await self._done(request, lambda: desk.delete(name))
        return JSONResponse({"id": name, "object": "edit", "deleted": True})

    def require_desk(self) -> Desk:
        """Return what makes edits. Raises Refusal where clients may make none."""
        if self.desk is None:
            raise Refusal(
                403,
                "this server makes and deletes no edits; start it with --allow-edits",
                code="edits_not_allowed",
            )
        return self.desk

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request. Raises Refusal if it is too large or comes too slowly."""
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.limits.body_bytes:
                        raise too_large(self.limits)
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
        return bytes(body)

    async def _question(self, form: ChatRequest) -> Question:
        most = self.limits.new_tokens
        if form.new_tokens is not None and form.new_tokens > most:
            raise Refusal(
                400,
                f"{form.new_tokens} new tokens were asked for; this server gives at most {most} "
                "(--max-tokens)",
                code="max_tokens_exceeded",
                param="max_tokens",
            )
        conversation = as_one_question(form.messages)
        return Question(
            prompt=conversation.prompt,
            context=conversation.context,
            picture=await self._picture(conversation.image_url),
            new_tokens=form.new_tokens,
            temperature=form.temperature,
            top_p=form.top_p,
            seed=form.seed,
            stop=tuple(form.stop),
            shows_growth=form.stream,
        )

    async def _picture(self, url: str | None) -> Picture | None:
        return None if url is None else await self.pictures.read(url)

    async def _requests(self, form: NewEdit) -> list[Example]:
        """Return the requests of an edit, with their images decoded. Raises Refusal, DataError."""
        found, pixels = [], 0
        most = EDIT_IMAGES * self.limits.pixels
        for one in form.requests:
            picture = await self._picture(one.image)
            image = None if picture is None else await asyncio.to_thread(picture.decode)
            pixels += image.width * image.height if image else 0
            if pixels > most:
                raise Refusal(
                    400,
                    f"the images of the requests have more than {most:,} pixels together; scale "
                    "them down, or make several edits",
                    param="requests",
                )
            found.append(Example(prompt=one.prompt, target=one.target, image=image))
        return found

    async def _done(self, request: Request, work: Callable[[], object]) -> object:
        """Return the result of work of the engine's thread. Work that has begun is finished, also
        for a client that has gone.
        """
        bell = Bell()
        job = self.engine.do(work, bell.ring)
        try:
            await until(lambda: job.is_done, bell, request)
        except ClientDisconnect:
            job.cancel()
            await _finished(job, bell)
            raise
        if job.error is not None:
            raise of_error(job.error) from job.error
        return job.result


def create_app(service: Service) -> FastAPI:
    """Return the application. When it ends, the engine finishes what waits."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)

    # The pages of documentation would load scripts from elsewhere.
    app = FastAPI(
        title="mmedit", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(Guard, limits=service.limits, api_key=service.api_key, hosts=service.hosts)
    _add_errors(app)
    app.add_route("/v1/chat/completions", service.ask, ["POST"])
    app.add_route("/v1/edits", service.make_edit, ["POST"])
    app.add_route("/v1/edits/{name}", service.delete_edit, ["DELETE"])

    @app.get("/health")
    async def health() -> Response:
        running = service.engine.is_running
        state = {"status": "ok" if running else "stopping", "waiting": service.engine.waiting}
        return JSONResponse(state, 200 if running else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described_model(m) for m in service.models.all()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return described_model(service.models.get(name))

    @app.get("/v1/edits")
    async def edits() -> dict[str, Any]:
        found = [described_edit(m) for m in service.models.all() if m.edit]
        return {"object": "list", "data": found}

    return app


def _add_errors(app: FastAPI) -> None:
    """Put every error into OpenAI's form."""

    @app.exception_handler(MmeditError)
    async def of_mmedit(_: Request, error: Exception) -> Response:
        return refused(of_error(error))

    @app.exception_handler(HTTPException)
    async def of_framework(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refused(of_status(error.status_code))

    @app.exception_handler(ClientDisconnect)
    async def of_client(_: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def of_server(_: Request, error: Exception) -> Response:
        return refused(of_error(error))


async def _events(
    reply: Reply, ticket: Ticket, bell: Bell, *, with_usage: bool
) -> AsyncIterator[str]:
    """Give an answer piece by piece. A slow reader gets fewer and larger pieces."""
    shown = 0
    try:
        yield reply.event({"role": "assistant", "content": ""}, with_usage=with_usage)
        while True:
            is_done = ticket.is_done  # before the text: once it is done, the text is whole
            text = ticket.text
            if len(text) > shown:
                yield reply.event({"content": text[shown:]}, with_usage=with_usage)
                shown = len(text)
            if is_done:
                break
            await bell.heard()
        if ticket.error is not None:
            yield error_event(ticket.error)
            return
        yield reply.event({}, finish=finish_reason(ticket), with_usage=with_usage)
        if with_usage:
            yield reply.usage_event(ticket.usage)
        yield DONE
    finally:
        ticket.cancel()


async def _finished(job: Job, bell: Bell) -> None:
    while not job.is_done:
        await bell.heard()
