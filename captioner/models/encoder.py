"""Encoders: pixels in, a grid of feature cells out.

In: pixels 0..255, (B, H, W, 3), RGB, uint8 or float. Out: (B, P, C) float32, P = h * w cells, row by row.
Reads weight files (`.weights.h5`, `.h5`, `.safetensors`, `.pth`); writes none.

Trained weights are held folded: a batch normalization right after a convolution is multiplied into its
kernel and bias, which is exact in inference mode (cached features, fine-tuning with fixed statistics) and
takes half the time. `weights_dict` and `digest` are those of the folded arrays. An encoder without weights
keeps its batch normalisations, so that they can be learnt; its arrays have other names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load_file

from captioner.errors import EncoderError, load_object, unknown_name
from captioner.models.backbones import ENCODERS, HUB, EncoderSpec
from captioner.models.device import find_device
from captioner.models.efficientnet_lite import read_weights
from captioner.models.graph_rewrite import foldable, initialize, rewrite, stable_layer_names

__all__ = ["ENCODERS", "Encoder", "EncoderSpec", "load_encoder"]


class Encoder:
    """A CNN with its preprocessing and its identity.

    Example:
        >>> encoder = load_encoder("small_cnn", weights="none")
        >>> encoder.encode(np.zeros((2, 96, 96, 3), np.uint8)).shape
        TensorShape([2, 36, 128])
    """

    def __init__(self, spec: EncoderSpec, model: Any, *, size: int, flip_augmented: bool = False) -> None:
        self.name = spec.name
        self.preprocessing = spec.preprocessing
        self.size, self.flip_augmented = (size, size), flip_augmented
        self._spec = spec
        self._set_model(model)

    def _set_model(self, model: Any) -> None:
        self.model = model
        self.grid: tuple[int, int] = tuple(model.output_shape[1:3])
        self.channels: int = model.output_shape[3]
        # One trace a dtype, whatever the batch.
        self._encode = {
            dtype: tf.function(
                self._encode_halves,
                input_signature=[tf.TensorSpec((None, *self.size, 3), dtype)],
                autograph=False,
            )
            for dtype in (tf.uint8, tf.float32)
        }

    @property
    def num_cells(self) -> int:
        """P, the number of cells: those of the grid, and as many again of the mirror image."""
        return self.grid[0] * self.grid[1] * (1 + self.flip_augmented)

    @property
    def architecture(self) -> Mapping[str, Any] | None:
        """Plain values that a run must keep to build the model again; None: the name is enough."""
        return self._spec.architecture

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
        """Hex digest over all arrays and their names: the same for the same weights from whatever file.

        Computed anew at each call (25 ms for MobileNetV2), because training changes the arrays.
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
            (B, P, C) float32; those of the mirror image come last, each at the place in the picture it shows.
        """
        pixels = tf.convert_to_tensor(pixels)
        if pixels.dtype not in self._encode:
            pixels = tf.cast(pixels, tf.float32)
        return self._encode[pixels.dtype](pixels)

    def _encode_halves(self, pixels: Any) -> Any:
        pixels = tf.cast(pixels, tf.float32)
        if find_device().encoder_halves == 1:
            return self.encode_graph(pixels)
        half = tf.maximum(tf.shape(pixels)[0] // 2, 1)
        first = self.encode_graph(pixels[:half])
        rest = tf.cond(tf.shape(pixels)[0] > 1, lambda: self.encode_graph(pixels[half:]), lambda: first[:0])
        return tf.concat([first, rest], 0)

    def encode_graph(self, pixels: Any) -> Any:
        """What `encode` computes, (B, H, W, 3) → (B, P, C), inside the caller's graph."""
        pixels = tf.cast(pixels, tf.float32)
        if self.flip_augmented:
            pixels = tf.concat([pixels, pixels[:, :, ::-1]], 0)
        grid = tf.cast(self.model(pixels, training=False), tf.float32)  # (B or 2B, h, w, C)
        if self.flip_augmented:
            own, turned = tf.split(grid, 2)
            grid = tf.stack([own, turned[:, :, ::-1]], 1)  # (B, 2, h, w, C)
        return tf.reshape(grid, (-1, self.num_cells, self.channels))

    def reseed(self, seed: Any, step: Any) -> None:
        """Sets the state of every dropout from (seed, step), ints or scalar tensors.

        Called before a training step, also inside its graph, it makes that step's dropout a function of the
        two alone, so that a resumed training needs no saved random state.
        """
        for number, generator in enumerate(_seed_generators(self.model)):
            state = tf.stack([tf.cast(seed, tf.uint32), tf.cast(step, tf.uint32) * 1024 + number])
            generator.state.assign(state)

    def weights_dict(self) -> dict[str, np.ndarray]:
        """All arrays by name; the names do not depend on what else the process has built."""
        return {name: np.asarray(variable) for name, variable in _named_variables(self.model).items()}

    def load_weights_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over arrays from `weights_dict` of an encoder of this name and size.

        Where their batch normalization is folded and this encoder's is not, or the other way round, `model`
        is replaced by one of their form: load before anything else takes hold of the model.

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
    name: str,
    *,
    weights: str | Path | Mapping[str, np.ndarray] = "imagenet",
    size: int = 0,
    flip_augmented: bool = False,
    seed: int = 0,
    architecture: Mapping[str, Any] | None = None,
) -> Encoder:
    """An encoder from the table, or of elsewhere.

    Args:
        name: a key of `ENCODERS`, "package.module:name" of an `EncoderSpec`, or "hub:PRESET" of a KerasHub
            backbone (see `hub_backbones`), whose own weights are meant by "imagenet".
        weights: "imagenet" (Keras downloads them once), "none" (drawn from `seed`), the arrays of
            `weights_dict`, or a file: `.weights.h5` or `.h5` of the bare keras.applications model,
            `.safetensors` with the arrays of `weights_dict`, also a run's `best/weights.safetensors`, or the
            `.pth` of an EfficientNet-Lite.
        size: height and width of the input in pixels; 0 takes the table's.
        flip_augmented: encode the mirror image too: twice the cells.
        seed: for "none".
        architecture: `Encoder.architecture`, as a run has kept it, in place of the preset.

    Raises:
        EncoderError: unknown name, a size the CNN cannot take, weights that are missing or do not fit.
    """
    spec = _spec(name, architecture)
    size = size or spec.size
    if isinstance(weights, Mapping):
        return _from_arrays(spec, weights, size=size, flip_augmented=flip_augmented)
    if str(weights) == "none":
        model = rewrite(_bare(spec, None, size), preprocessing=spec.preprocessing)
        initialize(model, seed)
        return Encoder(spec, model, size=size, flip_augmented=flip_augmented)
    if str(weights) == "imagenet":
        bare = _imagenet(spec, size)
    else:
        path = Path(weights)
        if not path.is_file():
            raise EncoderError(
                f'encoder weights "{path}": no such file; expected "imagenet", "none" or the path of a file'
            )
        if path.suffix == ".safetensors":
            return _from_arrays(spec, _read_safetensors(path), size=size, flip_augmented=flip_augmented)
        bare = _bare(spec, None, size)
        if path.suffix == ".pth":
            read_weights(path, bare)
        else:
            _read_h5(spec, path, bare)
    model = rewrite(bare, preprocessing=spec.preprocessing, folded=foldable(bare))
    return Encoder(spec, model, size=size, flip_augmented=flip_augmented)


def _spec(name: str, architecture: Mapping[str, Any] | None = None) -> EncoderSpec:
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith(HUB):
        from captioner.models.hub_backbones import hub_spec  # brings KerasHub, an optional part

        return hub_spec(name, architecture)
    if ":" not in name:
        raise EncoderError(unknown_name("encoder", name, ENCODERS))
    spec = load_object(name, "encoder")
    if not isinstance(spec, EncoderSpec):
        raise EncoderError(f'encoder "{name}": expected an EncoderSpec, found {type(spec).__name__}')
    return dataclasses.replace(spec, name=name)


def _bare(spec: EncoderSpec, weights: str | None, size: int) -> Any:
    try:
        return spec.build(weights, size)
    except ValueError as error:
        raise EncoderError(f"encoder {spec.name}: input size {size} cannot be used ({error})") from error


def _imagenet(spec: EncoderSpec, size: int) -> Any:
    if not spec.pretrained:
        raise EncoderError(
            f'encoder {spec.name} has no ImageNet weights: set encoder.weights to "none" or a file'
        )
    try:
        return _bare(spec, "imagenet", size)
    except Exception as error:  # Keras raises the bare class when it cannot download
        failure = re.search(r"URL fetch failure on (\S+): (.*)", str(error), re.DOTALL)
        cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
        if failure is None:
            _bare(spec, None, size)  # an impossible size is no fault of the weights, and said here
            raise _damaged_download(spec, cache, error.__cause__ or error) from error
        url, reason = failure.groups()
        target = cache / url.rsplit("/", 1)[-1]
        raise EncoderError(
            f"encoder {spec.name}: cannot download its ImageNet weights ({reason.strip()}); fetch {url} "
            f"where there is internet and put it at {target}, or set encoder.weights to where you put it"
        ) from error


def _damaged_download(spec: EncoderSpec, cache: Path, error: BaseException) -> EncoderError:
    """The error for weights that Keras has downloaded and cannot read; names those that are not whole."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    damaged = [str(path) for path in sorted(cache.glob("*.h5")) if not _is_whole(path)]
    named = " and ".join(damaged) or f"its file in {cache}"
    return EncoderError(
        f"encoder {spec.name}: its ImageNet weights cannot be read; {named} is damaged or half downloaded "
        f"({reason}): delete it and run again, or set encoder.weights to a whole file"
    )


def _is_whole(path: Path) -> bool:
    """Whether a file is HDF5 from its beginning to its end."""
    import h5py  # comes with Keras

    try:
        with h5py.File(path, "r") as file:
            file.visititems(lambda name, item: None)
        return True
    except (OSError, RuntimeError, KeyError, ValueError):
        return False


def _from_arrays(
    spec: EncoderSpec, arrays: Mapping[str, np.ndarray], *, size: int, flip_augmented: bool
) -> Encoder:
    encoder = Encoder(spec, _model_for(spec, size, arrays), size=size, flip_augmented=flip_augmented)
    encoder.load_weights_dict(arrays)
    return encoder


def _model_for(spec: EncoderSpec, size: int, arrays: Mapping[str, np.ndarray]) -> Any:
    """The model, folded unless `arrays` holds the moving averages of a normalization that would be folded."""
    bare = _bare(spec, None, size)
    folded = foldable(bare)
    names = stable_layer_names(bare)
    kept = any(f"{names[normalization.name]}/moving_mean" in arrays for normalization in folded.values())
    return rewrite(bare, preprocessing=spec.preprocessing, folded={} if kept else folded)


def _check_fit(what: str, variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    missing = sorted(set(variables) - set(arrays))
    extra = sorted(set(arrays) - set(variables))
    if missing or extra:
        parts = [f"{len(missing)} arrays are missing ({missing[0]}, …)"] if missing else []
        parts += [f"{len(extra)} are unknown ({extra[0]}, …)"] if extra else []
        raise EncoderError(f"{what} do not fit: {' and '.join(parts)}; they were made for another encoder")
    for name, variable in variables.items():
        found, expected = tuple(np.shape(arrays[name])), tuple(variable.shape)
        if found != expected:
            raise EncoderError(
                f"{what} do not fit: {name} is {found}, expected {expected}; they were made for another "
                "encoder or input size"
            )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path}: damaged, cannot be read as safetensors ({error})") from error
    prefix = "encoder/"
    ours = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return ours or arrays


def _read_h5(spec: EncoderSpec, path: Path, bare: Any) -> None:
    if path.suffix not in (".h5", ".hdf5"):
        raise EncoderError(f"{path}: expected a file that ends in .weights.h5, .h5, .safetensors or .pth")
    try:
        with warnings.catch_warnings():  # Keras warns of each layer before it says that none fits
            warnings.simplefilter("ignore")
            bare.load_weights(str(path))
    except OSError as error:
        raise EncoderError(f"{path}: damaged, cannot be read as HDF5 ({error}); fetch it again") from error
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EncoderError(
            f"{path}: these weights do not fit encoder {spec.name} without its classifier ({reason}); "
            "expected what keras.applications saves with include_top=False, or an EfficientNet-Lite's .pth"
        ) from error


def _named_variables(model: Any) -> dict[str, Any]:
    return {variable.path: variable for variable in model.weights}


def _seed_generators(model: Any) -> list[Any]:
    layers = model._flatten_layers(include_self=False)
    return [layer.seed_generator for layer in layers if getattr(layer, "seed_generator", None) is not None]
