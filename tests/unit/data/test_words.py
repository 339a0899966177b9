"""The tokenizer of words, and one that comes from an earlier run."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaledl.data.text import TextData
from scaledl.data.tokenizer import BpeTokenizer, SavedTokenizer, WordTokenizer, load_tokenizer

TEXTS = ["The cat saw the dog; the dog ran.", "A cat's dog, a dog's cat: Größe 10!"]


def fitted(**settings) -> WordTokenizer:
    tokenizer = WordTokenizer(**settings)
    tokenizer.fit(TEXTS)
    return tokenizer


def test_ids_follow_the_frequency_and_then_the_alphabet() -> None:
    # dog 4, cat 3 and the 3, then ' a s with 2; all else once.
    tokenizer = fitted()
    assert tokenizer.words == ["<pad>", "<unk>", "dog", "cat", "the", "'", "a", "s"]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id, tokenizer.mask_id) == (8, 0, 0, None)
    ids = tokenizer.encode("THE dog's größe")
    assert ids.dtype == np.int64
    assert ids.tolist() == [4, 2, 5, 7, 1]
    assert tokenizer.encode("").tolist() == []


def test_min_count_max_words_and_capitals() -> None:
    assert fitted(min_count=3).words[2:] == ["dog", "cat", "the"]
    assert fitted(max_words=2).words[2:] == ["dog", "cat"]
    with_capitals = fitted(min_count=1, lower=False)
    assert {"The", "the", "Größe", "10", "!", ":"} <= set(with_capitals.words)
    assert with_capitals.encode("The").item() != with_capitals.encode("the").item()


def test_decoding_names_unknown_words_and_leaves_padding_out() -> None:
    tokenizer = fitted()
    assert tokenizer.decode([2, 1, 3, 0, 0, 99]) == "dog <unk> cat"


def test_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = fitted(min_count=2, max_words=4, lower=False)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, WordTokenizer)
    assert loaded.state() == tokenizer.state()
    assert loaded.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()


def test_a_saved_tokenizer_is_that_of_the_run_whatever_it_is_fitted_on(tmp_path: Path) -> None:
    tokenizer = BpeTokenizer(300, masked=True)
    tokenizer.fit(TEXTS * 10)
    tokenizer.save(tmp_path)
    saved = SavedTokenizer(str(tmp_path))
    saved.fit(["something else"])
    for name in ("kind", "vocab_size", "eos_id", "pad_id", "mask_id"):
        assert getattr(saved, name) == getattr(tokenizer, name), name
    assert saved.encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()
    assert [each.tolist() for each in saved.encode_all(TEXTS)] == [tokenizer.encode(text).tolist() for text in TEXTS]
    assert saved.decode(saved.encode(TEXTS[0])) == TEXTS[0]
    again = tmp_path / "again"
    again.mkdir()
    saved.save(again)
    assert json.loads((again / "tokenizer.json").read_text()) == json.loads((tmp_path / "tokenizer.json").read_text())


def test_a_language_model_goes_on_with_the_tokenizer_of_another_run(tmp_path: Path) -> None:
    tokenizer = fitted()
    tokenizer.save(tmp_path)
    path = tmp_path / "new.txt"
    path.write_text("the dog ran after a cat and another dog\n" * 20)
    data = TextData(SavedTokenizer(str(tmp_path)), 4, 4, seq_len=4, path=str(path), cache_dir=str(tmp_path / "cache"))
    data.prepare()
    assert data.facts()["vocab_size"] == tokenizer.vocab_size
    first = data.split("train").__getitems__(np.arange(1))["input_ids"][0].tolist()
    assert first == tokenizer.encode("the dog ran after").tolist()


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no tokenizer.json in {tmp_path}; give the directory of a run"):
        SavedTokenizer(str(tmp_path)).fit([])
