"""The configuration: default < recipe < --set; what is wrong is said with the nearest right name."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from captioner.config import DECAYING_OPTIMIZERS, Config, DecoderConfig, PhaseConfig, load_config, recipes
from captioner.errors import ConfigError

RECIPE = """
seed = 3
[decoder]
units = 64
[phases.first]
epochs = 2
[phases.second]
objective = "reward"
trains = ["decoder", "encoder"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_set_wins_over_the_recipe_and_the_recipe_over_the_default(recipe):
    config = load_config(recipe, ["decoder.units=32", "phases.first.learning_rate=1"])
    assert config.decoder.units == 32, "--set"
    assert config.seed == 3 and config.phases["first"].epochs == 2, "recipe"
    assert config.decoder.embedding == DecoderConfig().embedding, "default"
    assert list(config.phases) == ["first", "second"], (
        "the recipe's phases, in its order, replace the default"
    )
    assert config.phases["first"].learning_rate == 1.0 and load_config("") == Config()
    assert load_config(recipe, ["seed=1", "seed=2"]).seed == 2, "the last one counts"


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("encoder.name=vgg16", lambda c: c.encoder.name == "vgg16"),
        ('encoder.name="vgg16"', lambda c: c.encoder.name == "vgg16"),
        ("encoder.weights = /some/path with spaces.h5 ", lambda c: c.encoder.weights.endswith("spaces.h5")),
        ("decoder.tied=true", lambda c: c.decoder.tied is True),
        ('phases.decoder.trains=["encoder"]', lambda c: c.phases["decoder"].trains == ("encoder",)),
        ("phases.decoder.learning_rate=1e-3", lambda c: c.phases["decoder"].learning_rate == 0.001),
        ("decode.length_normalization=1", lambda c: isinstance(c.decode.length_normalization, float)),
    ],
)
def test_values_are_toml_and_bare_words_are_text(override, found):
    assert found(load_config("", [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoder.unit=64", r'unknown key "decoder.unit"; did you mean "decoder.units"\?'),
        ("decodr.units=64", r'unknown key "decodr"; did you mean "decoder"\?'),
        ("decoder.units=many", "decoder.units = 'many': expected a whole number"),
        ("decoder.units=1.5", "expected a whole number"),
        ("decoder.units=true", "expected a whole number"),
        ("decoder.tied=1", "expected true or false"),
        ("phases.decoder.trains=encoder", "expected a list of strings"),
        ('phases.decoder.trains=["cnn"]', r"expected decoder, encoder or both, got \['cnn'\]"),
        ("phases.decoder.trains=[]", "expected decoder, encoder or both"),
        ("decoder.dropout=1.0", "expected a share from 0 to below 1"),
        ("decoder.units=0", "expected 1 or more"),
        ("decoder.units=1000000000", "expected 16384 at most"),
        ("decode.beam=101", "expected a whole number from 1 to 100"),
        ("decode.max_words=1001", "expected a whole number from 1 to 1000"),
        ("decode={beam=4, max_words=1000}", "with beam 4 expected max_words up to 750"),
        ("phases.decoder.learning_rate=-1", "expected 0 or more"),
        ("phases.decoder.learning_rate=nan", "expected 0 or more"),
        ("phases.decoder.clip_norm=inf", "expected 0 or more"),
        ("decoder.heads=3", "must be a multiple of decoder.heads"),
        ("decoder.attention=additiv", r'did you mean "additive"\?'),
        ("train.select=bleu", r'did you mean "bleu4"\?'),
        ("train.select=bleu_de", "train.select"),
        ("train.select=loss_de", "train.select"),
        ("phases.decoder.schedule=cosin", r'did you mean "cosine"\?'),
        ("seed=-1", "expected a whole number from 0"),
        ("seed=4294967296", "expected a whole number from 0"),
        ("decoder=5", "should be a section"),
        ("phases=5", "should be sections"),
        ("seed.x=1", "seed"),
        ("decoder.units", "expected section.key=value"),
        ("=5", "expected section.key=value"),
    ],
)
def test_what_cannot_be_is_said_with_what_can(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", [override])


def test_a_phase_that_the_recipe_does_not_have_is_a_slip_of_the_pen(recipe):
    with pytest.raises(ConfigError, match=r'unknown phase "frist"; did you mean "first"\?'):
        load_config(recipe, ["phases.frist.epochs=2"])


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r'unknown recipe "flickr8"; did you mean "flickr8k.*\.toml file'):
        load_config("flickr8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[decoder\nunits = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.toml is not valid TOML: .*line 1"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(broken)
    broken.write_text("decoder = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken.toml: \[decoder\] should be a section, not 3"):
        load_config(broken)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_says_how_to_run_it(name):
    load_config(name)
    head = recipes()[name].partition("\n[")[0]
    assert f"captioner train {name}" in head


def test_there_and_back_through_json_and_toml(recipe, tmp_path):
    config = load_config(recipe, ['encoder.weights="a \\"quoted\\" 그림 \\\\ path"', "decoder.dropout=0.125"])
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(tomllib.loads(str(config))) == config
    copy = tmp_path / "copy.toml"
    copy.write_text(str(config), encoding="utf-8")
    assert load_config(copy) == dataclasses.replace(config, recipe="copy")
    assert list(load_config(copy).phases) == list(config.phases), "phases keep their order"


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config().seed = 1  # type: ignore[misc]
    assert PhaseConfig().trains == ("decoder",)


FORMER = [
    ("encoder.mirrored", "encoder.flip_augmented", "true"),
    ("encoder.half", "encoder.round_to_float16", "true"),
    ("decoder.normalised", "decoder.l2_normalize_features", "true"),
    ("decode.length_normalisation", "decode.length_normalization", "0.25"),
    ("train.parts", "train.micro_batches", "3"),
    ("phases.decoder.average", "phases.decoder.ema_decay", "0.5"),
    ("phases.decoder.final_rate", "phases.decoder.final_lr_fraction", "0.125"),
    ("phases.decoder.dropout", "phases.decoder.use_dropout", "false"),
]


@pytest.mark.parametrize(("former", "key", "value"), FORMER)
def test_former_names_of_keys_are_read_and_those_of_today_written(
    former: str, key: str, value: str, tmp_path: Path
) -> None:
    section, _, name = former.rpartition(".")
    recipe = tmp_path / "old.toml"
    recipe.write_text(
        f"[phases.decoder]\nepochs = 2\n[{section}]\n{name} = {value}\n".replace("\n[phases.decoder]", "")
    )
    wanted = load_config("flickr8k-frozen", [f"{key}={value}"])
    assert load_config("flickr8k-frozen", [f"{former}={value}"]) == wanted, (
        "an override wins under either name"
    )
    old = load_config(recipe)
    assert old == load_config(recipe, [f"{key}={value}"])
    assert Config.from_dict(old.to_dict()) == old
    assert f"\n{key.rpartition('.')[2]} = {value}\n" in str(old)


def test_a_key_may_not_be_set_under_both_its_names(tmp_path: Path) -> None:
    recipe = tmp_path / "both.toml"
    recipe.write_text("[train]\nparts = 2\nmicro_batches = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="train.micro_batches is set twice, once by its former name"):
        load_config(recipe)


def test_the_shipped_run_s_configuration_was_written_under_former_names() -> None:
    path = Path(__file__).parent.parent / "checkpoints" / "flickr8k" / "config.json"
    config = Config.from_dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    assert (config.encoder.flip_augmented, config.phases["reward"].use_dropout) == (True, False)


@pytest.mark.parametrize("name", ["fine tune", "a.b", "größer", 'with "quotes"', "x]y", "", "line\nend", "1"])
def test_any_phase_name_is_written_as_toml_that_is_read_back(name: str) -> None:
    config = Config.from_dict({"phases": {name: {"epochs": 3}, "other": {"trains": ["encoder", "decoder"]}}})
    assert Config.from_dict(tomllib.loads(str(config))) == config


REWARD = ["phases.decoder.objective=reward"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [*REWARD, "phases.decoder.temperature=0"],
            r"temperature = 0: nothing would be learned; expected a num",
        ),
        ([*REWARD, "phases.decoder.samples=1"], "samples = 1: nothing would be learned; expected 2 or more"),
        (["phases.decoder.learning_rate=0"], "learning_rate = 0: nothing would be learned"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("flickr8k-frozen", overrides)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["phases.decoder.weight_decay=0.01"], "phases.decoder.weight_decay"),
        (["phases.decoder.samples=3"], "phases.decoder.samples"),
        (["phases.decoder.temperature=0.5"], "phases.decoder.temperature"),
        (["phases.decoder.cross_entropy=0.5"], "phases.decoder.cross_entropy"),
        (["phases.decoder.encoder_from=block_1"], "phases.decoder.encoder_from"),
        (["phases.decoder.encoder_learning_rate=0.5"], "phases.decoder.encoder_learning_rate"),
        (["phases.decoder.schedule=constant", "phases.decoder.final_lr_fraction=0.5"], "final_lr_fraction"),
        (["phases.decoder.patience=9"], "phases.decoder.patience"),
        ([*REWARD, "phases.decoder.coverage=1"], "phases.decoder.coverage"),
        ([*REWARD, "phases.decoder.label_smoothing=0"], "phases.decoder.label_smoothing"),
        (["decoder.attention=additive", "decoder.heads=4"], "decoder.heads = 4"),
        (["decoder.regularizer=l2"], "decoder.regularizer"),
        (["decoder.regularizer_strength=0.1"], "decoder.regularizer_strength"),
        (["encoder.l2=0.1"], "encoder.l2"),
    ],
)
def test_settings_without_effect_are_said(overrides: list[str], key: str) -> None:
    (line,) = load_config("flickr8k-frozen", overrides).warnings()
    assert key in line and "has no effect: " in line


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["phases.decoder.weight_decay=0.01", "phases.decoder.optimizer=adamw"],
        ["phases.decoder.weight_decay=0.01", "phases.decoder.optimizer=my:rule"],
        [*REWARD, "phases.decoder.samples=3", "phases.decoder.cross_entropy=0.1"],
        ["decoder.heads=4"],
        ['phases.decoder.trains=["encoder"]', "phases.decoder.learning_rate=0", "encoder.l2=0.1"],
    ],
)
def test_settings_with_an_effect_are_not(overrides: list[str]) -> None:
    assert load_config("flickr8k-frozen", overrides).warnings() == []


@pytest.mark.parametrize("recipe", recipes())
def test_no_recipe_of_ours_says_anything_without_effect(recipe: str) -> None:
    assert load_config(recipe).warnings() == []


def test_the_optimizers_that_decay_weights_are_those_of_the_table() -> None:
    from captioner.training.optimizers import OPTIMIZERS

    rules = {name: make(0.1, 0.25) for name, make in OPTIMIZERS.items()}
    assert {name for name, rule in rules.items() if rule.weight_decay == 0.25} == set(DECAYING_OPTIMIZERS)
