"""Text and tokens at a URL: read from a server in ranges, fetched once, kept within a bound, in the same order."""

import gzip
import hashlib
import json
import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaledl.data import corpus as corpus_module
from scaledl.data import remote
from scaledl.data.corpus import find_corpus
from scaledl.data.shard_cache import ShardCache
from scaledl.data.text import TextData
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer

TEXTS = [f"Größe {i} " + "words of a text " * (i % 9) for i in range(300)]


class Server(SimpleHTTPRequestHandler):
    """The files of a folder, in ranges unless `ranges` is false; says what was asked for. It fails now and then."""

    ranges = True
    asked: list[tuple[str, str | None]] = []
    answers: list[int] = []  # codes of the next ones; 0 ends the connection

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        if self.answers:
            if code := self.answers.pop(0):
                self.send_error(code)
            else:
                self.close_connection = True
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        if not self.ranges or not wanted or not os.path.isfile(path):
            super().do_GET()
            return
        size, first = os.path.getsize(path), int(wanted[1])
        last = min(int(wanted[2] or size - 1), size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last - first + 1))

    def end_headers(self):
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the URL at which it is served."""
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "answers", [])
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_texts(folder):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "a.jsonl").write_text(rows)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "a.txt").write_text("\n".join(TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet", row_group_size=20)


def corpus_at(path):
    return find_corpus(str(path), None, None, "train", "docs", "text", "utf-8")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.parquet"])
def test_a_corpus_at_a_url_is_the_corpus(served, monkeypatch, ranges, name):
    folder, url = served
    monkeypatch.setattr(Server, "ranges", ranges)
    monkeypatch.setattr(corpus_module, "PART_BYTES", 3000)
    write_texts(folder)
    if name == "a.parquet" and not ranges:
        pytest.skip("a parquet file is read from its end, which needs ranges")
    here, there = corpus_at(folder / name), corpus_at(f"{url}/{name}")
    assert list(there.pieces())
    assert "".join(text for _, text in there.pieces()) == "".join(text for _, text in here.pieces())
    assert len(there.parts()) == (len(here.parts()) if ranges else 1)
    assert not ranges or name == "a.jsonl.gz" or any(asked for _, asked in Server.asked)
    before = there.fingerprint()
    assert corpus_at(f"{url}/{name}").fingerprint() == before
    (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
    fsspec.filesystem("http").invalidate_cache()
    assert corpus_at(f"{url}/{name}").fingerprint() != before


def test_a_text_of_the_same_size_with_another_date_is_another(served):
    folder, url = served
    (folder / "a.txt").write_text("first")
    os.utime(folder / "a.txt", (1_000_000, 1_000_000))
    before = corpus_at(f"{url}/a.txt").fingerprint()
    (folder / "a.txt").write_text("other")
    assert corpus_at(f"{url}/a.txt").fingerprint() != before


def test_what_opens_a_url_is_not_published(served):
    folder, url = served
    (folder / "a.txt").write_text("words " * 20)

    def told(query):
        corpus = corpus_at(f"{url}/a.txt?{query}")
        assert [text for _, text in corpus.pieces()] == ["words " * 20]
        return json.dumps([corpus.name, corpus.fingerprint()])

    assert "secret" not in told("X-Amz-Date=1&X-Amz-Signature=secret")
    assert told("sv=1&sig=secret") == told("sv=2&sig=another")  # a new signature is no new text
    assert "secret" not in told("id=secret")
    assert told("id=1") != told("id=2")
    assert remote.public("https://user:pass@host/a@b?c=d#e").startswith("https://host/a@b?")
    for kept in ("s3://bucket/a?b@c", "hf://datasets/org/name@main/a.txt", "https://host/a.txt"):
        assert remote.public(kept) == kept


def test_folders_and_globs_of_an_object_store(tmp_path):
    store = fsspec.filesystem("memory")
    for name, text in {"b.txt": "second", "a.txt": "first", "deep/c.jsonl": '{"text": "third"}', "no.bin": "x"}.items():
        store.pipe_file(f"/corpus/{name}", text.encode())
    assert [text for _, text in corpus_at("memory://corpus").pieces()] == ["first", "second", "third"]
    assert [text for _, text in corpus_at("memory://corpus/*.txt").pieces()] == ["first", "second"]
    with pytest.raises(FileNotFoundError, match=r"memory://corpus/\*\.md' matches no file there"):
        corpus_at("memory://corpus/*.md")
    with pytest.raises(ValueError, match=r"nowhere://a cannot be read: .*s3fs for s3://"):
        corpus_at("nowhere://a")


@pytest.fixture
def tokens(served, tmp_path, monkeypatch):
    """Tokens that were made elsewhere, in many shards, and their URL."""
    folder, url = served
    write_texts(folder)
    monkeypatch.setattr(corpus_module, "PART_BYTES", 2000)
    data = TextData(BpeTokenizer(300), 4, 4, path=str(folder / "a.jsonl"), cache_dir=str(tmp_path / "made"), seq_len=8)
    data.prepare()
    shutil.copytree(data.folder, folder / "tokens")
    Server.asked.clear()
    return folder / "tokens", f"{url}/tokens"


def opened(place, tmp_path, **given):
    data = TextData(ByteTokenizer(), 4, 4, tokens=str(place), cache_dir=str(tmp_path / "here"), seq_len=8, **given)
    data.prepare()
    return data


def fetched():
    return [path.rpartition("/")[2] for path, _ in Server.asked if path.endswith((".bin", ".npy"))]


def all_batches(data, number=60):
    stream = iter(data.train_dataloader())
    return [{name: tensor.tolist() for name, tensor in next(stream).items()} for _ in range(number)]


def test_tokens_at_a_url_come_in_the_order_of_the_seed(tokens, tmp_path):
    folder, url = tokens
    expected = all_batches(opened(folder, tmp_path, document_mask=True))
    data = opened(url, tmp_path, document_mask=True)
    assert not fetched()  # the index only
    first = data.datasets()["train"].__getitems__(np.arange(2))
    assert first["input_ids"].shape == (2, 8)
    assert fetched() == ["train-00000.bin", "train-00000.starts.npy"]
    assert all_batches(data) == expected
    assert len(fetched()) == len(set(fetched()))  # each once
    assert data.tokenizer.kind == "bpe"
    Server.asked.clear()
    assert all_batches(opened(url, tmp_path, document_mask=True)) == expected
    assert not fetched()  # they are kept


def test_little_space_changes_nothing_but_the_fetching(tokens, tmp_path):
    folder, url = tokens
    sizes = [path.stat().st_size for path in folder.glob("*.bin")]
    bound = 3 * max(sizes)
    data = opened(url, tmp_path, cache_bytes=bound)
    assert all_batches(data) == all_batches(opened(folder, tmp_path))
    kept = sum(path.stat().st_size for path in (data.folder / "shards").iterdir())
    assert 0 < kept <= bound
    assert len(fetched()) > 3 * len(set(fetched()))  # an order over all shards goes back to each again and again


def test_blocks_of_a_shuffle_need_one_block_at_a_time(tokens, tmp_path):
    folder, url = tokens
    bound = 4 * max(path.stat().st_size for path in folder.glob("*.bin"))
    given = {"shuffle_within": 60}
    data = opened(url, tmp_path, cache_bytes=bound, **given)
    windows = len(data.datasets()["train"])
    number = windows // 4
    assert all_batches(data, number) == all_batches(opened(folder, tmp_path, **given), number)
    assert len(fetched()) < 2 * len(list(folder.glob("train-*.bin")))
    assert all_batches(opened(folder, tmp_path, **given), 9) != all_batches(opened(folder, tmp_path), 9)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_processes_share_what_is_fetched(tokens, tmp_path, num_workers):
    _, url = tokens
    assert all_batches(opened(url, tmp_path, num_workers=num_workers), 30)
    assert len(fetched()) == len(set(fetched()))


def test_what_is_fetched_is_checked(tokens, tmp_path):
    folder, url = tokens
    (folder / "train-00000.bin").write_bytes(b"\0" * (folder / "train-00000.bin").stat().st_size)
    data = opened(url, tmp_path)
    with pytest.raises(ValueError, match=r"train-00000\.bin is not what its manifest says"):
        data.datasets()["train"].__getitems__(np.arange(2))
    assert not list((data.folder / "shards").glob("*.bin"))
    with pytest.raises(ValueError, match=r"tokens='http://.*/nothing' was not read .*scaledl prepare"):
        opened(url.replace("/tokens", "/nothing"), tmp_path)
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        opened(tmp_path, tmp_path)


def test_names_of_a_manifest_stay_in_the_folder(tokens, tmp_path):
    folder, url = tokens
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    for number, name in enumerate([str(tmp_path / "escaped.bin"), "../escaped.bin", ".lock"]):
        for facts in ("sizes", "sha256"):
            shard[facts][name] = shard[facts][shard["file"]]
        shard["file"] = name
        (folder / "manifest.json").write_text(json.dumps(manifest))
        data = opened(url, tmp_path / str(number))
        with pytest.raises(ValueError, match=r"names a shard '.*', which is no plain file name"):
            data.datasets()["train"].__getitems__(np.arange(2))
    assert not list(tmp_path.rglob("escaped.bin"))
    assert not fetched()


def test_what_may_pass_is_waited_for(tokens, tmp_path, monkeypatch):
    _, url = tokens
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.01))
    data = opened(url, tmp_path)
    Server.answers[:] = [0, 503]
    data.datasets()["train"].__getitems__(np.arange(2))
    assert fetched() == ["train-00000.bin"] * 3
    for answers, tries in ([503] * 3, 3), ([0] * 9, 3), ([403], 1), ([404], 1):
        Server.asked.clear()
        Server.answers[:] = answers
        with pytest.raises(OSError, match=r"train-00000\.bin"):
            remote.read_bytes(f"{url}/train-00000.bin")
        assert tries <= len(fetched()) <= 9 - 6 * (answers[0] > 0)
    Server.answers[:] = [403]
    with pytest.raises(ValueError, match=r"was not read \(.*403.*\); give the URL"):
        opened(url, tmp_path)


def test_a_network_that_fails_while_text_is_read_is_no_bad_text(served, monkeypatch):
    folder, url = served
    write_texts(folder)
    corpus = corpus_at(f"{url}/a.txt")
    parts = corpus.parts()

    def lost(*_):
        raise aiohttp.ServerDisconnectedError

    monkeypatch.setattr(corpus_module, "_text_blocks", lost)
    with pytest.raises(OSError, match=r"a\.txt was not read: .*; start again to go on"):
        list(corpus.read(parts[0]))


def test_the_query_of_a_url_stays_behind_the_names(tokens, tmp_path):
    folder, url = tokens
    data = opened(f"{url}/?sv=1&sig=secret", tmp_path)
    assert all_batches(data, 3) == all_batches(opened(folder, tmp_path), 3)
    assert {path for path, _ in Server.asked} >= {
        f"/tokens/{name}?sv=1&sig=secret" for name in ("manifest.json", "tokenizer.json", "train-00000.bin")
    }
    assert opened(f"{url}?sv=2&sig=another", tmp_path).folder == opened(f"{url}?sig=third", tmp_path).folder


def test_tokens_here_are_checked(tokens, tmp_path):
    folder, url = tokens
    shard = folder / "train-00003.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=r"cannot be read: train-00003\.bin has \d+ bytes and not \d+; copy"):
        opened(folder, tmp_path)
    shard.write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    for other in ({**manifest, "format": 1}, {}, []):
        (folder / "manifest.json").write_text(json.dumps(other))
        for place in (folder, url):
            with pytest.raises(ValueError, match=r"manifest\.json has format (1|None), not \d; make it again"):
                opened(place, tmp_path)


def test_the_longest_unused_go_first(tmp_path):
    store = fsspec.filesystem("memory")
    cache = ShardCache("memory://bucket", tmp_path, 25)
    for number in range(4):
        store.pipe_file(f"/bucket/{number}", bytes([number]) * 10)

    def read(number):
        content = store.cat_file(f"/bucket/{number}")
        array = cache.read(str(number), 10, hashlib.sha256(content).hexdigest(), np.dtype("u1"))
        assert array.tolist() == [number] * 10
        return array

    def kept():
        return {path.name for path in (tmp_path / "shards").iterdir() if path.name[0] != "."}

    left = tmp_path / "shards" / ".0.bin.1234.tmp"  # by a process that was killed
    left.parent.mkdir()
    left.write_bytes(b"half")
    still_open = read(0)
    assert not left.exists()
    os.utime(tmp_path / "shards" / "0", (1, 1))
    read(1)
    os.utime(tmp_path / "shards" / "1", (2, 2))
    read(0)  # used again
    read(2)
    assert kept() == {"0", "2"}
    os.utime(tmp_path / "shards" / "0", (3, 3))
    read(3)
    assert kept() == {"2", "3"}
    assert still_open.tolist() == [0] * 10
