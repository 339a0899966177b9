"""A step whose gradient is not finite on one rank is left out by all; what a strategy cannot do, it refuses at once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl.distributed import storage
from tests.conftest import TINY_GPT, metrics_of, summary_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/mlp/circles")
PACKAGE = '''
import lightning.pytorch as pl
import torch
import torch.distributed as dist

from scaledl.tasks.classification import Classification


class Poison(pl.Callback):
    """Spoils the first micro-batch of steps first to last on one rank."""

    def __init__(self, first: int, last: int, rank: int = 0):
        self.first, self.last, self.rank = first, last, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, micro_batch = divmod(batch_idx, trainer.accumulate_grad_batches)
        if self.first <= step + 1 <= self.last and micro_batch == 0 and trainer.global_rank == self.rank:
            batch["x"].fill_(float("nan"))


class SameOnAllRanks(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        mine = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        first = mine.clone()
        dist.broadcast(first, 0)
        assert mine.numel() and torch.equal(mine, first), f"rank {trainer.global_rank} has weights of its own"


class SecondOrder(Classification):
    needs = ("second_order_gradients",)
'''
RUN = [
    "experiment=mlp/circles",
    "~callbacks.decision_boundary",
    "data.micro_batch_size=16",
    "optimizer.lr=1e-3",
    "trainer.gradient_clip_val=0.1",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=0",
    "--allow",
    "mine",
]
SAME = "callbacks.same._target_=mine.SameOnAllRanks"


@pytest.fixture(autouse=True)
def package(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PACKAGE)
    environment["PYTHONPATH"] += f":{tmp_path}"


def poison(first: int, last: int, rank: int = 0) -> list[str]:
    settings = {"_target_": "mine.Poison", "first": first, "last": last, "rank": rank}
    return [f"callbacks.poison.{name}={value}" for name, value in settings.items()]


def weights_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return storage.load_whole(run_dir / "checkpoints" / f"step_{step:08d}", "weights/")


def test_a_step_that_one_rank_spoils_is_left_out_by_all(
    scaledl: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    spoilt, steps = 3, 6
    run = ["train", *RUN, f"trainer.max_steps={steps}"]
    scaledl(*run, *poison(spoilt, spoilt), "run_id=single")
    for strategy, more in {
        "ddp": [SAME, "task._target_=mine.SecondOrder"],  # which DDP can serve
        "fsdp": [],
        "deepspeed_2": [SAME],
        "deepspeed_3": ["strategy.persistence_threshold=0"],
    }.items():
        own = [f"strategy={strategy}", f"run_id={strategy}", *poison(spoilt, spoilt, rank=1), *more]
        launch(2, *run, *own, folder=tmp_path, environment=environment)

    single = [line for line in metrics_of(tmp_path / FOLDER / "single") if "train/loss" in line]
    expected = weights_of(tmp_path / FOLDER / "single", steps)
    for strategy in ("single", "ddp", "fsdp", "deepspeed_2", "deepspeed_3"):
        run_dir = tmp_path / FOLDER / strategy
        lines = [line for line in metrics_of(run_dir) if "train/loss" in line]
        assert [line["step"] for line in lines] == list(range(1, steps + 1)), strategy
        assert [line["train/skipped"] for line in lines] == [float(s >= spoilt) for s in range(1, steps + 1)], strategy
        assert [line["step"] for line in lines if line["train/loss"] is None] == [spoilt], strategy
        assert [line["step"] for line in lines if line["train/grad_norm"] is None] == [spoilt], strategy
        assert [line["lr"] for line in lines] == [line["lr"] for line in single], strategy
        torch.testing.assert_close(weights_of(run_dir, steps), expected, rtol=0, atol=1e-6, msg=strategy)
        assert summary_of(run_dir)["status"] == "completed"


def test_a_run_of_bad_steps_only_ends_and_says_so(scaledl: Callable, tmp_path: Path) -> None:
    words = ["train", *RUN, *poison(3, 1000), "callbacks.bad_steps.max_in_a_row=4", "run_id=bad"]
    said = scaledl(*words, code=1).stderr.splitlines()
    last = [line for line in said if "max_in_a_row" in line]
    assert len(last) == 1, said
    assert last[0].startswith("scaledl: step 6: the gradients of the last 4 steps were not finite")
    assert summary_of(tmp_path / FOLDER / "bad")["status"] == "failed"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_bad_first_step_leaves_no_trace(scaledl: Callable, tmp_path: Path, optimizer: str) -> None:
    run = ["train", *RUN, *poison(1, 1), f"optimizer={optimizer}", "scheduler.max_steps=4"]
    scaledl(*run, "run_id=a", "trainer.max_steps=4")
    scaledl(*run, "run_id=b", "trainer.max_steps=1")
    scaledl("resume", str(FOLDER / "b"), "--allow", "mine", "trainer.max_steps=4")
    weights = [weights_of(tmp_path / FOLDER / run_id, 4) for run_id in "ab"]
    assert all(tensor.isfinite().all() for tensor in weights[0].values())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_run_goes_back_to_its_last_checkpoint_once(scaledl: Callable, tmp_path: Path) -> None:
    settings = ["checkpoint.every_n_steps=4", "checkpoint.keep_last=9", "callbacks.bad_steps.max_in_a_row=2"]
    run = ["train", *RUN, *settings, "callbacks.bad_steps.rewind=true", "trainer.max_steps=11"]
    said = scaledl(*run, *poison(7, 9), "run_id=back").stderr
    assert "step 8: 2 bad steps in a row; back to the weights of step 4, on with the data of step 9" in said
    run_dir = tmp_path / FOLDER / "back"
    lines = [line for line in metrics_of(run_dir) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 12))
    assert [line["train/skipped"] for line in lines] == [0] * 6 + [1, 2, 3, 3, 3]
    torch.testing.assert_close(weights_of(run_dir, 8), weights_of(run_dir, 4), rtol=0, atol=0)
    assert not torch.equal(*(weights_of(run_dir, step)["weights/model.out.weight"] for step in (8, 11)))
    assert summary_of(run_dir)["status"] == "completed"

    said = scaledl(*run, *poison(7, 1000), "run_id=back_and_end", code=1).stderr
    assert said.count("back to the weights of step 4") == 1
    assert "step 10: the gradients of the last 2 steps were not finite" in said


def test_sgd_and_bf16_inputs_train_in_shards(environment: dict[str, str], tmp_path: Path) -> None:
    run = ["train", *RUN, "trainer.max_steps=2"]
    own = {"sgd": ["strategy=fsdp", "optimizer=sgd"], "bf16": ["strategy=deepspeed_3", "precision=bf16-mixed"]}
    for run_id, words in own.items():
        launch(2, *run, *words, f"run_id={run_id}", folder=tmp_path, environment=environment)
        summary = summary_of(next(tmp_path.glob(f"runs/**/{run_id}")))
        assert (summary["status"], summary["steps"]) == ("completed", 2)


@pytest.mark.parametrize(
    ("ranks", "words", "expected"),
    [
        (2, ["strategy=fsdp", "task._target_=mine.SecondOrder"], "strategy=fsdp cannot serve SecondOrder"),
        (
            2,
            ["strategy=deepspeed_2", "task._target_=mine.SecondOrder"],
            "strategy=deepspeed_2 cannot serve SecondOrder",
        ),
        (2, ["strategy=tp"], "MLP has no tensor-parallel plan"),
        (4, [*TINY_GPT, "strategy=tp", "strategy.tensor_parallel_size=4"], "cannot share num_heads=2"),
    ],
    ids=["second order under fsdp", "second order under ZeRO", "no plan", "heads"],
)
def test_what_a_strategy_cannot_do_is_said_before_anything_is_written(
    scaledl: Callable, environment: dict[str, str], tmp_path: Path, ranks: int, words: list[str], expected: str
) -> None:
    # One rank of a job whose others never start: it does not wait for them.
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "RANK": "0", "LOCAL_RANK": "0"}
    run = [*words, "--allow", "mine"] if words[0] == TINY_GPT[0] else [*RUN, *words]
    said = scaledl("train", *run, code=1).stderr
    ours = [line for line in said.splitlines() if line.startswith("scaledl:")]
    assert len(ours) == 1, said
    assert expected in ours[0]
    assert not (tmp_path / "runs").exists()
