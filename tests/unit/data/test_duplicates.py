"""Documents that were there before are left out: exactly those, whatever the number of processes."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest

from scaledl.data import corpus as corpus_module
from scaledl.data.duplicates import TextHash, first_of_each
from scaledl.data.shards import read_manifest
from scaledl.data.text import TextData
from scaledl.data.tokenizer import ByteTokenizer


def hashed(*documents):
    hashes = TextHash()
    for pieces in documents:
        for number, piece in enumerate(pieces):
            hashes.add(piece, begins=number == 0)
    return hashes.finish()


def test_white_space_does_not_count_and_words_do():
    same = hashed(["one two"], ["one  two\n"], ["one", " two"], ["\tone\n", "two "])
    assert (same == same[0]).all()
    others = hashed(["one two"], ["onetwo"], ["one two three"], ["One two"], ["two one"], ["one"], [" "])
    assert len({tuple(row) for row in others.tolist()}) == 7


def test_the_first_of_each_stays():
    random.seed(0)
    texts = [f"text {random.randrange(60)}" for _ in range(200)]
    cuts = [0, 3, 3, 90, 200]
    parts = [hashed(*([text] for text in texts[a:b])) for a, b in pairwise(cuts)]
    kept = first_of_each(parts, np.array(cuts[:-1]), len(texts))
    assert [texts[i] for i in np.flatnonzero(kept)] == list(dict.fromkeys(texts))
    assert np.flatnonzero(kept).tolist() == [texts.index(text) for text in dict.fromkeys(texts)]


def test_a_document_of_several_parts_is_one():
    # parts: [a, b...], [...b, c], [a], [b...], [...b]: the fourth document is b again, cut alike
    parts = [hashed(["a"], ["b"]), hashed(["rest of b"], ["c"]), hashed(["a"], ["b"]), hashed(["rest of b"])]
    kept = first_of_each(parts, np.array([0, 1, 3, 4]), 5)
    assert kept.tolist() == [True, True, True, False, False]
    parts[3] = hashed(["another rest"])
    assert first_of_each(parts, np.array([0, 1, 3, 4]), 5).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_corpus_without_its_duplicates(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(corpus_module, "PART_BYTES", 500)
    random.seed(1)
    texts = [f"document {random.randrange(80)}" + " and" * random.randrange(3) for _ in range(150)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in dict.fromkeys(texts)))

    def tokens(name, **given):
        path, cache = str(tmp_path / name), str(tmp_path / "cache")
        data = TextData(ByteTokenizer(), 4, 4, path=path, cache_dir=cache, num_proc=processes, seq_len=8, **given)
        data.prepare()
        windows = data.datasets()
        ids = [windows[split].tokens.take(np.arange(len(windows[split].tokens))) for split in ("train", "val")]
        return data, [each.tolist() for each in ids]

    data, found = tokens("a.jsonl", deduplicate=True)
    assert found == tokens("b.jsonl")[1]
    assert found != tokens("a.jsonl")[1]
    source = read_manifest(data.folder)["source"]
    assert source["documents"] == 150
    assert source["duplicates"] == 150 - len(set(texts)) > 30
    assert f"{source['duplicates']} of 150 documents left out as duplicates" in data.describe()
