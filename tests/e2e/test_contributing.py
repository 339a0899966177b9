"""CONTRIBUTING's worked example is written down as it stands there, and trained."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, summary_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

EXAMPLE = re.search(r"### A worked example.*?(?=\n## )", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[0]
FILES = re.findall(r"^`([^`\n]+)`\n```\w+\n(.*?)^```", EXAMPLE, re.DOTALL | re.MULTILINE)
COMMANDS = re.search(r"```bash\n(.*?)```", EXAMPLE, re.DOTALL)[1].splitlines()


def test_the_worked_example_trains(environment: dict[str, str], tmp_path: Path) -> None:
    assert [name for name, _ in FILES] == [
        "mine/mixer.py",
        "mine/conf/model/mixer.yaml",
        "mine/conf/experiment/mixer/digits.yaml",
    ]
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment["PYTHONPATH"] += f"{os.pathsep}{tmp_path}"
    assert len(COMMANDS) == 2
    programs = {"scaledl": ["-m", "scaledl"], "torchrun": ["-m", "torch.distributed.run"]}
    for command in COMMANDS:
        program, *words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, *programs[program], *words],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert summary_of(tmp_path / "runs/mixer/digits/mixer")["metrics"]["test/acc"] >= 0.96
