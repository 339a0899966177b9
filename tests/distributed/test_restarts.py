"""Ranks die, nodes are lost, the network is cut: torchrun starts what is left again, and the curve goes on."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.parity import gap
from tests.conftest import TINY_GPT, metrics_of, summary_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/llm/gpt_shakespeare")
RUN = [
    *TINY_GPT,
    "optimizer.lr=1e-3",
    "trainer.max_steps=40",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=20",
]
RUN += ["checkpoint.every_n_steps=10", "callbacks.hash._target_=scaledl.callbacks.batch_hash.BatchHash"]
RUN += ["--allow", "mine", "callbacks.slow._target_=mine.Slow"]
SLOW = """
import time

import lightning.pytorch as pl


class Slow(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def package(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW)
    environment["PYTHONPATH"] += f":{tmp_path}"
    environment["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def alone(scaledl: Callable, tmp_path: Path) -> list[dict]:
    """The log of the run on one process."""
    scaledl("train", *RUN, "run_id=alone", "callbacks.slow=null")
    return metrics_of(tmp_path / FOLDER / "alone")


class Agent:
    """One torchrun, in a session of its own with its ranks, maybe behind another command."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], behind: tuple[str, ...] = ()):
        self.output = folder / f"agent-{uuid.uuid4().hex[:8]}.log"
        command = [*behind, sys.executable, "-m", "torch.distributed.run", *words]
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self) -> None:
        """It and its ranks, which torchrun starts in sessions of their own."""
        for pid in {*descendants(self.process.pid), self.process.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def end(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"torchrun still runs after {seconds} s\n{self.said}") from None

    @property
    def said(self) -> str:
        return self.output.read_text()


def descendants(pid: int) -> list[int]:
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [one for child in children for one in (child, *descendants(child))]


@contextmanager
def agent(*arguments, **named) -> Iterator[Agent]:
    started = Agent(*arguments, **named)
    try:
        yield started
    finally:
        started.kill()


def until_step(run_dir: Path, step: int, agents: list[Agent], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not (run_dir / "checkpoints" / f"step_{step:08d}").exists():
        assert time.monotonic() < deadline, "\n".join(one.said[-3000:] for one in agents)
        time.sleep(0.1)


def rank_of(agent: Agent, rank: int) -> int:
    """The process of a rank."""
    (found,) = [
        pid
        for pid in descendants(agent.process.pid)
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    return found


def assert_one_curve(alone: list[dict], run_dir: Path) -> None:
    log = metrics_of(run_dir)
    assert [line["step"] for line in log if "train/loss" in line] == list(range(1, 41))
    hashes = [[line["data/hash"] for line in lines if "data/hash" in line] for lines in (alone, log)]
    assert len(hashes[0]) == 40
    assert hashes[0] == hashes[1]
    assert gap(alone, log, "train/loss").value <= 1e-5
    assert summary_of(run_dir)["status"] == "completed"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_a_killed_rank_is_started_again(environment: dict[str, str], alone: list[dict], tmp_path: Path) -> None:
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m", "scaledl", "train", *RUN, "strategy=ddp"]
    with agent([*words, "run_id=again"], tmp_path, environment) as torchrun:
        until_step(tmp_path / FOLDER / "again", 10, [torchrun])
        os.kill(rank_of(torchrun, 1), signal.SIGKILL)
        assert torchrun.end(200) == 0, torchrun.said
    assert_one_curve(alone, tmp_path / FOLDER / "again")


def test_a_signal_is_no_reason_to_start_ranks_again(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m", "scaledl", "train", *RUN, "strategy=ddp"]
    with agent([*words, "run_id=stopped"], tmp_path, environment) as torchrun:
        until_step(tmp_path / FOLDER / "stopped", 10, [torchrun])
        os.kill(rank_of(torchrun, 1), signal.SIGUSR1)
        assert torchrun.end(60) == 0, torchrun.said
    assert summary_of(tmp_path / FOLDER / "stopped")["status"] == "preempted"


def test_two_of_four_nodes_are_lost(environment: dict[str, str], alone: list[dict], tmp_path: Path) -> None:
    """Four torchruns of one rank each; two go on. The run is named by --rdzv-id: no store outlives the ranks."""
    rendezvous = ["--nnodes=1:4", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=elastic"]
    rendezvous += [f"--rdzv-endpoint=localhost:{free_port()}"]
    train = ["-m", "scaledl", "train", *RUN, "strategy=ddp"]
    environment = environment | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run_dir = tmp_path / FOLDER / "elastic"
    with ExitStack() as stack:
        agents = []
        for number in range(4):
            host = f"--rdzv-conf=is_host={number == 0},last_call_timeout=15".lower()
            agents.append(stack.enter_context(agent([*rendezvous, host, *train], tmp_path, environment)))
        until_step(run_dir, 10, agents)
        assert "x 4 ranks" in agents[0].said
        for lost in agents[2:]:
            lost.kill()
        for left in agents[:2]:
            assert left.end(300) == 0, left.said
    assert summary_of(run_dir)["world_size"] == 2
    assert_one_curve(alone, run_dir)


class Hosts:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        self.names = [f"sdl{os.getpid()}{side}" for side in "ab"]

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def __enter__(self) -> "Hosts":
        for name in self.names:
            self.ip("netns", "add", name)
        first, second = self.names
        self.ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for number, name in enumerate(self.names, 1):
            self.ip("-n", name, "address", "add", f"10.78.0.{number}/24", "dev", "eth0")
            self.ip("-n", name, "link", "set", "lo", "up")
        self.cable("up")
        return self

    def cable(self, state: str) -> None:
        self.ip("-n", self.names[1], "link", "set", "eth0", state)
        self.ip("-n", self.names[0], "link", "set", "eth0", "up")

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_a_cut_network_is_reported_and_the_run_goes_on_when_it_is_mended(
    environment: dict[str, str], alone: list[dict], tmp_path: Path
) -> None:
    if shutil.which("ip") is None or subprocess.run(["unshare", "--net", "true"], check=False).returncode:
        pytest.skip("this machine makes no network namespaces (needs root and iproute2)")
    environment = environment | {"GLOO_SOCKET_IFNAME": "eth0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run_dir = tmp_path / FOLDER / "cut"
    train = ["-m", "scaledl", "train", *RUN, "strategy=ddp", "run_id=cut", "callbacks.watchdog.timeout_seconds=8"]

    def start(stack: ExitStack, hosts: Hosts, attempt: int) -> list[Agent]:
        rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=10.78.0.1:29400"]
        return [
            stack.enter_context(
                agent(
                    [
                        *rendezvous,
                        f"--rdzv-id={attempt}",
                        f"--local-addr=10.78.0.{number + 1}",
                        f"--rdzv-conf=is_host={number == 0},read_timeout=10".lower(),
                        *train,
                    ],
                    tmp_path,
                    environment,
                    behind=(
                        "ip",
                        "netns",
                        "exec",
                        name,
                        "unshare",
                        "--uts",
                        "sh",
                        "-c",
                        f'hostname {name}; exec "$@"',
                        "-",
                    ),
                )
            )
            for number, name in enumerate(hosts.names)
        ]

    with Hosts() as hosts, ExitStack() as stack:
        agents = start(stack, hosts, 1)
        until_step(run_dir, 10, agents)
        hosts.cable("down")
        assert all(one.end(90) != 0 for one in agents)
        said = agents[0].said + agents[1].said
        assert re.search(r"scaledl: no progress for \d+ s", said), said
        assert re.search(rf"rank 1 \(host {hosts.names[1]}, .*\) gives no sign of life", agents[0].said), said
        assert "the ranks' shared store does not answer" in agents[1].said, said
        hosts.cable("up")
        agents = start(stack, hosts, 2)
        assert all(one.end(200) == 0 for one in agents), agents[0].said
    assert_one_curve(alone, run_dir)
