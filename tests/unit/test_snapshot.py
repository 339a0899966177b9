"""The code that a queued job will run."""

import subprocess
import sys
from pathlib import Path

import pytest

from scaledl.snapshot import keep_code


def test_the_copy_runs_by_itself_with_its_configs_and_the_user_s_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("VALUE = 1\n")
    (tmp_path / "single.py").write_text("VALUE = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    keep_code(tmp_path / "run" / "code", ["mine", "single"])

    probe = "import scaledl, mine, single; print(scaledl.__file__, mine.__file__, single.__file__)"
    elsewhere = {"PYTHONPATH": str(tmp_path / "run" / "code"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", probe], env=elsewhere, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(tmp_path / "run" / "code")) for path in done.stdout.split())
    listed = subprocess.run(
        [sys.executable, "-m", "scaledl", "list", "mlp"], env=elsewhere, cwd=tmp_path, capture_output=True, text=True
    )
    assert "mlp/circles" in listed.stdout, listed.stderr
    assert (tmp_path / "run" / "code" / "slurm" / "train.sbatch").is_file()
    assert not list((tmp_path / "run").rglob("__pycache__/*.tmp"))


def test_the_commit_and_the_changes_of_the_user_s_checkout_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "mine.py").write_text("before\n")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "mine.py").write_text("after\n")
    monkeypatch.chdir(tmp_path)
    keep_code(tmp_path / "code", [])
    assert (tmp_path / "code" / "project.commit").read_text() == git("rev-parse", "HEAD")
    assert "+after" in (tmp_path / "code" / "project.diff").read_text()


def test_a_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--allow nowhere: there is no such package"):
        keep_code(tmp_path / "code", ["nowhere"])
