"""Requests that are answered with an error, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, final

from mmedit.errors import MmeditError, one_line

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
"""The `type` of an error by its status. Others: see `Refusal.type`."""


@final
class Refusal(MmeditError):
    """An error for one client: an HTTP status, and what OpenAI's clients read."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """Kind of error, in OpenAI's words."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return TYPES.get(self.status, usual)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        said = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": said}


def unknown_model(name: object, known: list[str]) -> Refusal:
    """Return the error for a model name that is not served."""
    return Refusal(
        404,
        f"the model {name!r} does not exist; this server has: {', '.join(known)}",
        code="model_not_found",
        param="model",
    )


def too_busy(waiting: int) -> Refusal:
    """Return the error for a request that finds too many others waiting."""
    return Refusal(
        429,
        f"{waiting} requests are waiting, which is as many as this server takes; try again later",
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )


def stopping() -> Refusal:
    """Return the error for a request that arrives while the server stops."""
    return Refusal(503, "the server is stopping and takes no new requests", code="stopping")


def too_slow(seconds: float) -> Refusal:
    """Return the error for a request that took too long."""
    return Refusal(
        504,
        f"the request was not finished within {seconds:g} s and was given up; ask for fewer "
        "tokens, or start the server with a larger --timeout",
        code="timeout",
        headers={"x-should-retry": "false"},  # OpenAI's clients would ask again, and take as long
    )


def of_error(error: BaseException) -> Refusal:
    """Return what a client is told about an error. Faults of the server itself say no details."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MmeditError):
        return Refusal(400, one_line(error))
    return Refusal(500, "the server failed at this request; its log says why", code="internal")


def of_status(status: int) -> Refusal:
    """Return the error for a status that the web framework found: no such address, method."""
    said = HTTPStatus(status).phrase.lower()
    return Refusal(status, f"{said}: see GET /v1/models, POST /v1/chat/completions, GET /health")
