"""Tokenise a corpus once: scan it, split it, fit the tokenizer, encode it, part by part in parallel processes.

Each process reads the parts that it works on by itself, and writes the shards of a part by itself, so nothing passes
through one process but counts. Shards are a function of the corpus and the settings alone. Safe to call from many
processes at once and to kill at any moment: one works under a file lock while the others wait, and what is finished
(scans of parts, the fitted tokenizer, shards of parts) is kept, so that the next call goes on after it.
"""

import fcntl
import hashlib
import io
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaledl.atomic import clear, write_bytes
from scaledl.data.corpus import Corpus
from scaledl.data.duplicates import TextHash, first_of_each
from scaledl.data.progress import Progress
from scaledl.data.shards import COUNTS, MANIFEST, ShardWriter, damage, shard_damage, write_json
from scaledl.data.tokenizer import Tokenizer, load_tokenizer

FORMAT = 2
CHUNK_CHARACTERS = 1 << 18  # encoded at a time; BPE takes some 150 bytes a character for it
PARALLEL_PARTS = 3  # for fewer, starting processes costs about as much as they save
TIMING = "timing.json"
DROPPED = -1

log = logging.getLogger(__name__)


@dataclass
class Scan:
    """What one reading of a part tells.

    Args:
        begins: whether the first text begins a document; else it goes on with the last one of the part before.
        lengths: (documents,), characters of each in this part.
        hashes: (documents, 2) uint64 of their normalised text; empty without deduplication.
    """

    begins: bool
    lengths: np.ndarray
    hashes: np.ndarray
    bytes: int
    sha256: str

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        np.savez(content, **vars(self))
        write_bytes(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Scan":
        with np.load(path) as saved:
            return cls(
                bool(saved["begins"]), saved["lengths"], saved["hashes"], int(saved["bytes"]), str(saved["sha256"])
            )


@dataclass
class Share:
    """What a process must know to encode a part besides its text.

    Args:
        before: characters of the first document that lie in earlier parts.
        lengths: (documents,), characters of each in all parts.
        val_from: (documents,), the character from which each belongs to validation; -1: it is left out.
    """

    with_eos: bool
    before: int
    lengths: np.ndarray
    val_from: np.ndarray


@dataclass
class Chunk:
    """Some texts of one split in their order; flags say which begin and which end a document."""

    split: str
    texts: list[str] = field(default_factory=list)
    begins: list[bool] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    characters: int = 0


def cache_key(corpus: Corpus, tokenizer: Tokenizer, val_fraction: float, deduplicate: bool = False) -> str:
    parts = [FORMAT, corpus.fingerprint(), tokenizer.settings(), val_fraction, deduplicate]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def scan_part(corpus: Corpus, part: Any, deduplicate: bool, advance: Callable[[int], None]) -> Scan:
    lengths, total, sha256, hashes = array("q"), 0, hashlib.sha256(), TextHash()
    begins_first = True
    for begins, text in corpus.read(part):
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"document {len(lengths) - (not begins)} of {corpus.name} (from 0, in its part {part}) holds half a "
                "surrogate pair, which is no text: remove it"
            ) from error
        if begins or not lengths:
            begins_first = begins if not lengths else begins_first
            lengths.append(0)
        lengths[-1] += len(text)
        if deduplicate:
            hashes.add(text, begins)
        total += len(data)
        sha256.update(data)
        advance(len(data))
    return Scan(begins_first, np.array(lengths, np.int64), hashes.finish(), total, sha256.hexdigest())


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


def shares(scans: list[Scan], val_fraction: float, deduplicate: bool) -> tuple[list[Share], dict[str, int]]:
    """What each part is to become, by what all of them hold; and counts of the whole corpus."""
    goes_on = [not scan.begins and bool(len(scan.lengths)) for scan in scans]
    first = np.cumsum([0, *(len(scan.lengths) for scan in scans)])[:-1] - np.cumsum(goes_on)  # document of each part
    number = int(first[-1]) + len(scans[-1].lengths)
    lengths, before = np.zeros(number, np.int64), []
    for scan, begin in zip(scans, first, strict=True):
        before.append(int(lengths[begin]) if len(scan.lengths) and not scan.begins else 0)
        lengths[begin : begin + len(scan.lengths)] += scan.lengths
    kept = first_of_each([scan.hashes for scan in scans], first, number) if deduplicate else np.ones(number, bool)
    val_from = np.full(number, DROPPED)
    val_from[kept] = split_documents(lengths[kept], val_fraction)
    cuts = [slice(begin, begin + len(scan.lengths)) for scan, begin in zip(scans, first, strict=True)]
    found = [Share(number > 1, start, lengths[cut], val_from[cut]) for start, cut in zip(before, cuts, strict=True)]
    total = sum(scan.bytes for scan in scans)
    counts = {"documents": number, "duplicates": int((~kept).sum()), "characters": int(lengths.sum()), "bytes": total}
    return found, counts


def chunks(texts: Iterator[tuple[bool, str]], share: Share) -> Iterator[Chunk]:
    """A part in the order it is encoded: a function of its text and the split alone."""
    filling = {split: Chunk(split) for split in ("train", "val")}
    document, position = -1, share.before
    for begins, text in texts:
        if begins or document < 0:
            document += 1
            position = 0 if begins else share.before
        start = int(share.val_from[document])
        if start == DROPPED:
            continue
        cut = min(max(start - position, 0), len(text))
        for split, piece, first in (("train", text[:cut], position), ("val", text[cut:], position + cut)):
            if not piece:
                continue
            chunk = filling[split]
            chunk.texts.append(piece)
            chunk.begins.append(first == (0 if split == "train" else start))
            chunk.ends.append(first + len(piece) == share.lengths[document])
            chunk.characters += len(piece)
            if chunk.characters >= CHUNK_CHARACTERS:
                yield chunk
                filling[split] = Chunk(split)
        position += len(text)
    yield from (chunk for chunk in filling.values() if chunk.texts)


def encode_chunk(chunk: Chunk, tokenizer: Tokenizer, with_eos: bool, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(ids, where in them documents start)."""
    pieces, starts, position = [], [], 0
    end = np.array([tokenizer.eos_id], dtype)
    for ids, begins, ends in zip(tokenizer.encode_all(chunk.texts), chunk.begins, chunk.ends, strict=True):
        if begins:
            starts.append(position)
        pieces.append(ids.astype(dtype))
        if with_eos and ends:
            pieces.append(end)
        position += len(ids) + (with_eos and ends)
    return np.concatenate(pieces), np.array(starts, np.int64)


@dataclass
class Work:
    """What every process has: the corpus, its parts, the folder of the result, and a place to tell its progress."""

    folder: Path
    corpus: Corpus
    parts: list[Any]
    deduplicate: bool
    done: Any  # bytes of each part, shared by all processes
    tokenizer: Tokenizer | None = None
    show: Callable[[int], None] | None = None  # where one process does it all

    def path(self, part: int, kind: str, suffix: str) -> Path:
        return self.folder / f"{kind}-{part:05d}{suffix}"

    def scan(self, part: int) -> None:
        found = scan_part(self.corpus, self.parts[part], self.deduplicate, lambda size: self._advance(part, size))
        found.save(self.path(part, "scan", ".npz"))

    def encode(self, part: int, share: Share, text: str) -> None:
        """Write the shards of a part; `text` is the checksum of what was scanned."""
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.folder)
        dtype = token_type(self.tokenizer)
        writers = {split: ShardWriter(self.folder, f"{split}-{part:05d}", dtype) for split in ("train", "val")}
        try:
            for chunk in chunks(self.corpus.read(self.parts[part]), share):
                num_bytes = sum(len(text.encode()) for text in chunk.texts)
                ids, starts = encode_chunk(chunk, self.tokenizer, share.with_eos, dtype)
                writers[chunk.split].append(ids, starts, chunk.characters, num_bytes)
                self._advance(part, num_bytes)
            record = {split: writer.finish() for split, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.abandon()
        write_json(self.path(part, "part", ".json"), {"text": text} | record)

    def _advance(self, part: int, size: int) -> None:
        self.done[part] += size
        if self.show is not None:
            self.show(sum(self.done))

    def record(self, part: int, text: str) -> dict[str, Any] | None:
        """What a finished part holds, by splits, or None if it is yet to be done."""
        try:
            record = json.loads(self.path(part, "part", ".json").read_text())
            found = {split: record[split] for split in ("train", "val") if record[split]}
        except (OSError, ValueError, KeyError):
            return None
        whole = record["text"] == text and not any(shard_damage(self.folder, shard) for shard in found.values())
        return found if whole else None


def token_type(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


_work: Work  # of this worker process: sent to it once


def _start_worker(work: Work) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _work = work

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)  # a killed parent never closes the queue that this process waits on

    threading.Thread(target=end_with_parent, daemon=True).start()


def _in_worker(method: str, *given: Any) -> None:
    getattr(_work, method)(*given)


class Processes:
    """Runs methods of `Work`, in so many processes, or in this one if that is one."""

    def __init__(self, work: Work, processes: int):
        self.work, self.processes = work, processes
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Processes":
        if self.processes > 1:
            # spawn: forking a process that has imported torch and runs threads can deadlock.
            context = multiprocessing.get_context("spawn")
            self.work.done = context.RawArray("q", len(self.work.parts))  # a killed process holds no lock of it
            self.pool = ProcessPoolExecutor(self.processes, context, _start_worker, (self.work,))
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def run(self, method: str, calls: Sequence[tuple], progress: Progress) -> None:
        """One call for each part that is to be done; the first argument is its number."""
        self.work.done[:] = [0] * len(self.work.parts)
        if self.pool is None:
            self.work.show = progress.show
            with _one_thread():
                for given in calls:
                    getattr(self.work, method)(*given)
            return
        try:
            with _main_module_hidden():
                pending = {self.pool.submit(_in_worker, method, *given) for given in calls}
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    progress.show(sum(self.work.done))
                    for future in done:
                        future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that tokenises was ended from outside (out of memory?); finished parts are kept: start "
                f"again, with fewer processes (data.num_proc, now {self.processes}) if memory is short"
            ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """A spawned process would import the user's script: torch for nothing, and an unguarded one runs again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _counted(corpus: Corpus, progress: Progress) -> Iterator[str]:
    done = 0
    for _, text in corpus.pieces():
        yield text
        done += len(text)
        progress.show(done)


def number_of_processes(wanted: int | None, parts: int) -> int:
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)  # macOS has no affinity
    return min(wanted or len(cores), parts) if parts >= PARALLEL_PARTS else 1


def _build(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, val_fraction: float, num_proc: int | None, deduplicate: bool
) -> None:
    parts, plan = corpus.parts(), folder / "plan.json"
    try:
        if json.loads(plan.read_text()) != json.loads(json.dumps(parts)):
            raise ValueError("the corpus is another one")
    except (OSError, ValueError):  # nothing there yet, or nothing that can be continued
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(plan, parts)

    processes = number_of_processes(num_proc, len(parts))
    work = Work(folder, corpus, parts, deduplicate, [0] * len(parts))
    with Processes(work, processes) as pool:
        scans = _scanned(work, pool)
        todo, counts = shares(scans, val_fraction, deduplicate)
        try:
            tokenizer = load_tokenizer(folder)
        except (OSError, ValueError):
            with Progress(f"learning the vocabulary ({tokenizer.kind})", counts["characters"]) as progress:
                tokenizer.fit(_counted(corpus, progress))
            tokenizer.save(folder)
        if processes == 1:  # one loaded a second time encodes a tenth slower (docs/results.md)
            work.tokenizer = tokenizer
        calls = [
            (part, share, scan.sha256)
            for part, (share, scan) in enumerate(zip(todo, scans, strict=True))
            if work.record(part, scan.sha256) is None
        ]
        what = f"tokenising {corpus.name} ({tokenizer.kind}, {processes} process{'es' * (processes > 1)})"
        if len(calls) < len(parts):
            what += f", {len(parts) - len(calls)} of {len(parts)} parts were there"
        rest = sum(scans[part].bytes for part, *_ in calls)
        began = time.perf_counter()
        with Progress(what, rest, processes) as progress:
            pool.run("encode", calls, progress)
        seconds = time.perf_counter() - began

    records = [work.record(part, scan.sha256) or {} for part, scan in enumerate(scans)]
    splits = {}
    for split in ("train", "val"):
        shards = [record[split] for record in records if split in record]
        splits[split] = {count: sum(shard[count] for shard in shards) for count in COUNTS} | {"shards": shards}
    text = hashlib.sha256("".join(scan.sha256 for scan in scans).encode()).hexdigest()
    manifest = {
        "format": FORMAT,
        "source": {"name": corpus.name, "sha256": scans[0].sha256 if len(scans) == 1 else text}
        | counts
        | {"fingerprint": corpus.fingerprint(), "python": sys.version},
        "tokenizer": tokenizer.describe(),
        "val_fraction": val_fraction,
        "deduplicate": deduplicate,
        "dtype": token_type(tokenizer).str,
        "splits": splits,
    }
    clear(folder)
    write_json(folder / TIMING, {"bytes": rest, "seconds": seconds, "processes": processes})
    write_json(folder / MANIFEST, manifest)
    for scanned in folder.glob("scan-*.npz"):
        scanned.unlink()


def _scanned(work: Work, pool: Processes) -> list[Scan]:
    paths = [work.path(part, "scan", ".npz") for part in range(len(work.parts))]
    with Progress(f"reading {work.corpus.name}", None, pool.processes) as progress:
        pool.run("scan", [(part,) for part, path in enumerate(paths) if not path.is_file()], progress)
    scans = [Scan.load(path) for path in paths]
    if not any(len(scan.lengths) for scan in scans):
        raise ValueError(f"{work.corpus.name} holds no text (it is empty); give data.path a file with text in it")
    return scans


def prepare_tokens(
    root: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    val_fraction: float,
    num_proc: int | None,
    deduplicate: bool = False,
) -> Path:
    """The folder, under `root`, that holds the corpus as tokens; made now unless it is there and whole."""
    key = cache_key(corpus, tokenizer, val_fraction, deduplicate)
    folder = root / key
    if damage(folder) is None:
        return folder
    with alone(root, key):
        problem = damage(folder)
        if problem and (folder / MANIFEST).exists():
            log.warning("the token cache %s is damaged: %s; it is made again", folder, problem)
            (folder / MANIFEST).unlink()
        if problem:
            try:
                _build(folder, corpus, tokenizer, val_fraction, num_proc, deduplicate)
            except ValueError:  # the text or a setting is wrong: nothing of it will be gone on with
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return folder


@contextmanager
def alone(root: Path, key: str) -> Iterator[None]:
    """No other process of this machine, or of what shares its file system, makes the same."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / f"{key}.lock", "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise ValueError(f"the token cache {root} cannot be written ({error}); set data.cache_dir") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def speed(folder: Path) -> str:
    """How fast the tokens of a folder were made, in words."""
    try:
        made = json.loads((folder / TIMING).read_text())
        rate = made["bytes"] / 1e6 / made["seconds"]
        return f"{rate:.1f} MB/s, {rate / made['processes']:.1f} MB/s per core"
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return ""
