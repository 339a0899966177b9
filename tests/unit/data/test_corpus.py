"""Sources of text: every kind is read whole, and every bad input is one message that says the value and the way out."""

import builtins
import gzip
import hashlib
import json
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaledl.data import corpus as corpus_module
from scaledl.data.text import TextData
from scaledl.data.tokenizer import ByteTokenizer, CharTokenizer


def prepared(tmp_path, tokenizer=None, **given):
    if "path" in given:
        given["path"] = str(given["path"])
    data = TextData(tokenizer or ByteTokenizer(), 4, 4, cache_dir=str(tmp_path / "cache"), seq_len=4, **given)
    data.prepare()
    return data


def texts_of(data):
    texts = {}
    for document, text in data.corpus.pieces():
        texts[document] = texts.get(document, "") + text
    return list(texts.values())


def test_embedded_documents_are_the_default(tmp_path):
    data = prepared(tmp_path, CharTokenizer())
    text = "".join(text for _, text in sorted(topics.items()))
    assert len(texts_of(data)) == len(topics)
    assert data.manifest["source"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert data.manifest["source"]["python"]
    assert data.facts() == {"vocab_size": len(set(text)) + 1}


def test_embedded_sources_hold_the_library(tmp_path):
    source = corpus_module.PythonTexts("sources")
    assert any(path.name == "argparse.py" for path in source.files.paths)
    assert not any("site-packages" in path.parts or "test" in path.parts for path in source.files.paths)
    number = sum(1 for _ in zip(source.pieces(), range(len(topics) + 3), strict=False))
    assert number == len(topics) + 3


def test_files_of_every_kind(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first Größe")
    (folder / "b.md.gz").write_bytes(gzip.compress(b"second"))
    (folder / "c.jsonl").write_text('{"text": "third"}\n\n{"text": ""}\n{"text": null}\n{"text": "fourth"}\n')
    pq.write_table(pa.table({"id": [1, 2], "text": ["fifth", None]}), folder / "d.parquet")
    (folder / "deep" / "e.py").write_text("sixth")
    (folder / "deep" / "empty.py").write_text("")
    (folder / "image.png").write_bytes(b"\x00\x01")
    (folder / ".hidden.txt").write_text("hidden")
    expected = ["first Größe", "second", "third", "fourth", "fifth", "sixth"]
    assert texts_of(prepared(tmp_path, path=folder)) == expected
    assert texts_of(prepared(tmp_path, path=folder / "*.t?t", val_fraction=0.0)) == expected[:1]
    assert texts_of(prepared(tmp_path, path=folder / "**" / "*.py", val_fraction=0.0)) == expected[5:]
    assert texts_of(prepared(tmp_path, path=folder / "c.jsonl", val_fraction=0.0)) == expected[2:4]


def test_another_column_and_encoding(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "some words"}\n{"body": "more words"}\n')
    data = prepared(tmp_path, path=tmp_path / "a.jsonl", text_column="body", val_fraction=0.5)
    assert texts_of(data) == ["some words", "more words"]
    (tmp_path / "l.txt").write_bytes("Größe ".encode("latin-1") * 10)
    (tmp_path / "u.txt").write_bytes(("Größe " * 10).encode("utf-16"))
    assert texts_of(prepared(tmp_path, path=tmp_path / "l.txt", encoding="latin-1")) == ["Größe " * 10]
    assert texts_of(prepared(tmp_path, path=tmp_path / "u.txt", encoding="utf-16")) == ["Größe " * 10]


def test_a_long_file_comes_in_blocks_that_end_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BLOCK_BYTES", 7)
    text = "Größe\n東京 und mehr\n\nline without an end " * 5
    (tmp_path / "a.txt").write_text(text, newline="")
    data = prepared(tmp_path, path=tmp_path / "a.txt")
    assert data.manifest["source"]["documents"] == data.manifest["splits"]["train"]["documents"] == 1
    pieces = list(data.corpus.pieces())
    assert "".join(piece for _, piece in pieces) == text
    assert {document for document, _ in pieces} == {0}
    assert len(pieces) > 10
    (tmp_path / "b.txt").write_bytes(text.encode() + b"\xff")
    with pytest.raises(ValueError, match=f"byte {len(text.encode())} is 0xff"):
        prepared(tmp_path, path=tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes(b"abcdef\xc3(")  # the broken character begins in the first block
    with pytest.raises(ValueError, match="byte 6 is 0xc3"):
        prepared(tmp_path, path=tmp_path / "c.txt")


@pytest.mark.parametrize("size", [1, 3, 10, 64, 1000])
def test_parts_are_the_whole_whatever_their_size(tmp_path, monkeypatch, size):
    text = "Größe\n東京 und mehr\n\n" + "a line that is longer than a part " * 3 + "\r\n\nlast"
    rows = [f"row {i} ü" * (i % 4) for i in range(30)]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text(text, newline="")
    (folder / "b.txt").write_text("")
    (folder / "c.txt").write_text("\n\n")
    (folder / "d.jsonl").write_text("".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows))
    (folder / "e.txt.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.table({"text": rows}), folder / "f.parquet", row_group_size=4)
    (folder / "g.txt").write_bytes(text.encode("utf-16"))
    (folder / "g.txt").rename(tmp_path / "g.txt")
    monkeypatch.setattr(corpus_module, "PART_BYTES", size)
    monkeypatch.setattr(corpus_module, "_LARGE_PART_BYTES", size)
    monkeypatch.setattr(corpus_module, "MAX_PARTS", 10**9)
    corpus = corpus_module.find_corpus(str(folder), None, None, "train", "docs", "text", "utf-8")
    filled = [row for row in rows if row]
    found = {}
    for document, piece in corpus.pieces():
        found[document] = found.get(document, "") + piece
    assert list(found.values()) == [text, "\n\n", *filled, text, *filled]
    parts = corpus.parts()
    assert len(parts) > 1
    assert json.loads(json.dumps(parts)) == parts
    other = corpus_module.find_corpus(str(tmp_path / "g.txt"), None, None, "train", "docs", "text", "utf-16")
    assert "".join(piece for _, piece in other.pieces()) == text  # where a byte 10 need not end a line: one part


def test_a_bad_line_of_a_later_part_has_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "PART_BYTES", 64)
    rows = [json.dumps({"text": f"row {i}"}) for i in range(40)]
    rows[31] = '{"text": 3}'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"a\.jsonl:32: 'text' holds int, not text"):
        prepared(tmp_path, path=tmp_path / "a.jsonl")
    text = "words\n" * 40
    (tmp_path / "b.txt").write_bytes(text.encode() + b"\xff\n" + text.encode())
    with pytest.raises(ValueError, match=f"byte {len(text)} is 0xff"):
        prepared(tmp_path, path=tmp_path / "b.txt")


def test_hub_dataset(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"body": ["one text", "", "another text"], "id": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    given = {"dataset": "org/name", "dataset_config": "en", "dataset_split": "train[:1%]"}
    data = prepared(tmp_path, text_column="body", val_fraction=0.0, **given)
    assert texts_of(data) == ["one text", "another text"]
    assert set(asked) == {("org/name", "en", "train[:1%]")}
    asked.clear()
    prepared(tmp_path, text_column="body", val_fraction=0.0, **given)
    assert not asked  # once prepared, no network is needed
    with pytest.raises(ValueError, match=r"org/name: no column 'text'; set data.text_column to one of body, id"):
        prepared(tmp_path, **given)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"dataset='org/other' .* was not loaded: division .*scaledl prepare"):
        prepared(tmp_path, dataset="org/other")


def write(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def write_parquet(columns):
    def make(folder):
        pq.write_table(pa.table(columns), folder / "a.parquet")
        return folder / "a.parquet"

    return make


def write_folder(folder):
    (folder / "in").mkdir()
    (folder / "in" / "model.bin").write_bytes(b"\0")
    return folder / "in"


ROW = json.dumps({"text": "words"}).encode() + b"\n"
BAD = {
    "missing": (lambda folder: folder / "no.txt", r"no\.txt' matches no file .*a file, a folder or a glob"),
    "glob": (lambda folder: folder / "*.txt", r"\*\.txt' matches no file"),
    "folder": (write_folder, r"in' is a folder with no text among its 1 file.*\.jsonl.*glob"),
    "empty": (write("a.txt", b""), r"a\.txt holds no text \(it is empty\)"),
    "binary": (write("a.txt", b"\x7fELF\x00\x01" * 9), r"a\.txt is not text: byte 4 is NUL; leave .*utf-16"),
    "encoding": (write("a.txt", "abc Größe".encode("latin-1")), r"not utf-8: byte 6 is 0xf6 .*encoding=latin-1.*iconv"),
    "gz": (write("a.txt.gz", b"not gzip at all"), r"a\.txt\.gz was not read: .*is it whole"),
    "cut gz": (write("a.txt.gz", gzip.compress(b"words " * 99)[:20]), r"a\.txt\.gz was not read: .*is it whole"),
    "json": (write("a.jsonl", ROW + b'{"text": \n'), r"a\.jsonl:2: not JSON"),
    "json list": (write("a.jsonl", ROW + b"[1]\n"), r"a\.jsonl:2: a list; each line must be an object"),
    "json column": (
        write("a.jsonl", ROW + b'{"body": "", "id": 1}\n'),
        r"a\.jsonl:2: no column 'text'; .* one of body, id",
    ),
    "json number": (write("a.jsonl", b'{"text": 3}\n'), r"a\.jsonl:1: 'text' holds int, not text"),
    "surrogate": (write("a.jsonl", ROW + b'{"text": "\\ud800"}\n'), r"document 1 of .* half a surrogate pair"),
    "parquet": (write("a.parquet", b"PAR1 or not"), r"a\.parquet is not a parquet file"),
    "parquet column": (write_parquet({"body": ["x"], "id": [1]}), r"no column 'text'; .* one of body, id"),
    "parquet number": (write_parquet({"text": [1]}), r"'text' holds int64, not text"),
    "short": (write("a.txt", b"0123456"), r"val split of .* has 1 token.*seq_len=4 .*val_fraction"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message(case, tmp_path):
    make, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        prepared(tmp_path, path=make(tmp_path))
    assert "\n" not in str(raised.value)
    if case != "short":  # there the tokens are whole: only the windows do not fit
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock" and path.is_file()]


def test_unreadable(tmp_path, monkeypatch):
    path = write("a.txt", b"words")(tmp_path)

    def refuse(file, *args, real=builtins.open, **kwargs):  # chmod does not stop root
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied")
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(ValueError, match=r"a\.txt may not be read by this user; chmod"):
        prepared(tmp_path, path=path)


def test_bad_arguments(tmp_path):
    for given, message in [
        ({"path": "a", "dataset": "b"}, "path='a' and data.dataset='b' name two sources"),
        ({"path": write("a.txt", b"")(tmp_path), "encoding": "utf-99"}, "encoding='utf-99' is unknown"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"val_fraction": 1.0}, r"val_fraction=1.0 must lie in \[0, 1\)"),
        ({"vocab_size": 100}, "vocab_size=100 is smaller than the 257 of the byte tokenizer; .* at least 257"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path, **given)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .*data\.cache_dir"):
        TextData(ByteTokenizer(), 4, 4, cache_dir=str(tmp_path / "file")).prepare()
