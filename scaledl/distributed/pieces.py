"""The rectangles of a tensor that one rank holds: what every strategy's way of sharding comes down to when it saves."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Part = tuple[tuple[int, ...], Tensor]


def rectangles(size: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of at most 2 · ndim - 1 rectangles that make up [start, stop) of a flattened tensor, in order.

    Each is the largest that begins where the last one ended: rows of ever outer dimensions, then of ever inner ones.
    """
    size = (1, *size)  # whose first dimension is for the tensor as a whole, so that a number has one too
    strides = [math.prod(size[dim + 1 :]) for dim in range(len(size))]
    while start < stop:
        dim = next(d for d, stride in enumerate(strides) if start % stride == 0 and start + stride <= stop)
        offsets = tuple(start // stride % length for stride, length in zip(strides, size, strict=True))
        length = min((stop - start) // strides[dim], size[dim] - offsets[dim])
        yield offsets[1:], ((1,) * dim + (length,) + size[dim + 1 :])[1:]
        start += length * strides[dim]


@dataclass(eq=False)
class Pieces:
    """The parts of one tensor of `size` that this rank holds: offsets and a local tensor, often a view on live memory.

    DCP's planners see it as a sharded tensor. Ranks that hold the same rectangle say so with equal items, of which the
    planner keeps one; as it tells rectangles apart by their offsets alone, there are no empty parts, but for the
    one of a tensor without elements, which is whole on every rank.
    """

    size: torch.Size
    dtype: torch.dtype
    parts: list[Part]

    @classmethod
    def of(cls, tensor: Tensor) -> "Pieces":
        """Of a DTensor its local shard, of any other tensor the whole.

        Raises:
            ValueError: a DTensor holds partial sums.
        """
        if tensor.numel() == 0:
            return cls._without_elements(tensor.size(), tensor.dtype)
        if not isinstance(tensor, DTensor):
            return cls(tensor.size(), tensor.dtype, [((0,) * tensor.dim(), tensor.detach())])
        if any(placement.is_partial() for placement in tensor.placements):
            raise ValueError(
                f"a DTensor placed {tensor.placements} holds partial sums, no values; redistribute it first"
            )
        local = tensor.to_local().detach()
        _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return cls(tensor.size(), tensor.dtype, [(tuple(offsets), local)] if local.numel() else [])

    @classmethod
    def of_range(cls, size: tuple[int, ...], start: int, flat: Tensor) -> "Pieces":
        """Of the range of the flattened tensor that begins at `start`, the parts being views on `flat`.

        Raises:
            ValueError: the range is not within the tensor.
        """
        size, stop = torch.Size(size), start + flat.numel()
        if not 0 <= start <= stop <= size.numel():
            raise ValueError(f"[{start}, {stop}) is no range of the {size.numel()} elements of a tensor {tuple(size)}")
        if size.numel() == 0:
            return cls._without_elements(size, flat.dtype)
        parts, rest = [], flat.detach()
        for offsets, sizes in rectangles(size, start, stop):
            parts.append((offsets, rest[: math.prod(sizes)].view(sizes)))
            rest = rest[math.prod(sizes) :]
        return cls(size, flat.dtype, parts)

    @classmethod
    def _without_elements(cls, size: torch.Size, dtype: torch.dtype) -> "Pieces":
        return cls(size, dtype, [((0,) * len(size), torch.empty(size, dtype=dtype, device="cpu"))])

    def staged(self, buffers: "Pieces | None" = None) -> "Pieces":
        """A copy on the host, done when this returns, in the memory of an earlier one's `buffers` if that fits."""
        if buffers is None or buffers._form() != self._form():
            buffers = Pieces(self.size, self.dtype, [(offsets, _on_host(part)) for offsets, part in self.parts])
        for (_, buffer), (_, part) in zip(buffers.parts, self.parts, strict=True):
            buffer.copy_(part)
        return buffers

    def _form(self) -> tuple:
        return self.size, self.dtype, [(offsets, part.shape) for offsets, part in self.parts]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                MetadataIndex(fqn, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.size),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), part.shape) for offsets, part in self.parts]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(part for offsets, part in self.parts if offsets == index.offset)


def _on_host(part: Tensor) -> Tensor:
    return torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=part.is_cuda)
