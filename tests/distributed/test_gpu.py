"""On one GPU, under torchrun and with NCCL, every strategy trains as a single process does, saves and goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scaledl.distributed import storage
from tests.conftest import TINY_GPT, metrics_of, summary_of
from tests.distributed.launch import launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

STRATEGIES = ["single", "ddp", "fsdp", "hsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3", "deepspeed_3_offload"]
FOLDER = Path("runs/llm/gpt_shakespeare")
STEPS = 10
RUN = [
    *TINY_GPT,
    "data.micro_batch_size=6",
    "optimizer.lr=1e-3",
    "scheduler.warmup_steps=4",
    f"scheduler.max_steps={STEPS}",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=2",
    "checkpoint.keep_last=99",
    "callbacks.ema._target_=scaledl.callbacks.ema.EMA",
]
CLOSE = {"rtol": 0, "atol": 1e-5}  # CUDA adds in no fixed order; a step changes weights by 1e-3

Launch = Callable[..., Path]


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Launch:
    """Trains, or goes on with, the run of this name, on the one rank of a torchrun; returns its directory."""

    def start(name: str, *words: str) -> Path:
        exists = (tmp_path / FOLDER / name).exists()
        begin = ["resume", str(FOLDER / name)] if exists else ["train", *RUN, f"run_id={name}"]
        launch(1, *begin, *words, folder=tmp_path, environment=environment)
        return tmp_path / FOLDER / name

    return start


def losses_of(run_dir: Path) -> list[float]:
    lines = [line for line in metrics_of(run_dir) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {line["train/skipped"] for line in lines} == {0.0}
    return [line["train/loss"] for line in lines] + [
        line["val/loss"] for line in metrics_of(run_dir) if "val/loss" in line
    ]


def state_of(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return storage.load_whole(run_dir / "checkpoints" / f"step_{step:08d}")


def test_every_strategy_has_the_losses_of_a_single_process(run: Launch) -> None:
    single = losses_of(run("single", "strategy=single"))
    assert single[STEPS - 1] < single[0]
    for strategy in STRATEGIES:
        found = losses_of(run(strategy, f"strategy={strategy}")) if strategy != "single" else single
        assert found == pytest.approx(single, rel=1e-5), strategy
        mixed_dir = run(f"{strategy}_bf16", f"strategy={strategy}", "precision=bf16-mixed")
        mixed = losses_of(mixed_dir)
        assert mixed == pytest.approx(single, rel=2e-2), strategy
        assert max(abs(a - b) for a, b in zip(mixed, single, strict=True)) > 1e-5, f"{strategy} computes in fp32"
        saved = state_of(mixed_dir, STEPS).items()
        assert {tensor.dtype for name, tensor in saved if tensor.is_floating_point()} == {torch.float32}, strategy


def test_a_run_goes_from_fsdp_to_zero(run: Launch) -> None:
    straight = run("straight", "strategy=single")
    changing = run("changing", "strategy=fsdp", f"trainer.max_steps={STEPS // 2}", "trainer.limit_val_batches=0")
    run("changing", "strategy=deepspeed_2", f"trainer.max_steps={STEPS}", "trainer.limit_val_batches=2")
    assert losses_of(changing) == pytest.approx(losses_of(straight), rel=1e-5)
    prefixes = ("weights/", "ema/")
    expected, found = (
        {name: tensor for name, tensor in state_of(run_dir, STEPS).items() if name.startswith(prefixes)}
        for run_dir in (straight, changing)
    )
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_3_offload"])
def test_what_is_saved_in_the_background_is_the_state_of_its_step(run: Launch, strategy: str) -> None:
    through = run("through", f"strategy={strategy}", "checkpoint.every_n_steps=1")
    stopped = run("stopped", f"strategy={strategy}", f"trainer.max_steps={STEPS // 2}")
    torch.testing.assert_close(state_of(through, STEPS // 2), state_of(stopped, STEPS // 2), **CLOSE)
    assert summary_of(through)["peak_memory_bytes"]["device"] > 0


def test_fsdp_keeps_its_shards_on_the_host(run: Launch) -> None:
    single, offloaded = run("single", "strategy=single"), run("host", "strategy=fsdp", "strategy.cpu_offload=true")
    assert losses_of(offloaded) == pytest.approx(losses_of(single), rel=1e-5)


NO_WAIT = """import lightning.pytorch as pl
import torch

class NoWait(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= 3:  # the first steps allocate, and the first one is logged
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")
"""


EXPERTS = ["model=moe_nano", "model.hidden_dim=176", "precision=bf16-mixed"]


@pytest.mark.parametrize("words", [[], ["task.chunk_tokens=50", "activation_checkpointing=selective"], EXPERTS])
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_step_does_not_wait_for_the_device(
    run: Launch, environment: dict[str, str], tmp_path: Path, strategy: str, words: list[str]
) -> None:
    """DeepSpeed's own step reads its norm."""
    (tmp_path / "mine.py").write_text(NO_WAIT)
    environment["PYTHONPATH"] += f":{tmp_path}"
    quiet = ["trainer.log_every_n_steps=100", "trainer.limit_val_batches=0", "checkpoint.every_n_steps=100"]
    run("free", f"strategy={strategy}", *words, *quiet, "--allow", "mine", "callbacks.free._target_=mine.NoWait")
