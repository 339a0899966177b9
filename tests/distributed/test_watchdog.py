"""A job that hangs ends, and says which rank it waited for and what that rank did."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scaledl.distributed.watchdog import LINES, Sign, report

TIMEOUT = 3
SCRIPT = f"""
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from scaledl.distributed import watchdog as module
from scaledl.distributed.watchdog import Watchdog, connect

module.STORE_SECONDS = 2.0

def doze():
    time.sleep(100)

def main(case):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    watchdog = Watchdog(connect(), rank, dist.get_world_size(), timeout_seconds={TIMEOUT}, interval_seconds=0.5)
    watchdog.start()
    for step in range(35 if case == "healthy" else 10**9):
        watchdog.tick(f"step {{step}}")
        dist.all_reduce(torch.ones(1))
        time.sleep(0.1)
        if step == 10:
            Path(f"{{rank}}.pid.part").write_text(str(os.getpid()))
            os.rename(f"{{rank}}.pid.part", f"{{rank}}.pid")
            if case == "behind" and rank == 1:
                doze()
    watchdog.stop()
    dist.destroy_process_group()

main(sys.argv[1])
"""


class Job:
    def __init__(self, folder: Path, command: list[str], environments: list[dict[str, str]]):
        self.folder = folder
        self.processes = [
            subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
            for environment in environments
        ]

    def pids(self) -> list[int]:
        """Of both ranks, as soon as both are in their eleventh step."""
        files = [self.folder / f"{rank}.pid" for rank in range(2)]
        deadline = time.monotonic() + 60
        while not all(file.exists() for file in files):
            assert time.monotonic() < deadline, "the ranks did not start"
            time.sleep(0.05)
        return [int(file.read_text()) for file in files]

    def end(self, seconds: float) -> tuple[list[int], str]:
        """(exit codes, what all wrote to stderr) of a job that ends within the time."""
        deadline = time.monotonic() + seconds
        errors = [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for process in self.processes]
        return [process.returncode for process in self.processes], "".join(errors)

    def kill(self) -> None:
        for file in self.folder.glob("*.pid"):
            if alive(int(file.read_text())):
                os.kill(int(file.read_text()), signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.wait()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Job]]:
    """Starts two ranks: under torchrun, or each by itself with the store in rank 0."""
    jobs = []

    def run(case: str, port: int = 0) -> Job:
        (tmp_path / "script.py").write_text(SCRIPT)
        base = environment | {"OMP_NUM_THREADS": "1"}
        if port:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            jobs.append(
                Job(tmp_path, [sys.executable, "script.py", case], [base | address | {"RANK": r} for r in "01"])
            )
        else:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
            jobs.append(Job(tmp_path, [sys.executable, *torchrun, "script.py", case], [base]))
        return jobs[-1]

    try:
        yield run
    finally:
        for job in jobs:
            job.kill()


@pytest.mark.distributed
@pytest.mark.slow
def test_a_stopped_rank_is_named_and_killed(start: Callable[..., Job]) -> None:
    job = start("stopped")
    pids = job.pids()
    os.kill(pids[1], signal.SIGSTOP)
    codes, errors = job.end(TIMEOUT + 10)
    assert codes[0] != 0
    assert re.search(rf"rank 1 \(host \S+, pid {pids[1]}\) gives no sign of life for \d+ s \(stopped\)", errors), errors
    assert re.search(
        r"rank 0 .* waits, for \d+ s at: step \d+, in all_reduce \(torch.distributed\S+, called by", errors
    )
    assert errors.count("scaledl: no progress") == 1
    assert not any(map(alive, pids))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_rank_that_does_something_else_is_named_with_what_it_does(start: Callable[..., Job]) -> None:
    job = start("behind")
    pids = job.pids()
    codes, errors = job.end(TIMEOUT + 10)
    assert codes[0] != 0
    assert re.search(rf"rank 1 .*pid {pids[1]}\) is behind, for \d+ s at: step 10, in doze \(__main__:\d+\)", errors), (
        errors
    )
    assert re.search(r"rank 0 .* waits, for \d+ s at: step 11, in all_reduce", errors), errors
    assert not any(map(alive, pids))


@pytest.mark.distributed
@pytest.mark.slow
def test_a_stopped_rank_zero_that_hosts_the_store_is_named_and_killed(
    start: Callable[..., Job], free_port: int
) -> None:
    job = start("stopped", free_port)
    pids = job.pids()
    os.kill(pids[0], signal.SIGSTOP)
    codes, errors = job.end(TIMEOUT + 10)
    assert codes == [-signal.SIGKILL, 124]
    assert "store does not answer" in errors
    assert re.search(rf"rank 0 \(host \S+, pid {pids[0]}\) is stopped", errors), errors


@pytest.mark.distributed
@pytest.mark.slow
def test_a_job_that_takes_longer_than_the_timeout_but_goes_on_hears_nothing(start: Callable[..., Job]) -> None:
    job = start("healthy")
    codes, errors = job.end(60)
    assert codes == [0], errors
    assert "scaledl" not in errors


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def sign(**fields: object) -> Sign:
    waiting = {"host": "node", "pid": 1, "born": "", "beats": 9, "clock": time.time(), "ticks": 5, "where": "step 5"}
    return Sign(**waiting | {"idle": 30.0, "doing": "all_reduce (m:1)"} | fields)


def test_the_ranks_that_hold_the_others_up_come_first() -> None:
    signs = {0: sign(), 1: sign(ticks=4, where="step 4"), 2: sign(left="ValueError"), 3: sign(clock=time.time() - 33)}
    lines = report(30, 5, signs, {3}).splitlines()
    found = [
        re.search(r"rank (\d).*(waits|behind|left|for 33 s|since the start)", line).groups() for line in lines[1:6]
    ]
    assert found == [("4", "since the start"), ("3", "for 33 s"), ("2", "left"), ("1", "behind"), ("0", "waits")]


def test_of_many_ranks_the_odd_one_out_is_shown() -> None:
    signs = {rank: sign() for rank in range(1000)} | {700: sign(doing="broadcast (m:2)")}
    lines = report(30, 1000, signs, set()).splitlines()
    assert "rank 700" in lines[1]
    assert lines[LINES + 1].strip() == f"and {1000 - LINES} more ranks"
    assert "wait for each other" in lines[-1]
