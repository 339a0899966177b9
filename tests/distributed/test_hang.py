"""A command line whose rank is stopped ends by itself, and names the rank."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.launch import started

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RUN = [
    "train",
    "experiment=mlp/circles",
    "strategy=ddp",
    "trainer.max_steps=10000000",
    "trainer.limit_val_batches=0",
    "~callbacks.decision_boundary",
    "callbacks.watchdog.timeout_seconds=5",
    "run_id=stopped",
]


def test_a_run_with_a_stopped_rank_ends_and_names_it(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "runs/mlp/circles/stopped/metrics.jsonl"
    with started(2, RUN, tmp_path, environment) as job:
        until = time.monotonic() + 90
        while not log.exists() or log.read_bytes().count(b"\n") < 5:
            assert job.launcher.poll() is None, job.end().stderr
            assert time.monotonic() < until, "no step in 90 s"
            time.sleep(0.1)
        (pid,) = job.pids(rank=1)
        os.kill(pid, signal.SIGSTOP)
        done = job.end(25)
        assert done.returncode != 0
        assert re.search(rf"rank 1 \(host \S+, pid {pid}\) gives no sign of life for \d+ s \(stopped\)", done.stderr)
        assert re.search(r"rank 0 .* waits, for \d+ s at: step \d+: (backward|forward|next batch)", done.stderr)
        assert done.stderr.count("scaledl: no progress") == 1
        assert not job.pids()
