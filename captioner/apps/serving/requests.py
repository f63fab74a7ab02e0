"""What clients write in a request: pictures in any of four ways, options by the names of `CaptionOptions`.

In: a request of `multipart/form-data`, JSON with base64, form fields, or the bare bytes of one picture. Out:
an `Asked`. Whatever is wrong is a ConfigError that says what was expected. Reads and writes no file itself.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from captioner.errors import CaptionerError, ConfigError, unknown_name
from captioner.inference.caption import CaptionOptions

_WHOLE, _NUMBER = "a whole number", "a number"
# Name → kind and range. Beyond it nothing gets better, and one request would take the time of many.
OPTIONS: dict[str, tuple[str, float, float]] = {
    "beam": (_WHOLE, 1, 10),
    "n_best": (_WHOLE, 1, 10),
    "max_words": (_WHOLE, 1, 60),
    "length_normalisation": (_NUMBER, 0, 5),
    "no_repeat": (_WHOLE, 0, 10),
    "temperature": (_NUMBER, 0.05, 5),
    "top_k": (_WHOLE, 0, 100_000),
    "top_p": (_NUMBER, 0.01, 1),
    "seed": (_WHOLE, 0, 2**53),
}
FLAGS = ("attention", "preview")
_FILES = ("image", "images", "file", "files")  # any of these fields may carry pictures
_RAW = ("image/", "application/octet-stream")


class WrongKind(CaptionerError):
    """A request of a content type that is not understood."""


@dataclass(frozen=True)
class Asked:
    """One request, understood."""

    pictures: list[tuple[str, bytes]]  # name as the client gave it, content
    run: str
    options: CaptionOptions
    preview: bool = False


async def read_request(request: Any, *, pictures: int) -> Asked:
    """Understands a request to /api/caption.

    Args:
        request: a Starlette request, its body within limits.
        pictures: at most so many.

    Raises:
        ConfigError: it is not as expected.
        WrongKind: it is of another content type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields: dict[str, Any] = dict(request.query_params)
    if kind == "multipart/form-data":
        found = await _from_form(request, fields, pictures)
    elif kind == "application/json":
        found = await asyncio.to_thread(_from_json, await request.body(), fields)
    elif kind.startswith(_RAW):
        found = [(str(fields.pop("name", "")), await request.body())]
    else:
        raise WrongKind(
            f'content type "{kind[:80]}": expected multipart/form-data, application/json with base64, or '
            "image/… with the bare picture"
        )
    found = [(name, content) for name, content in found if name or content]
    if not found:
        raise ConfigError("no picture; send one as the form field `image`, or as base64 in `images`")
    check_count(found, pictures)
    return understood(found, fields)


def understood(pictures: list[tuple[str, bytes]], fields: Mapping[str, Any]) -> Asked:
    """Pictures and fields, checked.

    Raises:
        ConfigError: an unknown field, or a value that makes no sense.
    """
    known = ("run", *OPTIONS, *FLAGS)
    for name in fields:
        if name not in known:
            raise ConfigError(unknown_name("field", str(name)[:80], known))
    run = fields.get("run") or ""
    if not isinstance(run, str):
        raise ConfigError(f"run {run!r}: expected a name")
    flags = {name: _flag(name, fields.get(name, False)) for name in FLAGS}
    wishes = {name: option(name, value) for name, value in fields.items() if name in OPTIONS and value != ""}
    wishes = {name: value for name, value in wishes.items() if value is not None}
    return Asked(
        pictures, run, CaptionOptions.of({**wishes, "attention": flags["attention"]}), flags["preview"]
    )


def option(name: str, value: Any) -> float | int | None:
    """The value of an option, as text or number; numbers are rounded, so that requests can share a batch.

    Raises:
        ConfigError: not a number, or out of range.
    """
    if value is None:
        return None
    kind, low, high = OPTIONS[name]
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    whole = kind == _WHOLE
    if not low <= number <= high or math.isnan(number) or (whole and number != int(number)):
        raise ConfigError(f"{name} {str(value)[:40]!r}: expected {kind} from {low:g} to {high:g}")
    return int(number) if whole else round(number, 2)


def unpacked(text: Any, place: str) -> bytes:
    """The bytes of a picture in base64, or in a data URL.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{place}: expected a picture in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "\n" in text or " " in text:
        text = "".join(text.split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        if "://" in text[:12] or "/" in text[:2]:
            raise ConfigError(
                f"{place}: pictures are sent as base64, not fetched from an address or a path"
            ) from error
        raise ConfigError(f"{place}: not base64 ({error})") from error


def json_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigError: it is not one.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise ConfigError("expected a JSON object, {…}")
    return found


def check_count(pictures: Iterable[Any], most: int) -> None:
    """Raises a ConfigError if there are more than `most`."""
    count = len(list(pictures))
    if count > most:
        raise ConfigError(f"{count} pictures in one request; at most {most} are taken, send several requests")


async def _from_form(request: Any, fields: dict[str, Any], most: int) -> list[tuple[str, bytes]]:
    from starlette.formparsers import MultiPartException, MultiPartParser

    # Few parts, or a body of tiny ones would take many times its size; one more than allowed is told apart.
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=most + 1, max_fields=40, max_part_size=2**16
    )
    parser.spool_max_size = 2**62  # pictures stay in memory: the body is within its limit already
    try:
        form = await parser.parse()
    except KeyError as error:
        raise ConfigError("the form cannot be read: its content type names no boundary") from error
    except (MultiPartException, ValueError) as error:
        detail = str(getattr(error, "message", error))[:200]
        raise ConfigError(
            f"the form cannot be read ({detail}); it may have {most} pictures and 40 fields"
        ) from error
    found = []
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = value
        elif name in _FILES:
            found.append((value.filename or "", await value.read()))
        else:
            raise ConfigError(unknown_name("file field", name[:80], _FILES))
    return found


def _from_json(body: bytes, fields: dict[str, Any]) -> list[tuple[str, bytes]]:
    given = json_object(body)
    pictures = given.pop("images", None)
    if pictures is None and "image" in given:
        pictures = [given.pop("image")]
    if not isinstance(pictures, list):
        raise ConfigError("images: expected a list of pictures in base64")
    found = []
    for number, picture in enumerate(pictures):
        name, data = "", picture
        if isinstance(picture, dict):
            name, data = str(picture.get("name", "")), picture.get("data")
        found.append((name, unpacked(data, f"images[{number}]")))
    fields.update(given)
    return found


def _flag(name: str, value: Any) -> bool:
    text = str(value).lower()
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off", ""):
        return False
    raise ConfigError(f"{name} {text[:40]!r}: expected true or false")
