import math

import pytest

from scaledl.bleu import corpus_bleu, tokenize_13a

HYPOTHESES = [
    'The quick "brown" fox, at 3.5 m/s, jumped over the lazy dog.',
    "A man in a blue-ish shirt is standing on a ladder (cleaning a window).",
    "Two dogs run through 1,000 acres of grass-land in 1990-95.",
]
REFERENCES = [
    'The fast "brown" fox, at 3.5 m/s, jumps over the lazy dog.',
    "A man in a blue-ish shirt stands on a ladder cleaning a big window.",
    "Two big dogs are running through 1,000 acres of grass-land in 1990-95!",
]


def test_the_same_text_has_100_and_nothing_in_common_0() -> None:
    assert corpus_bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    assert corpus_bleu(["a b c d"], ["e f g h"]) == 0
    assert corpus_bleu([""], ["a b c d"]) == 0
    assert corpus_bleu(["a b c"], ["a b c"]) == 0  # no n-gram of 4, and no smoothing


def test_a_case_by_hand() -> None:
    # of 7 words 6 are right, of 6 pairs 4, of 5 triples 3, of 4 quadruples 2; 7 words for 8: brevity exp(1 - 8/7)
    bleu = corpus_bleu(["the cat sat on the mat today"], ["the cat sat on the mat all day"], str.split)
    assert bleu == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25 * math.exp(1 - 8 / 7))


def test_a_word_counts_as_often_as_the_reference_has_it() -> None:
    # Papineni et al.'s example: 7 times "the" has a modified precision of 2/7; here with enough of the rest to count.
    right = "a b c d e"
    bleu = corpus_bleu([f"{right} the the the the the the the"], [f"{right} the x the y z v w"], str.split)
    precisions = (7 / 12, 5 / 11, 4 / 10, 3 / 9)  # of single words a to e and two "the", then each with "... e the"
    assert bleu == pytest.approx(100 * math.prod(precisions) ** 0.25)


def test_counts_are_summed_over_the_corpus_before_they_are_divided() -> None:
    one, two = (["a b c d e"], ["a b c d x"]), (["f g h i"], ["f g h i"])
    together = corpus_bleu(one[0] + two[0], one[1] + two[1], str.split)
    assert together == pytest.approx(100 * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25)


def test_a_long_hypothesis_has_no_brevity_bonus() -> None:
    bleu = corpus_bleu(["a b c d e f"], ["a b c d e"], str.split)
    assert bleu == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, world!", "Hello , world !"),
        ("It's 3.5% of 1,000 (or 7).", "It's 3.5 % of 1,000 ( or 7 ) ."),
        ("1990-95 and well-known", "1990 - 95 and well-known"),
        ("&quot;A&amp;B&quot; x/y", '" A & B " x / y'),
        ("end.\nNext line", "end . Next line"),
        ("übergroß…", "übergroß…"),
    ],
)
def test_13a_tokens_by_hand(text: str, tokens: str) -> None:
    assert tokenize_13a(text) == tokens.split(" ")


def test_it_equals_torchmetrics() -> None:
    text = pytest.importorskip("torchmetrics.text", reason="an implementation to compare with")
    theirs = text.SacreBLEUScore(tokenize="13a")(HYPOTHESES, [[reference] for reference in REFERENCES])
    assert 20 < theirs * 100 < 80
    assert corpus_bleu(HYPOTHESES, REFERENCES) == pytest.approx(theirs.item() * 100, rel=1e-5)


def test_it_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the reference that published scores come from")
    theirs = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert corpus_bleu(HYPOTHESES, REFERENCES) == pytest.approx(theirs, abs=1e-9)


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 hypotheses for 1 references"):
        corpus_bleu(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        corpus_bleu([], [])
