"""Text to words to ids and back, in any script."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary, join_words, words_of
from captioner.errors import ConfigError, RunError

CAPTIONS = ["a dog runs .", "a dog and a cat .", "the cat sleeps ."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Tokenised captions: lower case, punctuation tokens dropped, as coco-caption leaves them.
        ("A man in a T-shirt , near the dog 's toy .", "a man in a t-shirt near the dog 's toy"),
        ('Two men ; " one " sits !', "two men one sits"),
        ("jersey # 7 of the 3rd team", "jersey # 7 of the 3rd team"),
        ("the slide -- a blue one ... -", "the slide a blue one"),
        ("we cannot see his at&t headphone", "we can not see his at & t headphone"),
        # Raw English, cut at the same places.
        ("The dog's ball isn't red; it's blue.", "the dog 's ball is n't red it 's blue"),
        ("Wait...what? 1,000 dogs at 10:30 a.m. in D.C.!", "wait what 1,000 dogs at 10:30 a.m. in d.c."),
        ("Mr. Smith’s “big” rock 'n' roll (live)", "mr. smith 's big rock 'n' roll live"),
        ("black/white, then 3.5 m—more or less", "black/white then 3.5 m more or less"),
        # Other languages: apostrophes and hyphens inside stay, punctuation around goes.
        ("Ein „großer“ roter Kreis – daneben: 2 E-Bikes.", "ein großer roter kreis daneben 2 e-bikes"),
        ("L'homme d’aujourd'hui, ¿qué?", "l'homme d'aujourd'hui qué"),
        ("빨간 원이 파란 사각형 위에 있다.", "빨간 원이 파란 사각형 위에 있다"),
        ("कुत्ता दौड़ रहा है।", "कुत्ता दौड़ रहा है"),
        # Scripts without spaces: a word a character, with its marks; digits and Latin stay whole.
        ("赤い円が２つ。", "赤 い 円 が 2 つ"),
        ("两只狗在ABC商店", "两 只 狗 在 abc 商 店"),
        ("ที่นี่", "ที่ นี่"),
        ("", ""),
        (" \n . , !", ""),
    ],
)
def test_words_of(text: str, words: str) -> None:
    assert words_of(text) == words.split()


def test_composed_and_decomposed_text_are_the_same_words() -> None:
    for text in ("빨간 원", "ein großer Bär", "ガラス"):
        assert words_of(unicodedata.normalize("NFD", text)) == words_of(unicodedata.normalize("NFC", text))


# Sentences in lower case and without punctuation, as the model writes them: each comes out as it went in.
SENTENCES = {
    "Latin, English": "the dog's ball isn't red and can't roll",
    "Latin, German": "ein großer bär läuft über die straße",
    "Latin, Turkish": "kırmızı ışık yanıyor ve çocuk gülüyor",
    "Latin, Vietnamese": "một con chó chạy trên bãi biển",
    "Latin, Yoruba": "ajá kan ń sáré lórí ìyanrìn",
    "Latin, Catalan": "una noia col·loca l'ampolla",
    "Greek": "ο σκύλος τρέχει στους δρόμους της πόλης",
    "Greek, polytonic": "ὁ ἄνθρωπος βλέπει τὴν θάλασσαν",
    "Cyrillic": "собака бежит по пляжу ёлка стоит",
    "Cyrillic, Ukrainian": "м'яч лежить на їхній траві",
    "Armenian": "շունը վազում է և երեխան նայում է",
    "Hebrew": "כלב רץ ליד בית־ספר",
    "Hebrew, pointed": "כֶּלֶב רָץ עַל הַחוֹף",
    "Arabic": "كلب يركض على الشاطئ",
    "Arabic, Persian": "سگ‌ها روی شن می‌دوند",
    "Devanagari": "लड़का समुद्र तट पर दौड़ रहा है",
    "Devanagari, other letters": "ल\u095cका दौ\u095c रहा है",
    "Bengali": "একটি ছেলে দৌড়ায় এবং হাসে",
    "Bengali, other letters": "ছেলেটি দৌ\u09dcা\u09df",
    "Gurmukhi": "ਇੱਕ ਕੁੱਤਾ ਦੌੜ ਰਿਹਾ ਹੈ",
    "Gujarati": "એક કૂતરો દોડી રહ્યો છે",
    "Oriya": "ଗୋଟିଏ କୁକୁର ଦୌଡ଼ୁଛି",
    "Tamil": "ஒரு நாய் கடற்கரையில் ஓடுகிறது",
    "Telugu": "ఒక కుక్క పరుగెత్తుతోంది",
    "Kannada": "ಒಂದು ನಾಯಿ ಓಡುತ್ತಿದೆ",
    "Malayalam": "ഒരു നായ ഓടുന്നു അവന\u0d4d\u200d ചിരിക്കുന്നു",
    "Sinhala": "බල්ලෙක් ශ්\u200dරී ලංකාවේ දුවනවා",
    "Thai": "สุนัขสีดำกำลังวิ่งในน้ำ",
    "Lao": "ໝາສີດຳກຳລັງແລ່ນໃນນ້ຳ",
    "Khmer": "ឆ្កែកំពុងរត់លើឆ្នេរ",
    "Burmese": "ခွေးတစ်ကောင်ပြေးနေသည်",
    "Tibetan": "ཁྱི་ཞིག་བྱེ་ཐང་ལ་རྒྱུག་བཞིན་འདུག",
    "Georgian": "ძაღლი დარბის სანაპიროზე",
    "Ethiopic": "ውሻ በባህር ዳርቻ ላይ ይሮጣል",
    "Cherokee": "ᎩᏟ ᎠᏆᏟ ᏣᎳᎩ",
    "Mongolian": "ᠨᠣᠬᠠᠢ ᠭᠦᠶᠦᠵᠦ ᠪᠠᠶᠢᠨ\u180e\u1820",
    "Hangul": "빨간 원이 파란 사각형 위에 있다 ㅋㅋ",
    "Japanese": "赤い円が2つ青い四角の上にあります",
    "Chinese": "两只狗在3个人旁边奔跑",
    "Chinese, a name": "神\ufa19社有一只狗",
}


@pytest.mark.parametrize("text", SENTENCES.values(), ids=SENTENCES.keys())
def test_joined_words_read_as_people_write_them(text: str) -> None:
    words = words_of(text)
    assert join_words(words) == text
    assert words_of(join_words(words)) == words
    vocabulary = Vocabulary.build([text])
    assert vocabulary.text(vocabulary.ids(text)) == text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("İstanbul'da IŞIKLI bir kapı", "istanbul'da ışıklı bir kapı"),
        ("Ο ΣΚΥΛΟΣ ΤΡΕΧΕΙ", "ο σκυλος τρεχει"),
        ("Ինչո՞ւ է շունը վազում։", "ինչու է շունը վազում"),
        ("LIII ﬁne ＡＢＣ ｶﾞ 𝓭𝓸𝓰", "liii fine abc ガ dog"),
        ("We cannot see the dogs' toys", "we cannot see the dogs toys"),
        ("She would n't 've gone", "she wouldn't 've gone"),
        ("the 1920 's car", "the 1920's car"),
        ("foto's", "foto's"),
    ],
)
def test_capitals_and_punctuation_go_and_nothing_else(written: str, read: str) -> None:
    assert join_words(words_of(written)) == read
    assert join_words(words_of(read)) == read


TRICKY = "aZé'’-.,:/_ #@赤いｶﾞ\u3099ー한글ที่\u0e48\u200d\u200b\ufe0f🐕3²½İßΣς·་'n'sd("
TRICKY += "\u0e33ıI(can not\u09df\u0d4d\u055e"


@given(st.text() | st.text(alphabet=TRICKY))
def test_cutting_joined_words_again_changes_nothing(text: str) -> None:
    words = words_of(text)
    assert words_of(join_words(words)) == words
    assert all(word.split() == [word] for word in words)


def test_35000_captions_in_a_second() -> None:
    captions = [f"A man , number {each % 900} , near the dog 's T-shirt ." for each in range(35_000)]
    start_seconds = time.process_time()
    Vocabulary.build(captions)
    assert time.process_time() - start_seconds < 1.0


def test_ids_follow_count_then_word() -> None:
    vocabulary = Vocabulary.build(CAPTIONS)
    assert vocabulary.words[:4] == ("<pad>", "<unk>", "<start>", "<end>")
    assert vocabulary.words[4:] == ("a", "cat", "dog", "and", "runs", "sleeps", "the")  # 3, 2, 2, 1, …
    assert Vocabulary.build(reversed(CAPTIONS)).words == vocabulary.words
    assert len(vocabulary) == 11


def test_min_count_and_max_size() -> None:
    assert Vocabulary.build(CAPTIONS, min_count=2).words[4:] == ("a", "cat", "dog")
    assert Vocabulary.build(CAPTIONS, max_size=6).words[4:] == ("a", "cat")  # six in all
    assert len(Vocabulary.build(CAPTIONS, max_size=1)) == 4
    assert len(Vocabulary.build([])) == 4


def test_text_to_ids_and_back() -> None:
    vocabulary = Vocabulary.build(CAPTIONS)
    assert vocabulary.ids("The dog sleeps.") == [10, 6, 9]
    assert vocabulary.ids(["the", "zebra"]) == [10, UNK]
    assert vocabulary.text([START, 10, 6, 9, END, 4, 4, PAD]) == "the dog sleeps"
    assert vocabulary.text([PAD, START, END]) == ""
    assert vocabulary.text([10, UNK]) == "the <unk>"


def test_japanese_ids_give_text_without_spaces() -> None:
    vocabulary = Vocabulary.build(["赤い円があります。"])
    assert vocabulary.text(vocabulary.ids("赤い円")) == "赤い円"


def test_a_caption_cannot_name_a_special_word() -> None:
    assert words_of("<pad> <end>") == ["<", "pad", ">", "<", "end", ">"]


def test_file_round_trip(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build([*CAPTIONS, "빨간 원", "großes Herz", "赤い円"])
    path = tmp_path / "vocabulary.txt"
    vocabulary.save(path)
    assert path.read_text(encoding="utf-8").split("\n")[:5] == ["<pad>", "<unk>", "<start>", "<end>", "a"]
    again = Vocabulary.load(path)
    assert again.words == vocabulary.words
    assert again.digest == vocabulary.digest != Vocabulary.build(CAPTIONS).digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1"),
        (b"<pad>\n<unk>\n<start>\n", 'line 4: expected "<end>", found "the end"'),
        (b"<pad>\n<start>\n<unk>\n<end>\n", 'line 2: expected "<unk>", found "<start>"'),
        (b"<pad>\n<unk>\n<start>\n<end>\ndog\nca", 'line 6: cut off after "ca"'),
        (b"<pad>\n<unk>\n<start>\n<end>\ndog\n\ncat\n", 'line 6: "" is not one word'),
        (b"<pad>\n<unk>\n<start>\n<end>\ndog cat\n", 'line 5: "dog cat" is not one word'),
        (b"<pad>\n<unk>\n<start>\n<end>\ndog\ncat\ndog\n", 'line 7: "dog" stands already on line 5'),
        (b"<pad>\n<unk>\n<start>\n<end>\nd\xffg\n", "line 5: not UTF-8"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_bytes(data)
    with pytest.raises(RunError) as caught:
        Vocabulary.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read the vocabulary"):
        Vocabulary.load(tmp_path / "vocabulary.txt")


# Languages.


def test_languages_stand_between_the_special_words_and_the_others() -> None:
    vocabulary = Vocabulary.build(["a dog", "ein Hund"], languages=("en", "de"), max_size=9)
    assert vocabulary.words == ("<pad>", "<unk>", "<start>", "<end>", "<en>", "<de>", "a", "dog", "ein")
    assert vocabulary.languages == ("en", "de")
    assert [vocabulary.start(name) for name in (None, "en", "de", "DE")] == [4, 4, 5, 5]
    assert vocabulary.unwritten == (0, 1, 2, 4, 5)
    assert vocabulary.text([5, 8, 3, 6]) == "ein"


def test_captions_cannot_say_what_stands_for_a_language() -> None:
    assert Vocabulary.build(["the <en> word"]).languages == ()


def test_a_model_without_languages_starts_as_it_did() -> None:
    vocabulary = Vocabulary.build(["a dog"])
    assert (vocabulary.languages, vocabulary.start(), vocabulary.unwritten) == ((), START, (0, 1, 2))
    with pytest.raises(ConfigError, match="learned from captions without languages"):
        vocabulary.start("en")


def test_an_unknown_language_is_answered_with_the_nearest() -> None:
    vocabulary = Vocabulary.build(["a"], languages=("en", "de", "zh-hans"))
    with pytest.raises(ConfigError, match='unknown language "zh"; known: de, en, zh-hans'):
        vocabulary.start("zh")
