"""Muon on every strategy: the weights of one process, each matrix orthogonalised once, and any goes on from any."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl.distributed import storage
from tests.conftest import TINY_GPT, metrics_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/llm/gpt_shakespeare")
PACKAGE = '''
import json

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from scaledl.optim import muon


class Watched(pl.Callback):
    """Writes down how many matrices each rank made orthogonal; in every `bad`-th step the loss of one rank is nan."""

    def __init__(self, bad: int):
        self.bad, self.count = bad, 0

    def on_train_start(self, trainer, pl_module):
        orthogonalize, objective = muon.orthogonalize, pl_module.objective

        def counted(matrices):
            self.count += len(matrices)
            return orthogonalize(matrices)

        def spoilt(batch):
            metrics = objective(batch)
            last = trainer.global_rank == trainer.world_size - 1
            if pl_module.training and last and trainer.global_step % self.bad == self.bad - 1:
                metrics["loss"] = metrics["loss"] * float("nan")
            return metrics

        muon.orthogonalize, pl_module.objective = counted, spoilt

    def on_train_end(self, trainer, pl_module):
        counts = torch.zeros(trainer.world_size, dtype=torch.int64)
        counts[trainer.global_rank] = self.count
        if trainer.world_size > 1:
            dist.all_reduce(counts)
        if trainer.global_rank == 0:
            with open("counts.jsonl", "a") as file:
                file.write(json.dumps(counts.tolist()) + "\\n")
'''
STEPS, GOOD = 3, 2  # of each leg; so many of them change anything
EXPERTS = 2  # both of which every token uses, so that no rounding decides
MATRICES = {"dense": 2 * 7, "experts": 2 * (5 + 3 * EXPERTS)}  # of two blocks: q, k, v, out, router, gate, up and down
CHAINS = {
    "shards": [
        (2, ["strategy=ddp"]),
        (2, ["strategy=fsdp"]),
        (2, ["strategy=tp"]),
        (4, ["strategy=hsdp", "strategy.shard_size=2"]),
    ],
    "ZeRO": [
        (2, ["strategy=deepspeed_1"]),
        (2, ["strategy=deepspeed_3", "strategy.persistence_threshold=0"]),
        (2, ["strategy=deepspeed_2"]),
        (1, ["strategy=single"]),
    ],
    "experts": [
        (4, ["strategy=fsdp"]),  # four share the rows of each
        (4, ["strategy=tp"]),  # each pair of ranks has one
        (2, ["strategy=deepspeed_3", "strategy.persistence_threshold=0"]),
    ],
}
RUN = [
    *TINY_GPT,
    "optimizer=muon",
    "optimizer.lr=2e-3",
    "optimizer.adamw_lr=1e-3",
    "data.micro_batch_size=3",
    "scheduler.warmup_steps=4",
    f"scheduler.max_steps={STEPS * 4}",
    f"checkpoint.every_n_steps={STEPS}",
    "checkpoint.keep_last=99",
    "trainer.gradient_clip_val=0.5",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
    "callbacks.ema._target_=scaledl.callbacks.ema.EMA",
    "callbacks.watched._target_=mine.Watched",
    f"callbacks.watched.bad={STEPS}",
    "--allow",
    "mine",
]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_run_that_changes_its_strategy_has_the_weights_of_one_process(
    scaledl: Callable, environment: dict[str, str], tmp_path: Path, chain: str
) -> None:
    legs, matrices = CHAINS[chain], MATRICES["experts" if chain == "experts" else "dense"]
    words = [*RUN, *([f"model.num_experts={EXPERTS}"] if chain == "experts" else [])]
    (tmp_path / "mine.py").write_text(PACKAGE)
    environment["PYTHONPATH"] += f":{tmp_path}"
    scaledl("train", *words, f"trainer.max_steps={STEPS * len(legs)}", "run_id=straight")
    for index, (ranks, strategy) in enumerate(legs):
        resume = ["resume", str(FOLDER / "changing"), "--allow", "mine"]
        begin = resume if index else ["train", *words, "run_id=changing"]
        leg = [*begin, *strategy, f"trainer.max_steps={STEPS * (index + 1)}"]
        scaledl(*leg) if ranks == 1 else launch(ranks, *leg, folder=tmp_path, environment=environment)

    straight, changing = tmp_path / FOLDER / "straight", tmp_path / FOLDER / "changing"
    expected = [line for line in metrics_of(straight) if "train/loss" in line]
    found = [line for line in metrics_of(changing) if "train/loss" in line]
    assert [line["train/skipped"] for line in found] == [step // STEPS for step in range(1, STEPS * len(legs) + 1)]
    for name in ("lr", "train/skipped"):
        assert [line[name] for line in found] == [line[name] for line in expected], name
    for index, (_, strategy) in enumerate(legs):
        step = f"step_{STEPS * (index + 1):08d}"
        ours, theirs = (storage.load_whole(run / "checkpoints" / step, "") for run in (changing, straight))
        assert ours.keys() == theirs.keys()
        assert any(name.startswith("optimizer.0/momentum/") for name in ours)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=lambda said, of=strategy: f"{of}: {said}")

    whole, *by_leg = map(json.loads, (tmp_path / "counts.jsonl").read_text().splitlines())
    assert whole == [matrices * GOOD * len(legs)]
    assert [len(counts) for counts in by_leg] == [ranks for ranks, _ in legs]
    for counts in by_leg:
        assert sum(counts) == matrices * GOOD
        most_apart = 2 if chain != "experts" else 1 + EXPERTS  # of equal work there is not always an equal number
        assert max(counts) - min(counts) <= GOOD * most_apart
