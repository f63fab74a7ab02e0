"""A CNN's graph made anew: preprocessing in front, lasting layer names, batch normalization folded away.

In: a Keras model of `backbones.ENCODERS`. Out: another with the same function. Also the first weights of a
CNN that is learnt from nothing. No file is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from captioner.models.backbones import Preprocess
from captioner.models.layers.depthwise_conv import DepthwiseConv2D


def rewrite(model: Any, *, preprocessing: str = "", folded: Mapping[str, Any] | None = None) -> Any:
    """A copy of a functional model with lasting layer names, and depthwise convolutions that train fast.

    Args:
        model: one input, one output; its layers and arrays are copied.
        preprocessing: of an `EncoderSpec`, put in front; empty: nothing.
        folded: from `foldable`: these normalizations go into the convolutions before them. The function stays
            the same in inference mode.
    """
    folded = folded or {}
    skipped = {normalization.name for normalization in folded.values()}
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
    """Name of a convolution -> the batch normalization that can be multiplied into it.

    These normalize the channels of a Conv2D, DepthwiseConv2D or SeparableConv2D without activation, whose
    output nothing else uses.
    """
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


def _folded_weights(layer: Any, normalization: Any) -> list[np.ndarray]:
    """The convolution's arrays with the normalization multiplied in, bias last: for `set_weights`.

    With kernel k, bias b and the normalization's gamma, beta, mean m, variance v, epsilon e (Ioffe, Szegedy
    2015, algorithm 2): s = gamma / sqrt(v + e), k' = k * s, b' = beta + (b - m) * s; in float64, which gives
    the same result on every machine.
    """
    mean = np.asarray(normalization.moving_mean, np.float64)
    scale = 1 / np.sqrt(np.asarray(normalization.moving_variance, np.float64) + normalization.epsilon)
    if normalization.scale:
        scale = scale * np.asarray(normalization.gamma, np.float64)
    shift = np.asarray(normalization.beta, np.float64) if normalization.center else 0.0
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
