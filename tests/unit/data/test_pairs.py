import csv
import datetime
import gzip
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scaledl.config.compose import compose
from scaledl.config.folders import CONF
from scaledl.data.pairs import BOS, EOS, IGNORED, PAD, UNK, Pairs, Vocabulary, date_pairs
from scaledl.data.sampler import TrainBatches
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

GERMAN = ["Ein Hund läuft.", "Zwei Männer.", "  ", "Eine Frau singt ein Lied.", "Ein Hund\u2028schläft."]
ENGLISH = ["A dog runs.", "Two men.", "Nobody.", "A woman sings a song.", "A dog is sleeping."]


def make(tokenizer: Tokenizer | None = None, **settings: object) -> Pairs:
    given = {"source": "de", "target": "en", "max_len": 40, "val_fraction": 0.2, "test_fraction": 0.2} | settings
    data = Pairs(tokenizer or CharTokenizer(), 4, 4, **given)
    data.prepare()
    return data


def folder(path: Path, splits: dict[str, int] | None = None, compressed: bool = False) -> Path:
    for split, count in (splits or {"train": 5, "val": 2, "test": 1}).items():
        for ending, lines in (("de", GERMAN), ("en", ENGLISH)):
            text = "\n".join(lines[:count]) + "\n"
            if compressed:
                (path / f"{split}.{ending}.gz").write_bytes(gzip.compress(text.encode()))
            else:
                (path / f"{split}.{ending}").write_text(text, encoding="utf-8")
    return path


# --- ids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(
    "tokenizer", [CharTokenizer(), ByteTokenizer(), BpeTokenizer(300), WordTokenizer(min_count=1, lower=False)]
)
def test_texts_come_back_from_their_ids(tokenizer: Tokenizer, joint: bool, tmp_path: Path) -> None:
    data = make(tokenizer, path=str(folder(tmp_path)), joint=joint)
    assert data.vocabularies is not None
    assert (data.vocabularies[0] is data.vocabularies[1]) == joint
    train = data.split("train")
    for side, texts, lists in ((0, train.sources, train.src_ids), (1, train.references, train.tgt_ids)):
        vocabulary = data.vocabularies[side]
        assert data.facts()[("src_vocab_size", "tgt_vocab_size")[side]] == vocabulary.size
        for text, ids in zip(texts, lists, strict=True):
            assert ids[-1] == EOS
            assert ids[:-1].min() > 3
            assert ids.max() < vocabulary.size
            signs = re.compile(r"\s+(?=\.)|\s")  # words are joined by spaces
            assert re.sub(signs, "", vocabulary.decode(ids.tolist())) == re.sub(signs, "", text)
            assert "".join(vocabulary.units(ids.tolist())).endswith("<eos>")


def test_a_batch_is_padded_and_shifted() -> None:
    data = make(num_samples=50)
    train = data.split("train")
    indices = np.array([3, 0, 7])
    batch = train.__getitems__(indices)
    for row, index in enumerate(indices):
        source, target = train.src_ids[index].tolist(), train.tgt_ids[index].tolist()
        ends = [len(batch[name][row]) - len(ids) for name, ids in (("src_ids", source), ("labels", target))]
        assert batch["src_ids"][row].tolist() == source + [PAD] * ends[0]
        assert batch["tgt_ids"][row].tolist() == [BOS, *target[:-1]] + [PAD] * ends[1]
        assert batch["labels"][row].tolist() == target + [IGNORED] * ends[1]
    assert batch["src_ids"].shape[1] == train.src_lengths[indices].max()
    assert train.weights(indices).tolist() == [(row >= 0).sum() for row in batch["labels"]]


def test_a_target_that_is_shorter_than_the_longest_is_padded_on_both_sides(tmp_path: Path) -> None:
    data = make(path=str(folder(tmp_path)))
    batch = data.split("train").__getitems__(np.array([0, 1]))
    assert (batch["labels"][1] == IGNORED).any()
    assert ((batch["tgt_ids"] == PAD) == (batch["labels"] == IGNORED)).all()


def test_batches_in_order_of_length_need_little_padding(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = [" ".join("ab" for _ in range(n)) for n in generator.integers(1, 30, 256)]
    for name in ("train.de", "train.en"):
        (tmp_path / name).write_text("\n".join(lines))
    train = make(WordTokenizer(1), path=str(tmp_path), val=None, test=None).split("train")
    share = {}
    for lengths in (None, train.lengths):
        batches = iter(TrainBatches(256, 256, 16, seed=0, lengths=lengths))
        chosen = [next(batches) for _ in range(16)]
        assert sorted(np.concatenate(chosen).tolist()) == list(range(256))
        share[lengths is None] = sum((train.__getitems__(i)["labels"] >= 0).float().mean() for i in chosen) / 16
    assert share[True] < 0.65
    assert share[False] > 0.9


def test_unknown_words_have_their_id(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("de\ten\nein Hund\ta dog\nein Wal\ta whale\n")
    data = make(WordTokenizer(min_count=2), path=str(tmp_path), val=None, test=None, joint=False)
    assert [ids.tolist() for ids in data.split("train").tgt_ids] == [[4, UNK, EOS], [4, UNK, EOS]]
    assert data.vocabularies[1].decode([4, UNK, EOS]) == "a <unk>"
    characters = make(CharTokenizer(), path=str(tmp_path), val=None, test=None)
    assert characters.vocabularies[0].encode_all(["Hxi"])[0][1] == UNK
    assert characters.vocabularies[0].decode(characters.vocabularies[0].encode_all(["Hxi"])[0]) == "Hi"
    assert data.vocabularies[1].units([4, UNK, EOS]) == ["a", "<unk>", "<eos>"]


def test_a_first_word_has_the_byte_pairs_of_any_other() -> None:
    tokenizer = BpeTokenizer(300)
    vocabulary = Vocabulary(tokenizer)
    vocabulary.fit(["dog dog dog", "a dog"])
    ids = vocabulary.encode_all(["dog dog"])[0]
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 :]


def test_longer_pairs_are_left_out_of_the_training_and_cut_elsewhere(tmp_path: Path) -> None:
    data = make(path=str(folder(tmp_path, {"train": 5, "val": 5, "test": 1})), max_len=17)
    train, val = data.split("train"), data.split("val")
    assert train.sources == ["Ein Hund läuft.", "Zwei Männer."]
    assert "2 longer than 17" in data.describe()
    assert len(val) == 4
    assert val.references[2] == "A woman sings a song."
    assert data.vocabularies[1].decode(val.tgt_ids[2].tolist()) == "A woman sings a"
    with pytest.raises(ValueError, match=r"every training pair has a side longer than data\.max_len=3"):
        make(path=str(tmp_path), max_len=3).datasets()


def test_small_letters_on_both_sides(tmp_path: Path) -> None:
    data = make(path=str(folder(tmp_path)), lowercase=True)
    assert data.split("train").sources[1] == "zwei männer."
    assert data.split("train").references[1] == "two men."


def test_a_run_directory_holds_both_vocabularies(tmp_path: Path) -> None:
    data = make(BpeTokenizer(300), path=str(folder(tmp_path)), joint=False)
    data.save_to(tmp_path / "run")
    data.save_to(tmp_path / "run")  # a resumed run writes the same
    other = Pairs(BpeTokenizer(300), 4, 4, joint=False)
    other.load_from(tmp_path / "run")
    for ours, theirs in zip(data.vocabularies, other.vocabularies, strict=True):
        assert ours.encode_all(GERMAN) == theirs.encode_all(GERMAN)
        assert ours.size == theirs.size
    with pytest.raises(ValueError, match="holds a run on other pairs"):
        make(BpeTokenizer(290), path=str(tmp_path), joint=False).save_to(tmp_path / "run")


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_parallel_files_keep_their_lines_together(tmp_path: Path, compressed: bool) -> None:
    data = make(path=str(folder(tmp_path, compressed=compressed)))
    train = data.split("train")
    kept = [0, 1, 3, 4]  # the third has no source; the fifth holds a line separator, which ends no line
    assert train.sources == [GERMAN[i] for i in kept]
    assert train.references == [ENGLISH[i] for i in kept]
    assert (len(data.split("val")), len(data.split("test"))) == (2, 1)
    assert data.facts()["path"] == str(tmp_path)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "jsonl.gz"])
def test_tables_are_read_by_column(tmp_path: Path, kind: str) -> None:
    rows = [{"id": str(i), "en": f'he said "{i}", twice', "de": f'er sagte "{i}", zweimal'} for i in range(20)]
    path = tmp_path / f"pairs.{kind}"
    if kind.startswith("jsonl"):
        raw = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        path.write_bytes(gzip.compress(raw) if kind.endswith("gz") else raw)
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join("\t".join(row) for row in ([*rows[0]], *(row.values() for row in rows))))
    data = make(path=str(path))
    splits = {name: split.sources for name, split in data.splits()}
    assert {name: len(texts) for name, texts in splits.items()} == {"train": 12, "val": 4, "test": 4}
    assert sorted(text for texts in splits.values() for text in texts) == sorted(row["de"] for row in rows)
    for _, split in data.splits():
        assert [text.split('"')[1] for text in split.sources] == [text.split('"')[1] for text in split.references]
    assert splits["test"] == make(path=str(path), seed=5).split("test").sources  # whatever the seed


def test_a_hub_dataset_is_read_by_split_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(dict):
        column_names = ("de", "en")

    def load(name: str, config: str | None, split: str) -> Rows:
        assert (name, config) == ("someone/pairs", None)
        if split == "gone":
            raise RuntimeError("no such split")
        return Rows(de=[f"{split} eins", "zwei"], en=["one", "two"])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    data = make(dataset="someone/pairs", val="validation", test=None)
    assert data.split("val").sources == ["validation eins", "zwei"]
    assert data.split("test") is None
    with pytest.raises(ValueError, match=r"split 'gone'\) was not loaded: no such split"):
        make(dataset="someone/pairs", val="gone")
    with pytest.raises(ValueError, match=r"no column 'fr'; set data\.source and data.target to two of de, en"):
        make(dataset="someone/pairs", target="fr")


def test_dates_are_right_and_no_day_comes_twice() -> None:
    sources, targets = date_pairs(3_000)
    assert date_pairs(3_000) == (sources, targets)
    assert len(set(targets)) == 3_000
    months = {datetime.date(2000, m, 1).strftime("%b").lower(): m for m in range(1, 13)}
    forms = set()
    for source, target in zip(sources, targets, strict=True):
        date = datetime.date.fromisoformat(target)
        words = re.findall(r"[a-z]+|\d+", source.lower())
        numbers = [int(word) for word in words if word.isdigit()]
        named = [months[word[:3]] for word in words if word[:3] in months]
        if named:
            assert numbers == [date.day, date.year]
            assert named[-1] == date.month
        else:
            assert numbers == ([date.day, date.month] if "." in source else [date.month, date.day]) + [date.year]
        weekday = next((word for word in words if word.endswith("day")), date.strftime("%A").lower())
        assert weekday == date.strftime("%A").lower()
        if ordinal := re.search(r"\d(st|nd|rd|th)\b", source.lower()):
            right = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}.get(date.day, "th")
            assert ordinal[1] == right, source
        forms.add(re.sub(r"[a-z]+", "a", re.sub(r"\d+", "0", source.lower())))
    assert len(forms) == 8  # of ten, for two differ from two others in the length of the month's name alone
    with pytest.raises(ValueError, match="num_samples=100000: give 10 to 73049"):
        date_pairs(100_000)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_unequal_sides_are_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "val.en").write_text("one line\n")
    with pytest.raises(ValueError, match=r"val.de has 2 lines and .*val.en has 1; line n of one must"):
        make(path=str(tmp_path))


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, {}, "has neither train.de and train.en nor train.tsv, .csv or .jsonl .* but nothing; set"),
        ({"train.de": "x"}, {}, "has neither train.de and train.en .* but train.de; set data.source"),
        ({"train.tsv": "a\tb\n1\t2"}, {}, "train.tsv: row 2: no text in column 'de'; the columns are a, b: set"),
        ({"train.tsv": "de\ten\nnur eine Seite"}, {}, "row 2: no text in column 'en'"),
        ({"train.jsonl": '{"de": "x", "en": 3}'}, {}, "train.jsonl:1: no text in column 'en'"),
        ({"train.jsonl": "[1]"}, {}, "train.jsonl:1: a list; each line must be an object"),
        ({"train.jsonl": "{"}, {}, "train.jsonl:1: not JSON"),
        ({"train.tsv": "de\ten\n \tx"}, {"val": None, "test": None}, "no training pair has text on both sides"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, files: dict, settings: dict, message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(path=str(tmp_path), **settings)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes("de\ten\nGrüße\tgreetings".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.tsv is not utf-8: byte 8 is 0xfc; .*data.encoding=latin-1"):
        make(path=str(tmp_path / "a.tsv"))
    assert make(path=str(tmp_path / "a.tsv"), encoding="latin-1").split("train").sources == ["Grüße"]
    (tmp_path / "b.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"b\.tsv\.gz was not read"):
        make(path=str(tmp_path / "b.tsv.gz"))
    with pytest.raises(FileNotFoundError, match="there is no such file or folder"):
        make(path=str(tmp_path / "c.tsv"))
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(ValueError, match=r"d\.txt is no table"):
        make(path=str(tmp_path / "d.txt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a", "dataset": "b"}, "name two sources"),
        ({"max_len": 1}, "max_len=1: a side is at least"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave something below 1 to train on"),
        ({"val_fraction": -0.1}, "must be at least 0"),
        ({"encoding": "utf-9"}, "data.encoding='utf-9' is unknown"),
        ({"num_samples": 100, "tgt_vocab_size": 7}, "data.tgt_vocab_size=7, but the tokenizer has"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("name", ["pairs", "dates", "multi30k"])
def test_every_kind_composes(name: str) -> None:
    config, problems = compose([f"data={name}", "model=encoder_decoder", "task=seq2seq"], [CONF])
    assert not problems
    assert config.data._target_.endswith("Pairs")
    assert config.data.tokenizer._target_.endswith("CharTokenizer" if name == "dates" else "BpeTokenizer")
