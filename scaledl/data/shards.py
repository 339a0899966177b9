"""Token ids on disk: raw shards that are memory-mapped, and a manifest that is written last.

A cache folder holds, for every finished part of the corpus, `<split>-<number>.bin` (ids, little-endian) and
`.starts.npy` (where documents begin in it) of each split that it has text of, and `part-<number>.json` (their records);
`tokenizer.json`; and `manifest.json`. Files are written beside their place and renamed into it, so a part with a record
is finished and a folder with a manifest is whole.
"""

import hashlib
import io
import json
import os
import resource
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from scaledl.atomic import write_bytes, write_text
from scaledl.data.shard_cache import Fetched, ShardCache

MANIFEST = "manifest.json"
COUNTS = ("tokens", "documents", "characters", "bytes")
_OPEN_FILES = 1 << 16  # enough for every shard of some 80 sources


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def damage(folder: Path) -> str | None:
    """What is wrong with a cache folder, or None if it is whole (sizes are compared, contents are not read)."""
    try:
        manifest = read_manifest(folder)
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                if problem := shard_damage(folder, shard):
                    return problem
    except OSError:
        return f"there is no {MANIFEST}"
    except (KeyError, TypeError, ValueError) as error:
        return f"{MANIFEST} is broken ({error})"
    return None if (folder / "tokenizer.json").is_file() else "there is no tokenizer.json"


def shard_damage(folder: Path, shard: dict[str, Any]) -> str | None:
    for name, size in shard["sizes"].items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {found} bytes and not {size}" if found is not None else f"{name} is missing"
    return None


def _allow_open_files() -> None:
    """Mapped shards are open files; of a mixture they are more than the 1,024 that a process often begins with."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        with suppress(OSError, ValueError):  # some systems have another bound
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class ShardWriter:
    """Appends the tokens of one part of a corpus to one shard, which is there once `finish` has been called."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype):
        self.folder, self.name, self.dtype = folder, name, dtype
        # Of this process alone: one that is about to end with a killed parent may still write its own.
        self.beside = folder / f".{name}.{secrets.token_hex(8)}.tmp"
        self.counts = dict.fromkeys(COUNTS, 0)
        self.starts: list[np.ndarray] = []
        self.sha256 = hashlib.sha256()
        self.file: Any = None

    def append(self, ids: np.ndarray, starts: np.ndarray, characters: int, num_bytes: int) -> None:
        """`ids` (n,), and where in them documents start."""
        if self.file is None:
            self.file = open(self.beside, "wb")  # noqa: SIM115 (closed by finish)
        data = ids.astype(self.dtype, copy=False).tobytes()
        self.file.write(data)
        self.sha256.update(data)
        self.starts.append(starts + self.counts["tokens"])
        for count, number in zip(COUNTS, (len(ids), len(starts), characters, num_bytes), strict=True):
            self.counts[count] += number

    def finish(self) -> dict[str, Any] | None:
        """The record of the shard; None where nothing was appended."""
        if self.file is None:
            return None
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        tokens, starts = self.folder / f"{self.name}.bin", self.folder / f"{self.name}.starts.npy"
        content = io.BytesIO()
        np.save(content, np.concatenate(self.starts).astype(np.int64))
        write_bytes(starts, content.getvalue())
        self.beside.replace(tokens)
        sizes = {path.name: path.stat().st_size for path in (tokens, starts)}
        sums = {tokens.name: self.sha256.hexdigest(), starts.name: hashlib.sha256(content.getvalue()).hexdigest()}
        return {"file": tokens.name, "starts": starts.name} | self.counts | {"sizes": sizes, "sha256": sums}

    def abandon(self) -> None:
        if self.file is not None and not self.file.closed:
            self.file.close()
            self.beside.unlink(missing_ok=True)


class Tokens:
    """One long array of ids that lies in several: memory-mapped shards, or an array at hand.

    Args:
        arrays: of ids, by shard; one may be opened when it is asked for.
        starts: where documents begin in each shard, if known.
        lengths: of the arrays.
        documents: how many begin in each shard.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        starts: Sequence[np.ndarray] | None = None,
        lengths: list[int] | None = None,
        documents: list[int] | None = None,
    ):
        self.arrays, self.starts = arrays, starts
        lengths = lengths or [len(array) for array in arrays]
        self.ends = np.cumsum(lengths)
        self.begins = self.ends - lengths
        self.documents_before = np.cumsum([0, *(documents or [])])

    @classmethod
    def open(
        cls, folder: Path, split: str, with_starts: bool = False, url: str | None = None, cache_bytes: int = 0
    ) -> "Tokens":
        """The tokens in a folder; with a `url`, its manifest is in the folder and shards are fetched from there."""
        manifest = read_manifest(folder)
        shards, dtype = manifest["splits"][split]["shards"], np.dtype(manifest["dtype"])
        arrays: Sequence[np.ndarray]
        starts: Sequence[np.ndarray] | None = None
        if url:
            cache = ShardCache(url, folder, cache_bytes)
            arrays = Fetched(cache, shards, "file", dtype)
            starts = Fetched(cache, shards, "starts", None) if with_starts else None
        else:
            _allow_open_files()
            # A plain view of the map: indexing np.memmap itself costs several times as much.
            arrays = [np.asarray(np.memmap(folder / shard["file"], dtype, "r")) for shard in shards]
            starts = [np.load(folder / shard["starts"]) for shard in shards] if with_starts else None
        lengths, documents = ([shard[count] for shard in shards] for count in ("tokens", "documents"))
        tokens = cls(arrays, starts, lengths, documents)
        tokens.origin = (folder, split, with_starts, url, cache_bytes)
        return tokens

    origin: tuple[Path, str, bool, str | None, int] | None = None

    def __reduce__(self) -> tuple:
        # Loader processes map the files again and are not sent the corpus.
        return (Tokens.open, self.origin) if self.origin else (Tokens, (self.arrays, self.starts))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Ids (any shape) int64 at `positions`."""
        if len(self.arrays) == 1:
            return self.arrays[0][positions].astype(np.int64)
        ids = np.empty(positions.shape, np.int64)
        for shard, here in self._by_shard(positions):
            ids[here] = self.arrays[shard][positions[here] - self.begins[shard]]
        return ids

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """The number of the document, counted from 0 within the split, at `positions`."""
        documents = np.zeros_like(positions)
        if self.starts is not None:
            for shard, here in self._by_shard(positions):
                within = np.searchsorted(self.starts[shard], positions[here] - self.begins[shard], side="right")
                documents[here] = self.documents_before[shard] + within - 1
        return documents

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[int, Any]]:
        """(shard, where in `positions` its own stand)."""
        shard_of = np.searchsorted(self.ends, positions, side="right")
        for shard in np.unique(shard_of):
            yield int(shard), shard_of == shard
