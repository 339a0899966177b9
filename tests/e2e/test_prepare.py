"""Text at scale by the commands that a person types: a killed preparation goes on, a mixture tells its parts."""

import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import COMMAND, TINY_GPT, metrics_of

pytestmark = pytest.mark.e2e


def write_corpus(path: Path, megabytes: int) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    with open(path, "w") as file:
        written = 0
        while written < megabytes * 1_000_000:
            text = " ".join(rng.choices(words, k=rng.randint(50, 1000)))
            written += file.write(json.dumps({"text": text}) + "\n")


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


def folder_in(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "text").iterdir() if path.is_dir())
    return folder


def test_a_killed_preparation_goes_on(scaledl, environment, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 12)
    words = ["prepare", *TINY_GPT, "data/tokenizer=bpe", "data.path=corpus.jsonl", "data.deduplicate=true"]
    killed = [*words, "data.num_proc=2", f"data.cache_dir={tmp_path / 'killed'}"]

    process = subprocess.Popen([*COMMAND, *killed], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list((tmp_path / "killed").rglob("part-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its workers end with it
    folder = folder_in(tmp_path / "killed")
    before = stamps(folder)
    finished = {name[5:10] for name in before if name.startswith("part-")}
    assert "manifest.json" not in before
    assert "tokenizer.json" in before

    done = scaledl(*killed).stdout
    assert re.search(r"[\d,]{7,} bpe tokens.* made at \d+\.\d MB/s, \d+\.\d MB/s per core$", done.strip())
    after = stamps(folder)
    assert len({name for name in after if name.startswith("part-")}) > len(finished) > 0
    kept = {name for name in before if "-" in name and re.split(r"[-.]", name)[1] in finished and name[:4] != "scan"}
    assert len(kept) >= 3 * len(finished)
    assert {name: after[name] for name in kept | {"tokenizer.json"}} == {
        name: before[name] for name in kept | {"tokenizer.json"}
    }
    splits = json.loads((folder / "manifest.json").read_text())["splits"].values()
    shards = [shard for split in splits for shard in split["shards"]]
    redone = sum(shard["bytes"] for shard in shards if shard["file"][-9:-4] not in finished)
    assert json.loads((folder / "timing.json").read_text())["bytes"] == redone

    scaledl(*words, "data.num_proc=1", f"data.cache_dir={tmp_path / 'alone'}")
    alone = folder_in(tmp_path / "alone")
    names = set(after) - {"timing.json"}
    assert names == set(stamps(alone)) - {"timing.json"}
    assert all((folder / name).read_bytes() == (alone / name).read_bytes() for name in names)


def test_a_mixture_tells_the_loss_of_each_source_on_any_number_of_ranks(scaledl, tmp_path: Path) -> None:
    for name, text in {"fox": "The quick brown fox jumps. ", "dog": "0123456789, a dog of numbers; "}.items():
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"text": text * 30}) + "\n") * 20)
    words = [
        *TINY_GPT,
        "experiment=llm/mixture_docs",
        "data/tokenizer=byte",
        "data.sources.docs.path=fox.jsonl",
        "data.sources.library.path=dog.jsonl",
        "data.seq_len=32",
        "trainer.max_steps=12",
        "trainer.val_check_interval=6",
        "trainer.log_every_n_steps=1",
        "~data.tokenizer.vocab_size",
    ]
    words.remove("experiment=llm/gpt_shakespeare")
    words.remove("~callbacks.samples")
    scaledl("train", *words, "run_id=one")
    scaledl("launch", "local", "--ranks", "2", "--", "train", *words, "strategy=ddp", "run_id=two")
    one, two = (metrics_of(tmp_path / "runs/llm/mixture_docs" / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    (last,) = [line for line in one if line["step"] == 12 and "val/loss" in line]
    shares = 0.25 * last["val/docs/loss"] + 0.75 * last["val/library/loss"]
    assert last["val/loss"] == pytest.approx(shares)
    assert last["val/docs/loss"] != pytest.approx(last["val/library/loss"], rel=1e-3)
