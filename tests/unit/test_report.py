import subprocess
import sys
import types
from pathlib import Path

import pytest

from scaledl.config.folders import CONF
from scaledl.report import report


def run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("experiment: mlp/x\nseed: 0\n")
    return folder


def test_it_stands_in_the_run_or_in_what_holds_all(tmp_path: Path) -> None:
    first, second = run(tmp_path / "mlp" / "a"), run(tmp_path / "cnn" / "b")
    assert report([first], None, [CONF]) == first / "report.html"
    assert report([first, second], None, [CONF]) == tmp_path / "report.html"
    assert report([first], tmp_path / "x.html", [CONF]).read_text().startswith("<!doctype html>")
    with pytest.raises(FileNotFoundError, match="make it first"):
        report([first], tmp_path / "no" / "x.html", [CONF])
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_sweep_has_a_page_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "sweep" / "trial_0000")
    sweeps = types.ModuleType("scaledl.sweep.report")
    sweeps.write_report = lambda folder: folder / "sweep.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scaledl.sweep.report", sweeps)
    assert report([tmp_path / "sweep"], None, [CONF]) == tmp_path / "sweep" / "sweep.html"
    with pytest.raises(ValueError, match="is a sweep"):
        report([tmp_path / "sweep"], tmp_path / "x.html", [CONF])
    trial = tmp_path / "sweep" / "trial_0000"
    assert report([trial], None, [CONF]) == trial / "report.html"


def test_reading_runs_needs_no_torch(tmp_path: Path) -> None:
    run(tmp_path / "a")
    words = "import sys; from scaledl import cli; code = cli.run(['report', 'a'], False)\n"
    words += "print(code, 'torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["a/report.html", "0 False False"]
