"""What one strategy saves in shards another loads, from files that hold no code and are known to be whole."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from scaledl.distributed import storage
from scaledl.distributed.pieces import Pieces

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def state() -> dict[str, Tensor]:
    """Sizes that no number of ranks divides."""
    return {
        "rows": torch.arange(15.0).view(5, 3),
        "deep.cube": torch.arange(2 * 3 * 7.0).view(2, 3, 7),
        "short": torch.arange(3).bfloat16(),
        "step": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
    }


def whole(tensors: dict[str, Tensor]) -> dict[str, Pieces]:
    return {name: Pieces.of(tensor) for name, tensor in tensors.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def save(folder: Path, tensors: dict[str, Pieces], plain: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    storage.save(folder, tensors, plain or {})
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


# One process.


def test_every_dtype_comes_back_as_it_was_and_nothing_else_is_written(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(-3, 12).view(5, 3).to(dtype) for dtype in DTYPES} | state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = save(tmp_path / "c", whole(tensors), {"step": 3, "names": ["a"]})
        assert same(storage.load_whole(folder), tensors)
    assert storage.load_plain(folder) == {"step": 3, "names": ["a"]}
    assert storage.sizes(folder) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert storage.problem_of(folder) is None
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "rank_00000.safetensors", "state.pt"]


def test_a_tensor_larger_than_the_piece_that_is_written_at_once(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(storage.AT_ONCE // 4 + 1, dtype=torch.int32), "b": torch.ones(3)}
    folder = save(tmp_path / "c", whole(tensors))
    assert storage.problem_of(folder) is None
    assert same(storage.load_whole(folder), tensors)


def test_a_view_that_is_not_contiguous_is_saved_and_loaded_into(tmp_path: Path) -> None:
    for name, view in {"t": torch.arange(12.0).view(3, 4).t(), "every": torch.arange(12)[::5]}.items():
        folder = save(tmp_path / name, {"w": Pieces.of(view)})
        assert torch.equal(storage.load_whole(folder)["w"], view)
        into = torch.zeros_like(view, memory_format=torch.preserve_format)
        storage.load(folder, {"w": Pieces.of(into)})
        assert torch.equal(into, view)


def test_only_names_with_the_prefix_are_loaded(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", whole({"model.w": torch.ones(2), "model.b": torch.ones(1), "optim.w": torch.ones(2)}))
    assert list(storage.load_whole(folder, "model.")) == ["model.w", "model.b"]


def test_what_is_loaded_is_converted_to_the_dtype_it_is_loaded_into(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", whole({"w": torch.tensor([1.5, 2.25])}))
    into = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    storage.load(folder, {"w": Pieces.of(into)})
    assert into.tolist() == [1.5, 2.25]


def test_ranges_are_loaded_from_the_rows_they_overlap_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", whole({"w": torch.arange(20.0).view(5, 4)}))
    flat = torch.full((9,), -1.0)
    storage.load(folder, {"w": Pieces.of_range((5, 4), 6, flat[1:8])})
    assert flat.tolist() == [-1, 6, 7, 8, 9, 10, 11, 12, -1]


def test_any_reader_of_safetensors_opens_the_file(tmp_path: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    tensors = {str(dtype): torch.arange(-3, 12).to(dtype) for dtype in DTYPES} | state()
    folder = save(tmp_path / "c", whole(tensors))
    assert same(load_file(folder / "rank_00000.safetensors"), tensors)


def test_a_tensor_that_is_missing_or_of_another_size_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", whole({"w": torch.zeros(3, 4)}))
    with pytest.raises(ValueError, match=r"^bias is not in the checkpoint .*c; build the model that was saved"):
        storage.load(folder, whole({"w": torch.zeros(3, 4), "bias": torch.zeros(4)}))
    with pytest.raises(ValueError, match=r"^w has the size \(3, 4\) in the checkpoint .* and \(4, 4\) here"):
        storage.load(folder, whole({"w": torch.zeros(4, 4)}))


def test_pieces_that_leave_gaps_are_refused_and_make_no_checkpoint(tmp_path: Path) -> None:
    for pieces, held in (
        (Pieces.of_range((3, 4), 0, torch.zeros(5)), 5),
        (Pieces.of_range((1,), 0, torch.zeros(0)), 0),
    ):
        with pytest.raises(
            ValueError, match=f"^the ranks hold {held} of the .* elements of w; have all of them save it"
        ):
            save(tmp_path / "c", {"w": pieces})
        assert "manifest.json" in str(storage.problem_of(tmp_path / "c"))


def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^w is of torch\.complex64, which cannot be stored; these can: float64"):
        save(tmp_path / "c", whole({"w": torch.zeros(2, dtype=torch.complex64)}))
    halves = Pieces(torch.Size([2]), torch.float32, [((0,), torch.zeros(1)), ((1,), torch.zeros(1))])
    with pytest.raises(ValueError, match=r"^two tensors would be stored as 'w@1'; rename one of them"):
        save(tmp_path / "c", {"w@1": Pieces.of(torch.zeros(2)), "w": halves})


@pytest.mark.parametrize("file", ["rank_00000.safetensors", "state.pt"])
def test_a_full_disk_is_told_in_one_line_and_makes_no_checkpoint(tmp_path: Path, file: str) -> None:
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"^{file}: .*") as caught:
        save(tmp_path, whole({"w": torch.zeros(100_000)}), {"notes": "x" * 100_000})
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert storage.problem_of(tmp_path) is not None
    (tmp_path / file).unlink()  # as one who copies the link writes zeros without end


def test_an_interrupt_is_not_taken_for_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, whole(state()))


# Damages.


def truncate(folder: Path) -> str:
    file = folder / "rank_00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    size = file.stat().st_size
    return rf"rank_00000\.safetensors has {size:,} bytes of {size + 1:,}"


def flip_one_bit(folder: Path) -> str:
    file = folder / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    return r"rank_00000\.safetensors does not match its checksum"


def lose_a_file(folder: Path) -> str:
    (folder / "state.pt").unlink()
    return "No such file or directory: .*state.pt"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "No such file or directory: .*manifest.json"


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, lose_a_file, lose_the_manifest])
def test_a_damage_is_noticed(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    folder = save(tmp_path / "c", whole(state()))
    assert storage.problem_of(folder) is None
    expected = damage(folder)
    problem = storage.problem_of(folder)
    assert problem is not None
    assert re.search(expected, problem)


def test_what_has_not_the_size_of_the_manifest_is_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", whole(state()))
    (folder / "state.pt").unlink()
    (folder / "state.pt").symlink_to("/dev/zero")
    assert re.fullmatch(r"state\.pt has 0 bytes of [\d,]+", storage.problem_of(folder) or "")
    (folder / "state.pt").unlink()


def test_ranks_share_the_checksums_but_each_sees_a_lost_byte(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", whole(state()))
    flip_one_bit(folder)
    assert [storage.problem_of(folder, part, 2) is None for part in range(2)] == [False, True]
    truncate(folder)
    assert [storage.problem_of(folder, part, 2) is None for part in range(2)] == [False, False]
    with pytest.raises(OSError, match=r"is damaged: rank_00000\.safetensors has"):
        storage.load_whole(folder)


def edited(path: str, value: Any) -> Callable[[dict], None]:
    def edit(manifest: dict) -> None:
        *way, last = path.split("/")
        for key in way:
            manifest = manifest[int(key) if isinstance(manifest, list) else key]
        manifest[last] = value

    return edit


def lead_out(manifest: dict) -> None:
    manifest["files"]["../x"] = manifest["files"].pop("rank_00000.safetensors")
    manifest["tensors"]["w"]["chunks"][0]["file"] = "../x"


CHUNK = "tensors/w/chunks/0"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lead_out, r"'\.\./x' is no plain file name"),
        (edited("files/..", {"bytes": 1, "crc32": 1}), r"'\.\.' is no plain file name"),
        (edited("format", 2), "format 2 is not 1"),
        (edited("files", []), "AttributeError"),
        (edited("files", {}), r"state\.pt is not among the files"),
        (edited("files/state.pt/bytes", -1), "-1 is no size"),
        (edited("files/state.pt/bytes", 1e30), r"1e\+30 is no size"),
        (edited("tensors/w", None), "TypeError"),
        (edited("tensors/w/dtype", "load"), "KeyError: 'load'"),
        (edited("tensors/w/size", [5, 1 << 40]), "the chunks of w hold 15 of"),
        (edited("tensors/w/chunks", []), "the chunks of w hold 0 of 15"),
        (edited(f"{CHUNK}/file", "/etc/hostname"), "w cannot be at"),
        (edited(f"{CHUNK}/file", ["x"]), "TypeError"),
        (edited(f"{CHUNK}/begin", 1 << 40), "w cannot be at"),
        (edited(f"{CHUNK}/begin", 9), "w cannot be at 9"),
        (edited(f"{CHUNK}/sizes", [5, 4]), r"w of \[5, 3\] has no chunk \[5, 4\]"),
        (edited(f"{CHUNK}/offsets", [0]), r"w of \[5, 3\] has no chunk \[5, 3\] at \[0\]"),
    ],
)
def test_a_manifest_is_not_taken_on_trust(tmp_path: Path, edit: Callable[[dict], None], said: str) -> None:
    folder = save(tmp_path / "c", whole({"w": torch.zeros(5, 3)}))
    manifest = manifest_of(folder)
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    check_malformed(folder, said)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_a_manifest_that_is_none_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    folder = save(tmp_path / "c", whole({"w": torch.zeros(5, 3)}))
    (folder / "manifest.json").write_bytes(content)
    check_malformed(folder, "")


def check_malformed(folder: Path, said: str) -> None:
    with pytest.raises(ValueError, match=f"manifest.json is malformed \\(.*{said}") as caught:
        storage.load_whole(folder)
    assert storage.problem_of(folder) == str(caught.value)
    assert "\n" not in str(caught.value)


# Several processes: two save, four load what they saved and save in turn, and this one loads that.


def shares(rank: int, world_size: int, tensors: dict[str, Tensor]) -> dict[str, Pieces]:
    """As ZeRO holds them: a rank's share of all the flattened tensors, one after the other."""
    total = sum(tensor.numel() for tensor in tensors.values())
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    pieces, begin = {}, 0
    for name, tensor in tensors.items():
        start, stop = (min(max(at - begin, 0), tensor.numel()) for at in (first, last))
        pieces[name] = Pieces.of_range(tuple(tensor.shape), start, tensor.flatten()[start:stop].clone())
        begin += tensor.numel()
    return pieces


def sharded(mesh: DeviceMesh, tensors: dict[str, Tensor], *placements: Any) -> dict[str, Tensor]:
    """DTensors; what has too few dimensions is replicated."""
    return {
        name: distribute_tensor(tensor, mesh, [p if _fits(p, tensor) else Replicate() for p in placements])
        for name, tensor in tensors.items()
    }


def _fits(placement: Any, tensor: Tensor) -> bool:
    return not isinstance(placement, Shard) or placement.dim < tensor.dim()


def check_loads(folder: Path, targets: dict[str, Tensor]) -> None:
    """DTensors of zeros become those of the state."""
    storage.load(folder, whole(targets))
    for name, expected in state().items():
        target = targets[name]
        assert torch.equal(target.full_tensor() if isinstance(target, DTensor) else target, expected), (folder, name)


def two_save(rank: int, folder: Path) -> None:
    start(rank, 2, folder)
    mesh = init_device_mesh("cpu", (2,))
    save(folder / "ranges", shares(rank, 2, state()), {"from": rank})
    save(folder / "replicated", whole(state()))
    save(folder / "rows", whole(sharded(mesh, state(), Shard(0))))
    (folder / "columns").mkdir(exist_ok=True)
    storage.save(folder / "columns", whole(sharded(mesh, state(), Shard(1))), {}, dist.new_group())
    with pytest.raises(ValueError, match="holds partial sums"):
        Pieces.of(DTensor.from_local(torch.ones(2), mesh, [Partial()]))
    with pytest.raises(ValueError, match="Failed to validate global plan: key:w has overlapping chunks"):
        save(folder / "overlap", {"w": Pieces.of_range((4,), rank, torch.zeros(3))})
    if rank == 1:
        (folder / "full").mkdir()
        (folder / "full" / "rank_00001.safetensors").symlink_to("/dev/full")
    dist.barrier()
    with pytest.raises(OSError, match=r"^rank_00001\.safetensors: .*No space left on device$"):
        save(folder / "full", whole(sharded(mesh, state(), Shard(0))))
    assert not (folder / "full" / "manifest.json").exists()
    dist.barrier()
    (folder / "full" / f"rank_{rank:05d}.safetensors").unlink()  # as one who copies the link writes zeros without end
    dist.destroy_process_group()


def four_load_and_save(rank: int, folder: Path) -> None:
    start(rank, 4, folder)
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    for saved in ("ranges", "replicated", "rows", "columns"):
        check_loads(folder / saved, sharded(line, zeros, Shard(0)))
        check_loads(folder / saved, sharded(line, zeros, Shard(1)))
        check_loads(folder / saved, sharded(square, zeros, Shard(0), Shard(1)))
        flat = shares(rank, 4, zeros)
        storage.load(folder / saved, flat)
        expected = shares(rank, 4, state())
        for name, pieces in flat.items():
            for (_, part), (_, other) in zip(pieces.parts, expected[name].parts, strict=True):
                assert torch.equal(part, other), name
    save(folder / "square", whole(sharded(square, state(), Shard(0), Shard(1))))
    save(folder / "hybrid", whole(sharded(square, state(), Replicate(), Shard(0))))
    save(folder / "both", whole(sharded(square, state(), Shard(0), Shard(0))))
    save(folder / "quarters", shares(rank, 4, state()))
    dist.barrier()
    dist.destroy_process_group()


def start(rank: int, world_size: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store_{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    multiprocessing.spawn(two_save, (folder,), nprocs=2)
    multiprocessing.spawn(four_load_and_save, (folder,), nprocs=4)
    return folder


SAVED = ["ranges", "replicated", "rows", "columns", "square", "hybrid", "both", "quarters"]


@pytest.mark.distributed
@pytest.mark.parametrize("name", SAVED)
def test_what_several_ranks_saved_is_loaded_by_one(saved: Path, name: str) -> None:
    assert storage.problem_of(saved / name) is None
    assert same(storage.load_whole(saved / name), state())


@pytest.mark.distributed
@pytest.mark.parametrize("name", SAVED)
def test_each_element_is_written_once(saved: Path, name: str) -> None:
    manifest = manifest_of(saved / name)
    for tensor, expected in state().items():
        times: Counter = Counter()
        for chunk in manifest["tensors"][tensor]["chunks"]:
            assert 0 not in chunk["sizes"] or expected.numel() == 0
            view = torch.arange(expected.numel()).view(expected.shape)
            for dim, (offset, length) in enumerate(zip(chunk["offsets"], chunk["sizes"], strict=True)):
                view = view.narrow(dim, offset, length)
            times.update(view.flatten().tolist())
        assert times == dict.fromkeys(range(expected.numel()), 1)
    stored = sum(file["bytes"] for file_name, file in manifest["files"].items() if file_name != "state.pt")
    headers = sum(8 + header_length(saved / name / file) for file in manifest["files"] if file != "state.pt")
    assert stored - headers == sum(tensor.nbytes for tensor in state().values())


def header_length(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.distributed
def test_ranks_share_the_writing_of_what_they_all_hold(saved: Path) -> None:
    for name, ranks in (("replicated", 2), ("quarters", 4)):
        files = sorted(manifest_of(saved / name)["files"])
        assert files == [*(f"rank_{rank:05d}.safetensors" for rank in range(ranks)), "state.pt"]


@pytest.mark.distributed
def test_plain_values_are_those_of_the_first_rank(saved: Path) -> None:
    assert storage.load_plain(saved / "ranges") == {"from": 0}


@pytest.mark.distributed
def test_a_reader_of_safetensors_finds_shards_under_their_offsets(saved: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    second = load_file(saved / "rows" / "rank_00001.safetensors")
    assert second["rows@3,0"].tolist() == state()["rows"][3:].tolist()
