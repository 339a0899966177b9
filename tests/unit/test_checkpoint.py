"""A checkpoint that can be seen is whole, a damaged one is noticed, and none can run code."""

import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledl import atomic, checkpoint, safetensors_file
from scaledl.checkpoint import folder_of
from scaledl.distributed import storage
from scaledl.distributed.pieces import Pieces
from scaledl.distributed.saver import Saver
from scaledl.distributed.strategy import Single

TENSORS = "rank_00000.safetensors"


def save(run_dir: Path, *steps: int, size: int = 1000) -> list[Path]:
    saver = Saver()
    for step in steps:
        tensors = {"weights/model.weight": Pieces.of(torch.full((size,), float(step)))}
        saver.save(folder_of(run_dir, step), tensors, {"global_step": step})
    saver.wait()
    return [folder_of(run_dir, step) for step in steps]


def truncate(file: str, folder: Path) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])


def flip_one_bit(file: str, folder: Path) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)


def lose(file: str, folder: Path) -> None:
    (folder / file).unlink()


def replace_the_manifest(content: str, folder: Path) -> None:
    (folder / storage.MANIFEST).write_text(content)


DAMAGES = [
    *(partial(damage, file) for damage in (truncate, flip_one_bit, lose) for file in (storage.STATE, TENSORS)),
    partial(lose, storage.MANIFEST),
    partial(replace_the_manifest, ""),
    partial(replace_the_manifest, "{}"),
]


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_saved_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 7)
    assert everything_in(tmp_path / "checkpoints") == [
        "step_00000007",
        *(f"step_00000007/{n}" for n in ("manifest.json", "rank_00000.safetensors", "state.pt")),
    ]
    assert storage.problem_of(folder) is None
    assert storage.load_plain(folder) == {"global_step": 7}
    weights = checkpoint.load_model_weights(folder)
    assert list(weights) == ["model.weight"]
    assert torch.equal(weights["model.weight"], torch.full((1000,), 7.0))


def test_averaged_weights_are_taken_where_there_are_any(tmp_path: Path) -> None:
    tensors = {"weights/model.weight": Pieces.of(torch.zeros(3)), "ema/model.weight": Pieces.of(torch.ones(3))}
    saver = Saver()
    saver.save(folder_of(tmp_path, 1), tensors, {})
    saver.wait()
    (weights,) = checkpoint.load_model_weights(folder_of(tmp_path, 1)).items()
    assert (weights[0], weights[1].tolist()) == ("model.weight", [1, 1, 1])


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, plain, saver = torch.zeros(5), {"best": [1]}, Saver()
    write = storage.save

    def late(*arguments: Any) -> None:
        weight.fill_(9)
        plain["best"].append(9)
        write(*arguments)

    monkeypatch.setattr(storage, "save", late)
    saver.save(folder_of(tmp_path, 1), {"weights/w": Pieces.of(weight)}, plain)
    saver.wait()
    assert checkpoint.load_model_weights(folder_of(tmp_path, 1))["w"].tolist() == [0] * 5
    assert storage.load_plain(folder_of(tmp_path, 1)) == {"best": [1]}


def test_the_latest_is_the_one_of_the_largest_step(tmp_path: Path) -> None:
    """By number and not by name: step 100,000,000 has one digit more than the names are padded to."""
    folders = save(tmp_path, 99_999_999, 100_000_000, 20)
    assert checkpoint.all_of(tmp_path) == [folders[2], folders[0], folders[1]]
    assert checkpoint.latest(tmp_path) == folders[1]


def test_a_run_without_checkpoints_has_no_latest_and_no_best(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.best(tmp_path) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_used_and_said(tmp_path: Path, damage: Callable) -> None:
    older, newer = save(tmp_path, 5, 10)
    damage(newer)
    with pytest.warns(UserWarning, match="step_00000010 is damaged: .*; using the one before it"):
        assert checkpoint.latest(tmp_path) == older


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_without_a_whole_checkpoint_every_damage_is_named(tmp_path: Path) -> None:
    folders = save(tmp_path, 5, 10, 15)
    truncate(storage.STATE, folders[0])
    flip_one_bit(TENSORS, folders[1])
    lose(storage.MANIFEST, folders[2])
    with pytest.raises(ValueError, match="no whole checkpoint is left") as caught:
        checkpoint.latest(tmp_path)
    said = str(caught.value)
    size = (folder_of(tmp_path, 5) / storage.STATE).stat().st_size
    assert f"step_00000005 is damaged: state.pt has {size:,} bytes of {size + 1:,}" in said
    assert "step_00000010 is damaged: rank_00000.safetensors does not match its checksum" in said
    assert "step_00000015 is damaged: [Errno 2] No such file" in said


def note_best(run_dir: Path, content: str) -> None:
    (run_dir / "checkpoints" / "best.json").write_text(content)


def test_the_best_is_the_noted_one_while_it_is_whole(tmp_path: Path) -> None:
    folders = save(tmp_path, 5, 10)
    note_best(tmp_path, '{"step": 5}')
    assert checkpoint.best(tmp_path) == folders[0]
    flip_one_bit(TENSORS, folders[0])
    with pytest.warns(UserWarning, match="the best checkpoint, .*step_00000005, is damaged"):
        assert checkpoint.best(tmp_path) is None


@pytest.mark.parametrize("content", ["", '{"step": ', "{}"])
def test_a_note_of_the_best_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    save(tmp_path, 5)
    note_best(tmp_path, content)
    assert checkpoint.best(tmp_path) is None


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """With checkpoints of the steps 5, 10 (the best) and 15."""
    save(tmp_path, 5, 10, 15)
    note_best(tmp_path, '{"step": 10}')
    (tmp_path / "config.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(("which", "step"), [("best", 10), ("last", 15), ("5", 5), ("00000010", 10)])
def test_a_checkpoint_is_chosen_by_a_word_or_a_step(run_dir: Path, which: str, step: int) -> None:
    assert checkpoint.choose(run_dir, which) == folder_of(run_dir, step)


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_without_a_whole_best_the_last_is_chosen(run_dir: Path) -> None:
    truncate(storage.STATE, folder_of(run_dir, 10))
    assert checkpoint.choose(run_dir, "best") == folder_of(run_dir, 15)
    truncate(storage.STATE, folder_of(run_dir, 15))
    assert checkpoint.choose(run_dir, "best") == checkpoint.choose(run_dir, "last") == folder_of(run_dir, 5)


def test_a_damaged_step_that_was_asked_for_is_not_replaced(run_dir: Path) -> None:
    truncate(storage.STATE, folder_of(run_dir, 15))
    with pytest.raises(ValueError, match=r"step_00000015 is damaged: state\.pt has"):
        checkpoint.choose(run_dir, "15")


def test_a_choice_that_is_none_names_the_way_out(run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; there are: 5, 10, 15"):
        checkpoint.choose(run_dir, "7")
    with pytest.raises(ValueError, match="--checkpoint bset: give best, last or the number of a step"):
        checkpoint.choose(run_dir, "bset")
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7; there are: none"):
        checkpoint.choose(run_dir, "7")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet; train it first"):
        checkpoint.choose(run_dir, "best")
    with pytest.raises(FileNotFoundError, match="nowhere is no run directory"):
        checkpoint.choose(run_dir / "nowhere", "last")


def half_a_write(error: Exception, state: Any, file: Any) -> None:
    file.write(b"half of it")
    raise error


def failing(error: BaseException) -> Callable:
    def fail(*arguments: Any, **named: Any) -> None:
        raise error

    return fail


FULL = OSError(28, "No space left on device")
FAILURES = {  # (what fails, how, what is said of it)
    "full": (torch, "save", partial(half_a_write, FULL), "state.pt: [Errno 28] No space left on device"),
    "torch": (torch, "save", partial(half_a_write, RuntimeError("writer failed\nat x.cc")), "state.pt: writer failed"),
    "tensors": (
        safetensors_file,
        "_bytes_of",
        failing(FULL),
        "rank_00000.safetensors: [Errno 28] No space left on device",
    ),
    "manifest": (atomic, "write_text", failing(FULL), "No space left on device"),
    "folder": (Path, "mkdir", failing(PermissionError(13, "Permission denied")), "Permission denied"),
    "wordless": (storage, "save", failing(MemoryError()), "MemoryError"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_write_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    (older,) = save(tmp_path, 5)
    before, content = everything_in(tmp_path), (older / TENSORS).read_bytes()
    where, name, fails, words = FAILURES[failure]
    monkeypatch.setattr(where, name, fails)
    for step in (10, 5):  # a new one, and one in the place of an old one
        with pytest.raises(OSError, match=r"could not be written \(.*; [\d,]+ MiB free\)") as caught:
            save(tmp_path, step)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before
    assert (older / TENSORS).read_bytes() == content
    assert checkpoint.latest(tmp_path) == older


def test_a_failed_write_is_said_once_by_the_next_save_which_then_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, tensors = Saver(), {"weights/w": Pieces.of(torch.ones(3))}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", partial(half_a_write, FULL))
        saver.save(folder_of(tmp_path, 5), tensors, {})
        with pytest.raises(OSError, match="step_00000005 could not be written"):
            saver.save(folder_of(tmp_path, 10), tensors, {})
    saver.wait()
    saver.save(folder_of(tmp_path, 15), tensors, {})
    saver.wait()
    assert checkpoint.all_of(tmp_path) == [folder_of(tmp_path, 15)]


def test_what_is_to_follow_a_save_finds_it_visible_and_whole(tmp_path: Path) -> None:
    saver, seen = Saver(), []
    saver.save(folder_of(tmp_path, 5), {}, {}, lambda: seen.append(checkpoint.latest(tmp_path)))
    saver.wait()
    assert seen == [folder_of(tmp_path, 5)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_kill_before_the_rename_shows_no_checkpoint_and_the_next_save_clears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    with monkeypatch.context() as patch:  # what nothing catches, as nothing runs after a SIGKILL
        patch.setattr(os, "rename", failing(KeyboardInterrupt()))
        save(tmp_path, 10)
    assert (tmp_path / "checkpoints" / ".step_00000010.tmp").exists()
    assert checkpoint.all_of(tmp_path) == [folder_of(tmp_path, 5)]
    save(tmp_path, 10)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000005", "step_00000010"]


def test_a_run_that_goes_on_puts_aside_what_lies_in_its_way(tmp_path: Path) -> None:
    folders = save(tmp_path, 5, 10)
    (tmp_path / "checkpoints" / ".step_00000015.tmp").mkdir()
    flip_one_bit(TENSORS, folders[1])
    for half in (tmp_path / ".summary.json.17953.tmp", tmp_path / "checkpoints" / ".best.json.17953.tmp"):
        half.write_text("{")
    checkpoint.clear_after(tmp_path, 5)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["damaged_step_00000010", "step_00000005"]
    assert not list(tmp_path.glob(".*"))
    assert checkpoint.latest(tmp_path) == folders[0]


def test_a_checkpoint_replaces_a_damaged_one_of_its_step(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 5)
    truncate(TENSORS, folder)
    save(tmp_path, 5, size=10)
    assert storage.problem_of(folder) is None
    assert checkpoint.load_model_weights(folder)["model.weight"].shape == (10,)


def test_a_removed_checkpoint_is_out_of_sight_before_it_is_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = save(tmp_path, 5, 10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)  # a kill before anything is deleted
        checkpoint.remove(folders[1])
    assert checkpoint.all_of(tmp_path) == [folders[0]]
    checkpoint.remove(folders[0])
    assert checkpoint.all_of(tmp_path) == []


class Bomb:
    """Runs code when it is unpickled, as any pickle can."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["code", "function", "class"])
def test_a_state_that_holds_more_than_values_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    sign = tmp_path / "it ran"
    smuggled = {"code": Bomb(sign), "function": half_a_write, "class": Bomb}[kind]
    (folder,) = save(tmp_path, 5)
    torch.save({"global_step": 5, "extra": smuggled}, folder / storage.STATE)
    for load in (Single().load_checkpoint, partial(Single().load_checkpoint, weights_only=False), storage.load_plain):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            load(folder)
    checkpoint.load_model_weights(folder)  # has no need of it
    assert storage.problem_of(folder) is not None
    assert not sign.exists()


def test_the_checksum_goes_over_every_piece_of_a_file(tmp_path: Path) -> None:
    """Bigger than the piece that is read at once."""
    (folder,) = save(tmp_path, 5, size=storage.AT_ONCE // 4 + 100)
    content = bytearray((folder / TENSORS).read_bytes())
    assert len(content) > storage.AT_ONCE
    for place in (10, len(content) // 2, len(content) - 10):
        content[place] ^= 1
        (folder / TENSORS).write_bytes(content)
        assert storage.problem_of(folder) == f"{TENSORS} does not match its checksum"
        content[place] ^= 1
