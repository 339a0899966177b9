import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from scaledl.processes import marked, tell
from scaledl.tune import trial
from scaledl.tune.trial import Ended


def of_both_ranks(programs: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    """Two ranks of this test, a thread each, that tell one another through one store."""
    board, here = dist.HashStore(), threading.local()
    monkeypatch.setattr(trial.group, "rank", lambda: here.rank)
    monkeypatch.setattr(trial.group, "world_size", lambda: 2)
    ended: dict[int, Ended] = {}

    def run(rank: int) -> None:
        here.rank = rank
        ended[rank] = trial.run([sys.executable, "-c", programs[rank]], "job", board, folder / str(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [ended[0], ended[1]]


def test_ranks_share_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = of_both_ranks(["import os; print(os.environ['MASTER_PORT'])"] * 2, tmp_path, monkeypatch)
    assert ended == [Ended(0, ""), Ended(0, "")]
    first, second = ((tmp_path / name).read_text() for name in "01")
    assert first == second
    assert int(first) > 0


def test_one_that_fails_ends_the_others_and_all_know_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    hanging, failing = "import time; time.sleep(600)", "import sys; sys.exit('out of memory')"
    ended = of_both_ranks([hanging, failing], tmp_path, monkeypatch)
    assert ended == [Ended(1, "out of memory\n")] * 2
    assert time.monotonic() - began < 60


PARENT = """
import sys, pathlib
from scaledl.tune import trial
trial.run([sys.executable, "-S", "-c", "print('runs', flush=True); import time; time.sleep(600)"], "job", trial.board(),
          pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends it")
def test_the_command_ends_with_the_process_that_runs_it_however_that_went(tmp_path: Path) -> None:
    mark = f"OF_TEST={tmp_path}"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "output")], env=os.environ | {"OF_TEST": str(tmp_path)}
    ) as parent:
        deadline = time.monotonic() + 60
        while not (tmp_path / "output").exists() or "runs" not in (tmp_path / "output").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(marked(mark)) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    tell(left, signal.SIGKILL)
    assert left == []
