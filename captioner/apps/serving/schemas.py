"""What clients send and get, as pydantic models: FastAPI checks requests by them and documents them.

In: fields as text or JSON. Out: checked values, or a sentence that says what was expected. The decoding
options and their limits are those of `search_options.CaptionOptions`. Reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, create_model
from pydantic_core import PydanticCustomError

from captioner.errors import ConfigError, unknown_name
from captioner.inference.search_options import FORMER_OPTIONS, decoding_options

OPTIONS = decoding_options()


def expecting(expected: str, *, shown: bool = False) -> WrapValidator:
    """Says `NAME: expected …` of a wrong value, in place of pydantic's words; `shown`: with the value."""

    def check(value: Any, handler: Any, info: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            given = f" {str(value)[:40]!r}" if shown else ""
            text = f"{info.field_name}{given}: expected {expected}"
            raise PydanticCustomError("sentence", "{text}", {"text": text}) from error

    return WrapValidator(check)


def _refuse_bool(value: Any, handler: Any) -> Any:
    """True is no number, an empty field of a form is left out; rounded, so that requests share batches."""
    if value is None or value == "":
        return None
    number = handler("true" if isinstance(value, bool) else value)
    return round(number, 2) if isinstance(number, float) else number


def _option_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, bounds in OPTIONS.items():
        low = {"gt" if bounds.above else "ge": bounds.low}
        limited: Any = Annotated[bounds.kind, Field(le=bounds.high, **low)]
        expected = expecting(bounds.expected, shown=True)
        checked: Any = Annotated[limited | None, WrapValidator(_refuse_bool), expected]
        fields[name] = (checked, Field(None, description=bounds.help))
    return fields


def _empty_is_false(value: Any, handler: Any) -> Any:
    return False if value in (None, "") else handler(value)


Flag = Annotated[bool, WrapValidator(_empty_is_false), expecting("true or false", shown=True)]
RunName = Annotated[str | None, expecting("a name", shown=True)]

CaptionFields: type[BaseModel] = create_model(
    "CaptionFields",
    __config__=ConfigDict(extra="forbid", allow_inf_nan=False),
    run=(RunName, Field("", description="which model; empty: the first")),
    language=(
        Annotated[str | None, expecting("a language, such as de, or all", shown=True)],
        Field("", description="such as de; all: a caption in each that the model knows; empty: its first"),
    ),
    **_option_fields(),
    attention=(Flag, Field(False, description="also where the model looked for each word: T maps of h x w")),
    preview=(
        Flag,
        Field(False, description="also the picture as a small JPEG, for formats no browser shows"),
    ),
)


class CorrectionFields(BaseModel):
    """What a correction says beside its picture."""

    model_config = ConfigDict(extra="forbid")
    caption: Annotated[str, expecting("a sentence")] = Field(description="the right sentence, on one line")


def validated(model: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """An object of `model`.

    Raises:
        ConfigError: an unknown field, or a value that makes no sense.
    """
    given = {FORMER_OPTIONS.get(name, name): value for name, value in given.items()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError(sentence_of(error.errors(), list(model.model_fields))) from error


def sentence_of(errors: Sequence[Mapping[str, Any]], known: Sequence[str] = ()) -> str:
    """The first of pydantic's errors as a sentence."""
    error = errors[0]
    path = [part for part in error["loc"] if part != "body"]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    match error["type"]:
        case "sentence":
            return str(error["msg"])
        case "extra_forbidden":
            return unknown_name("field", name[:80], known)
        case "json_invalid":
            return f"not JSON: {error.get('ctx', {}).get('error', error['msg'])}"[:200]
        case "missing" if name:
            return f"{name}: is missing"
    return f"{name}: {error['msg']}" if name and path[-1:] != ["json"] else "expected a JSON object, {…}"


# What clients get.


class ErrorAnswer(BaseModel):
    """Every answer whose status is not 200."""

    error: str = Field(description="a sentence")


class Sentence(BaseModel):
    """One caption."""

    caption: str = Field(description="the sentence")
    score: float = Field(description="log probability a word; higher is better")
    probability: float = Field(description="of exactly this sentence, 0 to 1")
    language: str | None = Field(None, description="of the sentence, where the model knows languages")


class PictureAnswer(BaseModel):
    """One picture of an answer: a caption or an error."""

    name: str = Field(description="as sent")
    error: str | None = Field(None, description="why there is no caption")
    caption: str | None = Field(None, description="the sentence")
    score: float | None = Field(None, description="log probability a word; higher is better")
    probability: float | None = Field(None, description="of exactly this sentence, 0 to 1")
    language: str | None = Field(None, description="of the sentence, where the model knows languages")
    captions: dict[str, Sentence] | None = Field(None, description="in each language, if all were asked for")
    confidence: float | None = Field(None, description="how often such captions were right, 0 to 1")
    unfamiliar: bool | None = Field(None, description="whether the picture is unlike those learned from")
    alternatives: list[Sentence] | None = None
    words: list[str] | None = Field(None, description="of the caption, as the model has them")
    attention: list[list[list[float]]] | None = Field(
        None, description="for each word, rows of cells that sum to 1"
    )
    preview: str | None = Field(None, description="a data: URL")


class CaptionAnswer(BaseModel):
    """The answer of /api/caption."""

    run: str = Field(description="the model that spoke")
    seconds: float
    pictures: list[PictureAnswer] = Field(description="a caption or an error for each picture, in order")
    error: str | None = Field(None, description="if not one picture could be used")


class CorrectionAnswer(BaseModel):
    """What was kept of a correction."""

    name: str = Field(description="of the picture in the folder")
    caption: str = Field(description="as it was kept")
    replaced: bool = Field(description="whether it takes the place of an earlier one")
    kept: int = Field(description="pictures in the folder")


class RunAnswer(BaseModel):
    """What a client may know of a model."""

    model_config = ConfigDict(extra="allow")
    name: str
    encoder: str | None = None
    words: int | None = Field(None, description="in its vocabulary")
    languages: list[str] | None = Field(None, description="that it writes, the first unless one is asked for")
    scores: dict[str, float] | None = Field(None, description="on its dev pictures, of its first language")
    decode: dict[str, Any] = Field(description="how its captions are searched for unless a request says so")


class RunsAnswer(BaseModel):
    """The models that are served."""

    default: str
    runs: list[RunAnswer]


class HealthAnswer(BaseModel):
    """Whether the server is up, and how much waits."""

    status: str = "ok"
    version: str
    waiting: int = Field(description="pictures in work")
    captioned: int
    batches: int


_FAILURES = {
    400: "not understood; the sentence says what was expected",
    401: "the token is missing or wrong",
    404: "no run of that name",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "another content type",
    422: "none of the pictures can be used",
    501: "the server lacks a part for it: words are drawn at random by TensorFlow alone",
    503: "too much is waiting; `Retry-After` says when to come again",
    507: "the folder of corrections is full",
}
CORRECTION_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "model": ErrorAnswer} for status, meaning in _FAILURES.items()
}
FAILURES = {status: answer for status, answer in CORRECTION_FAILURES.items() if status != 507}
