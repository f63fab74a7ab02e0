"""What both APIs share: captions within the time that a client waits, and errors as sentences.

In: a `Service` and pictures; or an exception. Out: captions; or a JSON answer `{"error": sentence}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from captioner.apps.serving.correction_folder import FolderFull
from captioner.apps.serving.requests import UnsupportedMediaType
from captioner.apps.serving.schemas import sentence_of
from captioner.apps.serving.service import Overloaded, ServedModel, Service, UnknownRun, requested_part
from captioner.errors import CaptionerError, ConfigError, ImageError, missing_extra
from captioner.inference.caption import Caption
from captioner.inference.search_options import CaptionOptions

_STATUS = {
    UnsupportedMediaType: 415,
    ConfigError: 400,
    UnknownRun: 404,
    FolderFull: 507,
    CaptionerError: 500,
}


async def captions_of(
    service: Service, model: ServedModel, pictures: Sequence[bytes], options: CaptionOptions
) -> list[Caption]:
    """The captions of pictures, within the time that a client waits.

    Raises:
        Overloaded: there is no place for them, or they were not reached in time.
        ConfigError: the model writes no such language, or would search for too long.
    """
    model.check(options)
    futures = service.submit(model, pictures, options)
    try:
        found = await in_time(futures, service.limits.answer_seconds)
    except TimeoutError as error:
        raise Overloaded(10) from error
    return [requested_part(caption, options) for caption in found]


async def in_time(futures: Sequence[Future[Any]], seconds: float) -> list[Any]:
    """The results of futures that threads fulfil; all are cancelled if that takes too long."""
    try:
        async with asyncio.timeout(seconds):
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    finally:
        for future in futures:
            future.cancel()  # nothing happens to those that are done


def add_error_handlers(api: Any) -> None:
    """Makes an application answer every exception with `{"error": sentence}` and its status."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer(status: int, text: str, headers: dict[str, str] | None = None) -> Any:
        return JSONResponse({"error": text}, status, headers)

    @api.exception_handler(CaptionerError)
    async def known(_: Any, error: CaptionerError) -> Any:
        if isinstance(error, Overloaded):
            return answer(503, str(error), {"retry-after": str(error.retry_seconds)})
        if isinstance(error, ImageError):
            return answer(422, f"the picture {error.reason}")
        return answer(next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), str(error))

    @api.exception_handler(ModuleNotFoundError)
    async def not_installed(_: Any, error: ModuleNotFoundError) -> Any:
        found = missing_extra(error)
        return answer(501, f"{found} where the server runs") if found else await unexpected(_, error)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Any, error: RequestValidationError) -> Any:
        return answer(400, sentence_of(error.errors()))

    @api.exception_handler(HTTPException)
    async def refused(_: Any, error: HTTPException) -> Any:
        return answer(error.status_code, str(error.detail), error.headers)

    @api.exception_handler(Exception)  # whatever it is; the server writes its cause on stderr
    async def unexpected(_: Any, error: Exception) -> Any:
        return answer(500, "captioning failed; the server's log says why")
