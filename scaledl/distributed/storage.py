"""The files of a checkpoint folder that any strategy writes in shards and any other reads back.

Each rank that has something to write has a `rank_00000.safetensors`, the plain values are in `state.pt`, and a
`manifest.json`, written last, says where everything is and with which checksums. PyTorch's distributed checkpoint (DCP)
plans who writes and who reads what; its own files are pickles, which can run code, and ours are not.
"""

import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from scaledl import atomic, safetensors_file
from scaledl.distributed.pieces import Pieces
from scaledl.distributed.summed_file import AT_ONCE, SummedFile
from scaledl.safetensors_file import Entry

STATE, MANIFEST, FORMAT = "state.pt", "manifest.json", 1
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in safetensors_file.CODES}


@contextmanager
def _written(path: Path) -> Iterator[SummedFile]:
    """A new file that is on the disk when the block ends. Errors name it."""
    try:
        with SummedFile(path) as file:
            yield file
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise OSError(f"{path.name}: {_line_of(error)}") from error


def _line_of(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@dataclass(frozen=True)
class _Place:
    """Where a chunk was written, and what its file came to."""

    file: str
    begin: int
    bytes: int
    crc32: int


def _write_tensors(path: Path, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
    """A safetensors file, its tensors of the widest dtypes first, so that each is aligned."""
    items = sorted(items, key=lambda item: (-_dtype_of(item).itemsize, item.index.fqn, item.index.offset))
    entries = [
        Entry(_name_of(item), _dtype_of(item), _chunk_of(item).sizes, partial(_data_of, item, planner))
        for item in items
    ]
    with _written(path) as file:
        begins = safetensors_file.write(file, entries)
    return [
        WriteResult(item.index, 0, _Place(path.name, begin, file.bytes, file.crc32))
        for item, begin in zip(items, begins, strict=True)
    ]


def _data_of(item: WriteItem, planner: SavePlanner) -> Tensor:
    data: Any = planner.resolve_data(item)
    return data


def _chunk_of(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None
    return item.tensor_data.chunk


def _dtype_of(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None
    dtype = item.tensor_data.properties.dtype
    if dtype not in safetensors_file.CODES:
        raise ValueError(f"{item.index.fqn} is of {dtype}, which cannot be stored; these can: {', '.join(_DTYPES)}")
    return dtype


def _name_of(item: WriteItem) -> str:
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    whole = chunk.sizes == item.tensor_data.size
    return item.index.fqn if whole else f"{item.index.fqn}@{','.join(map(str, chunk.offsets))}"


class _SavePlanner(dcp.DefaultSavePlanner):
    """DCP's, which looks for shards only in tensors."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class _Writer(StorageWriter):
    def __init__(self, folder: Path, tensors: dict[str, Pieces], plain: dict[str, Any]):
        self.folder, self.plain, self.rank = folder, plain, 0
        self.sizes = {fqn: pieces.size for fqn, pieces in tensors.items()}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.rank = kwargs["rank"]

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        path = self.folder / f"rank_{self.rank:05d}.safetensors"
        done.set_result(_write_tensors(path, plan.items, planner) if plan.items else [])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places: dict[MetadataIndex, _Place] = {r.index: r.storage_data for of_rank in results for r in of_rank}
        with _written(self.folder / STATE) as state:
            torch.save(self.plain, cast(IO[bytes], state))
        files = {STATE: {"bytes": state.bytes, "crc32": state.crc32}}
        files |= {place.file: {"bytes": place.bytes, "crc32": place.crc32} for place in places.values()}
        tensors = {fqn: _noted(fqn, saved, places) for fqn, saved in metadata.state_dict_metadata.items()}
        for fqn, size in self.sizes.items():
            held = sum(math.prod(chunk["sizes"]) for chunk in tensors.get(fqn, {"chunks": []})["chunks"])
            if held != size.numel():  # DCP does not look at a single rank's
                raise ValueError(
                    f"the ranks hold {held} of the {size.numel()} elements of {fqn}; have all of them save it"
                )
        manifest = {"format": FORMAT, "files": files, "tensors": tensors}
        atomic.write_text(self.folder / MANIFEST, json.dumps(manifest))


def _noted(fqn: str, saved: Any, places: dict[MetadataIndex, _Place]) -> dict[str, Any]:
    """A tensor's entry in the manifest."""
    located = [(chunk, places[MetadataIndex(fqn, chunk.offsets)]) for chunk in saved.chunks]
    return {
        "dtype": str(saved.properties.dtype).removeprefix("torch."),
        "size": list(saved.size),
        "chunks": [
            {"file": place.file, "begin": place.begin, "offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
            for chunk, place in located
        ],
    }


@dataclass(frozen=True)
class _Stored:
    """Where a chunk is to be read."""

    file: str
    begin: int
    dtype: torch.dtype
    sizes: torch.Size

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class _Manifest:
    files: dict[str, tuple[int, int]]  # bytes and checksum
    tensors: dict[str, TensorStorageMetadata]
    places: dict[MetadataIndex, _Stored]


def _manifest_of(folder: Path) -> _Manifest:
    """What a manifest says, nothing of which is taken on trust.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no manifest, or none that a save can have written.
    """
    content = (folder / MANIFEST).read_bytes()
    try:
        return _parsed(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {_line_of(error)}"[:200]
        raise ValueError(f"{MANIFEST} is malformed ({said}); use another checkpoint than {folder}") from error


def _parsed(given: Any) -> _Manifest:
    if given["format"] != FORMAT:
        raise ValueError(f"format {given['format']!r} is not {FORMAT}")
    files = {_plain_name(name): (_number(f["bytes"]), _number(f["crc32"])) for name, f in given["files"].items()}
    if STATE not in files:
        raise ValueError(f"{STATE} is not among the files")
    manifest = _Manifest(files, {}, {})
    for fqn, tensor in given["tensors"].items():
        dtype, size = _DTYPES[tensor["dtype"]], _numbers(tensor["size"])
        chunks = []
        for chunk in tensor["chunks"]:
            offsets = _numbers(chunk["offsets"])
            stored = _Stored(chunk["file"], _number(chunk["begin"]), dtype, _numbers(chunk["sizes"]))
            index = MetadataIndex(fqn, offsets)
            if not len(offsets) == len(stored.sizes) == len(size) or any(
                offset + length > whole for offset, length, whole in zip(offsets, stored.sizes, size, strict=True)
            ):
                raise ValueError(f"{fqn} of {list(size)} has no chunk {list(stored.sizes)} at {list(offsets)}")
            if stored.file not in files or stored.end > files[stored.file][0] or stored.begin % dtype.itemsize:
                raise ValueError(f"{fqn} cannot be at {stored.begin:,} of {stored.file!r}")
            if index in manifest.places:
                raise ValueError(f"{fqn} has two chunks at {list(offsets)}")
            chunks.append(ChunkStorageMetadata(offsets, stored.sizes))
            manifest.places[index] = stored
        held = sum(math.prod(chunk.sizes) for chunk in chunks)
        if held != math.prod(size):  # which numel() would let overflow
            raise ValueError(f"the chunks of {fqn} hold {held} of {math.prod(size)} elements")
        manifest.tensors[fqn] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)
    return manifest


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"{name!r} is no plain file name")
    return name


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no size or place")
    return value


def _numbers(values: list[Any]) -> torch.Size:
    return torch.Size([_number(value) for value in values])


class _LoadPlanner(dcp.DefaultLoadPlanner):
    """DCP's, without the steps that know only tensors and replace anything else by None."""

    state_dict: dict[str, Pieces]
    metadata: Metadata

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata = state_dict, metadata

    def create_local_plan(self) -> LoadPlan:
        saved: dict[str, Any] = self.metadata.state_dict_metadata
        items = [
            item
            for fqn, pieces in self.state_dict.items()
            for item in create_read_items_for_chunk_list(fqn, saved[fqn], pieces.__create_chunk_list__())
        ]
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class _Reader(StorageReader):
    def __init__(self, folder: Path, manifest: _Manifest):
        self.folder, self.manifest = folder, manifest

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata(dict(self.manifest.tensors))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Maps each file in turn, so that only the pages of the rows that are wanted are read."""
        places = self.manifest.places
        mapped: tuple[str, Tensor] | None = None
        for item in sorted(plan.items, key=lambda i: (places[i.storage_index].file, places[i.storage_index].begin)):
            place = places[item.storage_index]
            if mapped is None or mapped[0] != place.file:
                mapped = place.file, self._mapped(place.file)
            saved = mapped[1][place.begin : place.end].view(place.dtype).view(place.sizes)
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                saved = saved.narrow(dim, offset, length)
            wanted = planner.resolve_tensor(item)
            wanted.copy_(saved)
            planner.commit_tensor(item, wanted)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _mapped(self, file: str) -> Tensor:
        problem = _problem_of_size(self.folder, file, self.manifest)
        if problem:
            raise OSError(f"{self.folder} is damaged: {problem}")
        return torch.from_numpy(np.memmap(self.folder / file, dtype=np.uint8, mode="c"))  # "r" would warn


@contextmanager
def _plain_errors() -> Iterator[None]:
    """DCP's exception holds those of all ranks with their traces; a person gets the first, in a line."""
    try:
        yield
    except CheckpointException as exception:
        error = next(iter(exception.failures.values()))[0]
        if not isinstance(error, Exception):  # an interrupt, which DCP catches too
            raise error from exception
        raise (ValueError if isinstance(error, ValueError) else OSError)(_line_of(error)) from exception


def _quiet() -> None:
    """A filter and no context, since that would put back all filters, under another thread's feet too."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def save(
    folder: Path, tensors: dict[str, Pieces], plain: dict[str, Any], group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint into an empty `folder`; all ranks of the group call it, each with the pieces it holds.

    Args:
        folder: one that all ranks see.
        tensors: a rectangle that several ranks hold is written by one of them.
        plain: of the first rank, what `torch.load(weights_only=True)` can read.

    Raises:
        OSError: some rank could not write; on all ranks.
        ValueError: the pieces overlap, leave gaps or are of a dtype that cannot be stored; on all ranks.
    """
    alone = not dist.is_initialized()
    _quiet()
    with _plain_errors():
        dcp.save(
            dict(tensors),
            storage_writer=_Writer(folder, tensors, plain),
            planner=_SavePlanner(),
            process_group=group,
            no_dist=alone,
        )


def load(folder: Path, tensors: dict[str, Pieces]) -> None:
    """Fill the pieces from the chunks that overlap them, converted to their dtype. Each rank reads on its own.

    Raises:
        OSError: a file cannot be read or has not the size of the manifest.
        ValueError: the manifest is malformed, or a tensor is missing or of another size.
    """
    manifest = _manifest_of(folder)
    for fqn, pieces in tensors.items():
        if fqn not in manifest.tensors:
            raise ValueError(f"{fqn} is not in the checkpoint {folder}; build the model that was saved there")
        saved = manifest.tensors[fqn].size
        if saved != pieces.size:
            raise ValueError(
                f"{fqn} has the size {tuple(saved)} in the checkpoint {folder} and {tuple(pieces.size)} here; build the"
                " model that was saved there"
            )
    _quiet()
    with _plain_errors():
        dcp.load(dict(tensors), storage_reader=_Reader(folder, manifest), planner=_LoadPlanner(), no_dist=True)


def load_whole(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The full tensors, on the host, whose names begin with `prefix`."""
    saved = {fqn: tensor for fqn, tensor in _manifest_of(folder).tensors.items() if fqn.startswith(prefix)}
    tensors = {fqn: torch.empty(t.size, dtype=t.properties.dtype, device="cpu") for fqn, t in saved.items()}
    load(folder, {fqn: Pieces.of(tensor) for fqn, tensor in tensors.items()})
    return tensors


def load_plain(folder: Path) -> dict[str, Any]:
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors in the checkpoint."""
    return {fqn: tuple(tensor.size) for fqn, tensor in _manifest_of(folder).tensors.items()}


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Of all tensors in the checkpoint."""
    return {fqn: tensor.properties.dtype for fqn, tensor in _manifest_of(folder).tensors.items()}


def problem_of(folder: Path, part: int = 0, of: int = 1) -> str | None:
    """Why a checkpoint cannot be used, or None. Reads every `of`-th file from `part` on, so that ranks can share it."""
    try:
        manifest = _manifest_of(folder)
        files = sorted(manifest.files)
        for check, checked in ((_problem_of_size, files), (_problem_of_content, files[part::of])):
            for file in checked:
                if problem := check(folder, file, manifest):
                    return problem
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _problem_of_size(folder: Path, file: str, manifest: _Manifest) -> str | None:
    size, expected = (folder / file).stat().st_size, manifest.files[file][0]
    return None if size == expected else f"{file} has {size:,} bytes of {expected:,}"


def _problem_of_content(folder: Path, file: str, manifest: _Manifest) -> str | None:
    value = 0
    with open(folder / file, "rb", buffering=0) as content:
        while piece := content.read(AT_ONCE):
            value = zlib.crc32(piece, value)
    return None if value == manifest.files[file][1] else f"{file} does not match its checksum"
