"""Text to words to ids and back, for training, decoding and scoring alike.

In: captions in any language. Out: word ids. Reads and writes one file, `vocabulary.txt`: one word a line,
the line number (from 0) is the id, the first four lines are `<pad> <unk> <start> <end>`. Where captions carry
languages, a line for each follows, such as `<en>`: a caption in that language starts with it (Johnson et al.
2017, "Google's Multilingual Neural Machine Translation System").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise, takewhile
from pathlib import Path

from captioner.errors import ConfigError, RunError, unknown_name
from captioner.system.files import atomic_write, digest_bytes

PAD, UNK, START, END = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<unk>", "<start>", "<end>")


def words_of(text: str) -> list[str]:
    """The words of a caption: lower case, without punctuation, otherwise as they are written.

    On tokenized English it leaves what coco-caption's PTB tokenizer leaves, but for brackets, which are
    dropped rather than spelled "-lrb-". Raw English is cut as that tokenizer cuts it ("dog's" is "dog" and
    "'s"), so that scores agree. Elsewhere words are what stands between spaces, without the punctuation
    around them, with the apostrophes and hyphens inside; scripts written without spaces (Han, Kana, Thai,
    Lao, Khmer, Burmese) give one word a character with its marks. Cutting joined words again changes nothing.

    Characters of one meaning are made one where that changes no spelling: composed and decomposed letters,
    letters of half and full width, of styled alphabets and of printers' ligatures. All others stay: what NFKC
    takes apart (Thai and Lao "am", Armenian "ev", Korean jamo) is how people write.

    >>> words_of('A man in a T-shirt , the dog\\'s "owner" .')
    ['a', 'man', 'in', 'a', 't-shirt', 'the', 'dog', "'s", 'owner']
    >>> words_of("赤い円。")
    ['赤', 'い', '円']
    """
    if text.isascii():
        text = text.lower().translate(_CHARACTERS)
    else:
        text = _lower(_composed(text.translate(_PLAIN))).translate(_CHARACTERS)
        # Once more: lower() and characters left out can leave marks in an order that would change again.
        text = _SPACELESS.sub(r" \g<0> ", _composed(text))
    words: list[str] = []
    for chunk in text.split():
        words.extend(_words_in(chunk))
    return words


def join_words(words: Iterable[str]) -> str:
    """One line of text as people write it: a space between words, but for those that `tight` names.

    >>> join_words(words_of("The dog's ball isn't red.")), join_words(["赤", "い", "円", "が", "2", "つ"])
    ("the dog's ball isn't red", '赤い円が2つ')
    """
    words = list(words)
    kinds = [kind_of(word) for word in words]
    pieces = words[:1]
    for (_, left), (word, right) in pairwise(zip(words, kinds, strict=True)):
        pieces.append(word if tight(left, right) else " " + word)
    return "".join(pieces)


# Kinds of words, as far as spaces go; `tight` says of which two there is none between.
PLAIN, SPACELESS, EAST_ASIAN, NUMBER, TAIL, CAN, NOT, OTHER = range(8)


@lru_cache(maxsize=1 << 16)
def kind_of(word: str) -> int:
    """What decides about the spaces around a word."""
    if word in _ENGLISH_TAILS:
        return TAIL
    if word in ("can", "not"):
        return CAN if word == "can" else NOT
    if word.isdecimal():
        return NUMBER
    if _SPACELESS.match(word):
        return EAST_ASIAN if _EAST_ASIAN.match(word) else SPACELESS
    return PLAIN if _PLAIN_WORD.fullmatch(word) else OTHER


def tight(left: int, right: int) -> bool:
    """Whether words of these kinds stand side by side: 赤い, 2つ, isn't, dog's, cannot."""
    if right == TAIL:
        return left in (PLAIN, NUMBER, CAN, NOT)
    if (left, right) == (CAN, NOT):
        return True
    if EAST_ASIAN in (left, right) and NUMBER in (left, right):
        return True
    return left in (SPACELESS, EAST_ASIAN) and right in (SPACELESS, EAST_ASIAN)


class Vocabulary:
    """The words a model knows, each with its id.

    >>> vocabulary = Vocabulary.build(["a dog runs .", "a cat"])
    >>> vocabulary.words
    ('<pad>', '<unk>', '<start>', '<end>', 'a', 'cat', 'dog', 'runs')
    >>> vocabulary.ids("A dog sleeps.")
    [4, 6, 1]
    >>> vocabulary.text([START, 4, 6, 7, END, PAD])
    'a dog runs'
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Takes all words in order of id, the four special ones first, then those that stand for languages.

        Raises:
            RunError: the list is not a vocabulary; the message names the line (id + 1).
        """
        self.words = tuple(words)
        self._ids = _checked_ids(self.words)
        starts = takewhile(_LANGUAGE_WORD.fullmatch, self.words[len(SPECIAL_WORDS) :])
        self.languages = tuple(word[1:-1] for word in starts)
        self._starts = range(len(SPECIAL_WORDS), len(SPECIAL_WORDS) + len(self.languages))

    @classmethod
    def build(
        cls,
        captions: Iterable[str | Sequence[str]],
        *,
        min_count: int = 1,
        max_size: int = 0,
        languages: Sequence[str] = (),
    ) -> Vocabulary:
        """Counts the words of `captions`, cut or not, and keeps those seen at least `min_count` times.

        Ids follow (-count, word), so the order of the captions does not matter. `max_size` caps the size, the
        four special words and the `languages` included; 0 is no cap.
        """
        counts: Counter[str] = Counter()
        for caption in captions:
            counts.update(words_of(caption) if isinstance(caption, str) else caption)
        kept = [word for word in counts if counts[word] >= min_count]
        kept.sort(key=lambda word: (-counts[word], word))
        if max_size:
            kept = kept[: max(0, max_size - len(SPECIAL_WORDS) - len(languages))]
        return cls((*SPECIAL_WORDS, *(f"<{language}>" for language in languages), *kept))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads a file that `save` wrote.

        Raises:
            RunError: it is missing or damaged; the message names the line.
        """
        path = Path(path)
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise RunError(f"{path}, line {line}: not UTF-8 text; {_REMEDY}") from error
        except OSError as error:
            raise RunError(f"{path}: cannot read the vocabulary ({error.strerror}); {_REMEDY}") from error
        *words, rest = text.split("\n")
        if rest or not words:
            raise RunError(f'{path}, line {len(words) + 1}: cut off after "{rest}"; {_REMEDY}')
        try:
            return cls(words)
        except RunError as error:
            raise RunError(f"{path}, {error}; {_REMEDY}") from error

    def save(self, path: str | Path) -> None:
        """Writes one word a line, all at once or not at all."""
        atomic_write(path, self._file_bytes())

    def __len__(self) -> int:
        """The number of ids, the four special ones included."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def start(self, language: str | None = None) -> int:
        """The id of the word that captions in a language start with; None: in the first the model knows.

        Raises:
            ConfigError: a language that the model does not know; names the nearest.
        """
        if not language:
            return self._starts[0] if self.languages else START
        code = language.lower().replace("_", "-")
        if code not in self.languages:
            if not self.languages:
                raise ConfigError(
                    f'language "{language}": the model learned from captions without languages; leave it out'
                )
            raise ConfigError(unknown_name("language", language, self.languages))
        return self._starts[self.languages.index(code)]

    def with_languages(self, languages: Sequence[str]) -> Vocabulary:
        """The same words and those of more languages, behind those of the languages it has.

        >>> Vocabulary.build(["a dog"], languages=["en"]).with_languages(["de"]).words[3:]
        ('<end>', '<en>', '<de>', 'a', 'dog')
        """
        place = self._starts.stop
        new = (f"<{language}>" for language in languages if language not in self.languages)
        return Vocabulary((*self.words[:place], *new, *self.words[place:]))

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Ids that never stand in a caption: those of <pad>, <unk>, <start> and the languages."""
        return (PAD, UNK, START, *self._starts)

    def ids(self, text_or_words: str | Sequence[str]) -> list[int]:
        """Ids of a text (cut by `words_of`) or of words; unknown words are UNK; no START, no END."""
        words = words_of(text_or_words) if isinstance(text_or_words, str) else text_or_words
        get = self._ids.get
        return [get(word, UNK) for word in words]

    def text(self, ids: Iterable[int]) -> str:
        """The text of ids up to END, without PAD, START and languages."""
        words = []
        for word_id in ids:
            if word_id == END:
                break
            if word_id not in (PAD, START) and word_id not in self._starts:
                words.append(self.words[word_id])
        return join_words(words)

    @property
    def digest(self) -> str:
        """Hex digest of the file that `save` writes."""
        return digest_bytes(self._file_bytes())

    def _file_bytes(self) -> bytes:
        return "".join(word + "\n" for word in self.words).encode("utf-8")


LANGUAGE_CODE = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]+)*")
_LANGUAGE_WORD = re.compile(rf"<{LANGUAGE_CODE.pattern}>")
_REMEDY = "restore the file from a copy, or train again"


def _checked_ids(words: Sequence[str]) -> dict[str, int]:
    for line, special in enumerate(SPECIAL_WORDS, start=1):
        found = words[line - 1] if line <= len(words) else "the end"
        if found != special:
            raise RunError(f'line {line}: expected "{special}", found "{found}"')
    ids: dict[str, int] = {}
    for word_id, word in enumerate(words):
        if word.split() != [word]:
            raise RunError(f'line {word_id + 1}: "{word}" is not one word')
        if ids.setdefault(word, word_id) != word_id:
            raise RunError(f'line {word_id + 1}: "{word}" stands already on line {ids[word] + 1}')
    return ids


# ASCII symbols that PTB leaves as words of their own; other symbols (currency, arithmetic, emoji) are known
# by their Unicode category.
_SYMBOLS = frozenset("#&%@*")
# What may stand inside a word (Catalan l·l, Tibetan syllables, the joiners of Persian and Hindi,
# Mongolian's vowel separator, Hebrew's hyphen and signs of abbreviation, Armenian's apostrophe) and is
# stripped around it.
_INNER = "'-.,:/_·\u0f0b\u0f0c\u200c\u200d\u180e\u05be\u05f3\u05f4\u055a"
_SAME = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "‐": "-"})


class _Characters(dict[int, str]):
    """What `str.translate` does with each character, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code).translate(_SAME)
        kind = unicodedata.category(character)
        # Variation selectors say how an emoji is drawn; Armenian marks of tone stand within words.
        if 0xFE00 <= code <= 0xFE0F or code in (0x055B, 0x055C, 0x055E):
            result = ""
        elif kind[0] in "LMN" or character in _INNER:
            result = character
        elif kind in ("Sc", "Sm", "So") or character in _SYMBOLS:
            result = f" {character} "
        elif kind == "Cf":  # soft hyphens, byte-order marks, direction marks
            result = ""
        else:
            result = " "
        self[code] = result
        return result


_CHARACTERS = _Characters()

# Decompositions that change no spelling: half and full width, styled letters, forms for typesetting.
_SAME_SPELLING = ("<wide>", "<narrow>", "<font>", "<noBreak>", "<vertical>", "<small>")
_SHAPES = (
    "<initial>",
    "<medial>",
    "<final>",
    "<isolated>",
)  # of Arabic letters, of two or three together


class _PlainForms(dict[int, str]):
    """The plain form of a character, for `str.translate`, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind, *parts = unicodedata.decomposition(character).split() or [""]
        same = kind in _SAME_SPELLING or (kind in _SHAPES and len(parts) <= 3) or 0xFB00 <= code <= 0xFB17
        self[code] = unicodedata.normalize("NFKC", character) if same else character
        return self[code]


_PLAIN = _PlainForms()
# Letters that NFC, too, would write otherwise, though people type them: Bengali য়, Hindi क़, Hebrew שׁ, and Han
# letters of names. Escapes: a tool that normalizes source text would change them.
_KEPT = re.compile(
    r"([\u0958-\u095f\u09dc\u09dd\u09df\u0a33\u0a36\u0a59-\u0a5b\u0a5e\u0b5c\u0b5d"
    r"\ufb1d\ufb1f\ufb2a-\ufb4e\uf900-\ufaff\U0002f800-\U0002fa1f])"
)


def _composed(text: str) -> str:
    if _KEPT.search(text) is None:
        return unicodedata.normalize("NFC", text)
    parts = enumerate(_KEPT.split(text))  # every second part is a letter that is kept
    return "".join(part if number % 2 else unicodedata.normalize("NFC", part) for number, part in parts)


_TURKIC = re.compile("[ıİğĞ]")
_CHEROKEE = {code: code - 0xAB70 + 0x13A0 for code in range(0xAB70, 0xABC0)}


def _lower(text: str) -> str:
    """Lower case as the text's own language has it.

    >>> _lower("IŞIK İÇİNDE"), _lower("IŞIĞI"), _lower("Ο ΣΚΥΛΟΣ")
    ('ışık içinde', 'ışığı', 'ο σκυλος')
    """
    if _TURKIC.search(text):  # Turkish, Azerbaijani, …: ı and i are two letters
        text = text.replace("I", "ı")
    # Elsewhere lower() gives "İ" a second dot. Cherokee is written in what Unicode calls capitals.
    return text.replace("İ", "i").lower().translate(_CHEROKEE)


def _spaceless_pattern() -> re.Pattern[str]:
    # Escapes: a tool that normalizes source text would move the compatibility ideographs across Hangul.
    han = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    kana = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    bopomofo = r"\u3105-\u312f\u31a0-\u31bf"
    letters, marks = [han, kana, bopomofo], [r"\u0300-\u036f\u3099\u309a"]
    # Thai and Lao, Burmese, Khmer; digits are left alone, they are read as numbers.
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)):
        for character in map(chr, range(first, last + 1)):
            kind = unicodedata.category(character)[0]
            if kind in "LM":
                # The vowel "am" of Thai and Lao belongs to the letter before it, though Unicode calls it one.
                is_letter = kind == "L" and character not in "\u0e33\u0eb3"
                (letters if is_letter else marks).append(character)
    return re.compile(f"[{''.join(letters)}][{''.join(marks)}]*")


_SPACELESS = _spaceless_pattern()
_EAST_ASIAN = re.compile(r"[\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_PLAIN_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_BREAK = re.compile(r"\.{2,}|-{2,}|(?<!\d)[,:]|[,:](?!\d)")
_ENGLISH_TAILS = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m")
_WHOLE = frozenset((*_ENGLISH_TAILS, "'n'"))
_ABBREVIATION = re.compile(r"([a-z]\.)+|(mr|mrs|ms|dr|jr|sr|st|co|vs|etc)\.")


@lru_cache(maxsize=1 << 17)
def _words_in(chunk: str) -> tuple[str, ...]:
    """The words of what stands between two spaces. Cached: captions repeat themselves."""
    if chunk in _WHOLE:
        return (chunk,)
    words: list[str] = []
    for piece in _BREAK.split(chunk):
        word = piece.strip(_INNER)
        if not word:
            continue
        start = piece.index(word)
        if piece[start + len(word) :].startswith("\u200d") and unicodedata.combining(word[-1]) == 9:
            word += "\u200d"  # Malayalam, Sinhala: a virama with a joiner may end a word
        if piece[start + len(word) :].startswith(".") and _ABBREVIATION.fullmatch(word + "."):
            words.append(word + ".")
            continue
        words.extend(_english_parts(word))
    return tuple(words)


def _english_parts(word: str) -> list[str]:
    tails: list[str] = []
    while tail := next((end for end in _ENGLISH_TAILS if word.endswith(end) and word != end), ""):
        word = word.removesuffix(tail).strip(_INNER)
        tails.append(tail)
    stem = ["can", "not"] if word == "cannot" else [word]
    return [part for part in (*stem, *reversed(tails)) if part]
