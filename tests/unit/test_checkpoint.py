"""A checkpoint that can be seen is whole, a damaged one is noticed, and none can run code."""

import json
import os
import pickle
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledl import checkpoint
from scaledl.checkpoint import CheckpointFolders, folder_of


def save(run_dir: Path, *steps: int, size: int = 1000) -> list[Path]:
    for step in steps:
        state = {"state_dict": OrderedDict(weight=torch.full((size,), float(step))), "global_step": step}
        CheckpointFolders().save_checkpoint(state, folder_of(run_dir, step))
    return [folder_of(run_dir, step) for step in steps]


def truncate(folder: Path) -> None:
    state = folder / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-1])


def flip_one_bit(folder: Path) -> None:
    content = bytearray((folder / checkpoint.STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / checkpoint.STATE).write_bytes(content)


def lose_the_state(folder: Path) -> None:
    (folder / checkpoint.STATE).unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).unlink()


def empty_the_manifest(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).write_text("")


def forget_the_facts(folder: Path) -> None:
    (folder / checkpoint.MANIFEST).write_text("{}")


DAMAGES = [truncate, flip_one_bit, lose_the_state, lose_the_manifest, empty_the_manifest, forget_the_facts]


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_saved_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 7)
    assert everything_in(tmp_path / "checkpoints") == [
        "step_00000007",
        *(f"step_00000007/{n}" for n in ("manifest.json", "state.pt")),
    ]
    assert checkpoint.problem_of(folder) is None
    state = CheckpointFolders().load_checkpoint(folder)
    assert state["global_step"] == 7
    weights = checkpoint.load_model_weights(folder)
    assert torch.equal(weights["weight"], torch.full((1000,), 7.0))


def test_the_latest_is_the_one_of_the_largest_step(tmp_path: Path) -> None:
    """By number and not by name: step 100,000,000 has one digit more than the names are padded to."""
    folders = save(tmp_path, 99_999_999, 100_000_000, 20)
    assert checkpoint.all_of(tmp_path) == [folders[2], folders[0], folders[1]]
    assert checkpoint.latest(tmp_path) == folders[1]


def test_a_run_without_checkpoints_has_no_latest_and_no_best(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.best(tmp_path) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_used_and_said(tmp_path: Path, damage: Any) -> None:
    older, newer = save(tmp_path, 5, 10)
    damage(newer)
    with pytest.warns(UserWarning, match="step_00000010 is damaged: .*; using the one before it"):
        assert checkpoint.latest(tmp_path) == older


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_without_a_whole_checkpoint_every_damage_is_named(tmp_path: Path) -> None:
    for folder, damage in zip(save(tmp_path, 5, 10, 15), (truncate, flip_one_bit, lose_the_manifest), strict=True):
        damage(folder)
    with pytest.raises(ValueError, match="no whole checkpoint is left") as caught:
        checkpoint.latest(tmp_path)
    said = str(caught.value)
    size = (folder_of(tmp_path, 5) / checkpoint.STATE).stat().st_size
    assert f"step_00000005 is damaged: state.pt has {size:,} bytes of {size + 1:,}" in said
    assert "step_00000010 is damaged: state.pt does not match its checksum" in said
    assert "step_00000015 is damaged: FileNotFoundError" in said


def note_best(run_dir: Path, content: str) -> None:
    (run_dir / "checkpoints" / "best.json").write_text(content)


def test_the_best_is_the_noted_one_while_it_is_whole(tmp_path: Path) -> None:
    folders = save(tmp_path, 5, 10)
    note_best(tmp_path, '{"step": 5}')
    assert checkpoint.best(tmp_path) == folders[0]
    flip_one_bit(folders[0])
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
    truncate(folder_of(run_dir, 10))
    assert checkpoint.choose(run_dir, "best") == folder_of(run_dir, 15)
    truncate(folder_of(run_dir, 15))
    assert checkpoint.choose(run_dir, "best") == checkpoint.choose(run_dir, "last") == folder_of(run_dir, 5)


def test_a_damaged_step_that_was_asked_for_is_not_replaced(run_dir: Path) -> None:
    truncate(folder_of(run_dir, 15))
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


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file\nat x.cc")]
)
def test_a_failed_write_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (older,) = save(tmp_path, 5)
    before, content = everything_in(tmp_path), (older / checkpoint.STATE).read_bytes()
    monkeypatch.setattr(torch, "save", partial(half_a_write, error))
    for step in (10, 5):  # a new one, and one in the place of an old one
        with pytest.raises(OSError, match=r"could not be written \(.*; [\d,]+ MiB free\)") as caught:
            save(tmp_path, step)
        assert str(error).splitlines()[0] in str(caught.value)
        assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before
    assert (older / checkpoint.STATE).read_bytes() == content
    assert checkpoint.latest(tmp_path) == older


def test_a_kill_before_the_rename_shows_no_checkpoint_and_the_next_save_clears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    with monkeypatch.context() as patch:  # what nothing catches, as nothing runs after a SIGKILL
        patch.setattr(os, "rename", kill)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 10)
    assert checkpoint.all_of(tmp_path) == [folder_of(tmp_path, 5)]
    save(tmp_path, 10)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000005", "step_00000010"]


def kill(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_replaces_a_damaged_one_of_its_step(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 5)
    truncate(folder)
    save(tmp_path, 5, size=10)
    assert checkpoint.problem_of(folder) is None
    assert checkpoint.load_model_weights(folder)["weight"].shape == (10,)


def test_a_removed_checkpoint_is_out_of_sight_before_it_is_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = save(tmp_path, 5, 10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)  # a kill before anything is deleted
        CheckpointFolders().remove_checkpoint(folders[1])
    assert checkpoint.all_of(tmp_path) == [folders[0]]
    CheckpointFolders().remove_checkpoint(folders[0])
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
    torch.save({"state_dict": {}, "extra": smuggled}, folder / checkpoint.STATE)
    for load in (CheckpointFolders().load_checkpoint, checkpoint.load_model_weights):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            load(folder)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        CheckpointFolders().load_checkpoint(folder, weights_only=False)
    assert not sign.exists()


def test_the_manifest_is_that_of_the_state_beside_it(tmp_path: Path) -> None:
    """Bigger than the piece that is read at once, so that the checksum goes over all of it."""
    (folder,) = save(tmp_path, 5, size=600_000)
    content = bytearray((folder / checkpoint.STATE).read_bytes())
    assert json.loads((folder / checkpoint.MANIFEST).read_text())["bytes"] == len(content) > 2 << 20
    for place in (10, len(content) // 2, len(content) - 10):
        content[place] ^= 1
        (folder / checkpoint.STATE).write_bytes(content)
        assert checkpoint.problem_of(folder) == "state.pt does not match its checksum"
        content[place] ^= 1
