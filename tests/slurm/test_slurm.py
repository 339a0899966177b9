"""What a person submits with sbatch, on a real Slurm of several nodes."""

import subprocess
from pathlib import Path

import pytest

from scripts.parity import gap
from tests.conftest import COMMAND, ROOT, TINY_GPT, metrics_of, summary_of
from tests.slurm.conftest import Cluster, Job, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

RUN = ["trainer.max_steps=20", "trainer.log_every_n_steps=1", "trainer.val_check_interval=10"]
RUN += ["callbacks.hash._target_=scaledl.callbacks.batch_hash.BatchHash"]
SLOW = """
import time

import lightning.pytorch as pl


class Slow(pl.Callback):
    def __init__(self, seconds: float = 0.3):
        self.seconds = seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.seconds)
"""
FOLDER = Path("runs/llm/gpt_shakespeare")
TRAIN = [str(ROOT / "slurm" / "train.sbatch")]


@pytest.fixture
def slow(environment: dict[str, str], tmp_path: Path) -> list[str]:
    """Words of a run that takes 0.3 s a step."""
    (tmp_path / "mine.py").write_text(SLOW)
    environment["SCALEDL_ALLOW"] = "mine"
    return ["callbacks.slow._target_=mine.Slow"]


@pytest.fixture
def alone(scaledl, tmp_path: Path) -> list[dict]:
    """The log of the run on one process."""
    scaledl("train", *TINY_GPT, *RUN, "run_id=alone")
    return metrics_of(tmp_path / FOLDER / "alone")


def assert_one_curve(alone: list[dict], run_dir: Path) -> None:
    """Each step once, on the batches and with the losses of one process."""
    log = metrics_of(run_dir)
    steps = [line["step"] for line in log if "train/loss" in line]
    assert steps == list(range(1, 21))
    assert [line["data/hash"] for line in log if "data/hash" in line] == [
        line["data/hash"] for line in alone if "data/hash" in line
    ]
    assert gap(alone, log, "train/loss").value <= 1e-5
    assert summary_of(run_dir)["status"] == "completed"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_2"])
def test_two_nodes_train_what_one_process_trains(
    nodes: Cluster, environment, alone, tmp_path: Path, strategy: str
) -> None:
    job = nodes.sbatch([*TRAIN, *TINY_GPT, *RUN, f"strategy={strategy}"], tmp_path, environment)
    facts = job.end()
    assert facts["JobState"] == "COMPLETED", job.log()
    assert facts["NumNodes"] == "2"
    assert_one_curve(alone, tmp_path / FOLDER / f"slurm-{job.number}")
    logs = tmp_path / "logs" / f"slurm-{job.number}" / "attempt-0"
    assert {path.name for path in logs.iterdir()} == {"node1", "node2", "exit_code"}
    assert "step 20/20" in next(logs.glob("node1/*/attempt_0/0/stdout.log")).read_text()


def test_the_time_limit_requeues_and_the_curve_goes_on(
    nodes: Cluster, environment, alone, slow, tmp_path: Path
) -> None:
    words = ["--time=2", "--signal=B:USR1@100", *TRAIN, *TINY_GPT, *RUN, *slow, "strategy=ddp", "logger=wandb"]
    job = nodes.sbatch([*words, "callbacks.slow.seconds=1.5"], tmp_path, environment | {"WANDB_MODE": "offline"})
    facts = job.end(500)
    assert facts["JobState"] == "COMPLETED", job.log()
    restarts = int(facts["Restarts"])
    assert restarts >= 2, job.log()
    run_dir = tmp_path / FOLDER / f"slurm-{job.number}"
    assert_one_curve(alone, run_dir)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"alone", run_dir.name}
    attempts = list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(attempts) == restarts + 1
    assert all(f"llm/gpt_shakespeare/{run_dir.name}".encode() in path.read_bytes() for path in attempts)


def test_a_node_that_dies_is_left_and_the_job_goes_on(nodes: Cluster, environment, alone, slow, tmp_path: Path) -> None:
    words = [*TRAIN, *TINY_GPT, *RUN, *slow, "strategy=ddp", "checkpoint.every_n_steps=5"]
    job = nodes.sbatch(words, tmp_path, environment)
    run_dir = tmp_path / FOLDER / f"slurm-{job.number}"
    until((run_dir / "checkpoints" / "step_00000005").exists, 120, job.log)
    nodes.do("kill", "node2")
    facts = job.end()
    assert facts["JobState"] == "COMPLETED", job.log()
    assert int(facts["Restarts"]) >= 1
    assert facts["NodeList"] == "node[1,3]"
    assert_one_curve(alone, run_dir)


def test_a_sick_node_is_drained_and_another_one_taken(nodes: Cluster, environment, alone, tmp_path: Path) -> None:
    environment["HEALTH_CHECK"] = '[ "$SLURMD_NODENAME" != node1 ]'
    job = nodes.sbatch([*TRAIN, *TINY_GPT, *RUN, "strategy=ddp"], tmp_path, environment)
    facts = job.end()
    assert facts["JobState"] == "COMPLETED", job.log()
    assert facts["NodeList"] == "node[2-3]"
    assert "node1 fails the health check and is drained" in job.log()
    assert_one_curve(alone, tmp_path / FOLDER / f"slurm-{job.number}")


def test_a_cancelled_job_saves_and_stays_cancelled(nodes: Cluster, environment, slow, tmp_path: Path) -> None:
    job = nodes.sbatch([*TRAIN, *TINY_GPT, *RUN, *slow, "strategy=ddp"], tmp_path, environment)
    run_dir = tmp_path / FOLDER / f"slurm-{job.number}"
    until(lambda: (run_dir / "metrics.jsonl").exists() and len(metrics_of(run_dir)) > 3, 120, job.log)
    nodes.ask("scancel", job.number)
    facts = job.end(60)
    assert facts["JobState"] == "CANCELLED", job.log()
    assert facts["Restarts"] == "0"
    assert summary_of(run_dir)["status"] == "preempted", job.log()
    assert list((run_dir / "checkpoints").glob("step_*"))


def test_a_wrong_config_ends_the_job_before_a_rank_starts(nodes: Cluster, environment, tmp_path: Path) -> None:
    job = nodes.sbatch([*TRAIN, *TINY_GPT, "strategy=single"], tmp_path, environment)
    facts = job.end(60)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert "strategy=single is one process, but the launcher started 2" in job.log()
    assert not (tmp_path / "runs").exists()


def test_a_sweep_as_an_array(nodes: Cluster, environment, tmp_path: Path) -> None:
    words = ["experiment=mlp/circles", "~callbacks.decision_boundary", "trainer.max_steps=10"]
    words += ["optimizer.lr=0.01,0.02", "seed=0,1"]
    environment["SCALEDL_SLURM"] = str(ROOT / "slurm")
    script = str(ROOT / "slurm" / "sweep.sbatch")
    job = nodes.sbatch(["--array=0-3", script, *words], tmp_path, environment)
    job.end()
    assert [facts["JobState"] for facts in job.facts()] == ["COMPLETED"] * 4, job.log()
    sweep = tmp_path / "runs/mlp/circles" / f"sweep-slurm-{job.number}"
    trials = sorted(path.name for path in sweep.iterdir())
    assert trials == [f"trial_000{number}" for number in range(4)]
    assert len({summary_of(sweep / trial)["config_hash"] for trial in trials}) == 4


def test_what_was_submitted_runs_though_the_code_has_changed(nodes: Cluster, environment, slow, tmp_path: Path) -> None:
    """Through `scaledl launch slurm`, as a sweep of four trials."""
    words = ["experiment=mlp/circles", "~callbacks.decision_boundary", "trainer.max_steps=5", "seed=0,1,2,3", *slow]
    train = ["--", "train", "-m", "--allow", "mine", *words, "hydra.sweep.dir=sw"]

    def launch(*options: str) -> subprocess.CompletedProcess[str]:
        own = environment | nodes.settings
        command = [*COMMAND, "launch", "slurm", *options, *train]
        return subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)

    refused = launch("--partition=nowhere")
    assert refused.returncode == 1
    assert "scaledl: sbatch refused: " in refused.stderr
    assert not (tmp_path / "sw").exists()

    done = launch("--hold", "--time=5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sw" / "code" / "scaledl" / "cli.py").exists()
    assert (tmp_path / "sw" / "code" / "mine.py").read_text() == SLOW
    (tmp_path / "mine.py").write_text("raise RuntimeError('not what was submitted')")

    number = done.stdout.split("\njob ")[1].split()[0]
    nodes.ask("scontrol", "release", number)
    job = Job(nodes, number, tmp_path / "sw" / "logs")
    job.end()
    assert [facts["JobState"] for facts in job.facts()] == ["COMPLETED"] * 4, job.log()
    trials = [tmp_path / "sw" / f"trial_000{n}" for n in range(4)]
    assert [summary_of(trial)["status"] for trial in trials] == ["completed"] * 4
    assert len({summary_of(trial)["config_hash"] for trial in trials}) == 4


def test_trials_of_a_search_share_a_node(nodes: Cluster, environment, tmp_path: Path) -> None:
    words = ["experiment=mlp/circles", "~callbacks.decision_boundary", "trainer.max_steps=10", "hydra.sweep.dir=found"]
    words += ["sweep=random", "hydra/launcher=slurm", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=2"]
    words += ['hydra.launcher.options=["--nodelist=node2"]']
    own = environment | nodes.settings
    command = [*COMMAND, "train", "-m", *words]
    with subprocess.Popen(command, cwd=tmp_path, env=own, stdout=subprocess.PIPE, text=True) as search:
        try:
            both = "RUNNING\nRUNNING\n"
            until(lambda: nodes.ask("squeue", "--noheader", "--format=%T", "--nodelist=node2") == both, 200)
            said = search.communicate(timeout=300)[0]
        finally:
            search.terminate()
    assert search.returncode == 0, said
    trials = [tmp_path / "found" / f"trial_000{number}" for number in range(2)]
    assert [summary_of(trial)["status"] for trial in trials] == ["completed"] * 2
