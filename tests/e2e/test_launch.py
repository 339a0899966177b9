"""`scaledl launch` and `scaledl train -m`, as a person types them. What Slurm does with them is in tests/slurm/."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import COMMAND, summary_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CIRCLES = ["experiment=mlp/circles", "~callbacks.decision_boundary", "trainer.max_steps=10"]
SLURM = ["launch", "slurm", "--nodes", "2", "--gpus-per-node", "4", "--time", "1:00:00", "--dry-run", "--", "train"]


def test_a_dry_run_shows_the_submission_and_writes_nothing(scaledl, tmp_path: Path) -> None:
    said = scaledl(*SLURM, *CIRCLES, "strategy=fsdp", "data.global_batch_size=64", "run_id=a").stdout
    assert "sbatch --parsable --export=ALL --nodes=2" in said
    assert "--gpus-per-node=4 --time 1:00:00" in said
    assert "RANKS_PER_NODE=4" in said
    assert "#SBATCH --requeue" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model.activaton=silu"], "did you mean 'activation'?"),
        (["data.global_batch_size=20"], "cannot be shared by 8 ranks"),
        (["strategy=single"], "strategy=single is one process, but the launcher started 8"),
        (["-m", "seed=0,1", "modl=2"], "did you mean 'model'?"),
        (["task._target_=os.system"], "os.system"),
    ],
    ids=["typo", "batch", "strategy", "sweep", "code"],
)
def test_a_wrong_config_is_refused_before_anything_is_submitted(scaledl, tmp_path: Path, words, expected: str) -> None:
    done = scaledl(*SLURM, *CIRCLES, "strategy=fsdp", "data.global_batch_size=64", *words, code=2)
    assert expected in done.stderr
    assert "sbatch" not in done.stdout
    assert not (tmp_path / "runs").exists()


def test_without_a_command_or_a_slurm_it_says_so(scaledl, environment, tmp_path: Path) -> None:
    assert "see `scaledl launch --help`" in scaledl("launch", "local", code=2).stderr
    environment["PATH"] = str(tmp_path)
    said = scaledl("launch", "slurm", "--", "train", *CIRCLES, code=1).stderr
    assert "there is no sbatch on this machine" in said
    assert not (tmp_path / "runs").exists()


def test_local_ranks_end_with_their_own_exit_code(scaledl, environment, tmp_path: Path) -> None:
    said = scaledl("launch", "local", "--ranks", "2", "--", "train", *CIRCLES, "strategy=ddp", "run_id=a").stdout
    assert said.startswith("torchrun --standalone --nproc-per-node=2 -m scaledl train experiment=mlp/circles")
    assert summary_of(tmp_path / "runs/mlp/circles/a")["world_size"] == 2

    words = ["train", *CIRCLES, "strategy=ddp", "run_id=b", "trainer.max_steps=1000000", "trainer.limit_val_batches=0"]
    started = subprocess.Popen(
        [*COMMAND, "launch", "local", "--ranks", "2", "--", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "runs/mlp/circles/b/metrics.jsonl"
    deadline = time.monotonic() + 90
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    errors = started.communicate(timeout=60)[1]
    assert started.returncode == 128 + signal.SIGTERM, errors
    assert summary_of(log.parent)["status"] == "preempted"


def test_a_sweep_trains_every_combination_and_a_second_one_none(scaledl, tmp_path: Path) -> None:
    words = ["train", "-m", *CIRCLES, "optimizer.lr=0.01,-1", "seed=0,1", "hydra.sweep.dir=sweep"]
    said = scaledl(*words, code=1).stdout
    trials = {f"trial_000{number}": tmp_path / "sweep" / f"trial_000{number}" for number in range(4)}
    assert [summary_of(trials[name])["status"] for name in ("trial_0000", "trial_0001")] == ["completed"] * 2
    assert said.count("completed") >= 2
    assert said.count("failed") >= 2
    assert "optimizer.lr=-1 seed=1" in said
    before = (trials["trial_0000"] / "metrics.jsonl").stat().st_mtime_ns
    scaledl(*words, code=1)
    assert (trials["trial_0000"] / "metrics.jsonl").stat().st_mtime_ns == before

    said = scaledl("train", "-m", *CIRCLES, "seed=0,1", "--trial", "2", code=2).stderr
    assert "there are 2 trials, 0 to 1" in said
