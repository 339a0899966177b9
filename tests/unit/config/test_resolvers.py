"""A run's name from its surroundings, and whether Weights & Biases has an account."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from scaledl.config.resolvers import WANDB_ID, of_run, register, run_id, wandb_id, wandb_offline

SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
TORCHRUN = ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
NAMES = ("SCALEDL_RUN_ID", *SLURM, *TORCHRUN)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a job nor an account of the person who runs the tests; set and taken away, so that both are undone."""
    for name in (*NAMES, "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_given_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCALEDL_RUN_ID": "mine", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run_id() == "mine"


def test_a_slurm_job_and_its_requeue_have_the_job_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for rank in ("0", "3"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.delenv("SCALEDL_RUN_ID", raising=False)
        assert run_id() == "slurm-4711"


def test_each_task_of_an_array_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = {
        "SLURM_JOB_ID": "4713",
        "SLURM_PROCID": "0",
        "SLURM_ARRAY_JOB_ID": "4711",
        "SLURM_ARRAY_TASK_ID": "2",
    }
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert run_id() == "slurm-4711_2"


def test_ranks_without_a_store_that_outlives_them_take_their_launcher_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    assert run_id() == "job-17"


def test_attempts_of_a_run_are_one_run_online_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_id(str(tmp_path)) is None
    (tmp_path / WANDB_ID).write_text("0123abcd")
    assert wandb_id(str(tmp_path)) == "0123abcd"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_id(str(tmp_path)) is None


def test_a_shell_inside_an_allocation_is_no_task_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs typed one after the other under salloc are two runs."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert "4711" not in run_id()


def test_a_name_by_the_time_is_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that start in the same second have two names; 65,536 suffixes make a clash of these ten a rare thing."""
    found = []
    for _ in range(10):
        found.append(run_id())
        monkeypatch.delenv("SCALEDL_RUN_ID")
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", name) for name in found)
    assert len({name[-4:] for name in found}) >= 9


def test_the_name_is_kept_and_given_on_to_processes_started_from_here() -> None:
    name = run_id()
    assert run_id() == name
    code = "from scaledl.config.resolvers import run_id; print(run_id())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == name


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    """What torchrun's agent keeps for its ranks."""
    agent = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(agent.port))
    yield agent
    del agent


def test_the_ranks_of_a_launcher_agree_on_the_first_name(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_id()
    monkeypatch.delenv("SCALEDL_RUN_ID")  # another rank
    assert run_id() == first
    assert os.environ["SCALEDL_RUN_ID"] == first


def test_a_config_may_ask_for_both() -> None:
    register()
    config = OmegaConf.create({"run_id": "${run_id:}", "again": "${run_id:}", "offline": "${wandb_offline:}"})
    assert config.run_id == config.again == os.environ["SCALEDL_RUN_ID"]
    assert config.offline is True


@pytest.mark.parametrize(("mode", "offline"), [("online", False), ("offline", True), ("disabled", True)])
def test_wandb_s_own_word_wins(monkeypatch: pytest.MonkeyPatch, mode: str, offline: bool) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_offline() is offline


def test_a_key_is_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_offline()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert not wandb_offline()


@pytest.mark.parametrize(
    ("content", "offline"),
    [
        ("machine api.wandb.ai login user password x\n", False),
        ("machine example.org login user password x\n", True),
        ("machine api.wandb.ai what is this\n", True),
    ],
    ids=["wandb login", "another machine", "unreadable"],
)
def test_an_entry_of_netrc_is_an_account(tmp_path: Path, content: str, offline: bool) -> None:
    (tmp_path / ".netrc").write_text(content)
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_offline() is offline


def test_a_config_takes_a_node_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {dim: 7, heads: [1, 2]}\n")
    register()
    config = OmegaConf.create({"init_from": str(tmp_path), "model": "${of_run:${init_from},model}"})
    assert OmegaConf.to_container(config, resolve=True)["model"] == {"dim": 7, "heads": [1, 2]}
    with pytest.raises(ValueError, match="nowhere is no run directory"):
        of_run("nowhere", "model")
    with pytest.raises(ValueError, match="init_from"):
        of_run(None, "model")
