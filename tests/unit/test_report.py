import subprocess
import sys
from pathlib import Path

import pytest

from scaledl.config.folders import CONF
from scaledl.report import report
from scaledl.sweep.folder import is_sweep


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


def test_a_sweep_has_a_page_of_its_own(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    trial = run(sweep / "trial_0000")
    (trial / "config.yaml").write_text("experiment: mlp/x\nmonitor: val/loss\nmode: min\n")
    (trial / "composed.yaml").write_text("experiment: mlp/x\n")
    page = report([sweep], None, [CONF])
    assert page == sweep / "report.html"
    assert "<h1>Sweep sweep</h1>" in page.read_text()
    assert report([sweep], tmp_path / "x.html", [CONF]) == tmp_path / "x.html"
    assert (tmp_path / "x.html").read_text() == page.read_text()
    with pytest.raises(ValueError, match="sweep is a sweep"):
        report([sweep, trial], None, [CONF])
    assert report([trial], None, [CONF]) == trial / "report.html"


def test_a_sweep_is_known_by_its_results_or_its_trials(tmp_path: Path) -> None:
    assert not is_sweep(tmp_path)
    (tmp_path / "trial_0000").mkdir()
    assert not is_sweep(tmp_path)
    (tmp_path / "trial_0000" / "config.yaml").touch()
    assert is_sweep(tmp_path)
    (tmp_path / "searched").mkdir()
    (tmp_path / "searched" / "results.json").touch()  # its trials may lie on other machines
    assert is_sweep(tmp_path / "searched")


def test_reading_runs_needs_no_torch(tmp_path: Path) -> None:
    run(tmp_path / "a")
    words = "import sys; from scaledl import cli; code = cli.run(['report', 'a'], False)\n"
    words += "print(code, 'torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["a/report.html", "0 False False"]
