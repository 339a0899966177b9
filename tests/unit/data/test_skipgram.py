from pathlib import Path

import numpy as np
import pytest

from scaledl.data import skipgram
from scaledl.data.skipgram import ROLES, Documentation, Pairs, Sentences, SkipGram
from scaledl.data.tokenizer import WordTokenizer

TEXT = "a quick fox saw a slow dog and a dog saw a fox " * 40


def make(tmp_path: Path, text: str | None = TEXT, **settings) -> SkipGram:
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
        settings = {"path": str(tmp_path / "a.txt")} | settings
    settings = {"tokenizer": WordTokenizer(min_count=1), "subsample": 0.0} | settings
    data = SkipGram(settings.pop("tokenizer"), 4, 4, cache_dir=str(tmp_path / "cache"), **settings)
    data.prepare()
    return data


def listed(pairs: Pairs) -> list[tuple[int, int]]:
    batch = pairs.__getitems__(np.arange(len(pairs)))
    return list(zip(batch["x"].tolist(), batch["context"].tolist(), strict=True))


def test_pairs_are_all_neighbours_within_a_document() -> None:
    """By hand, with a window of 1, so that the drawn reach is 1 everywhere."""
    ids = np.array([2, 3, 4, 0, 5, 6, 0, 7])
    pairs = Pairs(ids, np.ones(8), window=1, seed=0)
    assert listed(pairs) == [(2, 3), (3, 2), (3, 4), (4, 3), (5, 6), (6, 5)]


def test_windows_reach_as_far_as_is_drawn_for_each_place() -> None:
    rng = np.random.default_rng(1)
    ids = np.where(rng.random(400) < 0.05, 0, rng.integers(2, 9, 400))
    pairs = Pairs(ids, np.ones(9), window=4, seed=3)
    reach = np.random.default_rng(3)
    reach.random(400)  # of the subsampling, which keeps all here
    reach = reach.integers(1, 5, 400)
    document = np.cumsum(ids == 0)
    expected = [
        (ids[i], ids[j])
        for i in range(400)
        for j in range(400)
        if i != j and ids[i] and ids[j] and document[i] == document[j] and abs(i - j) <= reach[i]
    ]
    assert listed(pairs) == expected
    some = np.array([5, 0, len(pairs) - 1, 5])
    batch = pairs.__getitems__(some)
    assert list(zip(batch["x"].tolist(), batch["context"].tolist(), strict=True)) == [expected[i] for i in some]


def test_frequent_words_lose_occurrences_by_the_square_root_of_their_share() -> None:
    ids = np.random.default_rng(0).choice([2, 3], 100_000, p=[0.9, 0.1])
    counts = np.bincount(ids, minlength=4)
    keep = np.minimum(1, np.sqrt(0.1 * counts.sum() / np.maximum(counts, 1)))
    kept = np.bincount(Pairs(ids, keep, 2, seed=1).ids, minlength=4)
    assert kept[2] == pytest.approx(counts[2] / 3, rel=0.02)  # sqrt(0.1 / 0.9)
    assert kept[3] == pytest.approx(counts[3], rel=0.02)


def test_unknown_words_are_left_out_and_neighbours_come_closer(tmp_path: Path) -> None:
    data = make(
        tmp_path, "one two rare three\n" + "one two three\n" * 30, tokenizer=WordTokenizer(min_count=2), window=1
    )
    two, three = (data.tokenizer.ids[word] for word in ("two", "three"))
    assert (two, three) in listed(data.split("train"))[:6]
    assert all(min(pair) > 1 for pair in listed(data.split("train")))


def test_word_counts_are_those_of_the_training_text(tmp_path: Path) -> None:
    data = make(tmp_path, val_fraction=0.0, vocab_size=20)
    words = TEXT.split()
    counts = data.word_counts
    assert counts.shape == (20,)
    assert {word: counts[i] for word, i in data.tokenizer.ids.items()} == {w: words.count(w) for w in set(words)}
    assert counts.sum() == len(words)
    assert data.split("val") is None
    assert data.split("test") is None


def test_the_embedded_sentences_ask_112_analogies(tmp_path: Path) -> None:
    data = make(tmp_path, None, tokenizer=WordTokenizer())
    test = data.split("test")
    assert len(test) == 112
    questions = {
        tuple(data.tokenizer.decode(row).split()) for row in test.__getitems__(np.arange(112))["analogy"].numpy()
    }
    assert len(questions) == 112
    assert ("king", "queen", "actor", "actress") in questions
    assert ("queen", "king", "actress", "actor") in questions
    assert all(len(set(question)) == 4 for question in questions)
    assert {name for name, _ in data.splits()} == {"train", "val", "test"}


def test_the_embedded_sentences_hide_no_other_difference_between_women_and_men() -> None:
    """Each word of a role stands as often beside the man as beside the woman, as far as chance allows."""
    texts = [text.split() for _, text in Sentences().pieces()]
    assert texts == [text.split() for _, text in Sentences().pieces()]
    for (man, woman), things in list(ROLES.items())[:3]:
        for thing in things.split():
            with_man, with_woman = (sum(thing in text and who in text for text in texts) for who in (man, woman))
            assert 0.75 < with_man / with_woman < 1.33, (man, woman, thing)


def test_the_documentation_is_topics_and_then_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skipgram, "docstrings", lambda: (["one docstring", "another"], ["a", "b"]))
    documents, texts = zip(*Documentation().pieces(), strict=True)
    assert list(documents) == list(range(len(documents)))
    assert len(documents) > 50
    assert texts[-2:] == ("one docstring", "another")


def test_questions_of_a_file_leave_unknown_words_out(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(": section\nquick slow fox dog\nquick slow fox unicorn\n\nA quick saw dog\n")
    data = make(tmp_path, analogies=str(tmp_path / "q.txt"))
    questions = data.split("test").__getitems__(np.arange(2))["analogy"]
    assert [data.tokenizer.decode(row.numpy()) for row in questions] == ["quick slow fox dog", "a quick saw dog"]
    (tmp_path / "q.txt").write_text("three words only\n")
    with pytest.raises(ValueError, match=r"q.txt: 'three words only' is not four words"):
        make(tmp_path, analogies=str(tmp_path / "q.txt")).datasets()


def test_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    one, same, other = (listed(make(tmp_path, subsample=0.05, seed=seed).split("train")) for seed in (0, 0, 1))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "data.window=0 must be at least 1"),
        ({"subsample": -1.0}, "data.subsample=-1.0 at least 0"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 in \\[0, 1\\)"),
        ({"vocab_size": 3}, "data.vocab_size=3 is smaller than the 9 of the tokenizer"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)


def test_a_text_without_neighbours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no two known words near each other"):
        make(tmp_path, "one two three", tokenizer=WordTokenizer(min_count=2)).datasets()


def test_a_run_on_another_text_is_not_written_over(tmp_path: Path) -> None:
    make(tmp_path).save_to(tmp_path)
    make(tmp_path).save_to(tmp_path)
    with pytest.raises(ValueError, match="holds a run on another text"):
        make(tmp_path, "some other text of words").save_to(tmp_path)
