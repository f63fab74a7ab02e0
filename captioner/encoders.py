"""The table of CNNs: pixels in, a grid of feature cells out.

In: float or uint8 pixels 0..255, (B, H, W, 3), RGB. Out: (B, P, C) float32, P = h * w cells row by row. Each
row of `ENCODERS` brings its input size, its grid and its preprocessing, which is part of the model's graph, so
that nothing outside has to know it. Reads weight files (`.weights.h5`, `.h5`, `.safetensors`); writes none.

Trained weights are held in their folded form: a batch normalisation that directly follows a convolution is
multiplied into the convolution's kernel and bias (`fold_batch_norm`), which is exact wherever it runs in
inference mode, as it does for cached features and for fine-tuning, and takes half the time. `weights_dict` and
`digest` are those of the folded arrays. An encoder without weights keeps its normalisations, to learn them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load_file

from captioner.errors import EncoderError, unknown_name

Builder = Callable[[str | None, int], Any]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

# Version string -> (scale, offset, channels reversed): y = x * scale + offset, x in 0..255. The string is part of
# every cache key: a change of meaning needs a new name.
PREPROCESSING: dict[str, tuple[Any, Any, bool]] = {
    "minus1-to-1": (1 / 127.5, -1.0, False),
    "minus1-to-1-by-128": (1 / 128, -1.0, False),
    "imagenet-mean-deviation": (
        tuple(1 / (255 * deviation) for deviation in _IMAGENET_DEVIATION),
        tuple(-mean / deviation for mean, deviation in zip(_IMAGENET_MEAN, _IMAGENET_DEVIATION, strict=True)),
        False,
    ),
    "bgr-minus-mean": (1.0, tuple(-mean for mean in _CAFFE_MEAN_BGR), True),
}


@dataclass(frozen=True)
class EncoderSpec:
    """One row of the table.

    Attributes:
        name: how recipes call it.
        build: `build(weights, size)` makes the bare Keras model, preprocessed pixels -> (B, h, w, C); weights is
            "imagenet" or None.
        size: height and width of the input, pixels, unless the recipe asks for another.
        grid: (h, w) at that size.
        channels: C.
        preprocessing: key of `PREPROCESSING`.
        megabytes: of float32 weights, so that a person knows what a download or a run folder will take.
        pretrained: whether ImageNet weights exist.
    """

    name: str
    build: Builder
    size: int
    grid: tuple[int, int]
    channels: int
    preprocessing: str
    megabytes: int
    pretrained: bool = True


@keras.saving.register_keras_serializable("captioner")
class Preprocess(keras.Layer):
    """Pixels 0..255 to the range a CNN was trained on: `x * scale + offset`, channels reversed first if asked."""

    def __init__(self, key: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key = key

    def call(self, pixels: Any) -> Any:
        """(B, H, W, 3) 0..255 -> (B, H, W, 3)."""
        scale, offset, reverse = PREPROCESSING[self.key]
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


class Encoder:
    """A CNN with its preprocessing and its identity.

    Example:
        >>> encoder = load_encoder("small_cnn", weights="none", size=96)
        >>> encoder.encode(np.zeros((2, 96, 96, 3), np.uint8)).shape
        TensorShape([2, 36, 128])
    """

    def __init__(self, spec: EncoderSpec, model: Any, *, size: int) -> None:
        self.name = spec.name
        self.preprocessing = spec.preprocessing
        self.size = (size, size)
        self._spec = spec
        self._set_model(model)

    def _set_model(self, model: Any) -> None:
        self.model = model
        self.grid: tuple[int, int] = tuple(model.output_shape[1:3])
        self.channels: int = model.output_shape[3]
        # One trace a dtype, whatever the batch.
        self._encode = {
            dtype: tf.function(
                self._cells, input_signature=[tf.TensorSpec((None, *self.size, 3), dtype)], autograph=False
            )
            for dtype in (tf.uint8, tf.float32)
        }

    @property
    def cells(self) -> int:
        """P, the number of cells of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def variables(self) -> list[Any]:
        """All arrays of the model, in a fixed order, as Keras variables."""
        return list(self.model.weights)

    @property
    def trainable_variables(self) -> list[Any]:
        """Those that gradient descent may change (`layer.trainable` decides)."""
        return list(self.model.trainable_variables)

    @property
    def digest(self) -> str:
        """Hex digest over names, shapes and values of all arrays: the same for the same weights from any file.

        Computed at each call (about 1 ms per MB), because fine-tuning changes the arrays.
        """
        total = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.weights_dict().items()):
            total.update(f"{name} {array.shape} {array.dtype}\n".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()

    def encode(self, pixels: Any) -> Any:
        """The cells of a batch of pictures, in inference mode.

        Args:
            pixels: (B, H, W, 3), 0..255, uint8 or float.

        Returns:
            (B, P, C) float32.
        """
        pixels = tf.convert_to_tensor(pixels)
        if pixels.dtype not in self._encode:
            pixels = tf.cast(pixels, tf.float32)
        return self._encode[pixels.dtype](pixels)

    def _cells(self, pixels: Any) -> Any:
        grid = self.model(tf.cast(pixels, tf.float32), training=False)  # (B, h, w, C)
        return tf.reshape(tf.cast(grid, tf.float32), (-1, self.cells, self.channels))  # (B, P, C)

    def reseed(self, seed: Any, step: Any) -> None:
        """Sets the state of every dropout from (seed, step), ints or scalar tensors.

        Called before a training step, it makes that step's dropout a function of the two alone, so that a resumed
        training needs no saved random state.
        """
        for number, generator in enumerate(_seed_generators(self.model)):
            state = tf.stack([tf.cast(seed, tf.uint32), tf.cast(step, tf.uint32) * 1024 + number])
            generator.state.assign(state)

    def weights_dict(self) -> dict[str, np.ndarray]:
        """All arrays by name; the names do not depend on what else the process has built."""
        return {name: np.asarray(variable) for name, variable in _named_variables(self.model).items()}

    def load_weights_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over arrays from `weights_dict` of an encoder of this name and size.

        Where their batch normalisation is folded and this encoder's is not, or the other way round, `model` is
        replaced by one of their form: load before anything else takes hold of the model.

        Raises:
            EncoderError: an array is missing, left over, or of another shape.
        """
        variables = _named_variables(self.model)
        if set(arrays) != set(variables):
            self._set_model(_model_for(self._spec, self.size[0], arrays))
            variables = _named_variables(self.model)
        _check_fit(f"weights for encoder {self.name}", variables, arrays)
        for name, variable in variables.items():
            variable.assign(np.asarray(arrays[name], np.float32))


def load_encoder(
    name: str, *, weights: str | Path | Mapping[str, np.ndarray] = "imagenet", size: int = 0, seed: int = 0
) -> Encoder:
    """An encoder from the table.

    Args:
        name: a key of `ENCODERS`.
        weights: "imagenet" (Keras downloads them once), "none" (drawn from `seed`), the arrays of `weights_dict`,
            or a file: `.weights.h5` or `.h5` of the bare keras.applications model, or `.safetensors` with the
            arrays of `weights_dict`, also those of a run's `best/weights.safetensors`.
        size: height and width of the input in pixels; 0 takes the table's.
        seed: for "none".

    Raises:
        EncoderError: unknown name, a size the CNN cannot take, weights that are missing or do not fit.
    """
    if name not in ENCODERS:
        raise EncoderError(unknown_name("encoder", name, ENCODERS))
    spec = ENCODERS[name]
    size = size or spec.size
    if isinstance(weights, Mapping):
        return _from_arrays(spec, size, weights)
    if str(weights) == "none":
        model = _rewrite(_bare(spec, None, size), preprocessing=spec.preprocessing)
        _initialise(model, seed)
        return Encoder(spec, model, size=size)
    if str(weights) == "imagenet":
        bare = _imagenet(spec, size)
    else:
        path = Path(weights)
        if not path.is_file():
            raise EncoderError(
                f'encoder weights "{path}": no such file; expected "imagenet", "none" or the path of a weight file'
            )
        if path.suffix == ".safetensors":
            return _from_arrays(spec, size, _read_safetensors(path))
        bare = _bare(spec, None, size)
        _read_h5(spec, path, bare)
    return Encoder(spec, _rewrite(bare, preprocessing=spec.preprocessing, folded=_foldable(bare)), size=size)


def fold_batch_norm(model: Any) -> Any:
    """The same function with fewer layers: batch normalisations folded into the convolutions before them.

    With kernel k, bias b and the normalisation's gamma, beta, mean m, variance v, epsilon e (Ioffe and Szegedy
    2015, algorithm 2): s = gamma / sqrt(v + e), k' = k * s, b' = beta + (b - m) * s. Folded are those that
    normalise the channels of a Conv2D, DepthwiseConv2D or SeparableConv2D without activation, whose output nobody
    else uses. Equal in inference mode only. Computed in float64, so that the result is the same on every machine.

    Returns:
        A new model, or `model` itself when there is nothing to fold.
    """
    folded = _foldable(model)
    return _rewrite(model, folded=folded) if folded else model


def _rewrite(model: Any, *, preprocessing: str = "", folded: Mapping[str, Any] | None = None) -> Any:
    """A copy of a functional model with lasting layer names, optionally preprocessing first and folded layers."""
    folded = folded or {}
    skipped = {normalisation.name for normalisation in folded.values()}
    names = _lasting_names(model)
    inputs = keras.Input(model.input_shape[1:], name="pixels")
    first = Preprocess(preprocessing, name="preprocess")(inputs) if preprocessing else inputs
    copies: dict[str, Any] = {}

    def copy(layer: Any) -> Any:
        if layer.name in skipped:
            return layer  # `call` passes it over
        config = layer.get_config() | {"name": names[layer.name]}
        if layer.name in folded:
            config["use_bias"] = True
        copies[layer.name] = layer.__class__.from_config(config)
        return copies[layer.name]

    def call(layer: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name in skipped:
            return x
        return layer(first if x is inputs else x, *args, **kwargs)

    rewritten = keras.models.clone_model(model, inputs, clone_function=copy, call_function=call)
    for layer in model.layers:
        if layer.name in folded:
            copies[layer.name].set_weights(_folded_weights(layer, folded[layer.name]))
        elif layer.name in copies and layer.weights:
            copies[layer.name].set_weights(layer.get_weights())
    return rewritten


def _foldable(model: Any) -> dict[str, Any]:
    """Name of a convolution -> the batch normalisation that can be multiplied into it."""
    consumers: dict[str, list[Any]] = {}
    for layer in model.layers:
        for node in layer._inbound_nodes:
            for parent in node.parent_nodes:
                consumers.setdefault(parent.operation.name, []).append(layer)
    outputs = {tensor._keras_history.operation.name for tensor in model.outputs}
    found = {}
    for layer in model.layers:
        users = consumers.get(layer.name, [])
        if (
            isinstance(
                layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
            )
            and len(users) == 1
            and isinstance(users[0], keras.layers.BatchNormalization)
            and len(layer._inbound_nodes) == len(users[0]._inbound_nodes) == 1
            and layer.name not in outputs
            and layer.activation is keras.activations.linear
            and layer.data_format == "channels_last"
            and users[0].axis in (-1, 3)
        ):
            found[layer.name] = users[0]
    return found


def _folded_weights(layer: Any, normalisation: Any) -> list[np.ndarray]:
    """The convolution's arrays with the normalisation multiplied in, in the order of `layer.weights`, bias last."""
    mean = np.asarray(normalisation.moving_mean, np.float64)
    scale = 1 / np.sqrt(np.asarray(normalisation.moving_variance, np.float64) + normalisation.epsilon)
    if normalisation.scale:
        scale = scale * np.asarray(normalisation.gamma, np.float64)
    shift = np.asarray(normalisation.beta, np.float64) if normalisation.center else 0.0
    *before, kernel = [array for array in layer.get_weights() if array.ndim > 1]
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else 0.0
    # A depthwise kernel is (h, w, channels, multiplier), its output channels in that order.
    factor = scale.reshape(kernel.shape[2:]) if isinstance(layer, keras.layers.DepthwiseConv2D) else scale
    new = [kernel * factor, shift + (bias - mean) * scale]
    return [*before, *(array.astype(np.float32) for array in new)]


def _lasting_names(model: Any) -> dict[str, str]:
    """Layer name -> a name that does not depend on how many layers the process made before.

    Keras counts `conv2d_94` through the whole process; here it is counted through the model.
    """
    counts: dict[str, int] = {}
    names = {}
    for layer in model.layers:
        stem = re.sub(r"_\d+$", "", layer.name)
        if stem.replace("_", "") != type(layer).__name__.lower():
            names[layer.name] = layer.name
            continue
        counts[stem] = counts.get(stem, 0) + 1
        names[layer.name] = f"{stem}_{counts[stem]}"
    return names


def _named_variables(model: Any) -> dict[str, Any]:
    return {variable.path: variable for variable in model.weights}


def _seed_generators(model: Any) -> list[Any]:
    layers = model._flatten_layers(include_self=False)
    return [layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None]


def _initialise(model: Any, seed: int) -> None:
    """Draws every kernel anew from `seed` (He et al. 2015, eq. 10); Keras's own draws hang on global state."""
    for number, (name, variable) in enumerate(_named_variables(model).items()):
        if name.endswith("kernel"):
            fan_in = np.prod(variable.shape[:2] if "depthwise" in name else variable.shape[:-1])
            deviation = np.sqrt(2 / fan_in)
        elif name.endswith("embedding"):
            deviation = 0.5  # of the order of the features it is added to
        else:
            continue
        draws = np.random.default_rng([seed, number]).standard_normal(variable.shape, np.float32)
        variable.assign(draws * np.float32(deviation))


def _bare(spec: EncoderSpec, weights: str | None, size: int) -> Any:
    try:
        return spec.build(weights, size)
    except ValueError as error:
        raise EncoderError(f"encoder {spec.name}: input size {size} cannot be used ({error})") from error


def _model_for(spec: EncoderSpec, size: int, arrays: Mapping[str, np.ndarray]) -> Any:
    """The model, folded or not, whose arrays have these names; folded when neither fits."""
    bare = _bare(spec, None, size)
    folded = _foldable(bare)
    names = _lasting_names(bare)
    kept = any(f"{names[normalisation.name]}/moving_mean" in arrays for normalisation in folded.values())
    return _rewrite(bare, preprocessing=spec.preprocessing, folded={} if kept else folded)


def _from_arrays(spec: EncoderSpec, size: int, arrays: Mapping[str, np.ndarray]) -> Encoder:
    encoder = Encoder(spec, _model_for(spec, size, arrays), size=size)
    encoder.load_weights_dict(arrays)
    return encoder


def _check_fit(what: str, variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    missing = sorted(set(variables) - set(arrays))
    extra = sorted(set(arrays) - set(variables))
    if missing or extra:
        parts = [f"{len(missing)} arrays are missing ({missing[0]}, …)"] if missing else []
        parts += [f"{len(extra)} are unknown ({extra[0]}, …)"] if extra else []
        raise EncoderError(f"{what} do not fit: {' and '.join(parts)}; they were made for another encoder")
    for name, variable in variables.items():
        if tuple(arrays[name].shape) != tuple(variable.shape):
            raise EncoderError(
                f"{what} do not fit: {name} is {tuple(arrays[name].shape)}, expected {tuple(variable.shape)}; "
                "they were made for another encoder or input size"
            )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path}: cannot be read as safetensors ({error})") from error
    prefix = "encoder/"
    ours = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return ours or arrays


def _read_h5(spec: EncoderSpec, path: Path, bare: Any) -> None:
    if path.suffix not in (".h5", ".hdf5"):
        raise EncoderError(f"{path}: expected a file that ends in .weights.h5, .h5 or .safetensors")
    try:
        bare.load_weights(str(path))
    except OSError as error:
        raise EncoderError(
            f"{path}: cannot be read as HDF5 ({error}); it may be damaged: fetch it again"
        ) from error
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EncoderError(
            f"{path}: these weights do not fit encoder {spec.name} without its classifier ({reason}); expected "
            "what keras.applications saves with include_top=False"
        ) from error


def _imagenet(spec: EncoderSpec, size: int) -> Any:
    if not spec.pretrained:
        raise EncoderError(
            f'encoder {spec.name} has no ImageNet weights; set encoder.weights to "none" or a path'
        )
    try:
        return _bare(spec, "imagenet", size)
    except Exception as error:  # Keras raises the bare class when it cannot download
        failure = re.search(r"URL fetch failure on (\S+): (.*)", str(error), re.DOTALL)
        if failure is None:
            raise
        url, reason = failure.groups()
        folder = Path(keras.config.keras_home()) / "models"
        raise EncoderError(
            f"encoder {spec.name}: cannot download its ImageNet weights ({reason.strip()}); without internet, fetch "
            f"{url} elsewhere and put it at {folder / url.rsplit('/', 1)[-1]}, or set encoder.weights to its path"
        ) from error


def _application(class_name: str, **options: Any) -> Builder:
    def build(weights: str | None, size: int) -> Any:
        make = getattr(keras.applications, class_name)
        return make(weights=weights, include_top=False, input_shape=(size, size, 3), **options)

    return build


def _vgg16(weights: str | None, size: int) -> Any:
    """Without the last pooling: the 14 x 14 grid of Xu et al. 2015, section 4.3."""
    whole = _application("VGG16")(weights, size)
    return keras.Model(whole.inputs, whole.get_layer("block5_conv3").output)


def _small_cnn(weights: str | None, size: int) -> Any:
    """Conv, ReLU, pool, dropout, four times; then positions: for 96 x 96 pixels a 6 x 6 grid of 128 channels."""
    layers = keras.layers
    if size % 16 or size < 32:
        raise ValueError("expected a multiple of 16 pixels, at least 32")
    x = inputs = keras.Input((size, size, 3))
    for block, channels in enumerate((24, 48, 96, 128)):
        x = layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"block{block}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        if block:
            x = layers.Dropout(0.1, seed=block, name=f"block{block}_dropout")(x)
    x = layers.Conv2D(128, 3, padding="same", activation="relu", name="grid_conv")(x)
    x = PositionEmbedding(name="grid_position")(x)
    return keras.Model(inputs, x, name="small_cnn")


_ROWS = (
    EncoderSpec("mobilenet_v2", _application("MobileNetV2"), 224, (7, 7), 1280, "minus1-to-1", 9),
    EncoderSpec("small_cnn", _small_cnn, 96, (6, 6), 128, "minus1-to-1", 1, pretrained=False),
)
ENCODERS: dict[str, EncoderSpec] = {row.name: row for row in _ROWS}
