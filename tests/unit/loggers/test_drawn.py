import os
from pathlib import Path

from scaledl.loggers.drawn import Watched, drawn


def put(run_dir: Path, name: str, time: int = 1) -> None:
    path = run_dir / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time, time))


def test_files_are_known_by_folder_kind_and_step(tmp_path: Path) -> None:
    for name in ("plots/confusion.png", "samples/step_00000020.png", "samples/step_00000020.json"):
        put(tmp_path, name)
    for name in ("samples/step_00000005.txt", "samples/episode.gif", "plots/.half.png"):
        put(tmp_path, name)
    assert [(each.name, each.step) for each in drawn(tmp_path)] == [
        ("samples/episode", None),
        ("samples/texts", 5),
        ("samples/pictures", 20),
        ("plots/confusion", None),
    ]


def test_each_is_given_once_and_again_when_drawn_anew(tmp_path: Path) -> None:
    put(tmp_path, "plots/old.png")
    watched = Watched(tmp_path)
    assert watched.new() == []
    put(tmp_path, "plots/new.png")
    assert [each.name for each in watched.new()] == ["plots/new"]
    assert watched.new() == []
    put(tmp_path, "plots/old.png", time=2)
    assert [each.name for each in watched.new()] == ["plots/old"]
