"""Tokens that lie at a URL: the manifest is an index of shards, each fetched whole when it is first read, and kept.

The order of the samples stays that of the seed, as if all were here. Ranks of a node share what is fetched.
"""

import fcntl
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from scaledl.atomic import clear, write_bytes
from scaledl.data import remote


def tokens_at(place: str, cache_dir: Path) -> Path:
    """The folder with manifest and tokenizer of tokens that `scaledl prepare` has made: `place`, or a cache of a URL.

    Raises:
        ValueError: there are none.
    """
    if not remote.is_url(place):
        folder = Path(os.path.expandvars(place)).expanduser()
        if not (folder / "manifest.json").is_file():
            raise ValueError(f"data.tokens={place!r} holds no manifest.json: give a folder that `scaledl prepare` made")
        return folder
    try:
        files = {name: remote.read_bytes(remote.in_folder(place, name)) for name in ("manifest.json", "tokenizer.json")}
    except OSError as error:
        raise ValueError(
            f"data.tokens={remote.public(place)!r} was not read ({error}); give the URL of a folder that holds "
            "what `scaledl prepare` has made: manifest.json, tokenizer.json and the shards"
        ) from error
    key = hashlib.sha256(remote.public(place).encode() + files["manifest.json"]).hexdigest()[:16]
    folder = cache_dir / f"fetched-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not (folder / name).is_file():
            write_bytes(folder / name, content)
    return folder


class ShardCache:
    """Files of a folder at a URL, in a folder here that holds at most `max_bytes` of them: the longest unused go first.

    What a process has mapped stays readable after another has removed it, and takes disk until it is let go.
    """

    def __init__(self, url: str, folder: Path, max_bytes: int):
        self.url, self.folder, self.max_bytes = url, folder / "shards", max_bytes

    def read(self, name: str, size: int, sha256: str, dtype: np.dtype | None) -> np.ndarray:
        """A file as an array: ids of a type, or what np.save has written."""
        if Path(name).name != name or name.startswith("."):
            raise ValueError(
                f"the manifest at {remote.public(self.url)} names a shard {name!r}, which is no plain file name: "
                "take tokens that `scaledl prepare` has made"
            )
        path = self.folder / name
        while True:
            if not path.is_file():
                self._fetch(path, size, sha256)
            with suppress(FileNotFoundError):  # removed by another process just now
                os.utime(path)
                return np.load(path) if dtype is None else np.asarray(np.memmap(path, dtype, "r"))

    def _fetch(self, path: Path, size: int, sha256: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / f".{path.name}.lock"):
            if path.is_file():  # another rank was first
                return
            content = remote.read_bytes(url := remote.in_folder(self.url, path.name))
            if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(
                    f"{remote.public(url)} is not what its manifest says ({len(content)} bytes of {size}, or another "
                    "sha256): copy the folder of tokens there again"
                )
            with _locked(self.folder / ".lock"):
                self._make_room(size)
                write_bytes(path, content)

    def _make_room(self, size: int) -> None:
        clear(self.folder)  # all that is written here is written under the lock
        kept = sorted((entry for entry in os.scandir(self.folder) if entry.name[0] != "."), key=_last_use)
        total = sum(entry.stat().st_size for entry in kept)
        for entry in kept:
            if total + size <= self.max_bytes:
                return
            total -= entry.stat().st_size
            os.unlink(entry.path)


def _last_use(entry: os.DirEntry) -> int:
    return entry.stat().st_mtime_ns


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Fetched(Sequence[np.ndarray]):
    """Arrays of the shards of a split, each there when it is asked for; what was used last stays open.

    Args:
        kind: which file of a shard: `file` (ids) or `starts`.
        dtype: None: as saved.
    """

    def __init__(self, cache: ShardCache, shards: list[dict[str, Any]], kind: str, dtype: np.dtype | None):
        self.cache, self.shards, self.kind, self.dtype = cache, shards, kind, dtype
        self.open: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: Any) -> Any:
        if index not in self.open:
            shard = self.shards[index]
            name = shard[self.kind]
            self.open[index] = self.cache.read(name, shard["sizes"][name], shard["sha256"][name], self.dtype)
            while len(self.open) > 1 and sum(a.nbytes for a in self.open.values()) > self.cache.max_bytes:
                self.open.popitem(last=False)
        self.open.move_to_end(index)
        return self.open[index]
