"""Pictures made a little different each epoch: cropped, mirrored, recolored.

Pixels of a batch go in, as many of the same size come out; the change depends on the seed alone. A picture
one of whose captions speaks of left or right is never mirrored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

Tensor = Any

AREA = (0.6, 1.0)  # share of the picture's area that is kept
ASPECT = 1.15  # height to width changed by up to this factor
LIGHT = 0.2  # brightness, contrast and saturation changed by up to this share

_SIDES = """
left right leftmost rightmost lefthand righthand left-hand right-hand
links rechts linke rechte linken rechten linker rechter linkes rechtes
gauche droite izquierda derecha izquierdo derecho sinistra destra esquerda direita слева справа левый правый
左 右 왼쪽 오른쪽 왼쪽에 오른쪽에 왼편 오른편
"""
SIDE_WORDS = frozenset(_SIDES.split())


def can_be_mirrored(captions: Iterable[Iterable[str]]) -> bool:
    """Whether captions, given as words, stay true of the mirrored picture."""
    return not any(word in SIDE_WORDS for words in captions for word in words)


def augment(
    pixels: Tensor, mirrored: Tensor, seed: Tensor, share: tuple[Any, int, int] | None = None
) -> Tensor:
    """A random crop back at full size, a mirror image half of the time, other light and color.

    Args:
        pixels: (B, H, W, 3) uint8 or float, 0..255.
        mirrored: (B,) bool, pictures that may be mirrored.
        seed: (2,) int32.
        share: (n, i, of): these are each `of`-th picture of n, from the i-th on; None: they are all.

    Returns:
        (B, H, W, 3) float32, 0..255.
    """
    B, H, W = (tf.shape(pixels)[i] for i in range(3))
    all_of_them, first, each = share or (B, 0, 1)
    mine = (first + each * tf.range(B)) % all_of_them  # one that is of no weight may be any

    def uniform(place: int, low: float, high: float) -> Tensor:
        drawn = tf.random.stateless_uniform([all_of_them], seed + [0, place], low, high)
        return drawn if share is None else tf.gather(drawn, mine)

    area, aspect = uniform(1, *AREA), tf.exp(uniform(2, -1.0, 1.0) * tf.math.log(ASPECT))
    height = tf.minimum(tf.sqrt(area * aspect), 1.0)
    width = tf.minimum(tf.sqrt(area / aspect), 1.0)
    top, left = uniform(3, 0, 1) * (1 - height), uniform(4, 0, 1) * (1 - width)
    flip = tf.logical_and(mirrored, uniform(5, 0, 1) < 0.5)
    near, far = tf.where(flip, left + width, left), tf.where(flip, left, left + width)
    boxes = tf.stack([top, near, top + height, far], 1)  # (B, 4)
    pixels = tf.image.crop_and_resize(tf.cast(pixels, tf.float32), boxes, tf.range(B), [H, W])

    brightness, contrast, saturation = (
        uniform(p, 1 - LIGHT, 1 + LIGHT)[:, None, None, None] for p in (6, 7, 8)
    )
    # A convolution, because sums over three numbers each are slow.
    grey = tf.nn.conv2d(pixels, tf.fill([1, 1, 3, 1], 1 / 3), 1, "VALID")  # (B, H, W, 1)
    mean = tf.reduce_mean(grey, [1, 2], keepdims=True)
    # (pixels - grey) * saturation + grey, then towards the mean by contrast, then brightness: in one pass
    own, shared = brightness * contrast * saturation, brightness * contrast * (1 - saturation)
    return tf.clip_by_value(own * pixels + shared * grey + brightness * (1 - contrast) * mean, 0.0, 255.0)
