"""EfficientNet-Lite: a CNN as quick as MobileNetV2 that sees more; Keras has none.

In: the factors of width and depth, an input size. Out: a Keras model, preprocessed pixels -> grid, before its
normalisations are folded. Architecture: EfficientNet (Tan and Le 2019) without what small processors are slow
at: ReLU6 for swish, no squeeze-and-excitation (Google's EfficientNet-Lite, 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

# Kernel, stride, expansion, channels, repeats of the seven stages (Tan and Le 2019, table 1).
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def efficientnet_lite(width: float, depth: float) -> Callable[[str | None, int], Any]:
    """`build(weights, size)` of a row of `backbones.ENCODERS`.

    Stem and head keep their width, first and last stage their depth, as in those that were trained on
    ImageNet. `scripts/efficientnet_lite_weights.py` fetches their weights.

    Args:
        width: factor of channels.
        depth: factor of blocks.
    """

    def build(weights: str | None, size: int) -> Any:
        if weights:
            raise ValueError(
                "Keras has no weights for it: scripts/efficientnet_lite_weights.py makes a file of them for "
                "encoder.weights"
            )
        inputs = keras.Input((size, size, 3))
        x = _convolution(inputs, 32, 3, 2, "stem")
        for number, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES, 1):
            ends = number in (1, len(_STAGES))
            for repeat in range(repeats if ends else math.ceil(depth * repeats)):
                x = _inverted_residual(
                    x,
                    _multiple_of_8(width * channels),
                    kernel,
                    1 if repeat else stride,
                    expansion,
                    f"block{number}{chr(ord('a') + repeat)}",
                )
        return keras.Model(inputs, _convolution(x, 1280, 1, 1, "head"), name="efficientnet_lite")

    return build


def _convolution(x: Any, channels: int, kernel: int, stride: int, name: str, *, linear: bool = False) -> Any:
    """Conv, batch normalisation, ReLU6; `channels` 0: one kernel a channel."""
    options = {"padding": "same", "use_bias": False, "name": name}
    if channels:
        x = keras.layers.Conv2D(channels, kernel, stride, **options)(x)
    else:
        x = keras.layers.DepthwiseConv2D(kernel, stride, **options)(x)
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(x)
    return x if linear else keras.layers.ReLU(6.0, name=f"{name}_relu")(x)


def _inverted_residual(x: Any, channels: int, kernel: int, stride: int, expansion: int, name: str) -> Any:
    """The block of Sandler et al. 2018, figure 4d."""
    inputs = x
    if expansion > 1:
        x = _convolution(x, expansion * x.shape[-1], 1, 1, f"{name}_expand")
    x = _convolution(x, 0, kernel, stride, f"{name}_depthwise")
    x = _convolution(x, channels, 1, 1, f"{name}_project", linear=True)
    if stride == 1 and inputs.shape[-1] == channels:
        x = keras.layers.Add(name=f"{name}_add")([inputs, x])
    return x


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, but not below nine tenths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
