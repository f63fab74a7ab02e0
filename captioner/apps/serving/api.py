"""The HTTP API: pictures in, captions as JSON out; and what a page, a probe and a person want to know of it.

    POST /api/caption    pictures → captions
    GET  /api/runs       the models that are served
    GET  /healthz        whether it is up, and how much waits
    GET  /docs           what there is, for people; /openapi.json for programs

In: a `Service`. Out: an application (FastAPI, because Gradio mounts on nothing less). Every error is
`{"error": sentence}`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import wraps
from typing import Any

from captioner.apps.serving.openapi import docs_page, openapi
from captioner.apps.serving.requests import Asked, WrongKind, read_request
from captioner.apps.serving.service import Busy, Served, Service, UnknownRun, part_of
from captioner.errors import CaptionerError, ConfigError
from captioner.inference.caption import Caption, CaptionOptions
from captioner.version import __version__

Endpoint = Callable[[Any], Awaitable[Any]]
log = logging.getLogger("captioner.serve")


def build_api(service: Service) -> Any:
    """The application, without the page."""
    from fastapi import FastAPI

    from captioner.apps.serving.ollama import add_ollama

    api = FastAPI(title="captioner", openapi_url=None, docs_url=None, redoc_url=None)
    document = openapi(service)

    @answering
    async def caption(request: Any) -> Any:
        asked = await read_request(request, pictures=service.limits.pictures)
        return await _captions(service, asked)

    @answering
    async def runs(_: Any) -> Any:
        return {"default": service.default.name, "runs": [described(m) for m in service.models.values()]}

    @answering
    async def health(_: Any) -> Any:
        done = {"captioned": service.batcher.items, "batches": service.batcher.batches}
        return {"status": "ok", "version": __version__, "waiting": service.waiting, **done}

    @answering
    async def schema(_: Any) -> Any:
        return document

    async def docs(_: Any) -> Any:
        from starlette.responses import HTMLResponse

        return HTMLResponse(docs_page(document))

    api.add_route("/api/caption", caption, methods=["POST"])
    for path, endpoint in (("/api/runs", runs), ("/healthz", health), ("/openapi.json", schema)):
        api.add_route(path, endpoint, methods=["GET"])
    api.add_route("/docs", docs, methods=["GET"])
    add_ollama(api, service)
    return api


def described(model: Served) -> dict[str, Any]:
    """What a client may know of a model."""
    about = {key: value for key, value in model.about.items() if key not in ("bytes", "modified")}
    return {"name": model.name, **about, "decode": dataclasses.asdict(model.decode)}


async def captions_of(
    service: Service, model: Served, pictures: Sequence[bytes], options: CaptionOptions
) -> list[Caption]:
    """The captions of pictures, within the time that a client waits.

    Raises:
        Busy: there is no place for them, or they were not reached in time.
    """
    futures = service.submit(model, pictures, options)
    try:
        found = await in_time(futures, service.limits.answer_seconds)
    except TimeoutError as error:
        raise Busy(10) from error
    return [part_of(caption, options) for caption in found]


async def in_time(futures: Sequence[Future[Any]], seconds: float) -> list[Any]:
    """The results of futures that threads fulfil; all are cancelled if that takes too long."""
    try:
        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    finally:
        for future in futures:
            future.cancel()  # nothing happens to those that are done


def answering(endpoint: Endpoint) -> Endpoint:
    """Gives what an endpoint returns as JSON; what it raises as an error with its status."""

    @wraps(endpoint)
    async def answer(request: Any) -> Any:
        from starlette.responses import JSONResponse, Response

        try:
            found = await endpoint(request)
        except Exception as error:  # a client gets a sentence, whatever it is
            status, text, headers = _blame(error)
            return JSONResponse({"error": text}, status, headers)
        if isinstance(found, Response):
            return found
        status = found.pop("status_code", 200) if isinstance(found, dict) else 200
        return JSONResponse(found, status, {"cache-control": "no-store"})

    return answer


def _blame(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, sentence and headers for what went wrong."""
    if isinstance(error, Busy):
        return 503, str(error), {"retry-after": str(error.retry_seconds)}
    if isinstance(error, WrongKind):
        return 415, str(error), {}
    if isinstance(error, ConfigError):
        return 400, str(error), {}
    if isinstance(error, UnknownRun):
        return 404, str(error), {}
    if isinstance(error, CaptionerError):
        return 500, str(error), {}
    log.error("a request failed", exc_info=error)
    return 500, "captioning failed; the server's log says why", {}


async def _captions(service: Service, asked: Asked) -> dict[str, Any]:
    began = time.perf_counter()
    model = service.model(asked.run)
    contents = [content for _, content in asked.pictures]
    found = await captions_of(service, model, contents, asked.options)
    answers = [_answer(name, caption) for (name, _), caption in zip(asked.pictures, found, strict=True)]
    if asked.preview:
        good = [number for number, caption in enumerate(found) if caption.error is None]
        shown = await in_time(
            [service.preview(contents[number]) for number in good], service.limits.answer_seconds
        )
        for number, picture in zip(good, shown, strict=True):
            answers[number]["preview"] = picture
    result: dict[str, Any] = {
        "run": model.name,
        "seconds": round(time.perf_counter() - began, 3),
        "pictures": answers,
    }
    errors = [caption.error for caption in found if caption.error is not None]
    if len(errors) == len(found):
        result |= {"error": f"the picture {errors[0]}", "status_code": 422}
    return result


def _answer(name: str, caption: Caption) -> dict[str, Any]:
    """One picture of an answer."""
    if caption.error is not None:
        return {"name": name, "error": caption.error}
    answer = {**_sentence(caption), "alternatives": [_sentence(other) for other in caption.alternatives]}
    if caption.attention is not None:
        answer["words"] = list(caption.words)
        answer["attention"] = caption.attention.astype(float).round(5).tolist()  # (T, h, w)
    return {"name": name, **answer}


def _sentence(caption: Any) -> Mapping[str, Any]:
    return {
        "caption": caption.text,
        # An empty caption of a run that never learnt to end has none.
        "score": round(max(caption.score, -1e6), 5),
        "probability": float(f"{caption.probability:.4g}"),
    }


def log_to_stderr() -> None:
    """Errors of requests, with their cause, on stderr."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        log.addHandler(handler)
