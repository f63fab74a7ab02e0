"""Backbones of KerasHub: their grids, their weights, and a run that needs no preset any more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from captioner.cli.main import main
from captioner.errors import EncoderError, MissingExtra
from captioner.inference.captioner import Captioner
from captioner.models.encoder import load_encoder
from captioner.models.hub_backbones import PoolCells, TokensToGrid, hub_spec
from captioner.runs.run_folder import Run

SCALE, OFFSET = [1 / 127.5, 1 / 64, 1 / 32], [-1.0, -2.0, -3.0]


# No KerasHub needed.


def test_tokens_become_a_grid_row_by_row_with_the_class_token_beside_each() -> None:
    tokens = np.array([[[9.0], [0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]])  # class token, then 2 x 3 patches
    grid = np.asarray(TokensToGrid((2, 3), class_token=True)(tokens))
    assert grid[0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (grid[..., 1] == 9).all()
    assert np.asarray(TokensToGrid((2, 3), class_token=False)(tokens)).shape == (1, 2, 3, 1)


def test_large_grids_are_averaged_and_small_ones_left_alone() -> None:
    grid = np.random.default_rng(0).random((1, 28, 16, 2), np.float32)
    pooled = np.asarray(PoolCells(most=14)(grid))
    assert pooled.shape == (1, 14, 14, 2) == PoolCells(most=14).compute_output_shape(grid.shape)
    assert pooled[0, 0, 0] == pytest.approx(
        # two rows; of the columns one whole and a seventh of the next
        (grid[0, :2, 0] + grid[0, :2, 1] / 7).sum(0) / (2 * (1 + 1 / 7)),
        rel=1e-5,
    )
    assert pooled.mean() == pytest.approx(grid.mean(), rel=1e-5)
    assert (np.asarray(PoolCells(most=28)(grid)) == grid).all()


def test_without_keras_hub_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from captioner.models import hub_backbones

    monkeypatch.setitem(sys.modules, "keras_hub", None)
    hub_backbones._keras_hub.cache_clear()
    with pytest.raises(MissingExtra, match=r"captioner\[hub\]"):
        load_encoder("hub:vit_base_patch16_224_imagenet")


# With it. Its import takes seconds, so all of this is slow.


def vit(hub: Any) -> Any:
    return hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def dinov2(hub: Any) -> Any:
    return hub.models.DINOV2Backbone(
        patch_size=2,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_register_tokens=3,
        image_shape=(32, 32, 3),
        position_embedding_shape=(64, 64, 3),
    )


def siglip(hub: Any) -> Any:
    eye = hub.models.SigLIPVisionEncoder(
        patch_size=8, hidden_dim=16, num_layers=2, num_heads=2, intermediate_dim=32, image_shape=(32, 32, 3)
    )
    words = hub.models.SigLIPTextEncoder(
        vocabulary_size=50, embedding_dim=16, hidden_dim=16, num_layers=1, num_heads=2, intermediate_dim=32
    )
    return hub.models.SigLIPBackbone(eye, words)


def resnet(hub: Any) -> Any:
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(32, 32, 3),
    )


CONVERTERS = {"vit": "ViT", "dinov2": "DINOV2", "siglip": "SigLIP", "resnet": "ResNet"}
GRIDS = {  # grid, channels
    "vit": ((4, 4), 32),
    "dinov2": ((14, 14), 32),  # 16 x 16 patches pooled; registers left out
    "siglip": ((4, 4), 16),  # no class token
    "resnet": ((4, 4), 64),
}


@pytest.fixture(scope="session")
def presets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small presets with random weights, saved to folders: names of encoders."""
    hub = pytest.importorskip("keras_hub")
    makers: dict[str, Callable[[Any], Any]] = {
        "vit": vit,
        "dinov2": dinov2,
        "siglip": siglip,
        "resnet": resnet,
    }
    names = {}
    for name, make in makers.items():
        folder = tmp_path_factory.mktemp("presets") / name
        keras.utils.set_random_seed(1)
        make(hub).save_to_preset(str(folder))
        converter = getattr(hub.layers, f"{CONVERTERS[name]}ImageConverter")
        converter(image_size=(32, 32), scale=SCALE, offset=OFFSET).save_to_preset(str(folder))
        names[name] = f"hub:{folder}"
    return names


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_size_preprocessing_and_grid_are_the_presets(presets: dict[str, str], name: str) -> None:
    import keras_hub

    encoder = load_encoder(presets[name])
    assert encoder.size == (32, 32)
    assert (encoder.grid, encoder.channels) == GRIDS[name]
    cells = np.asarray(encoder.encode(PIXELS))
    # What KerasHub itself computes.
    backbone = keras_hub.models.Backbone.from_preset(presets[name].removeprefix("hub:"))
    given = PIXELS * np.array(SCALE) + np.array(OFFSET)
    if name == "siglip":
        eye = backbone.vision_encoder
        tokens = keras.Model(eye.inputs, eye.layers[-2].output)(given.astype(np.float32))
        assert cells == pytest.approx(np.asarray(tokens), abs=2e-5)
    elif name == "vit":
        tokens = np.asarray(backbone(given.astype(np.float32)))
        assert cells[..., :16] == pytest.approx(tokens[:, 1:], abs=2e-5)
        assert cells[:, 7, 16:] == pytest.approx(tokens[:, 0], abs=2e-5)
    elif name == "resnet":
        grid = np.asarray(backbone(given.astype(np.float32)))
        assert cells == pytest.approx(grid.reshape(2, 16, 64), abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_arrays_and_architecture_rebuild_it_without_the_preset(
    presets: dict[str, str], name: str, tmp_path: Path
) -> None:
    encoder = load_encoder(presets[name])
    kept = json.loads(json.dumps(encoder.architecture))
    again = load_encoder("hub:gone", weights=encoder.weights_dict(), architecture=kept)
    assert again.digest == encoder.digest and again.preprocessing == encoder.preprocessing
    assert (np.asarray(again.encode(PIXELS)) == np.asarray(encoder.encode(PIXELS))).all()


@pytest.mark.slow
def test_names_and_random_weights_do_not_depend_on_what_was_built_before(presets: dict[str, str]) -> None:
    first, second = (load_encoder(presets["vit"], weights="none", seed=3) for _ in range(2))
    assert first.digest == second.digest != load_encoder(presets["vit"], weights="none", seed=4).digest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "resnet", "siglip"])
def test_a_run_trains_fine_tunes_exports_and_needs_no_preset(
    presets: dict[str, str], name: str, tiny_recipe: Path, scenes_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "preset"
    shutil.copytree(presets[name].removeprefix("hub:"), folder)
    run = tmp_path / "run"
    settings = [f"encoder.name=hub:{folder}", "encoder.weights=imagenet", "encoder.size=0"]
    flags = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", str(tiny_recipe), "--data", str(scenes_folder), "--run", str(run), *flags]) == 0
    shutil.rmtree(folder)
    picture = str(scenes_folder / "images" / "test_00000.png")
    own = Captioner.load(run).caption(picture)[0]
    assert own.error is None
    assert Run.open(run).encoder_info["architecture"]["size"] == 32
    assert main(["export", "--run", str(run), "--pictures", "8"]) == 0
    assert (run / "compiled" / "encoder.graph").is_file()
    assert main(["caption", picture, "--run", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:dinov2_smal", 'unknown KerasHub preset "dinov2_smal"; did you mean "dinov2_small"'),
        ("hub:{folder}", "KerasHub cannot load this preset"),
    ],
)
def test_what_is_no_preset_is_said_with_the_nearest(name: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("keras_hub")
    with pytest.raises(EncoderError, match=said):
        hub_spec(name.format(folder=tmp_path))


@pytest.mark.slow
def test_a_backbone_of_words_is_refused(tmp_path: Path) -> None:
    hub = pytest.importorskip("keras_hub")
    words = hub.models.BertBackbone(
        vocabulary_size=30,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=8,
    )
    words.save_to_preset(str(tmp_path / "bert"))
    with pytest.raises(EncoderError, match="takes no pictures|gives no grid"):
        load_encoder(f"hub:{tmp_path / 'bert'}")
