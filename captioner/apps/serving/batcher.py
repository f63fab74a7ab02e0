"""Batches what concurrent requests ask for: many threads put, one thread works.

In: items, each with a key. Out: a `Future` each. What waits under one key is worked on together, up to
a number; whoever comes first is served first. Knows nothing of pictures; reads and writes no file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass
class _Waiting:
    key: Hashable
    item: Any
    future: Future[Any]


class Batcher:
    """One worker thread, and a line of those that wait for it.

    Args:
        work: given a key and at most `most` items, gives as many results, in order. What it raises goes to
            each of them.
        most: items worked on together.
        gather_seconds: how long a batch that is not full waits for more.

    Example:
        >>> batcher = Batcher(lambda key, items: [key * item for item in items])
        >>> batcher.put(3, 14, Future()).result()
        42
        >>> batcher.close()
    """

    def __init__(
        self,
        work: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        most: int = 8,
        gather_seconds: float = 0.004,
    ) -> None:
        self._work, self._most, self._gather_seconds = work, most, gather_seconds
        self._line: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.batches = self.items = 0  # done so far
        self.seconds_per_item = 0.1  # of late
        self._thread = threading.Thread(target=self._run, name="captions", daemon=True)
        self._thread.start()

    def put(self, key: Hashable, item: Any, future: Future[Any]) -> Future[Any]:
        """Lines an item up; `future` will have its result. Cancel it to take the item back."""
        with self._changed:
            if self._closed:
                future.cancel()
            else:
                self._line.append(_Waiting(key, item, future))
                self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread after the batch under way; cancels what waits."""
        with self._changed:
            self._closed = True
            for waiting in self._line:
                waiting.future.cancel()
            self._line.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            # From here on they cannot be cancelled any more; those that were, are left out.
            batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[_Waiting]:
        """What to do next; nothing once closed."""
        with self._changed:
            while not self._line and not self._closed:
                self._changed.wait()
            until = time.monotonic() + self._gather_seconds
            while self._line and len(self._same()) < self._most:
                left = until - time.monotonic()
                if left <= 0 or self._closed:
                    break
                self._changed.wait(left)
            batch = self._same()
            chosen = {id(waiting) for waiting in batch}
            self._line = deque(waiting for waiting in self._line if id(waiting) not in chosen)
            return batch

    def _same(self) -> list[_Waiting]:
        """The first in line and those of its key, at most a batch."""
        if not self._line:
            return []
        key = self._line[0].key
        return [waiting for waiting in self._line if waiting.key == key][: self._most]

    def _answer(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        try:
            results = self._work(batch[0].key, [waiting.item for waiting in batch])
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:  # whatever it is, those who wait must hear of it, and the next be served
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        self.batches, self.items = self.batches + 1, self.items + len(batch)
        spent = (time.monotonic() - began) / len(batch)
        self.seconds_per_item += 0.2 * (spent - self.seconds_per_item)
        for waiting, result in pairs:
            waiting.future.set_result(result)
