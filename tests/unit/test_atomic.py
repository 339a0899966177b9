"""A file or a folder is whole or not there, whoever else writes it."""

import os
from pathlib import Path

import pytest

from scaledl import atomic


def test_a_writer_of_the_same_process_number_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, others = tmp_path / "file", os.fsync, [b"of another node"]

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if others:  # in the midst of the first writing, once
            atomic.write_bytes(path, others.pop())
            assert path.read_bytes() == b"of another node"

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write_bytes(path, b"of this one")
    assert path.read_bytes() == b"of this one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_left_half_written_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # as after a kill
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        atomic.write_bytes(tmp_path / "file", b"words")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    atomic.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def write_both(to: Path) -> None:
    with atomic.new_folder(to) as outer:
        (outer / "outer").touch()
        with atomic.new_folder(to) as inner:
            (inner / "inner").touch()
            assert not to.exists()
        assert (outer / "outer").exists()
        raise KeyboardInterrupt


def test_two_writers_do_not_meet_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    to = tmp_path / "deep/made"
    with pytest.raises(KeyboardInterrupt):
        write_both(to)
    assert [path.name for path in to.parent.iterdir()] == ["made"]
    with pytest.raises(OSError, match="not empty"), atomic.new_folder(to) as late:
        (late / "late").touch()
    assert [path.name for path in to.parent.iterdir()] == ["made"]
    assert [path.name for path in to.iterdir()] == ["inner"]
