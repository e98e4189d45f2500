"""The bodies of requests, as typed values. What the server does not do is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmedit.errors import one_line, shortened
from mmedit.serve.refusals import Refusal

IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls", "tool_choice", "function_call", "verbosity",
})  # fmt: skip
"""Fields of OpenAI's clients that change no answer of this server."""
ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "reasoning_effort": ("none",),
}
"""Fields with the only values that this server knows: those that ask for nothing."""
MOST_STOPS, LONGEST_STOP = 4, 200
"""Most stop texts of a request, as at OpenAI, and most characters of one."""

Model = TypeVar("Model", bound=BaseModel)


class Form(BaseModel):
    """The base of all bodies: an unknown field is an error, null stands for a field left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


class ImageUrl(Form):
    """An image by its address, most often a data URI."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    """OpenAI's wish for a resolution; it has no effect here."""


class TextPart(Form):
    """A text in the content of a message."""

    type: Literal["text"]
    text: str


class ImagePart(Form):
    """An image in the content of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Form):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]
    name: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    @property
    def text(self) -> str:
        """Its text; several parts are joined by line feeds."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[str]:
        """The addresses of its images."""
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(Form):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """OpenAI's padding of chunks against listeners; there is none here."""


class ChatRequest(Form):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 takes the likeliest token. It is the default here, so that an answer can be repeated."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]] = Field(
        default=[], max_length=MOST_STOPS
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        asked = {key: value for key, value in values.items() if key not in IGNORED}
        for key in asked.keys() & ONLY.keys():
            if asked[key] is not None and asked[key] not in ONLY[key]:
                raise Refusal(
                    400,
                    f"{key} is {shortened(asked[key])}; this server knows only "
                    f"{ONLY[key][0]!r}: leave it out",
                    code="unsupported_parameter",
                    param=key,
                )
        return {key: value for key, value in asked.items() if key not in ONLY}

    @property
    def new_tokens(self) -> int | None:
        """Most new tokens; None if the request does not say."""
        return self.max_completion_tokens or self.max_tokens


class EditRequest(Form):
    """One fact of POST /v1/edits: what the VLM shall answer."""

    prompt: str
    target: str
    image: str | None = None
    """The address of its image, as in a message: most often a data URI."""


class NewEdit(Form):
    """The body of POST /v1/edits."""

    name: str
    method: str = "ft"
    on: str | None = None
    """The model that the edit is made on; the base model if it is left out."""
    requests: list[EditRequest] = Field(min_length=1)
    settings: dict[str, Any] = {}


def read_form(form: type[Model], body: bytes) -> Model:
    """Return the body of a request as a value. Raises Refusal."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise _of_fault(error) from None


def _of_fault(error: ValidationError) -> Refusal:
    """Return the first fault of a body as an error."""
    fault = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in fault["loc"]) or None
    if fault["type"] == "extra_forbidden":
        return Refusal(
            400,
            f"the field {param} is not known to this server; leave it out",
            code="unsupported_parameter",
            param=param,
        )
    about = f"{param}: " if param else ""
    found = "" if fault["type"] in ("missing", "json_invalid") else _found(fault.get("input"))
    return Refusal(400, one_line(f"{about}{fault['msg']}{found}"), param=param)


def _found(value: object) -> str:
    return f" (found {shortened(value)})"
