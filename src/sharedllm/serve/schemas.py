"""What clients send: OpenAI's fields that this server knows, and `context`; and the errors that they are told.

How long a text may be, the size of a whole request says (`guard.py`). The other limits stand in docs/SERVE.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
)

MOST_STOPS = 4
Name = Annotated[StrictStr, Field(max_length=200)]
ContextName = Annotated[StrictStr, Field(max_length=64)]
Stop = Annotated[StrictStr, Field(max_length=200)]
Token = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _refused(value: Any) -> Any:
    if value:
        raise ValueError("is not supported by this server; leave it out")
    return value


def _whole(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode; it holds half of a surrogate pair") from None
    return value


Text = Annotated[StrictStr, AfterValidator(_whole)]


class Part(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text", "input_text"]
    text: Text


class Refusal(BaseModel):
    """A part of an answer in which another model refused."""

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        return self.refusal


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Text
        | Annotated[
            list[Annotated[Part | Refusal, Field(discriminator="type")]], Field(max_length=1000, fail_fast=True)
        ]
        | None
    ) = Field(default=None, validate_default=True)

    @field_validator("content")
    @classmethod
    def _said(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("role") in ("system", "developer", "user"):
            raise ValueError("is missing")  # an assistant that called a tool may have said nothing
        return value

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content)

    @property
    def speaker(self) -> Literal["system", "user", "assistant"]:
        """The role that chat templates know: what a tool gave is read as said by the user."""
        if self.role in ("system", "developer"):
            return "system"
        return "assistant" if self.role == "assistant" else "user"


class StreamOptions(BaseModel):
    include_usage: StrictBool | None = None


class Common(BaseModel):
    """Fields of both kinds of completion; those that are not known are passed over."""

    model_config = ConfigDict(extra="ignore")

    model: Name | None = None
    context: ContextName | Annotated[list[ContextName], Field(max_length=64, fail_fast=True)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: Annotated[dict[str, Number], Field(max_length=1000)] | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _no_bias(cls, value: Any) -> Any:
        return _refused(value)  # before its numbers are looked at, however many there are

    @field_validator("presence_penalty", "frequency_penalty")
    @classmethod
    def _unsupported(cls, value: Any) -> Any:
        return _refused(value)

    @property
    def contexts(self) -> list[str]:
        return [self.context] if isinstance(self.context, str) else list(self.context or [])

    @property
    def stops(self) -> list[str]:
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]


class ChatRequest(Common):
    messages: Annotated[list[Message], Field(min_length=1, max_length=2000, fail_fast=True)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tool_choice: Any = None
    tools: list[Any] | None = None
    function_call: Any = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @field_validator("tools", "functions")
    @classmethod
    def _no_tools(cls, value: Any, info: ValidationInfo) -> Any:
        choice = info.data.get("tool_choice" if info.field_name == "tools" else "function_call")
        return value if choice == "none" else _refused(value)

    @field_validator("response_format")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        if value and value.get("type") != "text":
            raise ValueError("must have the type text; other formats are not supported")
        return value


class MapRequest(ChatRequest):
    """A question, and the answer that was written to it."""

    answer: Annotated[StrictStr, Field(max_length=1_000_000)] = ""


class CompletionRequest(Common):
    prompt: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1, max_length=5_000_000, fail_fast=True)]
    )
    """Also a list of exactly one of either, as OpenAI's clients may send it."""
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: StrictBool | None = None
    suffix: StrictStr | None = None
    best_of: StrictInt | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        if not isinstance(value, list) or not value or not isinstance(value[0], (str, list)):
            return value
        if len(value) > 1:
            raise ValueError("must be one text or one list of token ids; send several prompts one by one")
        return value[0]

    @field_validator("echo", "suffix")
    @classmethod
    def _no_more(cls, value: Any) -> Any:
        return _refused(value)

    @field_validator("best_of")
    @classmethod
    def _no_choosing(cls, value: int | None, info: ValidationInfo) -> int | None:
        _refused(value is not None and value > (info.data.get("n") or 1))
        return value


class Fault(BaseModel):
    """What is wrong, as a client is told."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """The body of an answer whose status is 4XX or 5XX."""

    error: Fault
