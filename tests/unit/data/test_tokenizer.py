import builtins
import json
import sys

import numpy as np
import pytest

from scaledl.data.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    HubTokenizer,
    load_tokenizer,
    stream_text,
)

TEXT = "Größe 10 µm — naïve café, 東京 🙂👩‍🔬.\n  def f(x):\r\n\treturn x  # the then there\n" * 3


def fitted(kind):
    tokenizer = {"char": CharTokenizer, "byte": ByteTokenizer, "bpe": lambda: BpeTokenizer(300)}[kind]()
    tokenizer.fit([TEXT[:60], TEXT[60:]])
    return tokenizer


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
class TestEvery:
    def test_round_trip(self, kind):
        tokenizer = fitted(kind)
        ids = tokenizer.encode(TEXT)
        assert ids.dtype == np.int64
        assert 0 <= ids.min() <= ids.max() < tokenizer.eos_id == tokenizer.vocab_size - 1
        assert tokenizer.decode(ids) == TEXT
        assert tokenizer.decode(tokenizer.encode("")) == ""

    def test_end_and_padded_vocabulary_print_nothing(self, kind):
        tokenizer = fitted(kind)
        ids = tokenizer.encode("the").tolist()
        assert tokenizer.decode([*ids, tokenizer.eos_id, *ids, tokenizer.vocab_size + 5]) == "thethe"

    def test_saved_and_loaded(self, kind, tmp_path):
        tokenizer = fitted(kind)
        tokenizer.save(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded.describe() == tokenizer.describe()
        assert json.dumps(loaded.describe())
        np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
        assert loaded.decode(loaded.encode(TEXT)) == TEXT

    def test_stream_gives_whole_characters(self, kind):
        tokenizer = fitted(kind)
        parts = list(stream_text(tokenizer, tokenizer.encode(TEXT)))
        assert "".join(parts) == TEXT
        assert "\ufffd" not in "".join(parts)
        assert len(parts) > 20  # it streams

    def test_encode_all_is_encode(self, kind):
        tokenizer = fitted(kind)
        for text, ids in zip(["the", "", "return"], tokenizer.encode_all(["the", "", "return"]), strict=True):
            np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_char_vocabulary_is_sorted():
    tokenizer = CharTokenizer()
    tokenizer.fit(["hello", " world"])
    assert [tokenizer.decode([i]) for i in range(8)] == sorted(set("hello world"))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (9, 8)


def test_char_names_unknown_characters():
    tokenizer = CharTokenizer()
    tokenizer.fit(["abc"])
    with pytest.raises(ValueError, match=r"7 character\(s\) .* 3 .*'d', 'e', 'f', 'g', 'h', \.\.\..*tokenizer=byte"):
        tokenizer.encode("abcdefghij")


def test_byte_is_utf8():
    assert ByteTokenizer().encode("é").tolist() == [0xC3, 0xA9]
    assert ByteTokenizer().vocab_size == 257


def test_broken_utf8_streams_on():
    parts = list(stream_text(ByteTokenizer(), [0xC3, 0x41, 0x42, 0xE6, 0x9D]))
    assert "".join(parts) == "\ufffdAB\ufffd"
    assert parts[0] == "\ufffdA"


def test_stream_keeps_the_spaces_of_a_sentencepiece_decoder():
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"\u2581the": 0, "\u2581cat": 1, "s": 2}, unk_token="s"))
    backend.decoder = tokenizers.decoders.Metaspace()  # drops the space before the first token, and only there
    tokenizer = HubTokenizer("unused")
    tokenizer._set_backend(backend)
    tokenizer.vocab_size, tokenizer.eos_id = 4, 3
    assert list(stream_text(tokenizer, [0, 1, 2, 0, 3, 1])) == ["the", " cat", "s", " the", " cat"]


def test_bpe_compresses_and_refuses_a_small_vocabulary():
    tokenizer = BpeTokenizer(300)
    tokenizer.fit(["the then there " * 50])
    assert len(tokenizer.encode("the then there")) < 8
    assert tokenizer.vocab_size < 300  # a short text has few merges
    with pytest.raises(ValueError, match=r"vocab_size=100 .* 257"):
        BpeTokenizer(100)


def test_masked_bpe_has_padding_and_a_mask_that_no_text_is_encoded_as(tmp_path):
    tokenizer = BpeTokenizer(300, masked=True)
    text = TEXT + " [PAD] [MASK] <|endoftext|>" * 20
    tokenizer.fit([text])
    ids = tokenizer.encode(text)
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 299, 300)
    assert 1 < ids.min() <= ids.max() < 299
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *tokenizer.encode("the"), 0, 299]) == "the"
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.describe() == tokenizer.describe()
    assert (loaded.pad_id, loaded.mask_id) == (0, 1)
    with pytest.raises(ValueError, match=r"vocab_size=258 is below 259 \(256 bytes, padding, the mask"):
        BpeTokenizer(258, masked=True)


def test_plain_bpe_is_what_it_was_before_there_was_a_mask():
    """What caches and run directories of earlier versions hold."""
    tokenizer = fitted("bpe")
    assert (tokenizer.pad_id, tokenizer.mask_id) == (None, None)
    assert tokenizer.settings() == {"kind": "bpe", "wanted": 300}
    assert tokenizer.describe() == tokenizer.settings() | {"vocab_size": 300, "eos_id": 299}


def test_bpe_reads_its_end_in_a_text_as_text():
    tokenizer = fitted("bpe")
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json in .*run trained on text"):
        load_tokenizer(tmp_path)
    for broken in ["{", "[]", '{"kind": "gzip"}', '{"kind": "char"}']:
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match="no tokenizer saved by scaledl"):
            load_tokenizer(tmp_path)


@pytest.fixture
def hub_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    bpe = fitted("bpe")
    folder = tmp_path / "hub"
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe.backend, eos_token="<|endoftext|>").save_pretrained(
        folder
    )
    return folder, bpe


def test_hub_tokenizer_from_a_folder(hub_folder, tmp_path):
    folder, bpe = hub_folder
    tokenizer = HubTokenizer(str(folder))
    before = tokenizer.settings()
    tokenizer.fit([])
    assert tokenizer.eos_id == bpe.eos_id
    np.testing.assert_array_equal(tokenizer.encode(TEXT), bpe.encode(TEXT))
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).decode(bpe.encode(TEXT)) == TEXT
    (folder / "tokenizer.json").write_text("{}")
    assert HubTokenizer(str(folder)).settings() != before  # another tokenizer is another token cache


def test_hub_tokenizer_says_what_is_missing(monkeypatch, tmp_path):
    def without_transformers(name, *args, real=builtins.__import__, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(ImportError, match=r"pip install 'scaledl\[hf\]'.*tokenizer=bpe"):
        HubTokenizer("gpt2").fit([])
