"""The configuration: frozen dataclasses that are the schema, the defaults and the documentation.

A recipe (a TOML file, or the name of one in `captioner/recipes/`) and `--set section.key=value` go in, a
checked `Config` comes out. Precedence: default < recipe < `--set`. An unknown key or a value of the wrong
type is a `ConfigError` that names the nearest known one. Nothing is read from anywhere else, nothing changes
afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import ConfigError, unknown_name
from captioner.schema import Bounds, bounded, build, current_key, current_names


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which captions, and which words of them."""

    format: str = "auto"  # a row of formats.DATASETS, or auto: recognized from the folder
    min_count: int = 2  # times a word must occur in the training captions to be learned
    max_size: int = 10000  # words at most, the special ones included; 0: no limit
    max_words: int = 30  # longer training captions are cut after this many words
    words: tuple[str, ...] = ()  # with `start`: taken in, however often they occur


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Which CNN looks at the picture."""

    name: str = "mobilenet_v2"  # a row of encoders.ENCODERS, or package.module:name
    weights: str = "imagenet"  # imagenet (Keras's download), none (from scratch), or a file
    size: int = 0  # input height = width in pixels; 0: the encoder's own
    l2: float = 0.0  # weight regularization of a trained encoder, per squared weight
    flip_augmented: bool = False  # look at the mirror image too: twice the cells and time, better captions
    round_to_float16: bool = False  # before a phase that keeps it frozen: a small copy is then exact


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Size and kind of the network that writes."""

    units: int = 512  # state of the GRU
    embedding: int = 256  # numbers per word
    attention: str = "dot"  # dot (scaled, multi-head) or additive (Bahdanau)
    heads: int = 1  # attention heads (dot)
    sentinel: bool = False  # one more attention slot, for words that need no look at the picture
    tied: bool = False  # the word embedding is also the output matrix
    l2_normalize_features: bool = False  # grid cells divided by their length before projection
    dropout: float = 0.5  # share of word embeddings and outputs dropped in training
    grid_dropout: float = 0.25  # share of grid channels dropped in training; both are rounded to a 256th
    regularizer: str = ""  # Keras regularizer for the matrices: l1, l2, … or package.module:name
    regularizer_strength: float = 0.0  # its factor


# Hypotheses times words of the search for one caption: 3 of 1,000 words, or 100 of 30. More is a slip of the
# finger, or a client that keeps a server from all others: a picture would take minutes.
MOST_SEARCHED = 3_000


def check_search(beam: int, max_words: int) -> None:
    """Refuses a search of more than `MOST_SEARCHED` words in all.

    Raises:
        ConfigError: names both and what fits.

    >>> check_search(100, 30)
    """
    if beam * max_words > MOST_SEARCHED:
        raise ConfigError(
            f"beam {beam} with max_words {max_words}: beam (or n_best) times max_words may be "
            f"{MOST_SEARCHED:,} at most; with beam {beam} expected max_words up to {MOST_SEARCHED // beam}"
        )


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How a caption is searched for; what a single call may ask besides: `inference.search_options`."""

    beam: int = bounded(3, int, 1, 100, "hypotheses kept; 1 is greedy")
    length_normalization: float = bounded(
        0.7,
        float,
        0,
        10,
        "score = log probability / words ** this: 0 prefers short captions, 1 and more long",
    )
    max_words: int = bounded(24, int, 1, 1000, "end captions here at the latest")
    no_repeat: int = bounded(0, int, 0, 100, "never write the same N words in a row twice; 0: may")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What holds for all phases of a training."""

    precision: str = "auto"  # auto, float32 or bfloat16: matrix products only; sums stay float32
    bfloat16_convolutions: bool = False  # where precision is bfloat16: steps through the CNN in it, too
    select: str = "cider"  # dev score that picks the best epoch and stops early: cider, bleu4, cider_de, …
    dev_pictures: int = 0  # dev pictures captioned after each epoch; 0: all
    save_minutes: float = 5.0  # at least this often within an epoch (and after each epoch)
    max_to_keep: int = 2  # resumable checkpoints kept
    micro_batches: int = 0  # parts of a batch computed side by side, each with its own dropout; 0: one a core
    tensorboard: bool = False  # also write TensorBoard summaries (extra: captioner[tensorboard])


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
    """One stretch of training: an objective, what it changes, for how long."""

    objective: str = "cross_entropy"  # cross_entropy, distill, reward, or package.module:name
    trains: tuple[str, ...] = ("decoder",)  # decoder, encoder
    encoder_from: str = ""  # first encoder layer trained; the ones before stay; empty: all
    augment: bool = False  # pictures cropped, flipped, recolored anew each epoch (no cache)
    epochs: int = 10  # passes over the training pictures
    patience: int = 0  # stop after this many epochs without a better dev score; 0: never
    pictures_per_batch: int = 16  # at most, with all their captions; fewer where an epoch would be < 64 steps
    captions_per_picture: int = 0  # drawn anew each epoch; 0: all
    languages: tuple[str, ...] = ()  # reward: one drawn a picture; named twice: twice as often; (): alike
    optimizer: str = "adam"  # a row of optimizers.OPTIMIZERS, or package.module:name
    learning_rate: float = 8e-4  # of the decoder
    encoder_learning_rate: float = 1e-4  # of the encoder, when trained
    schedule: str = "cosine"  # constant, linear, cosine, exponential: over the phase
    final_lr_fraction: float = 0.05  # learning rate at the end, as a share of the first
    warmup_steps: int = 100  # steps over which the rate rises to its value
    weight_decay: float = 0.0  # for optimizers that know it
    clip_norm: float = 5.0  # gradients longer than this are scaled back; 0: off
    label_smoothing: float = 0.1  # probability spread evenly over all words
    closeness: float = 0.0  # weight of staying close to the start on captions of its own; 0: off
    coverage: float = 0.0  # weight of the doubly stochastic attention term (Xu et al. 2015)
    ema_decay: float = 0.0  # per step, of the averaged weights that are evaluated and kept; 0: off
    use_dropout: bool = True  # decoder dropout on in this phase
    samples: int = 5  # reward: captions sampled a picture
    temperature: float = 1.0  # reward: of the samples
    cross_entropy: float = 0.0  # reward: weight of a cross-entropy term beside it
    views: str = "all"  # of a frozen encoder on augmented pictures: all, or one, as it is trained
    teachers: tuple[str, ...] = ()  # distill: run folders with the words of this one; averaged
    teacher_share: float = 0.7  # distill: of the target; the rest is the caption's own word


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a training is determined by, apart from the data themselves.

    >>> load_config("", ["decoder.units=64"]).decoder.units
    64
    """

    recipe: str = ""  # name of the one it began with; for people
    seed: int = 0  # of every random choice
    start: str = ""  # run folder whose networks and words training begins with; empty: none
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    decode: DecodeConfig = DecodeConfig()
    train: TrainConfig = TrainConfig()
    phases: Mapping[str, PhaseConfig] = dataclasses.field(default_factory=lambda: {"decoder": PhaseConfig()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any], source: str = "configuration") -> Config:
        """Check `values` against the schema.

        Raises:
            ConfigError: unknown key, wrong type or impossible value; `source` is named in the message.
        """
        config = build(Config, current_names(values, source), source)
        _validate(config, source)
        return config

    def __str__(self) -> str:
        import tomli_w  # seldom asked for

        return tomli_w.dumps(self.to_dict())

    def warnings(self) -> list[str]:
        """Settings that have no effect, each with the reason.

        >>> load_config("", ["decoder.attention=additive", "decoder.heads=4"]).warnings()
        ['decoder.heads = 4 has no effect: additive attention has one head']
        """
        found = []
        if self.decoder.attention == "additive" and self.decoder.heads > 1:
            found.append(
                f"decoder.heads = {self.decoder.heads} has no effect: additive attention has one head"
            )
        if self.decoder.regularizer_strength and not self.decoder.regularizer:
            found.append("decoder.regularizer_strength has no effect: decoder.regularizer names none")
        if self.decoder.regularizer and not self.decoder.regularizer_strength:
            found.append("decoder.regularizer has no effect: decoder.regularizer_strength is 0")
        if self.encoder.l2 and not any("encoder" in phase.trains for phase in self.phases.values()):
            found.append("encoder.l2 has no effect: no phase trains the encoder")
        for name, phase in self.phases.items():
            found += [f"phases.{name}.{key} has no effect: {why}" for key, why in _without_effect(phase)]
        return found

    def check_phases(self) -> None:
        """Refuses settings with which a phase cannot learn.

        Raises:
            ConfigError: names the setting and what to set it to.
        """
        for name, phase in self.phases.items():
            rates = {"decoder": phase.learning_rate, "encoder": phase.encoder_learning_rate}
            samples = phase.objective == "reward"
            wrong = {
                "learning_rate": (not any(rates[part] for part in phase.trains), "a number above 0"),
                "temperature": (samples and phase.temperature == 0, "a number above 0, usually 1"),
                "samples": (
                    samples and phase.samples < 2,
                    "2 or more, for they are compared with each other",
                ),
                "teachers": (
                    phase.objective == "distill" and not phase.teachers,
                    "the folders of finished runs to learn from",
                ),
            }
            for key, (impossible, expected) in wrong.items():
                if impossible:
                    value = getattr(phase, key)
                    told = f"{value:g}" if isinstance(value, int | float) else list(value)
                    raise ConfigError(
                        f"phases.{name}.{key} = {told}: nothing would be learned; expected {expected}"
                    )


# Optimizers whose rule has a weight decay; one's own (package.module:name) sees to that itself.
DECAYING_OPTIMIZERS = ("adamw", "lion")


def _without_effect(phase: PhaseConfig) -> Iterator[tuple[str, str]]:
    """Keys that a phase sets and does not use, and why."""
    default = PhaseConfig()
    changed = {key for key, value in vars(phase).items() if value != getattr(default, key)}
    decays = ":" in phase.optimizer or phase.optimizer in DECAYING_OPTIMIZERS
    if "weight_decay" in changed and not decays:
        yield "weight_decay", f"{phase.optimizer} has none; {' and '.join(DECAYING_OPTIMIZERS)} do"
    if phase.objective == "reward":
        if "coverage" in changed:
            yield "coverage", "the reward is of words, not of attention"
        if "label_smoothing" in changed and not phase.cross_entropy:
            yield "label_smoothing", "the phase has no cross entropy beside the reward"
    else:
        for key in sorted(changed & {"samples", "temperature", "cross_entropy"}):
            yield key, 'only a phase with objective = "reward" uses it'
    if phase.objective == "distill":
        for key in sorted(changed & {"label_smoothing", "coverage"}):
            yield key, "the teachers say what is likely"
    else:
        for key in sorted(changed & {"teachers", "teacher_share"}):
            yield key, 'only a phase with objective = "distill" uses it'
    if "views" in changed and ("encoder" in phase.trains or not phase.augment):
        yield "views", "only a frozen encoder on augmented pictures can look once"
    if "encoder" not in phase.trains:
        for key in sorted(changed & {"encoder_learning_rate", "encoder_from"}):
            yield key, "the phase does not train the encoder"
    if "final_lr_fraction" in changed and phase.schedule == "constant":
        yield "final_lr_fraction", "the schedule is constant"
    if phase.patience >= phase.epochs:
        yield "patience", f"the phase has {phase.epochs} epochs"


def recipes() -> dict[str, str]:
    """Name and TOML text of every recipe that comes with the package."""
    from importlib import resources  # with what it brings, slower to load than the rest of this file

    folder = resources.files("captioner") / "recipes"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {
        f.name[: -len(".toml")]: f.read_text(encoding="utf-8") for f in sorted(files, key=lambda f: f.name)
    }


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe by name or path and apply `section.key=value` overrides.

    Args:
        recipe: a name in `captioner/recipes/`, the path of a TOML file, or "" for the defaults.
        overrides: as typed after `--set`; values are TOML, bare words are strings.

    Raises:
        ConfigError: no such recipe, not TOML, an unknown key, a wrong value.
    """
    values = current_names(_read_recipe(str(recipe)), str(recipe)) if str(recipe) else {}
    values["recipe"] = Path(recipe).stem
    for override in overrides:
        _apply(values, override)
    config = Config.from_dict(values, source=str(recipe) or "configuration")
    config.check_phases()
    check_search(config.decode.beam, config.decode.max_words)
    return config


def _read_recipe(recipe: str) -> dict[str, Any]:

    known = recipes()
    path = Path(recipe)
    if recipe in known:
        text = known[recipe]
    elif path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {recipe}: cannot be read ({error})") from error
    else:
        raise ConfigError(unknown_name("recipe", recipe, known) + "; or give the path of a .toml file")
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {recipe} is not valid TOML: {error}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the nested dictionary."""

    path, equals, text = override.partition("=")
    keys = current_key(path.strip()).split(".")
    if not equals or not all(keys):
        raise ConfigError(f'--set "{override}": expected section.key=value, such as decoder.units=512')
    import tomllib

    try:
        value = tomllib.loads(f"x = {text.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    phases = values.get("phases")
    if keys[0] == "phases" and len(keys) == 3 and isinstance(phases, dict) and keys[1] not in phases:
        raise ConfigError(f'--set "{override}": ' + unknown_name("phase", keys[1], phases))
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f'--set "{override}": {key} is a value, not a section')
    values[keys[-1]] = value


_CHOICES = {
    "decoder.attention": ("dot", "additive"),
    "train.precision": ("auto", "float32", "bfloat16"),
    "train.select": ("cider", "bleu4", "bleu3", "bleu2", "bleu1", "rouge_l", "loss"),
}
_PHASE_CHOICES = {
    "schedule": ("constant", "linear", "cosine", "exponential"),
    "views": ("all", "one"),
}
_SHARES = ("dropout", "grid_dropout", "label_smoothing", "ema_decay", "teacher_share")
_POSITIVE = (
    *("units", "embedding", "heads", "max_words"),
    *("epochs", "pictures_per_batch", "max_to_keep", "samples"),
)
# Beyond these is a slip of the finger, and more memory than there is.
_MOST = {"units": 16384, "embedding": 16384, "size": 2048, "pictures_per_batch": 10000, "samples": 100}
_MOST |= {"max_words": 1000}


def _validate(config: Config, source: str) -> None:
    if not 0 <= config.seed < 2**31:
        raise ConfigError(f"{source}: seed = {config.seed}: expected a whole number from 0 to {2**31 - 1}")
    sections = {name: getattr(config, name) for name in ("data", "encoder", "decoder", "decode", "train")}
    sections |= {f"phases.{name}": phase for name, phase in config.phases.items()}
    for section, values in sections.items():
        for key, value in dataclasses.asdict(values).items():
            name = f"{section}.{key}"
            phase_choices = _PHASE_CHOICES if section.startswith("phases.") else {}
            choices = _CHOICES.get(name) or phase_choices.get(key)
            if name == "train.select" and language_of(str(value)):
                value = str(value).rpartition("_")[0]
            if choices and value not in choices:
                raise ConfigError(f"{source}: " + unknown_name(name, str(value), choices))
            if section == "decode":
                _check_bounds(f"{source}: {name}", DecodeConfig, key, value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                _check_number(f"{source}: {name}", key, value)
    for name, phase in config.phases.items():
        wrong = [part for part in phase.trains if part not in ("decoder", "encoder")]
        if wrong or not phase.trains:
            raise ConfigError(
                f"{source}: phases.{name}.trains: expected decoder, encoder or both, got {list(phase.trains)}"
            )
    if config.decoder.units % config.decoder.heads:
        raise ConfigError(
            f"{source}: decoder.units ({config.decoder.units}) must be a multiple of decoder.heads"
        )


def language_of(select: str) -> str:
    """The language whose score a training selects by; empty: the mean over all.

    >>> language_of("cider_de"), language_of("rouge_l"), language_of("rouge_l_zh")
    ('de', '', 'zh')
    """
    score, _, language = select.rpartition("_")
    return language if score in _CHOICES["train.select"] and score != "loss" else ""


def _check_bounds(name: str, cls: Any, key: str, value: Any) -> None:
    bounds: Bounds = cls.__dataclass_fields__[key].metadata["bounds"]
    if not bounds.fits(value):
        raise ConfigError(f"{name} = {value}: expected {bounds.expected}")


def _check_number(name: str, key: str, value: float) -> None:
    if key in _POSITIVE and value < 1:
        raise ConfigError(f"{name} = {value}: expected 1 or more")
    if value > _MOST.get(key, math.inf):
        raise ConfigError(f"{name} = {value}: expected {_MOST[key]} at most")
    if key in _SHARES and not 0 <= value < 1:
        raise ConfigError(f"{name} = {value}: expected a share from 0 to below 1")
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} = {value}: expected 0 or more")
