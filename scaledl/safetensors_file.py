"""A safetensors file, written from front to back with one tensor in memory at a time.

The format: the length of a header, the header (JSON: dtype, shape and place of each tensor), then the tensors' bytes.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Entry(NamedTuple):
    """A tensor to be written, which is asked for when its turn has come."""

    name: str
    dtype: torch.dtype
    sizes: Sequence[int]
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


class _Writes(Protocol):
    def write(self, data: Any) -> int: ...


def write(file: _Writes, entries: Sequence[Entry]) -> list[int]:
    """Where in the file each of the entries begins; aligned if those of wider dtypes come first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = [], 0
    for entry in entries:
        if entry.name in header:
            raise ValueError(f"two tensors would be stored as {entry.name!r}; rename one of them")
        begins.append(end)
        end += entry.bytes
        header[entry.name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.sizes),
            "data_offsets": [begins[-1], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for entry in entries:
        file.write(_bytes_of(entry.read()))
    return [8 + len(text) + begin for begin in begins]


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())
