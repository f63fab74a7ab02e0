"""A run for TensorFlow Serving: whole pictures in, sentences out, beam search in the graph.

In: a run's networks. Out: `1/`, a SavedModel with two signatures:

    serving_default   image_bytes (B,) string: JPEG, PNG, GIF or BMP files
    pixels            pixels (B, H, W, 3) uint8, of the encoder's size, as `images.read_image` gives them

and two more for each language that the run knows after its first: `serving_de`, `pixels_de`. All
→ caption (B,) string, score (B,), log_probability (B,) float32. TensorFlow decodes and shrinks pictures
a little differently from Pillow and knows no EXIF: captions of files may differ from `captioner caption`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captioner.apps.export.export import ExportJob
from captioner.apps.export.parity_check import TOLERANCES, Answer, Variant, Variants
from captioner.apps.export.signatures import save
from captioner.data.images import read_image
from captioner.data.vocabulary import OTHER, kind_of, tight
from captioner.inference.search_options import CaptionOptions

VERSION = "1"  # TensorFlow Serving takes the highest number among the folders of a model
FROM_FILES = 0.3  # how far scores may be from the run's own where TensorFlow reads the files


def write(job: ExportJob, folder: Path) -> Variants:
    """Writes the SavedModel; see `export.FORMATS`."""
    captioner = job.captioner
    size = captioner.encoder.size
    languages = ("", *captioner.vocabulary.languages[1:])  # the first, or none, and each other
    text_of = _joiner(captioner.vocabulary.words)
    functions: dict[str, Any] = {}
    for language in languages:
        functions |= _functions(captioner, language, text_of)
    save(captioner, functions, folder / VERSION)
    signatures = tf.saved_model.load(str(folder / VERSION)).signatures
    found: dict[str, Variant] = {}
    for language in languages:
        pixels, serving = _named("pixels", language), _named("serving", language)
        found[pixels] = Variant(
            _answers(signatures[pixels], lambda path: read_image(path, size=size)),
            TOLERANCES["float32"],
            language,
        )
        found[serving] = Variant(_answers(signatures[serving], Path.read_bytes), FROM_FILES, language)
    return found


def _functions(captioner: Any, language: str, text_of: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """The two entry points that write a language, by the names of their signatures."""
    size = captioner.encoder.size
    search = captioner.search_graph(captioner.search_options(CaptionOptions(language=language or None)), 0)

    def from_pixels(pixels: Any) -> dict[str, Any]:
        features = tf.cast(captioner.encoder.encode_graph(pixels), tf.float16)
        found = search(features, tf.zeros(tf.shape(features)[:1], tf.int64))
        return {
            "caption": text_of(found.words[:, 0], found.lengths[:, 0]),
            "score": found.scores[:, 0],
            "log_probability": found.log_probabilities[:, 0],
        }

    def from_files(image_bytes: Any) -> dict[str, Any]:
        return from_pixels(tf.map_fn(lambda one: _read(one, size), image_bytes, fn_output_signature=tf.uint8))

    files = tf.TensorSpec((None,), tf.string, name="image_bytes")
    pictures = tf.TensorSpec((None, *size, 3), tf.uint8, name="pixels")
    return {
        _named("serving", language): tf.function(from_files, input_signature=[files], autograph=False),
        _named("pixels", language): tf.function(from_pixels, input_signature=[pictures], autograph=False),
    }


def _named(entry: str, language: str) -> str:
    """The name of a signature.

    >>> _named("serving", ""), _named("pixels", ""), _named("serving", "zh-hant")
    ('serving_default', 'pixels', 'serving_zh_hant')
    """
    if not language:
        return "serving_default" if entry == "serving" else entry
    return f"{entry}_{language.replace('-', '_')}"


def _answers(signature: Any, read: Callable[[Path], Any]) -> Callable[[Sequence[Path]], list[Answer]]:
    def answers(pictures: Sequence[Path]) -> list[Answer]:
        found = signature(tf.constant(np.array([read(path) for path in pictures])))
        texts = [text.decode() for text in found["caption"].numpy()]
        return [Answer(*pair) for pair in zip(texts, found["score"].numpy().tolist(), strict=True)]

    return answers


def _read(content: Any, size: tuple[int, int]) -> Any:
    """Pixels (H, W, 3) uint8 of a file's bytes."""
    picture = tf.io.decode_image(content, channels=3, expand_animations=False)
    picture.set_shape((None, None, 3))
    resized = tf.image.resize(picture, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _joiner(words: Sequence[str]) -> Callable[[Any, Any], Any]:
    """`vocabulary.join_words` as a graph: ids (B, T) and lengths (B,) → (B,) string."""
    table = tf.constant(words)
    kinds = tf.constant([kind_of(word) for word in words])
    every_kind = range(OTHER + 1)
    table_of_kinds = tf.constant([[tight(left, right) for right in every_kind] for left in every_kind])

    def text_of(ids: Any, lengths: Any) -> Any:
        inside = tf.sequence_mask(lengths, tf.shape(ids)[1])  # (B, T)
        kind = tf.gather(kinds, ids)  # (B, T)
        beside = tf.gather_nd(table_of_kinds, tf.stack([kind[:, :-1], kind[:, 1:]], 2))  # (B, T - 1)
        close = tf.concat([tf.ones_like(kind[:, :1], tf.bool), beside], 1)
        pieces = tf.where(close, "", " ") + tf.gather(table, ids)
        return tf.strings.reduce_join(tf.where(inside, pieces, ""), 1)

    return text_of
