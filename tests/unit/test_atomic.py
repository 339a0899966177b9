"""A folder is whole or not there."""

from pathlib import Path

import pytest

from scaledl import atomic


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
