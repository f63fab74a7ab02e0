"""What a training takes over from a finished run: its networks, its words, and a beginning for new words.

In: the run to begin with, captions. Out: a vocabulary that has the run's words in their places and new ones
behind them, and the decoder's weights with a row for each of these. A new word begins as what the run would
have said in its place: where people write "giraffe" it says "dog" or "brown", and of their rows that of
"giraffe" is the mean. The start word of a new language begins as the one the run has.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from captioner.config import Config
from captioner.data.vocabulary import END, SPECIAL_WORDS, UNK, Vocabulary, words_of
from captioner.errors import ConfigError
from captioner.models.decoder import CaptionDecoder
from captioner.models.encoder import Encoder
from captioner.models.layers.packed_forward import packed_forward
from captioner.runs.run_folder import Run
from captioner.runs.weights import select_prefix
from captioner.training.input_pipeline import FeatureSource, TokenizedCaptions

PICTURES_AT_A_TIME = 16
WORD_ROWS = (("embedding", 0), ("word_kernel", 1), ("word_bias", 0))  # weights with a row a word; its axis


class WarmStart(NamedTuple):
    """Where a training begins.

    Attributes:
        decoder: its weights by name, grown by n new words.
        shares: (n, V), of the run's words and languages, which come first, in each new one.
        info: of the run that they come from: run, epoch, words, new_words, start (that run's own) and, if
            there are some, new_languages.
    """

    decoder: dict[str, np.ndarray]
    shares: np.ndarray
    info: dict[str, Any]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], info: dict[str, Any]) -> WarmStart:
        """What `arrays` gave."""
        return cls(select_prefix(arrays, "decoder/"), arrays["shares"], info)

    def arrays(self, encoder: Encoder) -> dict[str, np.ndarray]:
        """All that a run has to keep in order to go on by itself."""
        networks = {"decoder": self.decoder, "encoder": encoder.weights_dict()}
        kept = {f"{part}/{name}": x for part, weights in networks.items() for name, x in weights.items()}
        return {**kept, "shares": self.shares}


def grown_start(
    run: Run, vocabulary: Vocabulary, shown: tuple[TokenizedCaptions, FeatureSource] | None
) -> WarmStart:
    """The weights and the vocabulary's growth with which a training goes on from a run.

    Args:
        run: to begin with.
        vocabulary: its words, new languages behind its own, and new words behind all.
        shown: captions of the training, and features of their pictures by the run's encoder; not needed
            where no word is new.

    Raises:
        ConfigError: the vocabulary does not begin with the run's words.
    """
    best, languages = run.best_info() or {}, vocabulary.languages[len(run.vocabulary.languages) :]
    known = run.vocabulary.with_languages(languages)
    words = len(known)
    if vocabulary.words[:words] != known.words:
        raise ConfigError(f"start: {run.folder} has other words than when the training began; begin anew")
    decoder, _ = run.load_best()
    if languages:
        decoder = with_languages(decoder, run.vocabulary, known)
    special = np.isin(np.arange(words), [*known.unwritten, END])
    new_words = len(vocabulary) - words
    shares = np.zeros((0, words), np.float32)
    if new_words and shown:
        shares = word_shares(decoder, *shown, special, new_words)
    arrays = grow_rows(decoder.weights_dict(), shares)
    if languages and new_words and shown:
        # So many new words at once: together they are as likely as what the run would say in their place.
        arrays["word_bias"][words:] += np.log(caption_shares(shown[0], len(vocabulary))[words:])
    info = {
        "run": run.folder.resolve().name,
        "epoch": f"{best.get('phase', '')} {best.get('epoch', '')}".strip(),
        "words": len(run.vocabulary),
        "new_words": list(vocabulary.words[words:]),
        **({"new_languages": list(languages)} if languages else {}),
        "start": run.start,
    }
    return WarmStart(arrays, shares, info)


def with_languages(decoder: CaptionDecoder, old: Vocabulary, new: Vocabulary) -> CaptionDecoder:
    """The decoder with a start word for each language of `new` that `old` lacks: a copy of the one it has.

    All its words may be written in a new language, until `CaptionDecoder.set_spoken` says otherwise.
    """
    own, place = old.start(), len(SPECIAL_WORDS) + len(old.languages)
    more = len(new.languages) - len(old.languages)
    arrays = decoder.weights_dict()
    for name, axis in WORD_ROWS:
        if name in arrays:
            copies = np.repeat(np.take(arrays[name], [own], axis), more, axis)
            arrays[name] = np.insert(arrays[name], [place], copies, axis)
    if "spoken" in arrays:
        spoken = np.insert(arrays["spoken"], [place], np.zeros((len(old.languages), more)), 1)
        arrays["spoken"] = np.pad(spoken, ((0, more), (0, 0)), constant_values=1)
    grown = CaptionDecoder(
        decoder.config,
        vocabulary_size=len(new),
        channels=decoder.channels,
        languages=len(new.languages),
    )
    grown.load_weights_dict(arrays)
    return grown


def caption_shares(captions: TokenizedCaptions, words: int) -> np.ndarray:
    """(V,): how large a part of all captions each word is; of those in none, as if it stood there once."""
    counts = np.zeros(words)
    for each in captions.captions:
        np.add.at(counts, np.concatenate([*each, np.zeros(0, np.int32)]), 1)
    shares: np.ndarray = np.maximum(counts, 1) / max(1, counts.sum())
    return shares


def config_from(config: Config, start: Config) -> Config:
    """The configuration with the networks of the run that training begins with.

    Its encoder, decoder and way of searching are kept; how, how long and on what data is trained is not.
    """
    return dataclasses.replace(config, encoder=start.encoder, decoder=start.decoder, decode=start.decode)


def grow_vocabulary(
    old: Vocabulary,
    captions: Iterable[Sequence[str]],
    *,
    min_count: int,
    named: Iterable[str] = (),
    max_size: int = 0,
) -> Vocabulary:
    """The words of a run and, behind them, those of other captions, the most frequent first.

    Args:
        old: of the run.
        captions: where new words are looked for, cut into words.
        min_count: times a new word must occur.
        named: words to be taken in even so.
        max_size: words at most, the special ones included; 0: no limit.

    >>> old = Vocabulary.build(["a dog"])
    >>> captions = [["rex", "runs"], ["rex", "and", "a", "cat"]]
    >>> grow_vocabulary(old, captions, min_count=2, named=["Anna"]).words[4:]
    ('a', 'dog', 'rex', 'anna')
    """
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(caption)
    asked = dict.fromkeys(word for text in named for word in words_of(text))
    new = [word for word in counts if counts[word] >= min_count and word not in old]
    new = sorted(new, key=lambda word: (-counts[word], word))
    new += [word for word in asked if word not in old and word not in new]
    room = max(0, max_size - len(old)) if max_size else len(new)
    return Vocabulary((*old.words, *new[:room]))


def grow_rows(arrays: Mapping[str, np.ndarray], shares: np.ndarray) -> dict[str, np.ndarray]:
    """A decoder's weights with rows for n new words, each a mixture of the rows there are.

    Args:
        arrays: as `CaptionDecoder.weights_dict` gives them, for V words.
        shares: (n, V), of the old words in each new one; each row adds up to 1.

    >>> arrays = {"embedding": np.eye(3), "word_bias": np.array([0.0, 2.0, 4.0]), "input_bias": np.ones(2)}
    >>> grown = grow_rows(arrays, np.array([[0, 0.5, 0.5]]))
    >>> grown["embedding"][3], grown["word_bias"], grown["input_bias"]
    (array([0. , 0.5, 0.5]), array([0., 2., 4., 3.]), array([1., 1.]))
    """
    grown = dict(arrays)
    for name, axis in WORD_ROWS:
        if name in arrays:
            rows = np.moveaxis(arrays[name], axis, 0)
            rows = np.concatenate([rows, np.tensordot(shares, rows, 1).astype(rows.dtype)])
            grown[name] = np.moveaxis(rows, 0, axis)
    if "spoken" in arrays:  # a new word may be written in any language
        grown["spoken"] = np.pad(arrays["spoken"], ((0, 0), (0, len(shares))), constant_values=1)
    return grown


def first_rows(arrays: Mapping[str, np.ndarray], words: int) -> dict[str, np.ndarray]:
    """The weights of a decoder of the first so many words: undoes `grow_rows`."""
    rows = {name: arrays[name][:words] for name in ("embedding", "word_bias")}
    for name in ("word_kernel", "spoken"):
        if name in arrays:
            rows[name] = arrays[name][:, :words]
    return {**arrays, **rows}


def word_shares(
    decoder: CaptionDecoder,
    captions: TokenizedCaptions,
    source: FeatureSource,
    special: np.ndarray,
    new_words: int,
) -> np.ndarray:
    """(n, V): how likely a run's decoder finds each of its words where captions have each new word.

    A word that no caption has is an even mixture of all.

    Args:
        decoder: of the run, V words.
        captions: with ids from V on for the new words.
        source: features of the pictures.
        special: (V,) bool, ids that are no words.
        new_words: n.
    """
    V = decoder.vocabulary_size
    total = np.zeros((new_words, V))
    batch = [tf.TensorSpec([None] * 3, dtype) for dtype in (tf.float32, tf.int32, tf.int32, tf.float32)]

    @tf.function(input_signature=batch, autograph=False)  # type: ignore[untyped-decorator]
    def likely(features: Any, words_in: Any, words_out: Any, weights: Any) -> Any:
        features = tf.ensure_shape(features, [None, None, decoder.channels])
        packed = packed_forward(decoder, (features, words_in), words_out, weights)
        return tf.nn.softmax(packed.logits), packed.words, packed.weights

    for features, words_in, words_out, weights in caption_batches(captions, source) if new_words else ():
        shares, words, kept = likely(features, np.where(words_in < V, words_in, UNK), words_out, weights)
        new = (words.numpy() >= V) & (kept.numpy() != 0)
        np.add.at(total, words.numpy()[new] - V, shares.numpy()[new])
    total[:, special] = 0
    total[np.ix_(total.sum(1) == 0, ~special)] = 1
    return (total / total.sum(1, keepdims=True)).astype("float32")


def caption_batches(
    captions: TokenizedCaptions, source: FeatureSource, *, most: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Features (B, P, C) float32, words_in, words_out and weights (B, R, T) of all captions, once.

    Args:
        captions: of pictures.
        source: features of these.
        most: pictures, the first ones; 0: all.
    """
    count = min(len(captions.ids), most or len(captions.ids))
    for start in range(0, count, PICTURES_AT_A_TIME):
        pictures = range(start, min(start + PICTURES_AT_A_TIME, count))
        words = captions.pad_batch(pictures, [range(len(captions.captions[picture])) for picture in pictures])
        features = source.read([captions.ids[picture] for picture in pictures])
        yield features.astype("float32"), *words
