"""The program without its checkout, its start-up, and the README's own words."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, summary_of

pytestmark = pytest.mark.e2e

NO_TORCH = """
import sys
from scaledl.cli import run
try:
    run({words!r}, False)
except SystemExit:  # argparse ends --help so
    pass
heavy = sorted({{"torch", "lightning", "hydra", "numpy"}} & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "mlp"]])
def test_help_and_list_answer_without_torch(environment, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(words=words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "scaledl" in done.stdout


def test_an_installed_wheel_trains_in_an_empty_directory(environment, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("*.whl"))
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = environment | {"PYTHONPATH": str(site)}

    def scaledl(*words: str) -> str:
        command = [sys.executable, str(site / "bin" / "scaledl"), *words]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = [sys.executable, "-c", "import scaledl; print(scaledl.__file__)"]
    where = subprocess.run(asked, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(site))
    assert "mlp/circles" in scaledl("list")
    assert str(site / "scaledl" / "slurm") in scaledl(
        "launch", "slurm", "--dry-run", "--", "train", "experiment=mlp/xor"
    )
    scaledl("train", "experiment=mlp/circles", "run_id=a")
    assert summary_of(empty / "runs/mlp/circles/a")["metrics"]["test/acc"] >= 0.99

    page = (empty / scaledl("report", "runs/mlp/circles/a").strip()).read_text()
    for name in ("report.css", "report.js"):
        assert (site / "scaledl" / "reporting" / name).read_text() in page
    assert '<h3 class="part">Quality</h3>' in page  # of conf/dashboard
    assert "Share of weights that are zero: val/zeros" in scaledl("dashboard", "mlp")

    mine = empty / "conf" / "experiment" / "mine" / "circles.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\ndefaults:\n  - /experiment/mlp/circles\ntrainer:\n  max_steps: 30\n")
    assert "mine/circles" in scaledl("list", "--config-dir", "conf")
    scaledl("train", "--config-dir", "conf", "experiment=mine/circles", "run_id=a")
    assert summary_of(empty / "runs/mine/circles/a")["status"] == "completed"


def readme_commands() -> list[str]:
    """The README's commands in their order; the two that set everything up are run by CI itself."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]
    return [line for line in lines if line != "./scripts/test.sh"]


def test_every_command_of_the_readme_runs(environment, tmp_path: Path) -> None:
    """As it stands there, in one directory and in order; only training stops early."""
    commands = readme_commands()
    assert len(commands) >= 8
    for name in ("README.md", "ARCHITECTURE.md", "examples", "scripts", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for command, module in {"scaledl": "scaledl", "torchrun": "torch.distributed.run"}.items():
        (tools / command).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (tools / command).chmod(0o755)
    environment = environment | {"PATH": f"{tools}{os.pathsep}{environment['PATH']}", "WANDB_MODE": "offline"}
    for command in commands:
        if command.startswith("./scripts/quickstart.sh"):
            continue  # tests/e2e/test_quickstart.py
        if command.startswith("scaledl train") and "--config-dir" not in command:
            command += " trainer.max_steps=20"
        if command.startswith("scaledl resume"):
            command = command.replace("2200", "30")
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
