"""Backbones of KerasHub as encoders: `encoder.name = "hub:dinov2_small"`, or `"hub:FOLDER"` of a local one.

In: the name of a preset, or what a run has kept of one. Out: an `EncoderSpec` whose model gives a grid of
cells. Size and preprocessing are those of the preset's image converter. The last output that still knows
places becomes the grid: of a CNN as it is, of a vision transformer its patch tokens row by row, each with
the class token beside it (a cell of its own would have no place in the picture). Larger grids are averaged
down to 14 x 14 cells. Presets are fetched by KerasHub where they are not there; a run needs none, it keeps
the architecture in `encoder.json` and the weights with its own.

Letters: B pictures, T tokens, h x w cells, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

from captioner.errors import EncoderError, MissingExtra, unknown_name
from captioner.models.backbones import HUB, EncoderSpec, affine_preprocessing

MOST_CELLS = 14  # of a side; more would cost memory and time at each word, and say little more
_DEFAULT_SIZE = 224
_MOST_SPECIAL = 16  # tokens of a vision transformer that stand for no patch: class, registers, …


def hub_spec(name: str, architecture: Mapping[str, Any] | None = None) -> EncoderSpec:
    """The encoder of a preset.

    Args:
        name: `hub:` and a preset that KerasHub knows, or a folder with one.
        architecture: what `EncoderSpec.architecture` was when a run was made; then no preset is needed.

    Raises:
        MissingExtra: KerasHub is not installed.
        EncoderError: there is no such preset, it cannot be fetched, or it is of no use for captions.
    """
    preset = name.removeprefix(HUB)
    if architecture is None:
        architecture = _architecture_of(preset)

    def build(weights: str | None, size: int) -> Any:
        bare = _backbone(architecture, size)
        if weights is not None:
            _take_weights(bare, preset, architecture)
        return _with_grid(bare, size, name)

    model = build(None, architecture["size"])
    return EncoderSpec(
        name=name,
        build=build,
        size=architecture["size"],
        grid=tuple(model.output_shape[1:3]),
        channels=model.output_shape[3],
        preprocessing=affine_preprocessing(architecture["scale"], architecture["offset"]),
        megabytes=round(sum(math.prod(v.shape) for v in model.weights) * 4 / 1e6),
        architecture=architecture,
    )


@keras.saving.register_keras_serializable("captioner")
class TokensToGrid(keras.Layer):
    """Tokens of a vision transformer as a grid: the patches row by row, the class token beside each.

    Args:
        grid: (h, w) of the patches, which are the last h * w tokens.
        class_token: whether the first token stands for the whole picture.
    """

    def __init__(self, grid: tuple[int, int], class_token: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid, self.class_token = tuple(grid), class_token

    def call(self, tokens: Any) -> Any:
        """(B, T, C) -> (B, h, w, C or 2C)."""
        height, width = self.grid
        patches = tokens[:, -height * width :]
        if self.class_token:
            whole = keras.ops.broadcast_to(tokens[:, :1], keras.ops.shape(patches))
            patches = keras.ops.concatenate([patches, whole], axis=-1)
        return keras.ops.reshape(patches, (-1, height, width, patches.shape[-1]))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The grid, even where KerasHub tells the number of tokens wrongly."""
        return (shape[0], *self.grid, shape[-1] * (1 + self.class_token))  # type: ignore[operator]

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "grid": self.grid, "class_token": self.class_token}


@keras.saving.register_keras_serializable("captioner")
class PoolCells(keras.Layer):
    """Averages a grid down to at most `most` cells a side; an old cell on a border is shared."""

    def __init__(self, most: int = MOST_CELLS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.most = most

    def call(self, grid: Any) -> Any:
        """(B, h, w, C) -> (B, h', w', C)."""
        for axis in (1, 2):
            size = grid.shape[axis]
            if size > self.most:
                shares = keras.ops.convert_to_tensor(_shares(size, self.most), grid.dtype)  # (size, most)
                pooled = keras.ops.tensordot(grid, shares, axes=[[axis], [0]])  # the new axis is the last
                grid = keras.ops.moveaxis(pooled, -1, axis)
        return grid

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Sides of `most` at most."""
        batch, height, width, channels = shape
        return (batch, min(height, self.most), min(width, self.most), channels)  # type: ignore[type-var]

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "most": self.most}


def _shares(size: int, most: int) -> np.ndarray:
    """(size, most): how much of each old cell lies in each new one, columns summing to 1.

    >>> _shares(3, 2).astype(float).round(2).tolist()
    [[0.67, 0.0], [0.33, 0.33], [0.0, 0.67]]
    """
    edges = np.linspace(0, size, most + 1)
    old = np.arange(size)[:, None]
    covered = np.clip(np.minimum(old + 1, edges[1:]) - np.maximum(old, edges[:-1]), 0, None)
    return np.asarray(covered * most / size, np.float32)


def _architecture_of(preset: str) -> dict[str, Any]:
    """What must be kept of a preset: which backbone, its settings, its pictures."""
    hub = _keras_hub()
    whole = _from_preset(preset, load_weights=False)
    backbone = _vision_part(whole)
    shape = getattr(backbone, "image_shape", None) or backbone.inputs[0].shape[1:]
    if len(shape) != 3:
        raise EncoderError(f'preset "{preset}": {type(backbone).__name__} takes no pictures')
    converter = _converter_of(hub, preset)
    size = (converter.image_size if converter else None) or shape[:2]
    height, width = (side or _DEFAULT_SIZE for side in size)
    if height != width:
        raise EncoderError(f'preset "{preset}" takes pictures of {height} x {width}; expected square ones')
    return {
        "backbone": type(backbone).__name__,
        "part": "" if backbone is whole else "vision_encoder",
        "config": keras.saving.serialize_keras_object(backbone)["config"],
        "size": int(height),
        "scale": _numbers(converter.scale if converter else None, 1.0),
        "offset": _numbers(converter.offset if converter else None, 0.0),
    }


def _backbone(architecture: Mapping[str, Any], size: int) -> Any:
    """The backbone, built for pictures of that size, its weights drawn at random."""
    hub = _keras_hub()
    kind: Any = getattr(hub.models, str(architecture["backbone"]), None)
    known = isinstance(kind, type) and issubclass(kind, keras.Model)
    if not known:
        raise EncoderError(
            f'KerasHub {hub.__version__} has no backbone "{architecture["backbone"]}"; install a later one: '
            "pip install --upgrade keras-hub"
        )
    config = dict(architecture["config"])
    if "image_shape" in config:
        config["image_shape"] = (size, size, 3)
    config.pop("name", None)
    backbone = kind.from_config(config)
    # What is drawn at random and is no kernel (those are drawn anew from the run's seed), the same each time.
    rng = np.random.default_rng(0)
    for variable in backbone.weights:
        drawn = np.asarray(variable)
        if np.issubdtype(drawn.dtype, np.floating) and drawn.std() > 0:
            variable.assign(0.02 * rng.standard_normal(drawn.shape, np.float32))
    return backbone


def _take_weights(bare: Any, preset: str, architecture: Mapping[str, Any]) -> None:
    """The preset's weights, also where its pictures were of another size, if the backbone allows that."""
    options = {}
    if not architecture["part"] and "image_shape" in architecture["config"]:
        options["image_shape"] = bare.image_shape
    trained = _vision_part(_from_preset(preset, load_weights=True, **options))
    try:
        bare.set_weights(trained.get_weights())
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'the weights of preset "{preset}" are for another size: {reason}') from error


def _with_grid(backbone: Any, size: int, name: str) -> Any:
    """A model of the backbone's layers: preprocessed pixels (B, size, size, 3) -> grid (B, h, w, C)."""
    pixels = backbone.inputs[0]
    for layer in reversed(backbone.layers):
        output: Any = getattr(layer, "output", None)
        rank = len(getattr(output, "shape", ()))
        if rank == 4 and output is not pixels:
            break
        if rank == 3 and (found := _token_grid(backbone, pixels, output, size)):
            output = TokensToGrid(*found, name="tokens_to_grid")(output)
            break
    else:
        raise EncoderError(
            f'encoder "{name}": {type(backbone).__name__} gives no grid of cells and no tokens of patches; '
            "take a backbone for pictures, such as hub:resnet_50_imagenet"
        )
    if max(output.shape[1:3]) > MOST_CELLS:
        output = PoolCells(name="pool_cells")(output)
    return keras.Model(pixels, output)


def _token_grid(backbone: Any, pixels: Any, tokens: Any, size: int) -> tuple[tuple[int, int], bool] | None:
    """(h, w) of the patches and whether a class token goes before them; None where these are no patches."""
    patch = getattr(backbone, "patch_size", None)
    if patch is None:
        return None
    height, width = (size // side for side in ((patch, patch) if isinstance(patch, int) else patch))
    # Asked of numbers: the symbolic shape counts a class token with SigLIP's, which have none.
    count = keras.Model(pixels, tokens)(np.zeros((1, size, size, 3), np.float32)).shape[1]
    special = count - height * width
    return ((height, width), special > 0) if 0 <= special <= _MOST_SPECIAL else None


def _vision_part(backbone: Any) -> Any:
    """The half of a model of pictures and words that sees; any other model itself."""
    return getattr(backbone, "vision_encoder", None) or backbone


def _converter_of(hub: Any, preset: str) -> Any:
    try:
        return hub.layers.ImageConverter.from_preset(preset)
    except (ValueError, FileNotFoundError):  # a preset without one takes pixels as they are
        return None


def _from_preset(preset: str, **options: Any) -> Any:
    hub = _keras_hub()
    known = set(hub.models.Backbone.presets)
    if "/" not in preset and preset not in known and not Path(preset).is_dir():
        raise EncoderError(unknown_name("KerasHub preset", preset, known) + "; or give a preset's folder")
    try:
        return hub.models.Backbone.from_preset(preset, **options)
    except Exception as error:  # of the network, of whichever hub, of a folder that is no preset
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(
            f'encoder "{HUB}{preset}": KerasHub cannot load this preset ({reason}); fetch it where there '
            f'is internet, and name its folder: encoder.name = "{HUB}FOLDER"'
        ) from error


def _numbers(value: Any, default: float) -> list[float]:
    """One number or three as three, for red, green and blue."""
    numbers = np.asarray(default if value is None else value, np.float64).reshape(-1)
    return [float(number) for number in np.broadcast_to(numbers, 3)]


@cache
def _keras_hub() -> Any:
    try:
        import keras_hub
    except ImportError as error:
        raise MissingExtra("hub", "A backbone of KerasHub") from error
    return keras_hub
