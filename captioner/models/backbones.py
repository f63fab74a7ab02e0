"""The table of CNNs, each with its input size, grid and preprocessing, and how their graphs are rewritten.

In: a row's name and an input size. Out: a Keras model. `rewrite` puts the preprocessing into the graph, gives
layers names that last, and folds batch normalisations into the convolutions before them. No file is touched,
except that Keras downloads ImageNet weights into its own cache where asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from captioner.models.efficientnet_lite import efficientnet_lite
from captioner.models.layers.depthwise_conv import DepthwiseConv2D

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


def fold_batch_norm(model: Any) -> Any:
    """The same function with fewer layers: batch normalisations go into the convolutions before them.

    With kernel k, bias b and the normalisation's gamma, beta, mean m, variance v, epsilon e (Ioffe, Szegedy
    2015, algorithm 2): s = gamma / sqrt(v + e), k' = k * s, b' = beta + (b - m) * s. Folded are those that
    normalise the channels of a Conv2D, DepthwiseConv2D or SeparableConv2D without activation, whose output
    nobody else uses. Equal in inference mode only. Computed in float64: the same result on every machine.

    Returns:
        A new model, or `model` itself when there is nothing to fold.
    """
    folded = foldable(model)
    return rewrite(model, folded=folded) if folded else model


def rewrite(model: Any, *, preprocessing: str = "", folded: Mapping[str, Any] | None = None) -> Any:
    """A copy of a functional model with lasting layer names, and depthwise convolutions that train fast.

    Args:
        model: one input, one output; its layers and arrays are copied.
        preprocessing: of an `EncoderSpec`, put in front; empty: nothing.
        folded: from `foldable`; these normalisations go into their convolutions.
    """
    folded = folded or {}
    skipped = {normalisation.name for normalisation in folded.values()}
    names = stable_layer_names(model)
    inputs = keras.Input(model.input_shape[1:], name="pixels")
    first = Preprocess(preprocessing, name="preprocess")(inputs) if preprocessing else inputs
    copies: dict[str, Any] = {}

    def copy(layer: Any) -> Any:
        # `call` passes over what is skipped; a bare operation, such as `x + 3`, has no state to copy. Layers
        # of KerasHub have names that last, and settings from which not all of them can be made again.
        if layer.name in skipped or not isinstance(layer, keras.Layer) or "keras_hub" in layer.__module__:
            return layer
        config = layer.get_config() | {"name": names[layer.name]}
        if layer.name in folded:
            config["use_bias"] = True
        kind = DepthwiseConv2D if type(layer) is keras.layers.DepthwiseConv2D else layer.__class__
        copies[layer.name] = kind.from_config(config)
        return copies[layer.name]

    def call(layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name in skipped:
            return x
        return layer(first if x is inputs else x, *args, **kwargs)

    given = [inputs] if isinstance(model.input, list) else inputs
    rewritten = keras.models.clone_model(model, given, clone_function=copy, call_function=call)
    for layer in model.layers:
        if layer.name in folded:
            copies[layer.name].set_weights(_folded_weights(layer, folded[layer.name]))
        elif layer.name in copies and layer.weights:
            copies[layer.name].set_weights(layer.get_weights())
    return rewritten


def foldable(model: Any) -> dict[str, Any]:
    """Name of a convolution -> the batch normalisation that can be multiplied into it."""
    users: dict[str, list[Any]] = {}
    for operation in model.operations:
        for node in operation._inbound_nodes:
            for parent in node.parent_nodes:
                users.setdefault(parent.operation.name, []).append(operation)
    outputs = {tensor._keras_history.operation.name for tensor in model.outputs}
    return {
        layer.name: users[layer.name][0]
        for layer in model.layers
        if layer.name not in outputs and _folds(layer, users.get(layer.name, []))
    }


def _folds(layer: Any, users: list[Any]) -> bool:
    layers = keras.layers
    return (
        isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D))
        and len(users) == 1
        and isinstance(users[0], layers.BatchNormalization)
        and len(layer._inbound_nodes) == len(users[0]._inbound_nodes) == 1  # neither is shared
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and users[0].axis in (-1, 3)
    )


def _folded_weights(layer: Any, normalisation: Any) -> list[np.ndarray]:
    """The convolution's arrays with the normalisation multiplied in, bias last: for `set_weights`."""
    mean = np.asarray(normalisation.moving_mean, np.float64)
    scale = 1 / np.sqrt(np.asarray(normalisation.moving_variance, np.float64) + normalisation.epsilon)
    if normalisation.scale:
        scale = scale * np.asarray(normalisation.gamma, np.float64)
    shift = np.asarray(normalisation.beta, np.float64) if normalisation.center else 0.0
    *before, kernel = [array for array in layer.get_weights() if array.ndim > 1]
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else 0.0
    # A depthwise kernel is (h, w, channels, multiplier): its last two are the output channels.
    factor = scale.reshape(kernel.shape[2:]) if isinstance(layer, keras.layers.DepthwiseConv2D) else scale
    new = [kernel * factor, shift + (bias - mean) * scale]
    return [*before, *(array.astype(np.float32) for array in new)]


def stable_layer_names(model: Any) -> dict[str, str]:
    """Layer name -> a name that does not depend on what the process built before.

    Keras counts `conv2d_94` through the whole process; here `conv2d-1` is counted through the model, with a
    hyphen so that it cannot meet a name that Keras gives.
    """
    counts: dict[str, int] = {}
    names = {}
    for layer in model.layers:
        stem = re.sub(r"_\d+$", "", layer.name)
        if stem.replace("_", "") != type(layer).__name__.lower():
            names[layer.name] = layer.name
            continue
        counts[stem] = counts.get(stem, 0) + 1
        names[layer.name] = f"{stem}-{counts[stem]}"
    return names


def initialize(model: Any, seed: int) -> None:
    """Draws every kernel from `seed` (He et al. 2015, eq. 10); Keras's own draws hang on global state."""
    for number, variable in enumerate(model.weights):
        name = variable.path
        if name.endswith("kernel"):
            fan_in = np.prod(variable.shape[:2] if "depthwise" in name else variable.shape[:-1])
            deviation = np.sqrt(2 / fan_in)
        elif name.endswith("embedding"):
            deviation = 0.5  # of the order of the features it is added to
        else:
            continue
        draws = np.random.default_rng([seed, number]).standard_normal(variable.shape, np.float32)
        variable.assign(draws * np.float32(deviation))


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

    Batch normalisation lets it learn from few pictures in minutes. It and ReLU come after the pooling, where
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
