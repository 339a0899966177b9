"""Token ids on disk: raw shards that are memory-mapped, and a manifest that is written last.

A cache folder holds, for every finished shard, `<split>-<number>.bin` (ids, little-endian), `.starts.npy` (where
documents begin in the split) and `.json` (its record); `tokenizer.json`; and `manifest.json`. Files are written beside
their place and renamed into it, so a shard with a record is finished and a folder with a manifest is whole.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"


def write_atomically(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def damage(folder: Path) -> str | None:
    """What is wrong with a cache folder, or None if it is whole (sizes are compared, contents are not read)."""
    try:
        manifest = read_manifest(folder)
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                if problem := _shard_damage(folder, shard):
                    return problem
    except OSError:
        return f"there is no {MANIFEST}"
    except (KeyError, TypeError, ValueError) as error:
        return f"{MANIFEST} is broken ({error})"
    return None if (folder / "tokenizer.json").is_file() else "there is no tokenizer.json"


def _shard_damage(folder: Path, shard: dict[str, Any]) -> str | None:
    for name, size in shard["sizes"].items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} has {found} bytes and not {size}" if found is not None else f"{name} is missing"
    return None


class ShardWriter:
    """Appends the tokens of one split; goes on after the shards that an interrupted run has finished.

    `chunks` counts the calls of `append` that the finished shards hold: the caller need not repeat those.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int):
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.shards: list[dict[str, Any]] = []
        while (record := self._path(".json")).is_file():
            shard = json.loads(record.read_text())
            if _shard_damage(folder, shard):
                break
            self.shards.append(shard)
        self.chunks = self.total("chunks")
        self._begin()

    def total(self, count: str) -> int:
        return sum(shard[count] for shard in self.shards)

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self.split}-{len(self.shards):05d}{suffix}"

    def _begin(self) -> None:
        self.offset = self.total("tokens")
        self.counts = dict.fromkeys(("tokens", "documents", "characters", "bytes", "chunks"), 0)
        self.starts: list[np.ndarray] = []
        self.sha256 = hashlib.sha256()
        self.file: Any = None

    def append(self, ids: np.ndarray, starts: np.ndarray, characters: int, num_bytes: int) -> None:
        """`ids` (n,), and where in them documents start."""
        if self.file is None:
            self.file = open(self._path(".bin.part"), "wb")  # noqa: SIM115 (closed by _finish)
        data = ids.astype(self.dtype).tobytes()
        self.file.write(data)
        self.sha256.update(data)
        self.starts.append(starts + self.offset + self.counts["tokens"])
        new = {"tokens": len(ids), "documents": len(starts), "characters": characters, "bytes": num_bytes, "chunks": 1}
        for count, number in new.items():
            self.counts[count] += number
        if self.counts["tokens"] >= self.shard_tokens:
            self.finish()

    def finish(self) -> None:
        """End the shard that is open, if one is."""
        if self.file is None:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        tokens, starts = self._path(".bin"), self._path(".starts.npy")
        self._path(".bin.part").replace(tokens)
        with open(self._path(".starts.npy.part"), "wb") as file:
            np.save(file, np.concatenate(self.starts).astype(np.int64))
        self._path(".starts.npy.part").replace(starts)
        names = {"file": tokens.name, "starts": starts.name}
        sizes = {path.name: path.stat().st_size for path in (tokens, starts)}
        shard = names | self.counts | {"sizes": sizes, "sha256": self.sha256.hexdigest()}
        write_json(self._path(".json"), shard)
        self.shards.append(shard)
        self._begin()

    def abandon(self) -> None:
        if self.file is not None:
            self.file.close()
            self._path(".bin.part").unlink()


class Tokens:
    """One long array of ids that lies in several: memory-mapped shards, or an array at hand.

    `starts`: where documents begin (n,), if known.
    """

    def __init__(self, arrays: list[np.ndarray], starts: np.ndarray | None = None):
        self.arrays, self.starts = arrays, starts
        self.ends = np.cumsum([len(array) for array in arrays])
        self.begins = self.ends - [len(array) for array in arrays]

    @classmethod
    def open(cls, folder: Path, split: str, with_starts: bool = False) -> "Tokens":
        manifest = read_manifest(folder)
        shards = manifest["splits"][split]["shards"]
        # A plain view of the map: indexing np.memmap itself costs several times as much.
        arrays = [np.asarray(np.memmap(folder / s["file"], np.dtype(manifest["dtype"]), "r")) for s in shards]
        tokens = cls(arrays, np.concatenate([np.load(folder / s["starts"]) for s in shards]) if with_starts else None)
        tokens.origin = (folder, split, with_starts)
        return tokens

    origin: tuple[Path, str, bool] | None = None

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
        shard_of = np.searchsorted(self.ends, positions, side="right")
        for shard in np.unique(shard_of):
            here = shard_of == shard
            ids[here] = self.arrays[shard][positions[here] - self.begins[shard]]
        return ids

    def documents(self, positions: np.ndarray) -> np.ndarray:
        """The number of the document, counted from 0 within the split, at `positions`."""
        if self.starts is None:
            return np.zeros_like(positions)
        return np.searchsorted(self.starts, positions, side="right") - 1
