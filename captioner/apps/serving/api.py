"""The HTTP API: pictures in, captions as JSON out; and what a page, a probe and a person want to know of it.

    POST /api/caption    pictures → captions
    POST /api/correction a picture and its right caption → kept, where the server was started so
    GET  /api/runs       the models that are served
    GET  /healthz        whether it is up, and how much waits
    GET  /docs           what there is, for people; /openapi.json for programs

In: a `Service`. Out: a FastAPI application, without the page. Every error is `{"error": sentence}`.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer

from captioner.apps.serving import schemas
from captioner.apps.serving.endpoints import add_error_handlers, captions_of, in_time
from captioner.apps.serving.ollama import add_ollama
from captioner.apps.serving.page import docs_page
from captioner.apps.serving.requests import (
    CaptionRequest,
    correction_body,
    read_pictures,
    read_request,
    request_body,
)
from captioner.apps.serving.service import Service
from captioner.inference.caption import Caption
from captioner.version import __version__

_EXAMPLES = [
    "curl -F image=@dog.jpg -F n_best=3 localhost:7860/api/caption",
    "curl -H 'Content-Type: image/jpeg' --data-binary @dog.jpg 'localhost:7860/api/caption?beam=5'",
]


_CORRECTION_EXAMPLE = (
    "curl -F image=@dog.jpg -F caption='our dog Bella in the snow' localhost:7860/api/correction"
)


def build_api(service: Service) -> FastAPI:
    """The application, without the page."""
    api = FastAPI(
        title="captioner",
        version=__version__,
        description=_limits_text(service),
        docs_url=None,
        redoc_url=None,
        # Documented here, checked by `guard` before anything is read.
        dependencies=[Security(HTTPBearer(auto_error=False, description="where a token is set"))],
    )
    add_error_handlers(api)

    @api.post(
        "/api/caption",
        summary="Describe pictures",
        description="As a form, as JSON, or the bare bytes of one picture with the fields in the query.",
        response_model=schemas.CaptionAnswer,
        response_model_exclude_none=True,
        responses=schemas.FAILURES,
        openapi_extra={"requestBody": request_body(service.limits.pictures), "x-examples": _EXAMPLES},
    )
    async def caption(request: Request) -> Any:
        return await _caption(service, await read_request(request, pictures=service.limits.pictures))

    @api.get("/api/runs", summary="The models that are served", response_model_exclude_none=True)
    async def runs() -> schemas.RunsAnswer:
        models = [schemas.RunAnswer(**model.described()) for model in service.models.values()]
        return schemas.RunsAnswer(default=service.default.name, runs=models)

    @api.get("/healthz", summary="Whether the server is up, and how many pictures wait")
    async def health() -> schemas.HealthAnswer:
        batcher = service.batcher
        return schemas.HealthAnswer(
            version=__version__, waiting=service.waiting, captioned=batcher.items, batches=batcher.batches
        )

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(api.openapi()))

    @api.post(
        "/api/correction",
        summary="Keep a picture with its right caption",
        description="Into the data set of `--corrections FOLDER`; a second time replaces the caption.",
        responses=schemas.CORRECTION_FAILURES,
        openapi_extra={"requestBody": correction_body(), "x-examples": [_CORRECTION_EXAMPLE]},
        include_in_schema=service.corrections is not None,
    )
    async def correction(request: Request) -> schemas.CorrectionAnswer:
        if service.corrections is None:
            raise HTTPException(
                404, "no corrections are kept here; start the server with --corrections FOLDER"
            )
        pictures, fields = await read_pictures(request, pictures=1)
        wanted = schemas.validated(schemas.CorrectionFields, fields)
        (kept,) = await in_time(
            [service.correct(pictures[0][1], wanted.caption)], service.limits.answer_seconds
        )
        return schemas.CorrectionAnswer(**vars(kept), kept=len(service.corrections))

    add_ollama(api, service)
    return api


async def _caption(service: Service, wanted: CaptionRequest) -> Any:
    began = time.perf_counter()
    model = service.model(wanted.run)
    contents = [content for _, content in wanted.pictures]
    found = await captions_of(service, model, contents, wanted.options)
    answers = [_answer(name, caption) for (name, _), caption in zip(wanted.pictures, found, strict=True)]
    good = [number for number, caption in enumerate(found) if caption.error is None]
    if wanted.preview:
        previews = [service.preview(contents[number]) for number in good]
        shown = await in_time(previews, service.limits.answer_seconds)
        for number, picture in zip(good, shown, strict=True):
            answers[number].preview = picture
    seconds = round(time.perf_counter() - began, 3)
    answer = schemas.CaptionAnswer(run=model.name, seconds=seconds, pictures=answers)
    if good:
        return answer
    answer.error = f"the picture {found[0].error}"
    return JSONResponse(answer.model_dump(exclude_none=True), 422)


def _answer(name: str, caption: Caption) -> schemas.PictureAnswer:
    """One picture of an answer."""
    if caption.error is not None:
        return schemas.PictureAnswer(name=name, error=caption.error)
    others = [schemas.Sentence(**_sentence(other)) for other in caption.alternatives]
    answer = schemas.PictureAnswer(name=name, **_sentence(caption), alternatives=others)
    answer.confidence, answer.unfamiliar = caption.confidence, caption.unfamiliar
    if caption.by_language:
        answer.captions = {
            language: schemas.Sentence(**_sentence(own)) for language, own in caption.by_language.items()
        }
    if caption.attention is not None:
        answer.words = list(caption.words)
        answer.attention = caption.attention.astype(float).round(5).tolist()  # (T, h, w)
    return answer


def _sentence(caption: Any) -> dict[str, Any]:
    return {
        "caption": caption.text,
        # An empty caption of a run that never learnt to end has none.
        "score": round(max(caption.score, -1e6), 5),
        "probability": float(f"{caption.probability:.4g}"),
        "language": getattr(caption, "language", "") or None,
    }


def _limits_text(service: Service) -> str:
    limits = service.limits
    kept = "nowhere else" if service.corrections is None else "kept only with a caption that corrects ours"
    file, body = limits.picture.file_bytes / 2**20, limits.body_bytes / 2**20
    return (
        f"Pictures in, captions out. A picture may have {file:g} MiB and "
        f"{limits.picture.pixels / 1e6:g} million pixels, a request {body:g} MiB and "
        f"{limits.pictures} pictures; {limits.waiting} pictures may wait at a time. Pictures are held in "
        f'memory while they are described, and {kept}. Errors are {{"error": "a sentence"}}.'
    )
