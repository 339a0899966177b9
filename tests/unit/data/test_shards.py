"""The token cache: whole or not there, whatever kills, damages or shares it."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from scaledl.data import pretokenize
from scaledl.data.shards import Tokens, damage, read_manifest
from scaledl.data.text import TextData
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer

SMALL = {"CHUNK_CHARACTERS": 1000, "SHARD_TOKENS": 1500}


@pytest.fixture
def many_shards(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(pretokenize, name, value)


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(0)
    words = ["the", "then", "there", "größe", "東京", "return", "value"]
    texts = [" ".join(rng.choices(words, k=rng.randint(5, 400))) for _ in range(60)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def text_data(corpus, cache, tokenizer=None, **given):
    return TextData(tokenizer or BpeTokenizer(300), 4, 4, path=str(corpus), cache_dir=str(cache), seq_len=8, **given)


def prepared(*args, **given):
    data = text_data(*args, **given)
    data.prepare()
    return data.folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tokens_of(folder, split):
    tokens = Tokens.open(folder, split, with_starts=True)
    return tokens.take(np.arange(len(tokens))), tokens.starts


def test_manifest_tells_all(corpus, tmp_path, many_shards):
    folder = prepared(corpus, tmp_path / "cache")
    manifest = read_manifest(folder)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert manifest["source"]["characters"] == sum(map(len, texts))
    assert manifest["source"]["bytes"] == sum(len(text.encode()) for text in texts)
    assert manifest["tokenizer"]["kind"] == "bpe"
    assert manifest["dtype"] == "<u2"
    for count in ("documents", "characters", "bytes"):
        assert sum(split[count] for split in manifest["splits"].values()) == manifest["source"][count]
    for split, facts in manifest["splits"].items():
        ids, starts = tokens_of(folder, split)
        assert len(ids) == facts["tokens"] == sum(shard["tokens"] for shard in facts["shards"])
        ends = np.flatnonzero(ids == manifest["tokenizer"]["eos_id"])
        np.testing.assert_array_equal(starts, [0, *(ends[:-1] + 1)])
    assert len(manifest["splits"]["train"]["shards"]) > 5
    assert not list(folder.glob("*.part"))


def test_shards_change_nothing(corpus, tmp_path, monkeypatch):
    one = prepared(corpus, tmp_path / "one")
    for name, value in SMALL.items():
        monkeypatch.setattr(pretokenize, name, value)
    many = prepared(corpus, tmp_path / "many")
    for split in ("train", "val"):
        for a, b in zip(tokens_of(one, split), tokens_of(many, split), strict=True):
            np.testing.assert_array_equal(a, b)
    windows = [text_data(corpus, tmp_path / name, document_mask=True) for name in ("one", "many")]
    for data in windows:
        data.prepare()
    a, b = (data.datasets()["train"].__getitems__(np.arange(100)[::-1]) for data in windows)
    assert all((a[key] == b[key]).all() for key in ("input_ids", "labels", "document_ids"))


def test_processes_change_nothing(corpus, tmp_path, many_shards, monkeypatch):
    alone = prepared(corpus, tmp_path / "alone", num_proc=1)
    monkeypatch.setattr(pretokenize, "PARALLEL_CHARACTERS", 0)
    assert contents(prepared(corpus, tmp_path / "pool", num_proc=2)) == contents(alone)


def test_large_vocabulary_takes_four_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "vocab_size", 65537)
    monkeypatch.setattr(ByteTokenizer, "eos_id", 65536)
    monkeypatch.setattr(ByteTokenizer, "load_state", lambda *_: None)
    folder = prepared(corpus, tmp_path / "cache", ByteTokenizer())
    assert read_manifest(folder)["dtype"] == "<u4"
    assert tokens_of(folder, "train")[0].max() == 65536


PREPARE = """
    import os, signal, sys
    from pathlib import Path
    from scaledl.data import pretokenize, shards
    from scaledl.data.corpus import find_corpus
    from scaledl.data.tokenizer import BpeTokenizer
    def prepare():  # TextData.prepare, without the time that torch takes to import
        corpus = find_corpus(sys.argv[1], None, None, "train", "docs", "text", "utf-8")
        return pretokenize.prepare_tokens(Path(sys.argv[2]) / "text", corpus, BpeTokenizer(300), 0.1, 2)
"""

KILLED = """
    pretokenize.CHUNK_CHARACTERS, pretokenize.SHARD_TOKENS, pretokenize.PARALLEL_CHARACTERS = 1000, 1500, {parallel}
    calls, append = 0, shards.ShardWriter.append
    def append_then_die(self, *args):
        global calls
        calls += 1
        append(self, *args)
        if calls == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
    shards.ShardWriter.append = append_then_die
    prepare()
"""


@pytest.mark.parametrize(("calls", "parallel"), [(1, 10**9), (8, 0), (13, 10**9)])
def test_killed_in_the_middle(corpus, tmp_path, many_shards, calls, parallel):
    cache = tmp_path / "killed"
    script = textwrap.dedent(PREPARE + KILLED.format(calls=calls, parallel=parallel))
    run = subprocess.run([sys.executable, "-c", script, str(corpus), str(cache)], stderr=subprocess.DEVNULL)
    assert run.returncode == -signal.SIGKILL
    (folder,) = (path for path in (cache / "text").iterdir() if path.is_dir())
    assert "manifest.json" in damage(folder)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.bin")}
    assert bool(finished) == (calls > 1)
    assert prepared(corpus, cache) == folder
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())  # kept, not made again
    assert contents(folder) == contents(prepared(corpus, tmp_path / "undisturbed"))


def test_workers_end_with_a_killed_parent(corpus, tmp_path):
    script = textwrap.dedent("""
        import multiprocessing, time, sys, pathlib
        from concurrent.futures import ProcessPoolExecutor
        from scaledl.data import pretokenize
        from scaledl.data.tokenizer import ByteTokenizer
        ByteTokenizer().save(pathlib.Path(sys.argv[1]))
        context, given = multiprocessing.get_context("spawn"), (sys.argv[1], False, None)
        pool = ProcessPoolExecutor(1, context, pretokenize._start_worker, given)
        with pretokenize._main_module_hidden():
            pool.submit(len, "").result()
        print(*pool._processes, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.kill()
    parent.wait()

    def lives() -> bool:
        try:
            os.kill(worker, 0)
            with open(f"/proc/{worker}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] != "Z"
        except (ProcessLookupError, FileNotFoundError):
            return False

    deadline = time.monotonic() + 10
    while lives() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives()


def test_error_in_the_middle_keeps_what_is_finished(corpus, tmp_path, many_shards, monkeypatch):
    real, calls = pretokenize.encode_chunk, []

    def fail_late(*args):
        calls.append(1)
        if len(calls) == 8:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(pretokenize, "encode_chunk", fail_late)
    with pytest.raises(OSError, match="No space"):
        prepared(corpus, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.part"))
    resumed = prepared(corpus, tmp_path / "cache")
    assert contents(resumed) == contents(prepared(corpus, tmp_path / "undisturbed"))


def test_unfinished_cache_of_another_text_is_not_continued(corpus, tmp_path, many_shards):
    folder = prepared(corpus, tmp_path / "cache")
    expected = contents(folder)
    (folder / "manifest.json").unlink()
    source = json.loads((folder / "source.json").read_text())
    (folder / "source.json").write_text(json.dumps(source | {"sha256": "another"}))
    (folder / "train-00000.bin").write_bytes(b"x" * (folder / "train-00000.bin").stat().st_size)
    assert contents(prepared(corpus, tmp_path / "cache")) == expected


def test_two_processes_at_once(corpus, tmp_path):
    script = textwrap.dedent(PREPARE) + textwrap.dedent("""
        pretokenize.CHUNK_CHARACTERS, pretokenize.SHARD_TOKENS = 1000, 1500
        real = pretokenize._build
        def counted(*args):
            print("built", flush=True)
            real(*args)
        pretokenize._build = counted
        print("ready", flush=True)
        sys.stdin.readline()
        print(shards.read_manifest(prepare())["splits"]["train"]["tokens"])
    """)
    command = [sys.executable, "-c", script, str(corpus), str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum(output.count("built") for output in outputs) == 1
    assert len({output[-1] for output in outputs}) == 1


@pytest.mark.parametrize("how", ["short shard", "no shard", "no tokenizer", "short starts", "cut manifest"])
def test_damaged_cache_is_made_again(corpus, tmp_path, many_shards, how, caplog):
    folder = prepared(corpus, tmp_path / "cache")
    expected = contents(folder)
    if how == "short shard":
        os.truncate(folder / "train-00002.bin", 10)
    elif how == "no shard":
        (folder / "val-00000.bin").unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "short starts":
        os.truncate(folder / "train-00001.starts.npy", 10)
    else:
        os.truncate(folder / "manifest.json", 100)
    assert prepared(corpus, tmp_path / "cache") == folder
    assert contents(folder) == expected
    (record,) = caplog.records
    assert "is damaged" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_key_follows_what_decides_the_tokens(corpus, tmp_path):
    def key(**given):
        tokenizer = given.pop("tokenizer", None) or BpeTokenizer(300)
        data = text_data(corpus, tmp_path, tokenizer, **given)
        return pretokenize.cache_key(data.corpus, data.tokenizer, data.val_fraction)

    keys = [key(), key(tokenizer=BpeTokenizer(301)), key(tokenizer=ByteTokenizer()), key(val_fraction=0.2)]
    assert key(stride=1, num_proc=2, document_mask=True) == keys[0]
    os.utime(corpus, ns=(1, 1))
    keys.append(key())
    assert len(set(keys)) == len(keys)
