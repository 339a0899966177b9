"""Two ranks that act and learn together are one process: the same rollouts, losses and returns, up to rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gymnasium", reason="gymnasium, the extra rl, is not installed")

from scripts.parity import LAYOUTS, SINGLE, gap, log_of
from tests.conftest import metrics_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = ["trainer.max_steps=12", "trainer.val_check_interval=12", "trainer.log_every_n_steps=1", "data.num_test=0"]
STEPS += ["data.num_val=3", "~callbacks.curves", "~callbacks.recording"]
RUNS = {
    "ppo": ["experiment=rl/cartpole_ppo", "task.epochs=2", "task.num_minibatches=2", "scheduler.max_steps=100"],
    "reinforce": ["experiment=rl/cartpole_reinforce"],
    "dqn": ["experiment=rl/cartpole_dqn", "task.gradient_steps=4", "task.collect_steps=32", "task.learning_starts=64"],
}


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_are_one_process(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    def log(strategy: str) -> list[dict[str, Any]]:
        layout = SINGLE if strategy == "single" else LAYOUTS[strategy]
        return log_of([*RUNS[name], *STEPS], layout, tmp_path / strategy, environment | {"OMP_NUM_THREADS": "1"})

    one = log("single")
    for strategy in ("ddp", "fsdp"):
        two = log(strategy)
        assert gap(one, two, "train/grad_norm").value <= 1e-4, strategy
        for metric in ("train/env_steps", "train/loss", "train/return"):
            values = [
                {line["step"]: line[metric] for line in lines if line.get(metric) is not None} for lines in (one, two)
            ]
            # What the advantages' mean of 0 leaves of a loss without a critic is near 0.
            assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-6), (strategy, metric)
            assert values[0], metric


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_it_goes_on_within_a_cycle_on_other_ranks(
    name: str, scaledl: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    words = [*RUNS[name], *STEPS, "trainer.val_check_interval=100"]
    folder = Path("runs/rl") / f"cartpole_{name}"
    scaledl("train", *words, "run_id=straight")
    launch(
        2,
        *["train", *words, "run_id=changing", "strategy=ddp", "trainer.max_steps=6"],
        folder=tmp_path,
        environment=environment,
    )
    scaledl("resume", str(folder / "changing"), "strategy=single", "trainer.max_steps=12")
    straight, changing = (
        {line["step"]: line["train/loss"] for line in metrics_of(tmp_path / folder / run) if "train/loss" in line}
        for run in ("straight", "changing")
    )
    assert list(straight) == list(range(1, 13))
    assert changing == pytest.approx(straight, rel=1e-4)
