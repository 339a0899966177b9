"""A folder that `transformers` loads, written with one tensor in memory at a time."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaledl import safetensors_file
from scaledl.distributed.summed_file import SummedFile
from scaledl.hf.names import Match
from scaledl.safetensors_file import Entry

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class _Last:
    """A function that remembers its last result: what is asked for in parts, one after the other, is made once."""

    def __init__(self, make: Callable[[Any], Any]):
        self.make, self.argument, self.result = make, None, None

    def __call__(self, argument: Any) -> Any:
        if argument is not self.argument:
            self.result = None  # before the next is made
            self.argument, self.result = argument, self.make(argument)
        return self.result


def size_of(word: str) -> int:
    """Bytes of a size such as 5GB."""
    found = re.fullmatch(r"([0-9.]+) ?(KB|MB|GB)", word.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(f"--max-shard-size {word}: give a size such as 500MB or 5GB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path,
    matches: list[Match],
    ours: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    max_shard_size: int,
) -> None:
    """model.safetensors or, beyond max_shard_size bytes, several files with an index.

    Args:
        ours: our tensors, without memory.
        read: the values of one.
    """
    of_match = _Last(lambda match: match.to_theirs([read(name) for name in match.ours]))
    entries = [
        Entry(name, dtype, shape.shape, lambda match=match, i=i: of_match(match)[i].to(dtype))  # type: ignore[misc]
        for match in matches
        for i, (name, shape) in enumerate(
            zip(match.theirs, match.to_theirs([ours[name] for name in match.ours]), strict=True)
        )
    ]
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + entry.bytes > max_shard_size:
            shards.append([])
        shards[-1].append(entry)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    else:
        index = {entry.name: file for file, shard in zip(files, shards, strict=True) for entry in shard}
        total = sum(entry.bytes for entry in entries)
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    for file, shard in zip(files, shards, strict=True):
        with SummedFile(folder / file) as opened:
            safetensors_file.write(opened, shard)
