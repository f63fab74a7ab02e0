"""What the API has to say of itself: an OpenAPI document for programs, and the same as a page for people.

In: a `Service`, for its limits and the names of its runs. Out: a dict, and HTML that needs nothing from
elsewhere. Reads and writes no file.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from captioner.apps.serving.requests import OPTIONS
from captioner.apps.serving.service import ServeLimits, Service
from captioner.version import __version__

_MEANINGS = {
    "beam": "captions compared at a time; 1 takes the likeliest word each time",
    "n_best": "captions a picture: the best and its alternatives",
    "max_words": "a caption ends here at the latest",
    "length_normalisation": "0 prefers short captions, 1 and more longer ones",
    "no_repeat": "never repeats so many words in a row; 0: may",
    "temperature": "draws words at random: below 1 tamer, above 1 wilder",
    "top_k": "draws from so many likeliest words; 0: from all",
    "top_p": "draws from the likeliest words that share this probability",
    "seed": "of the drawing: the same seed gives the same captions",
}
_ERRORS = {
    "400": "not understood; the sentence says what was expected",
    "401": "the token is missing or wrong",
    "404": "no run of that name",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "another content type",
    "422": "none of the pictures can be used",
    "503": "too much is waiting; `Retry-After` says when to come again",
}


def openapi(service: Service) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    limits, names = service.limits, list(service.models)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "captioner",
            "version": __version__,
            "description": _limits_text(limits),
        },
        "paths": {
            "/api/caption": {"post": _caption_operation(names, limits)},
            "/api/runs": {"get": _getting("The models that are served", "runs")},
            "/healthz": {"get": _getting("Whether the server is up, and how many pictures wait", "health")},
            "/api/generate": {"post": _ollama_operation(names)},
            "/api/tags": {"get": _getting("The models, as Ollama lists them", "tags")},
            "/api/version": {"get": _getting("The version, as Ollama gives it", "version")},
        },
        "components": {
            "schemas": {"Picture": _picture_schema(), "Error": _object({"error": _text("a sentence")})},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def docs_page(document: Mapping[str, Any]) -> str:
    """The document as HTML."""
    info = document["info"]
    parts = [f"<h1>captioner <small>{html.escape(info['version'])}</small></h1>"]
    parts += [f"<p>{html.escape(info['description'])}</p>"]
    parts += ["<p>For programs: <a href='openapi.json'>openapi.json</a>. The page: <a href='.'>here</a>.</p>"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += _operation_html(path, method, operation)
    return plain_page("captioner API", "".join(parts))


def plain_page(title: str, body: str) -> str:
    """A page that needs no script."""
    head = (
        "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><link rel=stylesheet href='page/plain.css'>"
    )
    return f"<!doctype html><html lang=en><head>{head}</head><body><main>{body}</main></body></html>"


def _limits_text(limits: ServeLimits) -> str:
    file, body = limits.picture.file_bytes / 2**20, limits.body_bytes / 2**20
    return (
        f"Pictures in, captions out. A picture may have {file:g} MiB and "
        f"{limits.picture.pixels / 1e6:g} million pixels, a request {body:g} MiB and "
        f"{limits.pictures} pictures; {limits.waiting} pictures may wait at a time. Pictures are held in "
        'memory while they are described, and nowhere else. Errors are {"error": "a sentence"}.'
    )


def _caption_operation(names: list[str], limits: ServeLimits) -> dict[str, Any]:
    fields = {"run": {"type": "string", "enum": names, "description": "which model", "default": names[0]}}
    fields |= {name: _option_schema(name) for name in OPTIONS}
    fields["attention"] = _flag("also give where the model looked for each word: T maps of h x w")
    fields["preview"] = _flag("also give the picture as a small JPEG, for browsers that cannot show it")
    base64 = {"type": "string", "contentEncoding": "base64"}
    images = {"type": "array", "items": base64, "maxItems": limits.pictures}
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    form = _object({"image": {"type": "array", "items": binary}, **fields}, required=["image"])
    answer = _object(
        {
            "run": _text("the model that spoke"),
            "seconds": {"type": "number"},
            "pictures": {"type": "array", "items": {"$ref": "#/components/schemas/Picture"}},
        }
    )
    meaning = "a caption or an error for each picture, in order"
    return {
        "summary": "Describe pictures",
        "operationId": "caption",
        "description": "As a form, as JSON, or the bare bytes of one picture with the fields in the query.",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/json": {"schema": _object({"images": images, **fields}, required=["images"])},
                "image/*": {"schema": {}},
            },
        },
        "responses": {"200": _json(meaning, answer), **_failures()},
        "x-examples": [
            "curl -F image=@dog.jpg -F n_best=3 localhost:7860/api/caption",
            "curl -H 'Content-Type: image/jpeg' --data-binary @dog.jpg 'localhost:7860/api/caption?beam=5'",
        ],
    }


def _ollama_operation(names: list[str]) -> dict[str, Any]:
    body = _object(
        {
            "model": {"type": "string", "description": f"{names[0]}, with or without :latest"},
            "images": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
            "prompt": _text("not read"),
            "stream": {"type": "boolean", "description": "true if missing, as with Ollama: one JSON line"},
            "options": {
                "type": "object",
                "description": "num_predict: most words; with a temperature above 0.2, words are drawn at "
                "random, by top_k, top_p and seed, too",
            },
        },
        required=["model", "images"],
    )
    answer = _object({"model": _text(""), "response": _text("the caption"), "done": {"type": "boolean"}})
    return {
        "summary": "The same in Ollama's shape",
        "operationId": "generate",
        "description": "For PhotoPrism and others that speak to Ollama; /api/chat and /api/show exist, too.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": _json("the caption", answer), **_failures()},
        "x-examples": [
            f'''curl localhost:7860/api/generate -d '{{"model": "{names[0]}", "stream": false, '''
            """"images": ["'"$(base64 -w0 dog.jpg)"'"]}\'""",
        ],
    }


def _picture_schema() -> dict[str, Any]:
    sentence: dict[str, Any] = {
        "caption": _text("the sentence"),
        "score": {"type": "number", "description": "log probability a word; higher is better"},
        "probability": {"type": "number", "description": "of exactly this sentence, 0 to 1"},
    }
    numbers: dict[str, Any] = {"type": "number"}
    for _ in range(3):
        numbers = {"type": "array", "items": numbers}
    return _object(
        {
            "name": _text("as sent"),
            "error": _text("why there is no caption"),
            **sentence,
            "alternatives": {"type": "array", "items": _object(sentence)},
            "words": {"type": "array", "items": {"type": "string"}},
            "attention": {**numbers, "description": "for each word, rows of cells that sum to 1"},
            "preview": _text("a data: URL"),
        }
    )


def _option_schema(name: str) -> dict[str, Any]:
    kind, low, high = OPTIONS[name]
    plain = {"type": "integer" if kind == "a whole number" else "number", "minimum": low, "maximum": high}
    return {**plain, "description": _MEANINGS[name]}


def _getting(summary: str, name: str) -> dict[str, Any]:
    return {"summary": summary, "operationId": name, "responses": {"200": _json("so", {"type": "object"})}}


def _failures() -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    return {status: _json(meaning, error) for status, meaning in _ERRORS.items()}


def _json(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(fields: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict(fields)}
    return {**schema, "required": required} if required else schema


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "default": False, "description": description}


def _operation_html(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<section><h2><b>{method.upper()}</b> {html.escape(path)}</h2>"
    yield f"<p>{html.escape(operation['summary'])}. {html.escape(operation.get('description', ''))}</p>"
    for example in operation.get("x-examples", ()):
        yield f"<pre>{html.escape(example)}</pre>"
    contents = operation.get("requestBody", {}).get("content", {})
    for kind, content in contents.items():
        fields = content["schema"].get("properties", {})
        if fields and not (kind == "application/json" and len(contents) > 1):
            yield f"<table><caption>{html.escape(kind)}</caption>"
            for name, schema in fields.items():
                yield f"<tr><th>{name}</th><td>{html.escape(_kind(schema))}</td>"
                yield f"<td>{html.escape(schema.get('description', ''))}</td></tr>"
            yield "</table>"
    failures = {status: answer["description"] for status, answer in operation["responses"].items()}
    if len(failures) > 1:
        yield "<table><caption>answers</caption>"
        for status, why in failures.items():
            yield f"<tr><th>{status}</th><td>{html.escape(why)}</td></tr>"
        yield "</table>"
    yield "</section>"


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if "minimum" in schema:
        return f"{schema['type']}, {schema['minimum']:g} to {schema['maximum']:g}"
    return {"array": "list", "boolean": "true or false"}.get(schema.get("type", ""), schema.get("type", ""))
