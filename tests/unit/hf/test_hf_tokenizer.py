"""A tokenizer that transformers loads gives the ids of ours; one of theirs becomes one of ours."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from scaledl.data.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    HubTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from scaledl.hf.tokenizer import files_of, from_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TEXT = "The quick brown fox\n jumps  over 12 lazy dogs, isn't it? Übung macht 日本 den Meister.\t\U0001f98a\r\n"


def fitted(kind: str) -> Tokenizer:
    made = {
        "byte": ByteTokenizer,
        "char": CharTokenizer,
        "bpe": lambda: BpeTokenizer(300),
        "bpe_masked": lambda: BpeTokenizer(300, masked=True),
    }[kind]()
    made.fit([TEXT * 3])
    return made


def write(tokenizer: Tokenizer, folder: Path) -> Path:
    for file, text in files_of(tokenizer, 48).items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("model_type", [None, "gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "bpe_masked"])
def test_transformers_reads_the_same_ids(kind: str, model_type: str | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = fitted(kind)
    write(ours, tmp_path)
    if model_type:  # which may make AutoTokenizer choose a class of its own
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = ours.encode(TEXT).tolist()
    assert theirs(TEXT, add_special_tokens=False).input_ids == ids
    assert theirs(TEXT).input_ids == ids
    assert theirs.decode(ids) == ours.decode(ids) == TEXT
    assert theirs.decode([*ids, ours.eos_id], skip_special_tokens=True) == TEXT
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 48


def test_broken_utf8_is_written_as_by_ours(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = fitted("byte")
    theirs = transformers.AutoTokenizer.from_pretrained(write(ours, tmp_path))
    assert theirs.decode([0xE6, 0x97, 65]) == ours.decode([0xE6, 0x97, 65])
    assert theirs.convert_tokens_to_ids(theirs.convert_ids_to_tokens(list(range(257)))) == list(range(257))


def test_a_character_that_char_does_not_know_is_an_error_there_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(write(fitted("char"), tmp_path))
    with pytest.raises(Exception, match="UNK"):
        theirs("Z")


def test_words_cannot_be_written() -> None:
    words = WordTokenizer()
    words.fit([TEXT])
    with pytest.raises(ValueError, match="a words tokenizer cannot be written for transformers"):
        files_of(words, 48)


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_what_was_written_comes_back(kind: str, tmp_path: Path) -> None:
    ours = fitted(kind)
    back = from_folder(write(ours, tmp_path), {}, "some/name")
    assert isinstance(back, HubTokenizer)
    assert (back.vocab_size, back.eos_id, back.pad_id) == (ours.vocab_size, ours.eos_id, ours.pad_id)
    assert np.array_equal(back.encode(TEXT), ours.encode(TEXT))
    run = tmp_path / "run"
    run.mkdir()
    back.save(run)
    (tmp_path / "tokenizer.json").unlink()
    loaded = load_tokenizer(run)
    assert loaded.state() == back.state() == json.loads((run / "tokenizer.json").read_text())
    assert loaded.decode(loaded.encode(TEXT)) == TEXT


def test_the_end_of_a_document_is_found(tmp_path: Path) -> None:
    write(fitted("bpe"), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "a"}}))
    letter = from_folder(tmp_path, {}, "x")
    assert letter is not None
    assert letter.eos_id == letter.encode("a")[0]
    (tmp_path / "tokenizer_config.json").unlink()
    for config, expected in (({"eos_token_id": 7}, 7), ({"eos_token_id": [9, 8]}, 9), ({}, letter.vocab_size)):
        found = from_folder(tmp_path, config, "x")
        assert found is not None
        assert found.eos_id == expected
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3]}))
    found = from_folder(tmp_path, {}, "x")
    assert found is not None
    assert found.eos_id == 3


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", [], "holds no settings"),
        ("tokenizer_config.json", {"eos_token": ["a"]}, "is no text"),
        (
            "generation_config.json",
            {"eos_token_id": 10**12},
            "eos_token_id=1000000000000, which is none of its 320 ids",
        ),
        ("generation_config.json", {"eos_token_id": ["a"]}, "which is none of its"),
        ("generation_config.json", {"eos_token_id": -1}, "which is none of its"),
    ],
)
def test_a_malformed_end_of_a_document_is_said(file: str, content: object, said: str, tmp_path: Path) -> None:
    write(fitted("bpe"), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        from_folder(tmp_path, {"vocab_size": 320, "eos_token_id": []}, "x")


def test_a_folder_without_a_tokenizer_and_one_with_a_damaged_one(tmp_path: Path) -> None:
    assert from_folder(tmp_path, {}, "x") is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is no tokenizer"):
        from_folder(tmp_path, {}, "x")
