"""The table of CNNs, each with its input size, grid and preprocessing.

In: a row's name and an input size. Out: a Keras model. No file is touched, except that Keras downloads
ImageNet weights into its own cache where asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from captioner.models.efficientnet_lite import efficientnet_lite

Builder = Callable[[str | None, int], Any]

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's red, green, blue, 0..1
_DEVIATION = (0.229, 0.224, 0.225)

# Key -> (scale, offset, channels reversed): y = x * scale + offset for x in 0..255. The key is part of every
# feature cache's fingerprint: a change of meaning needs a new key.
PREPROCESSING: dict[str, tuple[Any, Any, bool]] = {
    "minus1-to-1": (1 / 127.5, -1.0, False),
    "minus1-to-1-by-128": (1 / 128, -1.0, False),
    "mean-deviation": (
        tuple(1 / (255 * deviation) for deviation in _DEVIATION),
        tuple(-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)),
        False,
    ),
    "bgr-minus-mean": (1.0, (-103.939, -116.779, -123.68), True),
}


HUB = "hub:"  # begins the name of an encoder that is a KerasHub preset
_AFFINE = "affine"


@dataclass(frozen=True)
class EncoderSpec:
    """One row of the table.

    Attributes:
        name: how recipes call it.
        build: `build(weights, size)` makes the bare Keras model, preprocessed pixels -> (B, h, w, C); weights
            is "imagenet" or None.
        size: height and width of the input in pixels, unless the recipe asks for another.
        grid: (h, w) at that size.
        channels: C.
        preprocessing: key of `PREPROCESSING`, or what `affine_preprocessing` gives.
        megabytes: of float32 weights: what a download or a run folder will take.
        pretrained: whether ImageNet weights exist.
        architecture: plain values that a run must keep to build the model again; None: the name is enough.
    """

    name: str
    build: Builder
    size: int
    grid: tuple[int, int]
    channels: int
    preprocessing: str
    megabytes: int
    pretrained: bool = True
    architecture: Mapping[str, Any] | None = None


def affine_preprocessing(scale: Sequence[float], offset: Sequence[float]) -> str:
    """The key of a preprocessing that has no row in the table: x * scale + offset for red, green and blue.

    >>> _preprocessing(affine_preprocessing([0.5, 1, 2], [0, -1, -2]))
    ([0.5, 1.0, 2.0], [0.0, -1.0, -2.0], False)
    """
    numbers = (",".join(repr(float(one)) for one in each) for each in (scale, offset))
    return " ".join([_AFFINE, *numbers])


def _preprocessing(key: str) -> tuple[Any, Any, bool]:
    """(scale, offset, channels reversed) of a key."""
    if key in PREPROCESSING:
        return PREPROCESSING[key]
    scale, offset = ([float(one) for one in text.split(",")] for text in key.split(" ")[1:])
    return scale, offset, False


@keras.saving.register_keras_serializable("captioner")
class Preprocess(keras.Layer):
    """Pixels 0..255 to the range a CNN was trained on: a row of `PREPROCESSING`."""

    def __init__(self, key: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key = key

    def call(self, pixels: Any) -> Any:
        """(B, H, W, 3) 0..255 -> (B, H, W, 3)."""
        scale, offset, reverse = _preprocessing(self.key)
        x = keras.ops.cast(pixels, self.compute_dtype)
        if reverse:
            x = x[..., ::-1]
        return x * keras.ops.cast(scale, x.dtype) + keras.ops.cast(offset, x.dtype)

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "key": self.key}


@keras.saving.register_keras_serializable("captioner")
class PositionEmbedding(keras.Layer):
    """Adds a learned vector to each cell, so that the decoder can tell left from right."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """One vector a cell."""
        self.embedding = self.add_weight(name="embedding", shape=input_shape[1:], initializer="zeros")

    def call(self, grid: Any) -> Any:
        """(B, h, w, C) -> (B, h, w, C)."""
        return grid + keras.ops.cast(self.embedding, grid.dtype)


def _application(class_name: str, **options: Any) -> Builder:
    def build(weights: str | None, size: int) -> Any:
        make = getattr(keras.applications, class_name)
        return make(weights=weights, include_top=False, input_shape=(size, size, 3), **options)

    return build


def _vgg16(weights: str | None, size: int) -> Any:
    """Without the last pooling: the 14 x 14 grid of Xu et al. 2015, section 4.3."""
    whole = _application("VGG16")(weights, size)
    return keras.Model(whole.input, whole.get_layer("block5_conv3").output)


def _small_cnn(weights: str | None, size: int) -> Any:
    """Four times conv, pool, ReLU, dropout; then positions: 96 x 96 pixels become a 6 x 6 grid.

    Batch normalization lets it learn from few pictures in minutes. It and ReLU come after the pooling, where
    a quarter of the numbers is left.
    """
    layers = keras.layers
    if size % 16 or size < 32:
        raise ValueError("expected a multiple of 16 pixels, at least 32")
    x = inputs = keras.Input((size, size, 3))
    for block, channels in enumerate((16, 32, 64, 128)):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"block{block}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        # Young statistics count for much: a training may be no longer than some hundred steps.
        x = layers.BatchNormalization(momentum=0.95, name=f"block{block}_norm")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        if block:
            x = layers.Dropout(0.1, seed=block, name=f"block{block}_dropout")(x)
    x = layers.Conv2D(128, 3, padding="same", activation="relu", name="grid_conv")(x)
    x = PositionEmbedding(name="grid_position")(x)
    return keras.Model(inputs, x, name="small_cnn")


_UNIT, _STANDARD, _CAFFE = "minus1-to-1", "mean-deviation", "bgr-minus-mean"
_BY_128 = "minus1-to-1-by-128"
# `Preprocess` does it for every row: Keras must not do it again.
_RAW = {"include_preprocessing": False}
_EFFICIENT = {name: _application(f"EfficientNetV2{name}", **_RAW) for name in ("B0", "B3", "S")}

_ROWS = (
    EncoderSpec("mobilenet_v2", _application("MobileNetV2"), 224, (7, 7), 1280, _UNIT, 9),
    EncoderSpec("mobilenet_v3_large", _application("MobileNetV3Large", **_RAW), 224, (7, 7), 960, _UNIT, 12),
    EncoderSpec("efficientnet_lite0", efficientnet_lite(0), 224, (7, 7), 1280, _BY_128, 14),
    EncoderSpec("efficientnet_lite1", efficientnet_lite(1), 224, (7, 7), 1280, _BY_128, 17),
    EncoderSpec("efficientnet_lite2", efficientnet_lite(2), 224, (7, 7), 1280, _BY_128, 19),
    EncoderSpec("efficientnetv2_b0", _EFFICIENT["B0"], 224, (7, 7), 1280, _STANDARD, 24),
    EncoderSpec("efficientnetv2_b3", _EFFICIENT["B3"], 300, (10, 10), 1536, _STANDARD, 52),
    EncoderSpec("efficientnetv2_s", _EFFICIENT["S"], 384, (12, 12), 1280, _BY_128, 81),
    EncoderSpec("inception_v3", _application("InceptionV3"), 299, (8, 8), 2048, _UNIT, 87),
    EncoderSpec("resnet50", _application("ResNet50"), 224, (7, 7), 2048, _CAFFE, 94),
    EncoderSpec("resnet101", _application("ResNet101"), 224, (7, 7), 2048, _CAFFE, 171),
    EncoderSpec("resnet152", _application("ResNet152"), 224, (7, 7), 2048, _CAFFE, 233),
    EncoderSpec("xception", _application("Xception"), 299, (10, 10), 2048, _UNIT, 83),
    EncoderSpec("densenet121", _application("DenseNet121"), 224, (7, 7), 1024, _STANDARD, 28),
    EncoderSpec("convnext_tiny", _application("ConvNeXtTiny", **_RAW), 224, (7, 7), 768, _STANDARD, 111),
    EncoderSpec("vgg16", _vgg16, 224, (14, 14), 512, _CAFFE, 59),
    EncoderSpec("small_cnn", _small_cnn, 96, (6, 6), 128, _UNIT, 1, pretrained=False),
)
ENCODERS: dict[str, EncoderSpec] = {row.name: row for row in _ROWS}
