"""What the web page and the HTTP API ask: pictures as bytes in, captions out, never more at once than fits.

Pictures are decoded by a few threads, each to the small size that the CNN sees, and captioned in batches by
one more; so what waits is small, and requests that come together are worked on together. A picture that
cannot be used is a `Caption` with an `error`. Reads no file: runs are opened by `runs`.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from captioner.apps.serving.batcher import Batcher
from captioner.apps.serving.correction_folder import Correction, CorrectionFolder
from captioner.config import DecodeConfig
from captioner.data.images import Limits, read_image
from captioner.errors import CaptionerError, ConfigError, ImageError, RunError, unknown_name
from captioner.inference.caption import Caption
from captioner.inference.search_options import ALL_LANGUAGES, CaptionOptions
from captioner.system.hardware import cores

PREVIEW_PIXELS = 960  # longer side
BATCH = 8  # pictures captioned together: near full speed, and one alone is soon answered


@dataclass(frozen=True)
class ServeLimits:
    """What a client may ask for, and how long it may take over it."""

    picture: Limits = Limits(file_bytes=32 * 2**20)
    body_bytes: int = 64 * 2**20  # of one request
    held_bytes: int = 256 * 2**20  # of all request bodies in memory
    pictures: int = 16  # a request
    waiting: int = 64  # pictures in the house, of all requests
    connections: int = 200
    header_seconds: float = 10.0  # until the head of a request is there
    idle_seconds: float = 10.0  # between two pieces of a body
    body_seconds: float = 90.0  # for a whole body
    linger_seconds: float = 2.0  # for which a refused request is read on, so that its client gets the answer
    answer_seconds: float = 60.0  # until pictures are captioned; else they are given up


class UnknownRun(RunError):
    """A name by which no model is served."""


class Overloaded(CaptionerError):
    """More is asked for than fits; `retry_seconds` says when to come again."""

    def __init__(self, retry_seconds: int) -> None:
        super().__init__(f"too many pictures are waiting already; try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model that is served.

    Args:
        name: by which clients ask for it.
        size: (height, width) of the pixels that it wants.
        caption: (n, H, W, 3) uint8 and options to n captions; called by one thread only.
        decode: how its captions are searched for, unless a client says otherwise.
        about: facts for people and programs: encoder, words, scores.
    """

    name: str
    size: tuple[int, int]
    caption: Callable[[np.ndarray, CaptionOptions], Sequence[Caption]]
    decode: DecodeConfig = DecodeConfig()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that it writes; none where its captions carry none."""
        return tuple(self.about.get("languages", ()))

    def check(self, options: CaptionOptions) -> None:
        """Raises a ConfigError if it writes no such language (names the nearest) or would search too long."""
        options.check_search(self.decode)
        known, language = self.languages, options.language
        if language and language not in (*known, *((ALL_LANGUAGES,) if known else ())):
            raise ConfigError(
                unknown_name("language", language, (*known, ALL_LANGUAGES))
                if known
                else f'language "{language}": {self.name} knows no languages; leave it out'
            )

    def described(self) -> dict[str, Any]:
        """What a client may know of it, as JSON."""
        about = {key: value for key, value in self.about.items() if key not in ("bytes", "modified")}
        return {"name": self.name, **about, "decode": dataclasses.asdict(self.decode)}


class Service:
    """All models of one server, behind one line.

    Args:
        models: at least one; the first is the default.
        limits: see there.
        corrections: where corrected captions are kept; None: nowhere.

    Example:
        >>> model = ServedModel("toy", (8, 8), lambda pixels, options: [Caption("", "a dog")] * len(pixels))
        >>> service = Service([model])
        >>> service.submit(model, [b"<html>"], CaptionOptions())[0].result().error
        'is no picture that can be read: it is a page of HTML, XML or SVG; was the download refused?'
        >>> service.close()
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        limits: ServeLimits | None = None,
        corrections: CorrectionFolder | None = None,
    ) -> None:
        if not models:
            raise RunError("no run to serve; name at least one run folder")
        self.models = {model.name: model for model in models}
        self.default = models[0]
        self.limits = limits or ServeLimits()
        self.corrections = corrections
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self.batcher = Batcher(_caption, most=BATCH)
        self._lock = threading.Lock()
        self._pending = 0

    def model(self, name: str | None) -> ServedModel:
        """The model of a name; `name:latest` is the same, none is the default.

        Raises:
            UnknownRun: there is none; names the nearest.
        """
        if not name:
            return self.default
        bare = name if name in self.models else name.removesuffix(":latest")
        if bare not in self.models:
            raise UnknownRun(unknown_name("run", bare, self.models))
        return self.models[bare]

    @property
    def waiting(self) -> int:
        """Number of pictures that are being decoded or captioned, or wait for it."""
        return self._pending

    def submit(
        self, model: ServedModel, pictures: Sequence[bytes], options: CaptionOptions
    ) -> list[Future[Caption]]:
        """Lines pictures up, all or none of them.

        Returns:
            One future a picture; see `requested_part`. What is cancelled in time costs nothing.

        Raises:
            Overloaded: there is no place for so many.
        """
        with self._lock:
            if self._pending + len(pictures) > self.limits.waiting:
                raise Overloaded(self._retry_seconds())
            self._pending += len(pictures)
        key = (model, _batch_options(model, options))
        futures = []
        for picture in pictures:
            future: Future[Caption] = Future()
            future.add_done_callback(self._count_out)
            futures.append(future)
            self._threads.submit(self._decode, picture, key, future)
        return futures

    def preview(self, picture: bytes) -> Future[str]:
        """The picture as a data URL that any browser shows, for formats that it does not know itself."""
        return self._threads.submit(_preview, picture, self.limits.picture)

    def correct(self, picture: bytes, text: str) -> Future[Correction]:
        """Keeps a corrected caption; only where `corrections` is set."""
        assert self.corrections is not None
        return self._threads.submit(self.corrections.keep, picture, text, self.limits.picture)

    def close(self) -> None:
        """Finishes the batch under way and gives up the rest."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.batcher.close()

    def _decode(
        self, picture: bytes, key: tuple[ServedModel, CaptionOptions], future: Future[Caption]
    ) -> None:
        if future.cancelled():
            return
        try:
            pixels = read_image(picture, size=key[0].size, limits=self.limits.picture)
        except ImageError as error:
            _fulfil(future, Caption("", error=error.reason))
        except Exception as error:  # MemoryError, say: the client must not wait in vain
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            self.batcher.put(key, pixels, future)

    def _count_out(self, _: Future[Caption]) -> None:
        with self._lock:
            self._pending -= 1

    def _retry_seconds(self) -> int:
        return min(60, max(1, math.ceil(self._pending * self.batcher.seconds_per_item)))


def _caption(key: tuple[ServedModel, CaptionOptions], pixels: list[np.ndarray]) -> Sequence[Caption]:
    model, options = key
    return model.caption(np.stack(pixels), options)


def _preview(picture: bytes, limits: Limits) -> str:
    shown = Image.fromarray(read_image(picture, limits=limits))
    shown.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS))
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _fulfil(future: Future[Caption], caption: Caption) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(caption)


def _batch_options(model: ServedModel, options: CaptionOptions) -> CaptionOptions:
    """The same options for all whom the same search can serve, so that they share its batches and its graph.

    A beam search has its whole beam to give, and attention costs next to nothing; clients get their part.
    """
    shared = dataclasses.replace(options, attention=True, batch_size=BATCH)
    if options.drawn:
        return dataclasses.replace(shared, beam=None)
    beam = max(options.beam or model.decode.beam, options.n_best)
    return dataclasses.replace(shared, beam=beam, n_best=beam, seed=0)


def requested_part(caption: Caption, options: CaptionOptions) -> Caption:
    """What one client asked for, of what was found for several."""
    others = caption.alternatives[: options.n_best - 1]
    attention = caption.attention if options.attention else None
    return dataclasses.replace(caption, alternatives=others, attention=attention)
