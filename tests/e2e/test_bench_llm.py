"""The benchmark of the language model trains the same thing by every program that is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.e2e
NEEDS = {"litgpt": "litgpt", "transformers": "accelerate"}


def bench(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    words = ("--size", "1m", "--rounds", "1", "--threads", "1", "--device", "cpu", *words)
    command = [sys.executable, str(ROOT / "scripts" / "bench_llm.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_equal_losses_and_a_file_of_results(environment: dict[str, str], tmp_path: Path) -> None:
    done = bench(environment, "--steps", "5", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    installed = {name for name, package in NEEDS.items() if importlib.util.find_spec(package)}
    assert set(found["skipped"]) == set(NEEDS) - installed
    assert all("pip install" in reason for reason in found["skipped"].values())
    for name in ("scaledl", "bare", *installed):
        result = found[name]
        assert result["first_loss"] == pytest.approx(found["scaledl"]["first_loss"], abs=1e-4)
        assert result["loss"] == pytest.approx(found["scaledl"]["loss"], abs=2e-3)
        assert result["loss"] < result["first_loss"] - 0.2  # it has learned
        assert min(result[key] for key in ("tokens_per_second", "peak_memory_bytes", "startup_seconds")) > 0
        assert name in done.stdout
    assert {"hardware", "commit", "job"} <= set(found)


def test_no_ratio_where_losses_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_llm

    same = {"scaledl": [6.0, 5.0, 4.0], "bare": [6.00005, 5.001, 4.001]}
    assert bench_llm.unequal(same, "32-true") == []
    for other in ([6.001, 5.0, 4.0], [6.0, 5.1, 4.0], [6.0, 5.0, float("nan")]):
        problems = bench_llm.unequal({"scaledl": same["scaledl"], "bare": other}, "32-true")
        assert len(problems) == 1
        assert problems[0].startswith("bare")
