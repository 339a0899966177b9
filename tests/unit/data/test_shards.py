"""The token cache: whole or not there, whatever kills, damages or shares it."""

import builtins
import errno
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaledl.data import corpus as corpus_module
from scaledl.data import pretokenize
from scaledl.data.shards import Tokens, damage, read_manifest
from scaledl.data.text import TextData
from scaledl.data.tokenizer import BpeTokenizer, ByteTokenizer, load_tokenizer


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(pretokenize, "CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(corpus_module, "PART_BYTES", 5000)


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
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != pretokenize.TIMING}


def tokens_of(folder, split):
    tokens = Tokens.open(folder, split, with_starts=True)
    positions = np.arange(len(tokens))
    documents = tokens.documents(positions)
    return tokens.take(positions), np.flatnonzero(np.diff(documents, prepend=-1))


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
    assert not list(folder.glob(".*.tmp"))


def test_shards_change_nothing(corpus, tmp_path, monkeypatch):
    one = prepared(corpus, tmp_path / "one")
    monkeypatch.setattr(pretokenize, "CHUNK_CHARACTERS", 1000)
    monkeypatch.setattr(corpus_module, "PART_BYTES", 5000)
    many = prepared(corpus, tmp_path / "many")
    for split in ("train", "val"):
        for a, b in zip(tokens_of(one, split), tokens_of(many, split), strict=True):
            np.testing.assert_array_equal(a, b)
    windows = [text_data(corpus, tmp_path / name, document_mask=True) for name in ("one", "many")]
    for data in windows:
        data.prepare()
    a, b = (data.datasets()["train"].__getitems__(np.arange(100)[::-1]) for data in windows)
    assert all((a[key] == b[key]).all() for key in ("input_ids", "labels", "document_ids"))


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_processes_change_nothing(corpus, tmp_path, many_shards, kind):
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
    else:
        path.write_bytes(corpus.read_bytes() if kind == "jsonl" else "\n".join(texts).encode())
    found = [prepared(path, tmp_path / str(processes), num_proc=processes) for processes in (1, 2, 3)]
    assert contents(found[1]) == contents(found[2]) == contents(found[0])
    manifest = read_manifest(found[0])
    assert len(manifest["splits"]["train"]["shards"]) > 5
    tokens = {split: tokens_of(found[0], split)[0].tolist() for split in ("train", "val")}
    if kind == "txt":  # one document: validation is its end
        assert load_tokenizer(found[0]).decode(tokens["train"] + tokens["val"]) == "\n".join(texts)
    else:
        eos, tokenizer = manifest["tokenizer"]["eos_id"], load_tokenizer(found[0])
        documents = [np.split(ids, np.flatnonzero(np.array(ids) == eos) + 1)[:-1] for ids in tokens.values()]
        decoded = [[tokenizer.decode(document) for document in split] for split in documents]
        assert sorted(decoded[0] + decoded[1]) == sorted(texts)
        assert decoded[0] == [text for text in texts if text in set(decoded[0])]  # in the order of the corpus


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
    from scaledl.data import corpus as corpus_module, pretokenize, shards
    from scaledl.data.corpus import find_corpus
    from scaledl.data.tokenizer import BpeTokenizer
    corpus_module.PART_BYTES = 5000
    def prepare():  # TextData.prepare, without the time that torch takes to import
        corpus = find_corpus(sys.argv[1], None, None, "train", "docs", "text", "utf-8")
        return pretokenize.prepare_tokens(Path(sys.argv[2]) / "text", corpus, BpeTokenizer(300), 0.1, {processes})
"""

KILLED = """
    calls, real = 0, {what}
    def die(*args):
        global calls
        calls += 1
        if calls == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    {what} = die
    prepare()
"""


@pytest.mark.parametrize(
    ("what", "calls"),
    [
        ("pretokenize.Scan.save", 5),
        ("BpeTokenizer.save", 1),
        ("shards.ShardWriter.finish", 1),
        ("shards.ShardWriter.finish", 10),
        ("pretokenize.write_json", 8),
    ],
)
def test_killed_in_the_middle_goes_on_after_what_is_finished(corpus, tmp_path, many_shards, what, calls, monkeypatch):
    cache = tmp_path / "killed"
    script = textwrap.dedent(PREPARE.format(processes=1) + KILLED.format(what=what, calls=calls))
    run = subprocess.run([sys.executable, "-c", script, str(corpus), str(cache)], stderr=subprocess.DEVNULL)
    assert run.returncode == -signal.SIGKILL
    (folder,) = (path for path in (cache / "text").iterdir() if path.is_dir())
    assert "manifest.json" in damage(folder)
    scanned = len(list(folder.glob("scan-*.npz")))
    encoded = {path.stem.removeprefix("part-"): path.stat().st_mtime_ns for path in folder.glob("part-*.json")}
    fitted = (folder / "tokenizer.json").is_file()

    done = {"scan": 0, "encode": 0, "fit": 0}

    def counting(owner, name):
        real = getattr(owner, name)

        def counted(*args):
            done[name] += 1
            return real(*args)

        monkeypatch.setattr(owner, name, counted)

    counting(pretokenize.Work, "scan")
    counting(pretokenize.Work, "encode")
    counting(BpeTokenizer, "fit")
    assert prepared(corpus, cache, num_proc=1) == folder
    parts = len(json.loads((folder / "plan.json").read_text()))
    assert parts > 8
    assert done == {"scan": parts - scanned, "encode": parts - len(encoded), "fit": 0 if fitted else 1}
    assert all((folder / f"part-{part}.json").stat().st_mtime_ns == written for part, written in encoded.items())
    expected = {"pretokenize.Scan.save": (calls - 1, False), "BpeTokenizer.save": (parts, False)}
    assert (scanned, fitted) == expected.get(what, (parts, True))
    assert bool(encoded) == (calls in (8, 10))
    monkeypatch.undo()
    monkeypatch.setattr(corpus_module, "PART_BYTES", 5000)
    assert contents(folder) == contents(prepared(corpus, tmp_path / "undisturbed"))


DEADLY = """
    import os, signal
    from pathlib import Path
    from scaledl.data.corpus import Files

    class Deadly(Files):
        fatal = None

        def read(self, part):
            mark = Path(self.paths[0]).with_name("killed")
            if part == self.fatal and list(mark.parent.rglob("part-*.json")) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(part)
"""


def test_a_killed_worker_is_one_message_and_costs_its_part(corpus, tmp_path, many_shards, monkeypatch):
    (tmp_path / "deadly_corpus.py").write_text(textwrap.dedent(DEADLY))
    monkeypatch.syspath_prepend(tmp_path)
    deadly = importlib.import_module("deadly_corpus").Deadly("it", [corpus])
    deadly.fatal = deadly.parts()[-1]

    def prepare():
        return pretokenize.prepare_tokens(tmp_path / "cache", deadly, BpeTokenizer(300), 0.1, 2)

    with pytest.raises(RuntimeError, match=r"ended from outside .*data.num_proc, now 2"):
        prepare()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("part-*.json")}
    assert kept
    folder = prepare()
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert contents_without_names(folder) == contents_without_names(prepared(corpus, tmp_path / "undisturbed"))


def contents_without_names(folder):
    return {name: data for name, data in contents(folder).items() if name != "manifest.json"}


def test_workers_end_with_a_killed_parent():
    script = textwrap.dedent("""
        import multiprocessing, time
        from concurrent.futures import ProcessPoolExecutor
        from scaledl.data import pretokenize
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, pretokenize._start_worker, (None,))
        with pretokenize._main_module_hidden():
            pool.submit(len, "").result()
        print(*pool._processes, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
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
        prepared(corpus, tmp_path / "cache", num_proc=1)
    assert not list((tmp_path / "cache").rglob(".*.tmp"))
    assert list((tmp_path / "cache").rglob("part-*.json"))
    resumed = prepared(corpus, tmp_path / "cache")
    assert contents(resumed) == contents(prepared(corpus, tmp_path / "undisturbed"))


def test_a_file_system_that_fails_costs_nothing_finished(corpus, tmp_path, many_shards, monkeypatch):
    real, opened = builtins.open, []

    def fail_late(file, *args, **kwargs):
        opened.extend([file] * (str(file) == str(corpus)))
        if len(opened) == 12:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", fail_late)
        with pytest.raises(OSError, match=r"corpus\.jsonl was not read: .*Stale file handle; start again to go on"):
            prepared(corpus, tmp_path / "cache", num_proc=1)
    assert len(list((tmp_path / "cache").rglob("scan-*.npz"))) == 11
    assert contents(prepared(corpus, tmp_path / "cache")) == contents(prepared(corpus, tmp_path / "undisturbed"))


def test_shards_may_be_more_than_files_are_open_at_first(corpus, tmp_path, many_shards):
    folder = prepared(corpus, tmp_path / "cache")
    shards = len(read_manifest(folder)["splits"]["train"]["shards"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + shards, hard))
    try:
        many = [Tokens.open(folder, "train") for _ in range(40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {len(tokens.arrays) for tokens in many} == {shards}
    assert shards > 5


def test_unfinished_cache_of_another_text_is_not_continued(corpus, tmp_path, many_shards):
    folder = prepared(corpus, tmp_path / "cache")
    expected = contents(folder)
    (folder / "manifest.json").unlink()
    record = json.loads((folder / "part-00000.json").read_text())
    (folder / "part-00000.json").write_text(json.dumps(record | {"text": "another"}))
    (folder / "train-00000.bin").write_bytes(b"x" * (folder / "train-00000.bin").stat().st_size)
    assert contents(prepared(corpus, tmp_path / "cache")) == expected


def test_two_processes_at_once(corpus, tmp_path):
    script = textwrap.dedent(PREPARE.format(processes=2)) + textwrap.dedent("""
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
        return pretokenize.cache_key(data.corpus, data.tokenizer, data.val_fraction, data.deduplicate)

    keys = [
        key(),
        key(deduplicate=True),
        key(tokenizer=BpeTokenizer(301)),
        key(tokenizer=ByteTokenizer()),
        key(val_fraction=0.2),
    ]
    assert key(stride=1, num_proc=2, document_mask=True) == keys[0]
    os.utime(corpus, ns=(1, 1))
    keys.append(key())
    assert len(set(keys)) == len(keys)
