"""The same captions in the shape of Ollama's API, so that what speaks to Ollama can use one's own model.

    POST /api/generate   a prompt with pictures → a caption       (PhotoPrism, for one)
    POST /api/chat       messages, one of them with pictures → a caption of the latest pictures
    GET  /api/tags, /api/ps, /api/version; POST /api/show         what clients ask before

A model that knows several languages writes the one that stands behind its name, as in `flickr8k:de`.

The prompt is not read: these models have one thing to say. Of `options`, `num_predict` limits the words, and
`temperature`, `top_k`, `top_p`, `seed` draw words at random; but a temperature up to 0.2 (PhotoPrism sends
0.1 with every request) asks for the likeliest caption, and that is found by search.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from captioner.apps.serving.endpoints import captions_of
from captioner.apps.serving.requests import check_count, decode_base64
from captioner.apps.serving.schemas import FAILURES, OPTIONS, CaptionFields, RunName, expecting, validated
from captioner.apps.serving.service import ServedModel, Service
from captioner.config import MOST_SEARCHED, DecodeConfig
from captioner.errors import ConfigError
from captioner.inference.search_options import CaptionOptions
from captioner.version import __version__

SEARCH_BELOW = 0.2  # temperatures that ask for the likeliest caption
_DRAWING = ("temperature", "top_k", "top_p")
_PICTURES = "a list of pictures in base64"
_OPTIONS_MEANING = (
    "num_predict: most words; with a temperature above 0.2, words are drawn at random, by top_k, top_p and "
    "seed, too"
)

Pictures = Annotated[list[Any] | None, expecting(_PICTURES)]


class _Wanted(BaseModel):
    model: RunName = Field("", description="a run's name, with or without :latest; empty: the first")
    stream: bool | None = Field(True, description="true if missing, as with Ollama: one JSON line")
    options: Annotated[dict[str, Any] | None, expecting("an object")] = Field(
        None, description=_OPTIONS_MEANING
    )


class GenerateRequest(_Wanted):
    """A request to /api/generate."""

    images: Pictures = Field(None, description=_PICTURES)
    prompt: Any = Field(None, description="not read")


class Message(BaseModel):
    """One message of a conversation."""

    role: Any = None
    content: Any = Field(None, description="not read")
    images: Pictures = Field(None, description=_PICTURES)


Messages = Annotated[list[Message] | None, expecting("a list of messages, one of them with `images`")]


class ChatRequest(_Wanted):
    """A request to /api/chat."""

    messages: Messages = None


class ShowRequest(BaseModel):
    """A request to /api/show: the name under either word."""

    model: RunName = None
    name: RunName = None


class _JSONRoute(APIRoute):
    """A route that takes bodies for JSON whatever their content type says: `curl -d` says a form."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def as_json(request: Request) -> Any:
            others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            headers = [*others, (b"content-type", b"application/json")]
            return await handler(Request({**request.scope, "headers": headers}, request.receive))

        return as_json


def add_ollama(api: FastAPI, service: Service) -> None:
    """Adds these endpoints to an application."""

    async def generate(wanted: GenerateRequest) -> Any:
        if not wanted.images and wanted.prompt:
            raise ConfigError("images: no picture; these models describe pictures, and read no prompt")
        return await _generate(service, wanted, wanted.images, lambda text: {"response": text})

    async def chat(wanted: ChatRequest) -> Any:
        messages = wanted.messages or []
        latest = next((message.images for message in reversed(messages) if message.images), None)
        if messages and not latest:
            raise ConfigError("messages: no picture in any of them; one needs `images`, a list in base64")
        return await _generate(
            service, wanted, latest, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    async def show(wanted: ShowRequest) -> Any:
        return _shown(_model_of(service, wanted.model or wanted.name or "")[0])

    @api.get("/api/ps", include_in_schema=False)
    @api.get("/api/tags", summary="The models, as Ollama lists them")
    async def tags() -> Any:
        models = service.models.values()
        return {"models": [_listed(model, tag) for model in models for tag in ("latest", *model.languages)]}

    @api.get("/api/version", summary="The version, as Ollama gives it")
    async def version() -> Any:
        return {"version": __version__}

    example = (
        f"""curl localhost:7860/api/generate -d '{{"model": "{service.default.name}", "stream": false, """
        """"images": ["'"$(base64 -w0 dog.jpg)"'"]}'"""
    )
    for path, endpoint, summary, examples in (
        ("/api/generate", generate, "The same in Ollama's shape, for PhotoPrism and others", [example]),
        ("/api/chat", chat, "The same in the shape of Ollama's conversations", []),
        ("/api/show", show, "A model, as Ollama shows it", []),
    ):
        api.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            responses=FAILURES,
            openapi_extra={"x-examples": examples},
            route_class_override=_JSONRoute,
        )


async def _generate(
    service: Service, wanted: _Wanted, images: Sequence[Any] | None, said: Callable[[str], dict[str, Any]]
) -> Any:
    """The answer to one request; several pictures give a line each."""
    began = time.perf_counter_ns()
    model, language = _model_of(service, wanted.model or "")
    if not images:
        # So do clients ask Ollama to load a model: nothing to say, and that is done.
        return _answer(model, said(""), wanted.stream, reason="load", began=began)
    check_count(images, service.limits.pictures)
    pictures = await asyncio.to_thread(
        lambda: [decode_base64(image, f"images[{number}]") for number, image in enumerate(images)]
    )
    options = dataclasses.replace(options_from(wanted.options, model.decode), language=language)
    found = await captions_of(service, model, pictures, options)
    errors = [caption.error for caption in found if caption.error is not None]
    if errors:
        raise ConfigError(f"the picture {errors[0]}")
    words = sum(len(caption.words) for caption in found)
    text = "\n".join(caption.text for caption in found)
    return _answer(model, said(text), wanted.stream, reason="stop", began=began, words=words)


def _model_of(service: Service, name: str) -> tuple[ServedModel, str | None]:
    """The model of a name, and the language that its tag names: `flickr8k:de`."""
    bare, _, tag = name.rpartition(":")
    model = service.models.get(bare)
    if model is not None and tag in model.languages:
        return model, tag
    return service.model(name), None


def options_from(given: Mapping[str, Any] | None, decode: DecodeConfig) -> CaptionOptions:
    """Ollama's `options` as ours; those that these models do not have are passed over, as Ollama does.

    Args:
        given: as the client sent them.
        decode: how the model searches; of more words than it may look at, as many are taken as it may.

    >>> options_from({"temperature": 0.1, "num_ctx": 4096}, DecodeConfig()) == CaptionOptions()
    True
    >>> drawn = CaptionOptions(max_words=12, temperature=0.8)
    >>> options_from({"temperature": 0.8, "num_predict": 12}, DecodeConfig()) == drawn
    True
    >>> options_from({"num_predict": 4096}, DecodeConfig(beam=5)).max_words
    600
    """
    if not given:
        return CaptionOptions()
    wishes: dict[str, Any] = {}
    words = given.get("num_predict")
    if isinstance(words, int) and words > 0:  # -1 and -2 mean no limit there
        wishes["max_words"] = min(words, int(OPTIONS["max_words"].high), MOST_SEARCHED // decode.beam)
    temperature = given.get("temperature")
    if temperature is not None and not isinstance(temperature, int | float):
        raise ConfigError(f"temperature {temperature!r}: expected a number")
    if temperature is not None and temperature > SEARCH_BELOW:
        wishes |= {name: given.get(name) for name in _DRAWING}
        seed = given.get("seed")
        wishes["seed"] = seed % 2**53 if isinstance(seed, int) else 0  # -1 is usual for any
    return CaptionOptions.of(
        validated(CaptionFields, wishes).model_dump(include=set(wishes), exclude_none=True)
    )


def _answer(
    model: ServedModel,
    said: Mapping[str, Any],
    stream: bool | None,
    *,
    reason: str,
    began: int,
    words: int = 0,
) -> Any:
    spent = time.perf_counter_ns() - began
    answer = {
        "model": f"{model.name}:latest",
        "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        **said,
        "done": True,
        "done_reason": reason,
        "total_duration": spent,
        "load_duration": 0,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": words,
        "eval_duration": spent,
    }
    if stream is False:
        return answer
    # Ollama streams unless told otherwise: here, everything in one line.
    return Response(json.dumps(answer, ensure_ascii=False) + "\n", media_type="application/x-ndjson")


def _listed(model: ServedModel, tag: str) -> dict[str, Any]:
    name = f"{model.name}:{tag}"
    modified = datetime.fromtimestamp(model.about.get("modified", 0), UTC).isoformat()
    return {
        "name": name,
        "model": name,
        "modified_at": modified.replace("+00:00", "Z"),
        "size": model.about.get("bytes", 0),
        "digest": hashlib.sha256(f"{name} {modified}".encode()).hexdigest(),
        "details": _details(model),
    }


def _shown(model: ServedModel) -> dict[str, Any]:
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": {"general.architecture": "captioner", "general.name": model.name},
        "capabilities": ["completion", "vision"],
    }


def _details(model: ServedModel) -> dict[str, Any]:
    families = ["captioner", str(model.about.get("encoder", ""))]
    sizes = {"parameter_size": f"{model.about.get('bytes', 0) / 4e6:.1f}M", "quantization_level": "F32"}
    return {"parent_model": "", "format": "safetensors", "family": "captioner", "families": families, **sizes}
