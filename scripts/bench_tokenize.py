#!/usr/bin/env python
"""How fast a corpus becomes tokens, against the `tokenizers` library called bare, and on two processes against one.

    .venv/bin/python scripts/bench_tokenize.py --mb 50 --rounds 6 --json tokenize.json

The text is the code of Python's library, repeated with changes until it is long enough; the tokenizer, byte-level BPE,
is fitted before. In each round, one after the other, in turned order in every second round: bare, `encode_batch_fast`
on texts in memory, in one thread, their ids taken and dropped; two of that at once, which tells what the machine itself
loses on two cores; and ours, from a file to finished shards, scan and checksums included, with 1 and 2 processes. Each
in processes of its own. Wall and processor seconds of each, and medians of the ratios within rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaledl.data.corpus import Files, PythonTexts
from scaledl.data.pretokenize import prepare_tokens
from scaledl.data.tokenizer import BpeTokenizer, SavedTokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 20


def write_corpus(path: Path, num_bytes: int) -> int:
    """Rows of code, no two rounds of the library alike; bytes of text."""
    written, turn = 0, 0
    with open(path, "w") as file:
        while written < num_bytes:
            for _, text in PythonTexts("library").pieces():
                text = text.replace("self", f"self{turn}") if turn else text
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                if written >= num_bytes:
                    break
            turn += 1
    return written


def bare(folder: Path) -> float:
    backend = load_tokenizer(folder).backend  # type: ignore[attr-defined]
    with open(folder / "corpus.jsonl") as file:
        texts = [json.loads(line)["text"] for line in file]
    began, batch, characters = time.perf_counter(), [], 0
    for text in [*texts, None]:
        if text is not None:
            batch.append(text)
            characters += len(text)
        if characters >= BATCH_CHARACTERS or text is None:
            for encoded in backend.encode_batch_fast(batch, add_special_tokens=False):
                _ = encoded.ids
            batch, characters = [], 0
    return time.perf_counter() - began


def ours(folder: Path, processes: int) -> float:
    corpus = Files("bench", [folder / "corpus.jsonl"])
    out = Path(tempfile.mkdtemp(dir=folder))
    began = time.perf_counter()
    prepare_tokens(out, corpus, SavedTokenizer(str(folder)), 0.01, processes)
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


def measured(what: str, folder: Path) -> dict[str, float]:
    """Wall seconds that the work itself says, and processor seconds of its process and those that it starts.

    "bare twice" is two of bare at once, each with all of the text: means of both.
    """
    command = [sys.executable, __file__, "--one", what.split()[0], "--folder", str(folder)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    number = 2 if what == "bare twice" else 1
    found = []
    for process in [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(number)]:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{what} failed")
        told = json.loads(printed)
        found.append({"wall": told["wall"], "cpu": usage.ru_utime + usage.ru_stime - told["cpu_before"]})
    return {name: statistics.mean(each[name] for each in found) for name in found[0]}


def one(what: str, folder: Path) -> None:
    before = time.process_time()
    if what == "bare":  # reading the text beforehand is no part of it
        load_tokenizer(folder)
        with open(folder / "corpus.jsonl") as file:
            for line in file:
                json.loads(line)
        before = 2 * time.process_time() - before
        wall = bare(folder)
    else:
        wall = ours(folder, int(what))
    print(json.dumps({"wall": wall, "cpu_before": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=16384)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.folder)
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_corpus(folder / "corpus.jsonl", int(arguments.mb * 1e6))
        tokenizer = BpeTokenizer(arguments.vocab_size)
        tokenizer.fit(text for _, text in PythonTexts("library").pieces())
        tokenizer.save(folder)
        rounds = []
        for number in range(arguments.rounds):
            order = ("bare", "1", "bare twice", "2")[:: -1 if number % 2 else 1]
            rounds.append({what: measured(what, folder) for what in order})
            speeds = {what: size / 1e6 / each["wall"] for what, each in rounds[-1].items()}
            line = [f"{what}: {speeds[what]:.2f} MB/s" for what in sorted(order)]
            print(f"round {number + 1}: {', '.join(line)}", flush=True)

    ratios = {
        "one process / bare, wall": [r["bare"]["wall"] / r["1"]["wall"] for r in rounds],
        "one process / bare, processor": [r["bare"]["cpu"] / r["1"]["cpu"] for r in rounds],
        "two processes / two of bare, wall": [r["bare twice"]["wall"] / r["2"]["wall"] / 2 for r in rounds],
        "two processes / two of bare, processor": [r["bare twice"]["cpu"] / r["2"]["cpu"] for r in rounds],
        "two processes / one, wall": [r["1"]["wall"] / r["2"]["wall"] for r in rounds],
        "two of bare / bare, wall": [2 * r["bare"]["wall"] / r["bare twice"]["wall"] for r in rounds],
    }
    for what, values in ratios.items():
        print(f"{what:40} {statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})")
    if arguments.json:
        found = {"bytes": size, "vocab_size": arguments.vocab_size, "rounds": rounds, "ratios": ratios}
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
