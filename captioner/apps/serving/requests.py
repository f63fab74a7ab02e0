"""What clients write in a request: pictures in any of four ways, options by the names of `CaptionOptions`.

In: a request of `multipart/form-data`, JSON with base64, form fields, or the bare bytes of one picture. Out:
a `CaptionRequest`. Whatever is wrong is a ConfigError that says what was expected. Reads and writes no file.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from captioner.apps.serving.schemas import OPTIONS, CaptionFields, CorrectionFields, validated
from captioner.errors import CaptionerError, ConfigError, unknown_name
from captioner.inference.search_options import CaptionOptions

_FILES = ("image", "images", "file", "files")  # any of these fields may carry pictures
_RAW = ("image/", "application/octet-stream")


class UnsupportedMediaType(CaptionerError):
    """A request of a content type that is not understood."""


@dataclass(frozen=True)
class CaptionRequest:
    """One request, understood."""

    pictures: list[tuple[str, bytes]]  # name as the client gave it, content
    run: str
    options: CaptionOptions
    preview: bool = False


async def read_request(request: Any, *, pictures: int) -> CaptionRequest:
    """Understands a request to /api/caption.

    Args:
        request: a Starlette request, its body within limits.
        pictures: at most so many.

    Raises:
        ConfigError: it is not as expected.
        UnsupportedMediaType: it is of another content type.
    """
    found, fields = await read_pictures(request, pictures=pictures)
    return parse_fields(found, fields)


async def read_pictures(request: Any, *, pictures: int) -> tuple[list[tuple[str, bytes]], dict[str, Any]]:
    """The pictures of a request, with their names, and its other fields; raises what `read_request` does."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMediaType(f'content encoding "{coding[:80]}": expected none')
    fields: dict[str, Any] = dict(request.query_params)
    if kind == "multipart/form-data":
        found = await _from_form(request, fields, pictures)
    elif kind == "application/json":
        found = await asyncio.to_thread(_from_json, await request.body(), fields)
    elif kind.startswith(_RAW) or not kind:
        found = [(str(fields.pop("name", "")), await request.body())]
    else:
        raise UnsupportedMediaType(
            f'content type "{kind[:80]}": expected multipart/form-data, application/json with base64, or '
            "image/… with the bare picture"
        )
    found = [(name, content) for name, content in found if name or content]
    if not found:
        raise ConfigError("no picture; send one as the form field `image`, or as base64 in `images`")
    check_count(found, pictures)
    return found, fields


def parse_fields(pictures: list[tuple[str, bytes]], fields: Mapping[str, Any]) -> CaptionRequest:
    """Pictures and fields, checked.

    Raises:
        ConfigError: an unknown field, or a value that makes no sense.
    """
    given = validated(CaptionFields, fields)
    wishes = {name: getattr(given, name) for name in OPTIONS}
    wishes = {name: value for name, value in wishes.items() if value is not None}
    options = CaptionOptions.of({**wishes, "language": given.language or None, "attention": given.attention})
    return CaptionRequest(pictures, given.run or "", options, given.preview)


def request_body(pictures: int) -> dict[str, Any]:
    """What /api/caption takes, as OpenAPI has it."""
    return _body_of(CaptionFields, pictures)


def correction_body() -> dict[str, Any]:
    """What /api/correction takes, as OpenAPI has it."""
    return _body_of(CorrectionFields, 1)


def _body_of(model: Any, pictures: int) -> dict[str, Any]:
    fields = model.model_json_schema()["properties"]

    def content(name: str, picture: dict[str, Any]) -> dict[str, Any]:
        images = {"type": "array", "items": picture, "maxItems": pictures}
        return {"schema": {"type": "object", "properties": {name: images, **fields}, "required": [name]}}

    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    return {
        "required": True,
        "content": {
            "multipart/form-data": content("image", binary),
            "application/json": content("images", {"type": "string", "contentEncoding": "base64"}),
            "image/*": {"schema": {}},
        },
    }


def decode_base64(text: Any, name: str) -> bytes:
    """The bytes of a picture in base64 (of either alphabet, padded or not), or in a data URL.

    Args:
        text: what the client sent.
        name: of the field, for the error.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{name}: expected a picture in base64")
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(text)
        text = text.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
    if "\n" in text or " " in text:
        text = "".join(text.split())
    if "-" in text or "_" in text:
        text = text.replace("-", "+").replace("_", "/")
    if len(text) >= 64:  # no picture is shorter, but many a path is
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        if "://" in text[:12] or "/" in text[:2]:
            raise ConfigError(
                f"{name}: pictures are sent as base64, not fetched from an address or a path"
            ) from error
        raise ConfigError(f"{name}: not base64 ({error})") from error


def check_count(pictures: Sequence[Any], most: int) -> None:
    """Raises a ConfigError if there are more than `most`."""
    if len(pictures) > most:
        raise ConfigError(
            f"{len(pictures)} pictures in one request; at most {most} are taken, send several requests"
        )


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
        if isinstance(value, str) and name in _FILES:
            raise ConfigError(f"{name}: came as text; send it as a file, with a filename")
        if isinstance(value, str):
            fields[name] = value
        elif name in _FILES:
            found.append((value.filename or "", await value.read()))
        else:
            raise ConfigError(unknown_name("file field", name[:80], _FILES))
    await form.close()
    return found


def _from_json(body: bytes, fields: dict[str, Any]) -> list[tuple[str, bytes]]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {str(error)[:200]}") from error
    if not isinstance(given, dict):
        raise ConfigError("expected a JSON object, {…}")
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
        found.append((name, decode_base64(data, f"images[{number}]")))
    fields.update(given)
    return found
