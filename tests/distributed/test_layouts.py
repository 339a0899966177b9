"""A run changes its strategy and its number of ranks on the way, and its curve is that of one that never did."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl.distributed import storage
from tests.conftest import TINY_GPT, metrics_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/llm/gpt_shakespeare")
EPOCH = 4  # steps
# (steps in all, ranks, strategy): it changes in the middle of an epoch, at an end, and one step after a beginning.
LEGS = [
    (6, 2, ["strategy=fsdp"]),
    (12, 4, ["strategy=deepspeed_3", "strategy.persistence_threshold=0"]),
    (13, 1, ["strategy=single"]),
    (18, 2, ["strategy=deepspeed_2"]),
]
LAST = LEGS[-1][0]
RUN = [
    *TINY_GPT,
    "data.path=text.txt",
    "data.stride=null",  # 96 samples
    "data.global_batch_size=24",
    "data.micro_batch_size=3",  # 8, 4 and 2 of them a step
    "optimizer.lr=1e-3",
    "scheduler.warmup_steps=4",
    f"scheduler.max_steps={LAST}",
    "trainer.gradient_clip_val=0.5",  # less than every norm
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
    "callbacks.hash._target_=scaledl.callbacks.batch_hash.BatchHash",
    "callbacks.ema._target_=scaledl.callbacks.ema.EMA",
]


def of_every_step(run_dir: Path, name: str) -> list[float]:
    lines = [line for line in metrics_of(run_dir) if name in line]
    assert [line["step"] for line in lines] == list(range(1, LAST + 1)), f"{name} in {run_dir.name}"
    return [line[name] for line in lines]


def test_a_run_over_four_layouts_is_the_run_on_one(
    scaledl: Callable, environment: dict[str, str], tmp_path: Path
) -> None:
    words = ["to", "be", "or", "not", "that", "is", "the", "question"]
    (tmp_path / "text.txt").write_text(" ".join(random.Random(0).choices(words, k=1000))[:3424])
    said = scaledl("train", *RUN, f"trainer.max_steps={LAST}", "run_id=straight").stdout
    assert f"{EPOCH * 24} train" in said, said

    for index, (steps, ranks, strategy) in enumerate(LEGS):
        changing = str(FOLDER / "changing")
        begin = ["resume", changing] if index else ["train", *RUN, "run_id=changing"]
        leg = [*begin, *strategy, f"trainer.max_steps={steps}"]
        done = scaledl(*leg) if ranks == 1 else launch(ranks, *leg, folder=tmp_path, environment=environment)
        if index:
            assert f"step {LEGS[index - 1][0]}" in done.stdout, done.stdout

    straight, changing = tmp_path / FOLDER / "straight", tmp_path / FOLDER / "changing"
    assert min(of_every_step(straight, "train/grad_norm")) > 0.5
    for name in ("data/hash", "samples_seen", "lr", "train/skipped"):
        assert of_every_step(changing, name) == of_every_step(straight, name), name
    assert of_every_step(changing, "samples_seen") == [24 * step for step in range(1, LAST + 1)]
    assert len(set(of_every_step(changing, "data/hash"))) == LAST
    for name in ("train/loss", "train/grad_norm"):
        assert of_every_step(changing, name) == pytest.approx(of_every_step(straight, name), rel=1e-5), name

    for prefix in ("ema/", "weights/"):
        found, expected = (
            storage.load_whole(run_dir / "checkpoints" / f"step_{LAST:08d}", prefix) for run_dir in (changing, straight)
        )
        assert found
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found["weights/model.token_embedding.weight"]).dtype == torch.float32
