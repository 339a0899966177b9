"""Tokenise a corpus once: scan it, split it, fit the tokenizer, encode in parallel processes, write shards.

Safe to call from many processes at once and to kill at any moment: one works under a file lock while the others wait,
and finished shards are kept, so that the next call goes on after them.
"""

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaledl.data.corpus import Corpus
from scaledl.data.shards import MANIFEST, ShardWriter, damage, write_json
from scaledl.data.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
CHUNK_CHARACTERS = 1 << 20  # what a process encodes at a time; BPE takes some 150 bytes a character for it
SHARD_TOKENS = 1 << 26  # at least; what an interruption may cost
MAX_SHARDS = 512  # every open map holds a file descriptor, and 1,024 is a common limit
PARALLEL_CHARACTERS = 1 << 22  # below this, starting processes costs about as much as they save

log = logging.getLogger(__name__)


@dataclass
class Scan:
    """What one reading of the corpus tells. `lengths` (documents,): characters of each."""

    lengths: np.ndarray
    bytes: int
    sha256: str

    @property
    def characters(self) -> int:
        return int(self.lengths.sum())


@dataclass
class Chunk:
    """Some texts of one split in their order; flags say which begin and which end a document."""

    split: str
    texts: list[str]
    begins: list[bool]
    ends: list[bool]
    characters: int = 0


Encoded = tuple[np.ndarray, np.ndarray, int, int]  # ids, starts of documents in them, characters, UTF-8 bytes


def cache_key(corpus: Corpus, tokenizer: Tokenizer, val_fraction: float) -> str:
    parts = [FORMAT, CHUNK_CHARACTERS, corpus.fingerprint(), tokenizer.settings(), val_fraction]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def scan(corpus: Corpus, advance: Callable[[int], None] = lambda _: None) -> Scan:
    lengths, total, sha256 = array("q"), 0, hashlib.sha256()
    for document, text in corpus.pieces():
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"document {document} of {corpus.name} holds half a surrogate pair, which is no text: remove it"
            ) from error
        if document == len(lengths):
            lengths.append(0)
        lengths[document] += len(text)
        total += len(data)
        sha256.update(data)
        advance(len(text))
    if not lengths:
        raise ValueError(f"{corpus.name} holds no text (it is empty); give data.path a file with text in it")
    return Scan(np.array(lengths, dtype=np.int64), total, sha256.hexdigest())


def split_documents(lengths: np.ndarray, val_fraction: float) -> np.ndarray:
    """(documents,): the character of each document from which it belongs to validation.

    Whole documents in a fixed random order, as many as fit into the fraction. Where those reach less than half of it
    (one long text), the end of the corpus, cut at a character.
    """
    total = int(lengths.sum())
    wanted = remaining = total - int(total * (1 - val_fraction))
    val_from = lengths.copy()
    order = np.random.RandomState(0).permutation(len(lengths))  # RandomState: numpy keeps its stream for ever
    while remaining > wanted // 100:
        order = order[lengths[order] <= remaining]
        if not len(order):
            break
        fits = int(np.searchsorted(np.cumsum(lengths[order]), remaining, side="right"))
        val_from[order[:fits]] = 0
        remaining -= int(lengths[order[:fits]].sum())
        order = order[fits:]
    if remaining > wanted // 2:
        ends = np.cumsum(lengths)
        val_from = np.clip(total - wanted - (ends - lengths), 0, lengths)
    return val_from


def chunks(corpus: Corpus, lengths: np.ndarray, val_from: np.ndarray) -> Iterator[Chunk]:
    """The corpus in the order it is encoded: a function of its text and the split alone, so that it can be resumed."""
    filling = {split: Chunk(split, [], [], []) for split in ("train", "val")}
    current, position = -1, 0
    for document, text in corpus.pieces():
        if document != current:
            current, position = document, 0
        cut = int(np.clip(val_from[document] - position, 0, len(text)))
        for split, part, first in (("train", text[:cut], position), ("val", text[cut:], position + cut)):
            if not part:
                continue
            chunk = filling[split]
            chunk.texts.append(part)
            chunk.begins.append(first == (0 if split == "train" else val_from[document]))
            chunk.ends.append(first + len(part) == lengths[document])
            chunk.characters += len(part)
            if chunk.characters >= CHUNK_CHARACTERS:
                yield chunk
                filling[split] = Chunk(split, [], [], [])
        position += len(text)
    yield from (chunk for chunk in filling.values() if chunk.texts)


def encode_chunk(chunk: Chunk, tokenizer: Tokenizer, with_eos: bool, dtype: np.dtype) -> Encoded:
    pieces, starts, position = [], [], 0
    for ids, begins, ends in zip(tokenizer.encode_all(chunk.texts), chunk.begins, chunk.ends, strict=True):
        if begins:
            starts.append(position)
        pieces.append(ids.astype(dtype))
        if with_eos and ends:
            pieces.append(np.array([tokenizer.eos_id], dtype))
        position += len(ids) + (with_eos and ends)
    num_bytes = sum(len(text.encode()) for text in chunk.texts)
    return np.concatenate(pieces), np.array(starts, np.int64), chunk.characters, num_bytes


_in_worker: Any = None  # what encode_chunk takes besides the chunk: sent once to each process


def _start_worker(folder: Path, with_eos: bool, dtype: np.dtype) -> None:
    global _in_worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _in_worker = (load_tokenizer(folder), with_eos, dtype)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)  # a killed parent never closes the queue that this process waits on

    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode_in_worker(chunk: Chunk) -> Encoded:
    return encode_chunk(chunk, *_in_worker)


def _encode_all(
    todo: Iterator[Chunk], folder: Path, with_eos: bool, dtype: np.dtype, processes: int
) -> Iterator[tuple[str, Encoded]]:
    """(split, what `encode_chunk` returns) in the order of `todo`, never more than a few chunks ahead."""
    if processes == 1:
        tokenizer = load_tokenizer(folder)
        yield from ((chunk.split, encode_chunk(chunk, tokenizer, with_eos, dtype)) for chunk in todo)
        return
    # spawn: forking a process that has imported torch and runs threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (folder, with_eos, dtype)) as pool:
        ahead: deque[tuple[str, Future[Encoded]]] = deque()
        try:
            for chunk in todo:
                with _main_module_hidden():
                    ahead.append((chunk.split, pool.submit(_encode_in_worker, chunk)))
                if len(ahead) > 2 * processes:
                    split, future = ahead.popleft()
                    yield split, future.result()
            for split, future in ahead:
                yield split, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that tokenises was ended from outside (out of memory?); finished shards are kept: start "
                f"again, with fewer processes (data.num_proc, now {processes}) if memory is short"
            ) from error


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """A spawned process would import the user's script: torch for nothing, and an unguarded one runs again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, one line elsewhere, nothing for less than a second; yields what counts characters."""
    began, done, shown, bar = time.monotonic(), 0, False, None

    def advance(characters: int) -> None:
        nonlocal done, shown, bar
        done += characters
        if not shown and time.monotonic() - began > 1:
            shown = True
            if sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import Progress

                bar = Progress(console=Console(stderr=True), transient=True)
                bar.start()
                bar.add_task(what, total=total)
            else:
                print(what, file=sys.stderr, flush=True)
        if bar:
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield advance
    finally:
        if bar:
            bar.stop()


def _counted(corpus: Corpus, advance: Callable[[int], None]) -> Iterator[str]:
    for _, text in corpus.pieces():
        yield text
        advance(len(text))


def _build(folder: Path, corpus: Corpus, tokenizer: Tokenizer, val_fraction: float, num_proc: int | None) -> None:
    with _progress(f"reading {corpus.name}") as advance:
        found = scan(corpus, advance)
    counts = {"documents": len(found.lengths), "characters": found.characters, "bytes": found.bytes}
    source = {"sha256": found.sha256} | counts
    try:
        if json.loads((folder / "source.json").read_text()) != source:
            raise ValueError("the text is another one")
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError):  # nothing there yet, or nothing that can be continued
        shutil.rmtree(folder, ignore_errors=True)
        with _progress(f"learning the vocabulary ({tokenizer.kind})", found.characters) as advance:
            tokenizer.fit(_counted(corpus, advance))
        folder.mkdir(parents=True)
        tokenizer.save(folder)
        write_json(folder / "source.json", source)

    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    shard_tokens = max(SHARD_TOKENS, found.bytes // MAX_SHARDS)
    writers = {split: ShardWriter(folder, split, dtype, shard_tokens) for split in ("train", "val")}
    processes = 1
    if tokenizer.worth_processes and found.characters >= PARALLEL_CHARACTERS:
        cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)  # macOS has no affinity
        processes = min(num_proc or len(cores), -(-found.characters // CHUNK_CHARACTERS))
    what = f"tokenising {found.characters / 1e6:.1f} M characters ({tokenizer.kind}, {processes} process(es))"

    with _progress(what, found.characters) as advance:

        def unfinished() -> Iterator[Chunk]:
            to_skip = {split: writer.chunks for split, writer in writers.items()}
            for chunk in chunks(corpus, found.lengths, split_documents(found.lengths, val_fraction)):
                if to_skip[chunk.split]:
                    to_skip[chunk.split] -= 1
                    advance(chunk.characters)
                else:
                    yield chunk

        try:
            for split, encoded in _encode_all(unfinished(), folder, len(found.lengths) > 1, dtype, processes):
                writers[split].append(*encoded)
                advance(encoded[2])
            for writer in writers.values():
                writer.finish()
        finally:
            for writer in writers.values():
                writer.abandon()

    splits = {
        split: {count: writer.total(count) for count in ("tokens", *counts)} | {"shards": writer.shards}
        for split, writer in writers.items()
    }
    manifest = {
        "format": FORMAT,
        "source": source | {"name": corpus.name, "fingerprint": corpus.fingerprint(), "python": sys.version},
        "tokenizer": tokenizer.describe(),
        "val_fraction": val_fraction,
        "dtype": dtype.str,
        "splits": splits,
    }
    write_json(folder / MANIFEST, manifest)


def prepare_tokens(root: Path, corpus: Corpus, tokenizer: Tokenizer, val_fraction: float, num_proc: int | None) -> Path:
    """The folder, under `root`, that holds the corpus as tokens; made now unless it is there and whole."""
    key = cache_key(corpus, tokenizer, val_fraction)
    folder = root / key
    if damage(folder) is None:
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / f"{key}.lock", "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise ValueError(f"the token cache {root} cannot be written ({error}); set data.cache_dir") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        problem = damage(folder)
        if problem and (folder / MANIFEST).exists():
            log.warning("the token cache %s is damaged: %s; it is made again", folder, problem)
            (folder / MANIFEST).unlink()
        if problem:
            _build(folder, corpus, tokenizer, val_fraction, num_proc)
    return folder
