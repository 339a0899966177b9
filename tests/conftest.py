"""The command line as a person types it, in a directory of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["tests.databases"]
ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "scaledl"]

TINY_GPT = [
    "experiment=llm/gpt_shakespeare",
    "model.dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.hidden_dim=64",
    "data.seq_len=32",
    "~callbacks.samples",
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of tokenised text for the session, none in the home directory."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """No account, no run id, no cache of the person who runs the tests."""
    chosen = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "SCALEDL", "SLURM"))}
    path = os.pathsep.join(filter(None, [str(ROOT), chosen.get("PYTHONPATH", "")]))
    return chosen | {"SCALEDL_CACHE": str(cache), "PYTHONPATH": path, "COLUMNS": "120", "HOME": str(tmp_path)}


@pytest.fixture
def scaledl(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `scaledl <words>` in tmp_path; fails the test if the exit code is not the expected one."""

    def run(*words: str, code: int = 0, **arguments: Any) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, **arguments
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if code:
            assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def summary_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())
