import asyncio
import inspect
import json
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from scaledl.data.sampler import TrainBatches
from scaledl.data.text_classification import (
    PaddedTexts,
    TextClassification,
    docstrings,
    in_order,
    read_labelled,
    stratified,
)
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, SavedTokenizer, WordTokenizer

ROWS = [(f"{'good fine' if i % 3 else 'bad'} film number {i}", "yes" if i % 3 else "no") for i in range(30)]


def write_csv(path: Path, rows=ROWS, header="text,label") -> str:
    path.write_text("\n".join([header, *(f'"{text}",{label}' for text, label in rows)]) + "\n")
    return str(path)


def make(tmp_path: Path, tokenizer=None, rows=ROWS, **settings) -> TextClassification:
    path = write_csv(tmp_path / "texts.csv", rows)
    data = TextClassification(tokenizer or WordTokenizer(min_count=1), 4, 4, **({"path": path} | settings))
    data.prepare()
    return data


def whole(dataset) -> dict[str, torch.Tensor]:
    return dataset.__getitems__(np.arange(len(dataset)))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_texts_are_padded_behind_to_the_longest_of_the_batch() -> None:
    ids = [np.array([5, 6, 7]), np.array([8]), np.array([9, 10])]
    texts = PaddedTexts(ids, np.array([0, 1, 0]))
    batch = texts.__getitems__(np.array([2, 0]))
    assert batch["x"].tolist() == [[9, 10, 0], [5, 6, 7]]
    assert batch["y"].tolist() == [0, 0]
    assert texts.__getitems__(np.array([1]))["x"].tolist() == [[8]]
    assert {each.dtype for each in batch.values()} == {torch.int64}
    assert texts.lengths(np.array([2, 0, 1])).tolist() == [2, 3, 1]
    assert len(texts) == 3


def test_batches_of_the_sampler_are_sorted_by_length() -> None:
    rng = np.random.default_rng(0)
    texts = PaddedTexts([np.ones(n, np.int64) for n in rng.integers(1, 50, 64)], np.zeros(64, np.int64))
    batches = iter(TrainBatches(64, 32, 8, seed=0, lengths=texts.lengths))
    widths = [texts.__getitems__(next(batches))["x"].shape[1] for _ in range(4)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


# -- sources -----------------------------------------------------------------------------------------------------------


def test_docstrings_are_texts_of_eight_packages() -> None:
    texts, labels = docstrings()
    counts = Counter(labels)
    assert len(counts) == 8
    assert len(set(texts)) == len(texts) == len(labels)
    assert min(map(len, texts)) >= 40
    assert counts.most_common(1)[0][1] / len(labels) < 0.5
    assert dict(zip(texts, labels, strict=True))[inspect.getdoc(asyncio.gather)] == "asyncio"
    if sys.version_info[:3] == (3, 11, 7):
        assert len(texts) == 2_680
        assert counts["tkinter"] == 623


def test_files_of_every_format_are_read_alike(tmp_path: Path) -> None:
    rows = [('a "quoted", text\nof two lines', "1"), ("2", "0"), ("null", "10")]
    texts, labels = map(list, zip(*rows, strict=True))
    table = pa.table({"id": [1, 2, 3], "text": texts, "label": [int(label) for label in labels]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    quoted = [text.replace('"', '""') for text in texts]
    for name, sign in (("a.csv", ","), ("a.tsv", "\t")):
        lines = [f'"{text}"{sign}{label}' for text, label in zip(quoted, labels, strict=True)]
        (tmp_path / name).write_text("\n".join([f"text{sign}label", *lines]))
    for name in ("a.parquet", "a.jsonl", "a.csv", "a.tsv"):
        assert read_labelled(tmp_path / name, "text", "label") == (texts, labels), name


def test_numbers_are_classes_in_their_order_and_names_in_that_of_the_alphabet() -> None:
    assert in_order({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert in_order({"10", "9", "b"}) == ["10", "9", "b"]


def hub(monkeypatch: pytest.MonkeyPatch, **splits: list) -> None:
    features = datasets.Features({"body": datasets.Value("string"), "kind": datasets.ClassLabel(names=["z", "a"])})
    found = {
        name: datasets.Dataset.from_dict({"body": [f"{name} text {i}" for i in range(len(y))], "kind": y}, features)
        for name, y in splits.items()
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(found))


def test_a_hub_dataset_keeps_its_splits_and_the_order_of_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[0, 1] * 10, test=[1] * 3, unsupervised=[-1] * 4)
    data = TextClassification(WordTokenizer(), 4, 4, dataset="x", text_column="body", label_column="kind")
    data.prepare()
    assert {name: len(split) for name, split in data.splits()} == {"train": 18, "val": 2, "test": 3}
    assert data.labelled["test"] == (["test text 0", "test text 1", "test text 2"], ["a"] * 3)
    assert data.facts()["class_names"] == ["z", "a"]
    assert whole(data.split("test"))["y"].tolist() == [1, 1, 1]


def test_a_hub_dataset_that_does_not_load_or_has_no_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, test=[0, 1])
    with pytest.raises(ValueError, match="has the splits test, and none is called train"):
        TextClassification(WordTokenizer(), 4, 4, dataset="x").prepare()
    hub(monkeypatch, train=[0, 1, -1])
    with pytest.raises(ValueError, match=r"x, train: the label -1 of row 3 is none of the 2 classes, 0 to 1; take a"):
        TextClassification(WordTokenizer(), 4, 4, dataset="x", text_column="body", label_column="kind").prepare()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"data.dataset='imdb' \(config None\) was not loaded: division by zero"):
        TextClassification(WordTokenizer(), 4, 4, dataset="imdb").prepare()


# -- splits ------------------------------------------------------------------------------------------------------------


def test_splits_are_a_partition_class_by_class() -> None:
    labels = ["a"] * 100 + ["b"] * 40 + ["c"] * 3
    found = stratified(labels, {"test": 0.2, "val": 0.1})
    assert sorted(np.concatenate(list(found.values()))) == list(range(143))
    counts = {split: Counter(labels[i] for i in indices) for split, indices in found.items()}
    assert counts["test"] == {"a": 20, "b": 8, "c": 1}
    assert counts["val"] == {"a": 10, "b": 4, "c": 1}
    again = stratified(labels, {"test": 0.2, "val": 0.1})
    assert all((again[split] == indices).all() for split, indices in found.items())
    assert {split: len(indices) for split, indices in stratified(labels, {}).items()} == {"train": 143}


def test_the_split_does_not_depend_on_the_seed(tmp_path: Path) -> None:
    one, two = (whole(make(tmp_path, seed=seed).split("test")) for seed in (0, 7))
    assert torch.equal(one["x"], two["x"])
    assert torch.equal(one["y"], two["y"])


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_words_are_learnt_from_the_training_split_alone(tmp_path: Path) -> None:
    data = make(tmp_path)
    train = Counter(word for text in data.labelled["train"][0] for word in text.split())
    known = set(data.tokenizer.words[2:])
    assert known == set(train)
    unseen = {text.split()[-1] for text in data.labelled["test"][0]} - known
    assert unseen
    x = whole(data.split("test"))["x"]
    assert (x == 1).sum() == len(unseen)
    assert data.facts() == {
        "num_classes": 2,
        "class_names": ["no", "yes"],
        "vocab_size": len(known) + 2,
        "path": str(tmp_path / "texts.csv"),
    }


def test_ids_are_shifted_only_where_id_0_is_a_token(tmp_path: Path) -> None:
    data = make(tmp_path, ByteTokenizer())
    text = data.labelled["val"][0][0]
    x = whole(data.split("val"))["x"][0]
    assert x[: len(text)].tolist() == [byte + 1 for byte in text.encode()]
    assert data.facts()["vocab_size"] == 258
    masked = make(tmp_path, BpeTokenizer(300, masked=True))
    ids = masked.tokenizer.encode(text)
    assert whole(masked.split("val"))["x"][0, : len(ids)].tolist() == ids.tolist()
    assert masked.facts()["vocab_size"] == masked.tokenizer.vocab_size


def test_long_texts_are_cut_and_empty_ones_are_one_id(tmp_path: Path) -> None:
    rows = [*ROWS, ("", "no"), ("...", "no")]
    data = make(tmp_path, rows=rows, seq_len=3, val_fraction=0, test_fraction=0)
    batch = whole(data.split("train"))
    assert batch["x"].shape == (32, 3)
    assert batch["x"][30].tolist() == [1, 0, 0]
    assert data.split("val") is None
    assert data.split("test") is None
    assert data.tokens_per_sample == 3


def test_the_tokenizer_of_a_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    tokenizer = BpeTokenizer(300, masked=True)
    tokenizer.fit(["a film of another kind"] * 5)
    tokenizer.save(run)
    data = make(tmp_path, SavedTokenizer(str(run)), vocab_size=320)
    text = data.labelled["val"][0][0]
    ids = tokenizer.encode(text)
    assert whole(data.split("val"))["x"][0, : len(ids)].tolist() == ids.tolist()
    assert data.facts()["vocab_size"] == 320
    ByteTokenizer().save(run)
    with pytest.raises(ValueError, match=f"the byte tokenizer of {run} has a token with id 0, which is padding here"):
        make(tmp_path, SavedTokenizer(str(run)))


# -- what others read --------------------------------------------------------------------------------------------------


def test_baselines_are_majority_and_tf_idf(tmp_path: Path) -> None:
    found = make(tmp_path).baselines()
    assert found == {
        "majority val/acc": pytest.approx(2 / 3),
        "majority test/acc": pytest.approx(2 / 3),
        "TF-IDF val/acc": 1.0,
        "TF-IDF test/acc": 1.0,
    }


def test_a_run_evaluates_other_texts(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.save_to(tmp_path)
    data.save_to(tmp_path)  # of a run that goes on
    write_csv(tmp_path / "new.csv", [("bad film", "no"), ("fine unheard film film", "yes")])
    facts = {name: data.facts()[name] for name in ("class_names", "num_classes", "vocab_size")}
    later = TextClassification(WordTokenizer(), 4, 4, path=str(tmp_path / "gone.csv"), **facts)
    later.read_instead(tmp_path / "new.csv", tmp_path)
    batch = whole(later.split("val"))
    ids = data.tokenizer.ids
    assert batch["x"].tolist() == [[ids["bad"], ids["film"], 0, 0], [ids["fine"], 1, ids["film"], ids["film"]]]
    assert batch["y"].tolist() == [0, 1]
    write_csv(tmp_path / "other.csv", [("so so", "maybe")])
    with pytest.raises(ValueError, match=r"the class 'maybe' is not among data.class_names=\['no', 'yes'\]"):
        later.read_instead(tmp_path / "other.csv", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        later.read_instead(tmp_path / "none.csv", tmp_path)


def test_a_run_on_other_texts_is_not_written_over(tmp_path: Path) -> None:
    make(tmp_path).save_to(tmp_path)
    with pytest.raises(ValueError, match="holds a run on other texts: its tokenizer differs"):
        make(tmp_path, rows=[(f"new words {i}", i % 2) for i in range(20)]).save_to(tmp_path)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 0}, "data.seq_len=0 must be at least 1"),
        ({"dataset": "imdb"}, "name two sources; set one of them to null"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave something below 1 to train on"),
        ({"val_fraction": -0.1}, "must be at least 0"),
        ({"num_classes": 3}, "data.num_classes=3, but there are 2 classes: no, yes; set it to null"),
        ({"class_names": ["yes", "maybe"]}, "the class 'no' is not among data.class_names"),
        ({"vocab_size": 5}, r"data.vocab_size=5 is smaller than the \d+ ids of the words tokenizer"),
        ({"text_column": "body"}, "no column 'body'; set data.text_column to one of text, label"),
        ({"label_column": "y"}, "no column 'y'; set data.label_column to one of text, label"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\nb,\n", "row 2 has no 'label'; fill it in or leave the row out"),
        ("a.csv", "text,label\n,1\nb,1\n", "row 1 has no 'text'; fill it in or leave the row out"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "", "was not read: Empty CSV file; is it whole and what its name says"),
        ("a.csv", "text,label\na,1,2\n", "was not read: CSV parse error: Expected 2 columns, got 3"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "was not read: JSON parse error"),
        ("a.parquet", "text,label\n", "was not read: .* is it whole"),
        ("a.txt", "some text", "labelled texts come as .csv, .tsv, .jsonl or .parquet"),
        ("a.csv", "text,label\na,x\nb,x\nc,x\nd,y\n", r"the class 'y' has 1 text\(s\), but test, val, train need one"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        TextClassification(WordTokenizer(), 4, 4, path=str(path)).prepare()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.csv' is no file; give one, or null for docstrings"):
        TextClassification(WordTokenizer(), 4, 4, path=str(tmp_path / "nothing.csv")).prepare()


def test_characters_that_training_has_not_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"are not among the .* that this tokenizer knows: '☃'"):
        make(tmp_path, CharTokenizer(), rows=[*ROWS, *[("plain", "c")] * 2, ("☃", "c")], class_names=None).datasets()
