import pickle

import numpy as np
import pytest
import torch

from scaledl.data.pretokenize import split_documents
from scaledl.data.text import TextData, windows_of_text
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, load_tokenizer

TEXT = "".join(chr(ord("a") + i * i % 23) for i in range(103))


def text_data(tmp_path, text=TEXT, tokenizer=None, **given):
    path = tmp_path / "a.txt"
    path.write_text(text)
    given = {"path": str(path), "seq_len": 5} | given
    data = TextData(tokenizer or ByteTokenizer(), 4, 4, cache_dir=str(tmp_path / "cache"), **given)
    data.prepare()
    return data


def rows(tmp_path, texts):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    return str(path)


def whole(dataset):
    return dataset.__getitems__(np.arange(len(dataset)))


def test_training_windows_and_shifted_labels(tmp_path):
    train = text_data(tmp_path).datasets()["train"]
    ids = list(TEXT[:92].encode())  # the last 10 % are validation; one document has no end
    assert len(train) == 18  # 18 * 5 + 1 <= 92 < 19 * 5 + 1
    batch = train.__getitems__(np.array([17, 0, 3]))
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert set(batch) == {"input_ids", "labels"}
    for row, index in enumerate([17, 0, 3]):
        assert batch["input_ids"][row].tolist() == ids[index * 5 : index * 5 + 5]
        assert batch["labels"][row].tolist() == ids[index * 5 + 1 : index * 5 + 6]


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_stride(tmp_path, stride):
    train = text_data(tmp_path, stride=stride).datasets()["train"]
    ids = list(TEXT[:92].encode())
    starts = list(range(0, 92 - 5, stride))
    assert len(train) == len(starts)
    assert whole(train)["labels"].tolist() == [ids[start + 1 : start + 6] for start in starts]


@pytest.mark.parametrize("length", [103, 120, 121, 122])
def test_validation_predicts_every_token_once(tmp_path, length):
    text = (TEXT * 2)[:length]
    val = text_data(tmp_path, text, val_fraction=0.5).datasets()["val"]
    ids = list(text[int(length * 0.5) :].encode())
    batch = whole(val)
    kept = batch["labels"] != -100
    assert batch["labels"][kept].tolist() == ids[1:]
    assert batch["input_ids"][kept].tolist() == ids[:-1]
    assert set(batch["input_ids"][~kept].tolist()) <= {256, ids[-1]}
    assert (~kept).sum() < 5


def test_documents_end_and_are_numbered(tmp_path):
    texts = ["abcdefgh", "ij", "klmnopqrs", "tu"]
    data = text_data(tmp_path, path=rows(tmp_path, texts), val_fraction=0.0, document_mask=True, stride=1)
    assert list(data.datasets()) == ["train"]
    line = [*b"abcdefgh", 256, *b"ij", 256, *b"klmnopqrs", 256, *b"tu", 256]
    documents = [0] * 9 + [1] * 3 + [2] * 10 + [3] * 3
    batch = whole(data.datasets()["train"])
    assert batch["input_ids"].tolist() == [line[i : i + 5] for i in range(20)]
    assert batch["document_ids"].tolist() == [documents[i : i + 5] for i in range(20)]
    assert batch["document_ids"].dtype == torch.int64


def test_padding_belongs_to_no_document(tmp_path):
    data = text_data(tmp_path, val_fraction=0.5, document_mask=True)
    batch = whole(data.datasets()["val"])
    # 52 tokens: the last of 11 windows holds the tokens 50 and 51, and only 50 has one to predict
    assert batch["document_ids"][-1].tolist() == [0, 0, -1, -1, -1]
    assert batch["labels"][-1].tolist() == [ord(TEXT[-1]), -100, -100, -100, -100]
    assert batch["input_ids"][-1, 2:].tolist() == [256] * 3


def test_whole_documents_are_held_out(tmp_path):
    texts = [f"{i:02d}" * (3 + i % 7) for i in range(60)]
    data = text_data(tmp_path, path=rows(tmp_path, texts), val_fraction=0.2)
    found = {}
    for split, windows in data.datasets().items():
        ids = windows.tokens.take(np.arange(len(windows.tokens)))
        found[split] = bytes(np.where(ids == 256, 10, ids).astype(np.uint8)).decode().split()
    assert sorted(found["train"] + found["val"]) == sorted(texts)
    assert not set(found["train"]) & set(found["val"])
    share = sum(map(len, found["val"])) / sum(map(len, texts))
    assert 0.17 < share < 0.201


def test_split_of_few_or_uneven_documents_cuts_the_end():
    np.testing.assert_array_equal(split_documents(np.array([100]), 0.1), [90])
    np.testing.assert_array_equal(split_documents(np.array([50, 45, 5]), 0.2), [50, 30, 0])
    np.testing.assert_array_equal(split_documents(np.array([50, 50]), 0.0), [50, 50])
    lengths = np.random.default_rng(0).integers(1, 1000, 5000)
    held_out = lengths[split_documents(lengths, 0.1) == 0].sum() / lengths.sum()
    assert 0.0985 < held_out <= 0.1


def test_bytes_per_token(tmp_path):
    data = text_data(tmp_path, "é" * 40 + "e" * 40, CharTokenizer(), val_fraction=0.75)
    assert data.bytes_per_token() == pytest.approx(80 / 60)
    assert data.datasets()["val"].bytes_per_token == data.bytes_per_token()


def test_any_text_as_evaluation_set():
    windows = windows_of_text("Größe", ByteTokenizer(), 4)
    ids = list("Größe".encode())
    labels = whole(windows)["labels"]
    assert labels[labels != -100].tolist() == ids[1:]
    assert windows.bytes_per_token == 1
    with pytest.raises(ValueError, match=r"1 token\(s\) has nothing to predict"):
        windows_of_text("a", ByteTokenizer(), 4)


def test_vocab_size_is_a_fact_and_may_be_padded(tmp_path):
    assert text_data(tmp_path).facts()["vocab_size"] == 257
    assert text_data(tmp_path, vocab_size=320).facts()["vocab_size"] == 320


def test_the_mask_is_a_fact_where_there_is_one_and_padding_has_an_id_of_its_own(tmp_path):
    assert "mask_id" not in text_data(tmp_path).facts()
    assert text_data(tmp_path, vocab_size=320, mask_id=319).facts()["mask_id"] == 319
    text = bytes(np.random.default_rng(0).integers(97, 123, 400).tolist()).decode()  # without a pattern to compress
    data = text_data(tmp_path, text, BpeTokenizer(300, masked=True), seq_len=15)
    assert data.facts()["mask_id"] == 1
    last = whole(data.datasets()["val"])
    assert (last["input_ids"][last["labels"] == -100][1:] == 0).all()  # the first is the text's last token
    assert (last["input_ids"] == 0).any()
    assert not (last["input_ids"][last["labels"] != -100] == 0).any()


def test_tokenizer_goes_into_the_run_directory(tmp_path):
    data = text_data(tmp_path, tokenizer=CharTokenizer())
    run = tmp_path / "run"
    run.mkdir()
    data.save_to(run)
    assert load_tokenizer(run).decode(data.tokenizer.encode(TEXT)) == TEXT


def test_second_preparation_does_no_work(tmp_path, monkeypatch):
    first = text_data(tmp_path)
    monkeypatch.setattr("scaledl.data.pretokenize.scan_part", lambda *_: 1 / 0)
    second = TextData(ByteTokenizer(), 4, 4, path=str(tmp_path / "a.txt"), cache_dir=str(tmp_path / "cache"), seq_len=5)
    second.prepare()
    second.prepare()
    assert second.folder == first.folder
    with pytest.raises(ZeroDivisionError):  # another text is another cache
        text_data(tmp_path, TEXT + "more")


def test_loader_processes_map_the_files_again(tmp_path):
    windows = text_data(tmp_path, TEXT * 100, document_mask=True).datasets()["train"]
    sent = pickle.dumps(windows.tokens)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).take(np.arange(20)), windows.tokens.take(np.arange(20)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_through_the_loader(tmp_path, num_workers):
    data = text_data(tmp_path, num_workers=num_workers)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (4, 5)
    labels = torch.cat([batch["labels"] for batch in data.val_dataloader()])
    assert (labels != -100).sum() == 10
