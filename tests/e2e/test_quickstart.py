"""The README's first command, from its set-up to the sample of writing; only its training is shortened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.e2e


def test_quickstart_sets_up_once_trains_and_writes(environment, tmp_path: Path) -> None:
    venv = Path(sys.prefix)
    if venv != ROOT / ".venv" or not (venv / ".setup-dev").exists():
        pytest.skip("runs where scripts/setup.sh made the environment, as scripts/test.sh does")
    words = ["trainer.max_steps=20", f"runs_dir={tmp_path}", "run_id=a"]
    command = [str(ROOT / "scripts" / "quickstart.sh"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stdout  # it is set up already
    assert "baseline/3-gram val/loss" in done.stdout
    assert "written by the model" in done.stdout
    assert os.path.exists(tmp_path / "llm" / "quickstart" / "a" / "summary.json")
