"""What runs on the machines of a Ray cluster; see `ray_driver`.

In: rows with paths. Out: rows with digests, captions or errors; shards of features in the worker's folder
of the cache. An actor loads its model once. What a user has to mend goes back as `trouble`: raised here, it
would arrive as a traceback.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from captioner.config import EncoderConfig
from captioner.errors import CaptionerError, ImageError


def read_block(row: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures of a row, read, digested and decoded: pixels (n, H, W, 3) of those that could be."""
    from captioner.models.feature_extraction import Picture, read_picture

    size = (int(row["size"][0]), int(row["size"][1]))
    with ThreadPoolExecutor(max(1, _own_cores())) as threads:
        found = list(threads.map(lambda path: read_picture(Path(path), size), row["paths"]))
    good = [np.asarray(picture.pixels) for picture in found if isinstance(picture, Picture)]
    return {
        "number": row["number"],
        "ids": row["ids"],
        "paths": row["paths"],
        "pixels": np.stack(good) if good else np.zeros((0, *size, 3), np.uint8),
        "digests": [picture.digest if isinstance(picture, Picture) else "" for picture in found],
        "errors": [picture.reason if isinstance(picture, ImageError) else "" for picture in found],
        "seen": [list(map(str, picture.seen)) if isinstance(picture, Picture) else [] for picture in found],
    }


class FeatureActor:
    """Holds an encoder; puts the rows of a block into a shard.

    Args:
        encoder: which.
        seed: of its weights, if it has none.
        identity: what the cache says of it; another one here is refused.
        folder: of the shards.
    """

    def __init__(self, encoder: EncoderConfig, seed: int, identity: Mapping[str, Any], folder: str) -> None:
        import tensorflow as tf

        threads = _own_cores()
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        self._trouble = ""
        try:
            self._load(encoder, seed, identity, folder)
        except CaptionerError as error:
            self._trouble = f"{os.uname().nodename}: {error}"

    def _load(self, encoder: EncoderConfig, seed: int, identity: Mapping[str, Any], folder: str) -> None:
        from captioner.models.encoder import load_encoder
        from captioner.models.feature_extraction import shard_folder

        self._encoder = load_encoder(
            encoder.name,
            weights=encoder.weights,
            size=encoder.size,
            flip_augmented=encoder.flip_augmented,
            seed=seed,
        )
        self._shards = shard_folder(self._encoder, folder)
        if self._shards.identity != dict(identity):
            raise CaptionerError(
                f"encoder {encoder.name} is another one here: {self._shards.identity}, not {dict(identity)}; "
                "give its weights as a file that every machine reaches, and the same versions everywhere"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Digests and errors of a block's pictures, once its shard is on the disk."""
        if not self._trouble:
            try:
                block = row if "pixels" in row else read_block(row)
                self._store(block)
                return {key: list(block[key]) for key in ("digests", "errors")} | {
                    "number": row["number"],
                    "trouble": "",
                }
            except CaptionerError as error:
                self._trouble = f"{os.uname().nodename}: {error}"
        return {"digests": [], "errors": [], "number": row["number"], "trouble": self._trouble}

    def _store(self, block: Mapping[str, Any]) -> None:
        from captioner.data.feature_cache import FileStat
        from captioner.models.feature_extraction import BATCH_SIZE, encode_rows

        good = [place for place, digest in enumerate(block["digests"]) if digest]
        if not good:
            return
        first = {block["digests"][place]: at for at, place in reversed(list(enumerate(good)))}
        kept = sorted(first.values())  # of pictures that are there twice, one
        rows = []
        for start in range(0, len(kept), BATCH_SIZE):
            chosen = kept[start : start + BATCH_SIZE]
            batch = np.zeros((BATCH_SIZE, *block["pixels"].shape[1:]), np.uint8)
            batch[: len(chosen)] = block["pixels"][chosen]
            rows.append(encode_rows(self._encoder, batch)[: len(chosen)])
        pictures = [(str(block["digests"][good[at]]), str(block["ids"][good[at]])) for at in kept]
        seen = {}
        for place in good:
            size, modified, changed, digest = block["seen"][place]
            seen[str(block["paths"][place])] = FileStat(int(size), int(modified), int(changed), str(digest))
        self._shards.write(np.concatenate(rows), pictures=pictures, number=int(block["number"]), seen=seen)


class CaptionActor:
    """Holds a captioner.

    Args:
        run: its folder.
        options: fields of `CaptionOptions`.
    """

    def __init__(self, run: str, options: Mapping[str, Any]) -> None:
        from captioner.inference.loading import load_captioner

        self._options, self._trouble = dict(options), ""
        try:
            self._captioner = load_captioner(Path(run), self._options, quiet=True)
        except CaptionerError as error:
            self._trouble = f"{os.uname().nodename}: {error}"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Captions as plain values, in order."""
        if self._trouble:
            return {"number": row["number"], "captions": [], "trouble": self._trouble}
        paths = [Path(path) for path in row["paths"]]
        found = self._captioner.captions_of(paths, **self._options)
        return {
            "number": row["number"],
            "captions": [dataclasses.asdict(caption) for caption in found],
            "trouble": "",
        }


def _own_cores() -> int:
    """Those that Ray gives this actor or task."""
    import ray

    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
