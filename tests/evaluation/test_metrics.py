"""The figures: textbook cases by hand, the coco-caption toolkit beside ours, and odd captions."""

from __future__ import annotations

import contextlib
import io
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.data.vocabulary import words_of
from captioner.errors import ConfigError, DataError
from captioner.evaluation.metrics import METRICS, CiderD, describe, per_caption, protocol, score

CAT = ["The cat is on the mat.", "There is a cat on the mat."]

REFERENCES = [
    ["A brown dog runs over the green grass .", "A dog is running through a field .", "The dog runs ."],
    ["Two men sit on a bench .", "Two people are sitting on a wooden bench in a park ."],
    ["A child in a red coat plays in the snow .", "A small child plays in snow ."],
    ["A man rides a bike .", "A cyclist rides down a hill ."],
]
HYPOTHESES = ["a dog runs through the grass", "two men are sitting on a bench", "a child", ""]
# What pycocoevalcap 1.2 gives for them, times 100.
COCO_CORPUS = {
    "bleu1": 54.8812,
    "bleu2": 44.8103,
    "bleu3": 33.2419,
    "bleu4": 23.1657,
    "rouge_l": 50.6942,
    "cider": 155.3870,
}
COCO_CAPTIONS = {
    "bleu1": [84.6482, 100.0, 13.5335, 0.0],
    "bleu2": [53.5362, 91.2871, 13.5335, 0.0],
    "bleu3": [0.0004, 79.3701, 0.1353, 0.0],
    "bleu4": [0.0000, 59.4604, 0.0135, 0.0],
    "rouge_l": [72.6190, 84.2930, 45.8647, 0.0],
    "cider": [190.4604, 344.0889, 86.9988, 0.0],
}


def coco(references: Any, hypotheses: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """(corpus figures, figures per caption) of the coco-caption toolkit on the words of ours."""
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap (a development dependency) is not installed")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = {index: [" ".join(words_of(text)) for text in texts] for index, texts in enumerate(references)}
    answer = {index: [" ".join(words_of(text))] for index, text in enumerate(hypotheses)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleus = Bleu(4).compute_score(truth, answer)
        others = {
            "rouge_l": Rouge().compute_score(truth, answer),
            "cider": Cider().compute_score(truth, answer),
        }
    corpus = {f"bleu{order}": 100 * figure for order, figure in enumerate(bleu, 1)}
    single = {f"bleu{order}": 100 * np.array(figures) for order, figures in enumerate(bleus, 1)}
    corpus |= {name: 100 * float(figure) for name, (figure, _) in others.items()}
    single |= {name: 100 * figures for name, (_, figures) in others.items()}
    return corpus, single


def assert_as_coco(references: Any, hypotheses: Any, tolerance: float) -> None:
    corpus, single = coco(references, hypotheses)
    ours = score(references, hypotheses)
    ours_single = per_caption(references, hypotheses)
    for name in corpus:
        assert ours[name] == pytest.approx(corpus[name], abs=tolerance), name
        np.testing.assert_allclose(ours_single[name], single[name], atol=tolerance, err_msg=name)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_table(name: str) -> None:
    same = score(REFERENCES, [texts[0] for texts in REFERENCES], metrics=[name])
    none = score(REFERENCES, [""] * 4, metrics=[name])
    strange = score(REFERENCES, ["xyzzy plugh"] * 4, metrics=[name])
    single = per_caption(REFERENCES, HYPOTHESES, metrics=[name])
    assert same.keys() == none.keys() == single.keys()
    assert all(value > 0 for value in same.values())
    assert all(value == 0 for value in none.values())
    assert all(value == 0 for value in strange.values())
    assert all(len(values) == 4 and values[3] == 0 for values in single.values())
    assert score([], [], metrics=[name]) == none
    if name != "meteor":
        assert same


def test_exact_figures() -> None:
    # METEOR is there only where WordNet is; the others always, with these values.
    ours = score(REFERENCES, HYPOTHESES)
    assert {name: ours[name] for name in COCO_CORPUS} == pytest.approx(COCO_CORPUS, abs=1e-4)
    single = per_caption(REFERENCES, HYPOTHESES)
    for name, expected in COCO_CAPTIONS.items():
        assert single[name] == pytest.approx(expected, abs=1e-4), name
    assert np.mean(single["cider"]) == pytest.approx(ours["cider"])
    assert set(ours) - set(COCO_CORPUS) <= {"meteor"}


def test_papinenis_the_the_the() -> None:
    figures = score([CAT], ["the the the the the the the"])
    assert figures["bleu1"] == pytest.approx(100 * 2 / 7)
    assert figures["bleu2"] == figures["bleu3"] == figures["bleu4"] == 0


GUIDE = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of "
    "the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]


def test_papinenis_two_candidates() -> None:
    good = "It is a guide to action which ensures that the military always obeys the commands of the party"
    bad = "It is to insure the troops forever hearing the activity guidebook that party direct"
    assert score([GUIDE], [good])["bleu1"] == pytest.approx(100 * 17 / 18)
    # 8 of its 14 words; the closest reference has 16.
    assert score([GUIDE], [bad])["bleu1"] == pytest.approx(100 * math.exp(1 - 16 / 14) * 8 / 14)


def test_nltks_corpus_example() -> None:
    hypotheses = [
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "he read the book because he was interested in world history",
    ]
    references = [GUIDE, ["he was interested in world history because he read the book"]]
    # On words as they are written, so that "Party" is not "party".
    figures = METRICS["bleu"](
        [[t.split() for t in texts] for texts in references], [t.split() for t in hypotheses]
    )
    assert figures["bleu4"].corpus == pytest.approx(59.20, abs=0.01)


@pytest.mark.parametrize(
    ("references", "hypothesis", "penalty"),
    [
        (["a b c d e f g h"], "a b c d", math.exp(1 - 8 / 4)),
        (["a b c d", "a b c d e f"], "a b c d e", 1.0),  # equally near: the shorter counts
        (["a b c d e f g", "z"], "a b c d e", math.exp(1 - 7 / 5)),
        (["a b c"], "a b c d e", 1.0),
    ],
)
def test_brevity_penalty(references: list[str], hypothesis: str, penalty: float) -> None:
    words = hypothesis.split()
    precision = sum(word in " ".join(references) for word in words) / len(words)
    assert score([references], [hypothesis])["bleu1"] == pytest.approx(100 * penalty * precision)


def test_corpus_bleu_is_not_the_mean_of_captions() -> None:
    references, hypotheses = [["a b c d e"], ["v w x y z"]], ["a b c d e", "v w q r s"]
    assert score(references, hypotheses)["bleu2"] == pytest.approx(100 * math.sqrt(7 / 10 * 5 / 8))
    assert per_caption(references, hypotheses)["bleu2"] == pytest.approx(
        [100, 100 * math.sqrt(2 / 5 * 1 / 4)]
    )


def test_hypotheses_shorter_than_the_ngrams() -> None:
    # nltk alone would count one 4-gram for "a dog" that it could never have: 63.9.
    assert score([["a dog"], ["c d e f g"]], ["a dog", "c d e f g"])["bleu4"] == pytest.approx(100)


@pytest.mark.filterwarnings("error")
def test_nothing_in_common_scores_0_silently() -> None:
    for hypothesis in ("", ".", "?!", "xyzzy", "a b c d e f g", "dog " * 60):
        for references in ([["the cat"]], [["the cat", ""]], [["."]]):
            figures = score(references, [hypothesis])
            assert all(value == 0 for value in figures.values()), (hypothesis, references, figures)


@pytest.mark.filterwarnings("error")
def test_long_captions_without_a_4gram_in_common_score_exactly_0() -> None:
    figures = score([["a b c x d e f"]], ["a b c d e f"])
    assert figures["bleu3"] > 0
    assert figures["bleu4"] == 0


def test_rouge_l_by_hand() -> None:
    # Common subsequence "a dog runs": precision 3/3, recall 3/5, beta 1.2.
    assert score([["a big dog runs fast"]], ["a dog runs"])["rouge_l"] == pytest.approx(
        100 * 2.44 * 0.6 / 2.04
    )
    # Precision from one reference (2/2), recall from the other (1/1).
    assert score([["a dog runs far away"], ["x"]], ["a dog", "x"])["rouge_l"] == pytest.approx(
        (100 * 2.44 * 0.4 / (0.4 + 1.44) + 100) / 2
    )
    assert score([["a b c d", "a"]], ["a b"])["rouge_l"] == pytest.approx(100)


def test_words_are_those_of_the_vocabulary() -> None:
    for reference, hypothesis in [
        ("A DOG, running!", "a dog running"),
        ("빨간 원이 있다.", "빨간 원이 있다"),
        ("Große Straße in München.", "große straße in münchen"),
        ("赤い円がある。", "赤い円がある"),
    ]:
        assert score([[reference], ["other"]], [hypothesis, "other"])["rouge_l"] == pytest.approx(100)


@pytest.mark.parametrize("seed", range(8))
def test_agreement_with_coco_caption_on_odd_captions(seed: int) -> None:
    chance = random.Random(seed)

    def caption(most: int = 9) -> str:
        return " ".join(chance.choices("abcdefg", k=chance.randint(1, most)))

    for _ in range(12):
        references = [
            [caption() for _ in range(chance.randint(1, 5))] for _ in range(chance.choice((1, 2, 3, 20)))
        ]
        hypotheses = [
            chance.choice(
                ["", chance.choice("abz"), chance.choice(texts), "z " + texts[0], caption(3), caption(12)]
            )
            for texts in references
        ]
        assert_as_coco(references, hypotheses, tolerance=0.05)


@pytest.fixture(scope="module")
def dev_captions(flickr8k: Path) -> list[list[str]]:
    """Five captions for each of Flickr8k's dev pictures."""
    captions = defaultdict(list)
    for line in (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, text = line.split("\t")
        captions[name.split("#")[0]].append(text)
    names = (flickr8k / "Flickr_8k.devImages.txt").read_text(encoding="utf-8").split()
    return [captions[name] for name in names]


@pytest.mark.parametrize(
    ("left_out", "bleu1", "bleu4", "rouge", "cider"),
    [(0, 62.751, 21.160, 49.173, 80.371), (4, 62.398, 19.486, 45.892, 78.195)],
)
def test_people_against_each_other_on_flickr8k(
    dev_captions: list[list[str]], left_out: int, bleu1: float, bleu4: float, rouge: float, cider: float
) -> None:
    references = [[text for k, text in enumerate(texts) if k != left_out] for texts in dev_captions]
    hypotheses = [texts[left_out] for texts in dev_captions]
    figures = score(references, hypotheses)
    expected = {"bleu1": bleu1, "bleu4": bleu4, "rouge_l": rouge, "cider": cider}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=0.05)
    assert_as_coco(references[:200], hypotheses[:200], tolerance=0.01)


def test_one_caption_for_all_pictures_on_flickr8k(dev_captions: list[list[str]]) -> None:
    assert_as_coco(dev_captions[:200], ["a dog is running through the grass"] * 200, tolerance=0.01)


def test_published_ngram_counts_of_the_expert_judgements(flickr8k: Path) -> None:
    """Captions judged by experts, in CLIPScore's protocol: n-gram counts as given in pacscore's issue 3."""
    judged = flickr8k / "ExpertAnnotations.txt"
    if not judged.exists():
        pytest.skip("Flickr8k's ExpertAnnotations.txt is not beside the captions")
    lines = (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    texts = dict(line.split("\t") for line in lines)
    references, hypotheses = [], []
    for line in judged.read_text(encoding="utf-8").splitlines():
        picture, caption, *_ = line.split()
        own = [f"{picture}#{number}" for number in range(5)]
        if not {caption, *own} <= texts.keys():
            pytest.skip("the captions of Flickr8k's test pictures are not there")
        if caption not in own:
            references += [[texts[name] for name in own]] * 3  # once for each of three ratings
            hypotheses += [texts[caption]] * 3
    guesses, matches = (184995, 168003, 151011, 134055), (66573, 14211, 3024, 651)
    precisions = np.array(matches) / guesses
    figures = score(references, hypotheses, metrics=["bleu"])
    for order in (1, 2, 3, 4):  # longer than the references: no brevity penalty
        expected = 100 * np.prod(precisions[:order]) ** (1 / order)
        assert figures[f"bleu{order}"] == pytest.approx(expected, abs=0.05)


def test_nltks_meteor_example() -> None:
    hypothesis = (
        "It is a guide to action which ensures that the military always obeys the commands of the party"
    )
    figures = score([GUIDE], [hypothesis], metrics=["meteor"])
    if not figures:
        assert "meteor" not in protocol([GUIDE])
        pytest.skip("WordNet is not on nltk's search path")
    assert figures["meteor"] == pytest.approx(69.44, abs=0.01)
    assert "not comparable" in protocol([GUIDE])["meteor"]


Words = Sequence[Any]


def plain_cider(hypothesis: Words, references: list[Words], counted: list[list[Words]]) -> float:
    """CIDEr-D of one hypothesis, straight from the paper's formulas, 10 times the mean cosine."""
    documents = [
        {gram for words in captions for n in (1, 2, 3, 4) for gram in grams(words, n)} for captions in counted
    ]

    def vector(words: Words, n: int) -> dict[Any, float]:
        return {
            gram: count * math.log(len(counted) / max(1, sum(gram in document for document in documents)))
            for gram, count in grams(words, n).items()
        }

    def norm(weights: dict[Any, float]) -> float:
        return math.sqrt(sum(weight**2 for weight in weights.values()))

    total = 0.0
    for reference in references:
        longer = max(0, len(hypothesis) - 1) - max(0, len(reference) - 1)
        for n in (1, 2, 3, 4):
            ours, theirs = vector(hypothesis, n), vector(reference, n)
            dot = sum(
                min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs
            )
            scale = norm(ours) * norm(theirs)
            total += dot / scale * math.exp(-(longer**2) / 72) if scale else 0.0
    return 10 * total / 4 / len(references)


def grams(words: Words, n: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


@pytest.mark.parametrize("words", ["abcdef", range(10**6, 10**6 + 6)], ids=["words", "ids"])
def test_cider_is_the_papers_formula(words: Sequence[Any]) -> None:
    chance = random.Random(0)

    def captions(count: int, least: int = 0) -> list[list[Any]]:
        return [[chance.choice(words) for _ in range(chance.randint(least, 9))] for _ in range(count)]

    references = [captions(chance.randint(1, 4), least=1) for _ in range(12)]
    hypotheses = [captions(chance.randint(0, 4)) + [["never", "seen", "never"]] for _ in references]
    for mine, group, refs in zip(CiderD(references).scores(hypotheses), hypotheses, references, strict=True):
        assert mine == pytest.approx(
            [100 * plain_cider(hypothesis, refs, references) for hypothesis in group]
        )


def test_cider_of_chosen_pictures_in_any_order() -> None:
    references = [[words_of(text) for text in texts] for texts in REFERENCES]
    reward = CiderD(references)
    groups = [[words_of(text), references[index][0]] for index, text in enumerate(HYPOTHESES)]
    everything = reward.scores(groups)
    assert reward.scores([groups[2], groups[0], groups[2]], pictures=[2, 0, 2]) == [
        everything[2],
        everything[0],
        everything[2],
    ]
    assert reward.scores([[], [], [], []]) == [[], [], [], []]
    assert reward.scores([], pictures=[]) == []
    with pytest.raises(DataError, match="hypotheses for 1 pictures, expected 4"):
        reward.scores([[["a"]]])


def test_cider_rewards_the_reference_itself_with_1000() -> None:
    reward = CiderD([[["a", "dog", "runs", "fast"]], [["two", "men", "sit", "down"]]])
    assert reward.scores([[["a", "dog", "runs", "fast"]], [["two", "men", "sit", "down"]]]) == [
        [pytest.approx(1000)],
        [pytest.approx(1000)],
    ]
    assert CiderD([[["a", "dog"]]]).scores([[["a", "dog"]]]) == [[0.0]], (
        "of one picture alone nothing is rare"
    )


def test_cider_is_fast_enough_for_a_training_step() -> None:
    chance = random.Random(0)
    weights = [1 / rank for rank in range(1, 3001)]

    def caption() -> list[int]:
        return chance.choices(range(3000), weights, k=chance.randint(8, 14))

    reward = CiderD([[caption() for _ in range(5)] for _ in range(1000)])
    pictures = chance.sample(range(1000), 16)
    samples = [[caption() for _ in range(5)] for _ in pictures]
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        reward.scores(samples, pictures=pictures)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.010, "80 captions take about 2 ms on two cores"


def test_wrong_use_is_said() -> None:
    with pytest.raises(DataError, match="2 hypotheses for the references of 1 pictures"):
        score([["a"]], ["a", "b"])
    with pytest.raises(DataError, match="one string for the references"):
        score([["a"]], "a")
    with pytest.raises(DataError, match="picture 1 has no reference"):
        score([["a"], []], ["a", "b"])
    with pytest.raises(DataError, match="references of picture 0 are one string"):
        score(["a dog"], ["a"])
    with pytest.raises(ConfigError, match='unknown metric "blue"; did you mean "bleu"'):
        score([["a"]], ["a"], metrics=["blue"])


def test_describe_exposes_captions_that_are_all_alike() -> None:
    figures = describe(["A dog.", "a dog", "two men sit", "a cat runs"], known=["Two men sit.", "a bird"])
    assert figures == {"mean_words": 2.5, "distinct": 75.0, "novel": 75.0}
    assert describe([]) == {"mean_words": 0.0, "distinct": 0.0, "novel": 0.0}


def test_protocol_counts_references() -> None:
    assert protocol(REFERENCES)["references"] == "4 pictures, 2 to 3 references each"
    assert protocol([["a"] * 5] * 1000)["references"] == "1000 pictures, 5 references each"
    assert {"words", "bleu", "rouge_l", "cider"} <= protocol([]).keys()
