"""What one strategy saves, any loads: weights, the optimiser's state, the step, the learning rate. In one process."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples
from scaledl.distributed import group, storage
from scaledl.distributed.fsdp import FSDP
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.distributed.state import RunState
from scaledl.distributed.strategy import DDP, Single
from scaledl.distributed.zero import DeepSpeed
from scaledl.optim.schedule import linear
from scaledl.tasks import base
from scaledl.tasks.base import Task

STRATEGIES: dict[str, Callable[[], RunState]] = {
    "single": Single,
    "ddp": DDP,
    "fsdp": FSDP,
    **{f"deepspeed_{stage}": partial(DeepSpeed, stage, persistence_threshold=30) for stage in (1, 2, 3)},
}
STEPS = 3
ADAMW = partial(torch.optim.AdamW, lr=0.1)


class Net(nn.Module):
    """Matrices and gains, and a buffer that counts."""

    block_types = (nn.Sequential,)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 12), nn.LayerNorm(12))
        self.out = nn.Linear(12, 1)
        self.scale = nn.Parameter(torch.empty(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        self.calls.zero_()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.out(self.stem(x).tanh()) * self.scale


class Regression(Task):
    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.model(batch["x"])[:, 0] - batch["y"]).square().mean()}


class Random(Data):
    def datasets(self) -> dict[str, BatchDataset]:
        draw = np.random.default_rng(0)
        return {"train": Samples(draw.standard_normal((24, 3)).astype(np.float32), np.arange(24, dtype=np.float32))}


class AtTheStart(pl.Callback):
    """Saves what a run has before its first step."""

    def __init__(self, folder: Path):
        self.folder, self.lr, self.step = folder, {}, -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        save(trainer, self.folder)
        self.lr, self.step = trainer.strategy.lr_of(), trainer.global_step


def save(trainer: pl.Trainer, folder: Path) -> None:
    trainer.save_checkpoint(folder)
    trainer.strategy.saver.wait()


def fit(
    strategy: str,
    folder: Path,
    *callbacks: pl.Callback,
    seed: int = 0,
    max_steps: int = STEPS,
    resume: Path | None = None,
    net: Callable[[], nn.Module] = Net,
    optimizer: Any = ADAMW,
) -> pl.Trainer:
    if strategy.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    task = Regression(ModelBuilder(net, seed=seed), optimizer, partial(linear, max_steps=10))
    trainer = pl.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        strategy=STRATEGIES[strategy](),
        plugins=[group.environment()],
        callbacks=list(callbacks),
        logger=False,
        default_root_dir=folder,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=Random(8, 8), ckpt_path=resume and str(resume), weights_only=True)
    return trainer


class AtTheEnd(pl.Callback):
    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        save(trainer, self.folder)


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    """One for all runs, since DeepSpeed keeps the first that it meets."""
    before = dict(os.environ)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # as torchrun does
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a strategy's run of a few steps."""
    found: dict[str, Path] = {}

    def of(strategy: str) -> Path:
        if strategy not in found:
            found[strategy] = tmp_path_factory.mktemp(strategy) / "step_00000003"
            fit(strategy, found[strategy].parent, AtTheEnd(found[strategy]))
        return found[strategy]

    return of


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    assert sorted(first) == sorted(second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, **tolerance)


def test_a_checkpoint_holds_what_plain_pytorch_has_after_as_many_steps(saved: Callable[[str], Path]) -> None:
    model = ModelBuilder(Net)()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decaying = [p for p in parameters.values() if p.dim() > 1]
    rest = {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": decaying}, rest], lr=0.1)
    data = Random(8, 8)
    for step, indices in zip(range(STEPS), data.train_dataloader().batch_sampler, strict=False):
        batch = data.split("train").__getitems__(indices)
        for each in optimizer.param_groups:
            each["lr"] = 0.1 * (1 - step / 10)
        optimizer.zero_grad()
        (model(batch["x"])[:, 0] - batch["y"]).square().mean().backward()
        optimizer.step()
    expected = {f"weights/model.{name}": value for name, value in model.state_dict().items()}
    expected |= {
        f"optimizer.0/{key}/model.{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    assert_equal(expected, storage.load_whole(saved("single")), rtol=1e-5, atol=1e-6)
    plain = storage.load_plain(saved("single"))
    assert plain["global_step"] == STEPS
    assert plain["lr"] == pytest.approx({f"model.{name}": 0.1 * (1 - STEPS / 10) for name in parameters})


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "single"])
def test_every_strategy_saves_the_same(saved: Callable[[str], Path], strategy: str) -> None:
    """But for the step, of which ZeRO keeps one for all parameters of a group."""
    assert_equal(storage.load_whole(saved("single")), storage.load_whole(saved(strategy)), rtol=1e-4, atol=1e-5)
    here, there = (storage.load_plain(saved(name)) for name in ("single", strategy))
    assert there["lr"] == pytest.approx(here["lr"])
    assert there["global_step"] == here["global_step"]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (a, b)
        for a in STRATEGIES
        for b in STRATEGIES
        if a == b or "single" in (a, b) or (a, b) == ("deepspeed_3", "fsdp")
    ],
)
def test_what_one_strategy_saved_another_has_before_its_first_step(
    saved: Callable[[str], Path], tmp_path: Path, source: str, target: str
) -> None:
    start = AtTheStart(tmp_path / "start")
    fit(target, tmp_path, start, seed=9, max_steps=STEPS + 1, resume=saved(source))
    assert_equal(storage.load_whole(saved(source)), storage.load_whole(start.folder), rtol=0, atol=0)
    assert start.step == STEPS
    assert start.lr == storage.load_plain(saved(source))["lr"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    saved: Callable[[str], Path], tmp_path: Path, strategy: str
) -> None:
    fit(strategy, tmp_path, AtTheEnd(tmp_path / "straight"), max_steps=STEPS + 2)
    fit(strategy, tmp_path, AtTheEnd(tmp_path / "resumed"), seed=9, max_steps=STEPS + 2, resume=saved(strategy))
    straight, resumed = storage.load_whole(tmp_path / "straight"), storage.load_whole(tmp_path / "resumed")
    assert_equal(straight, resumed, rtol=0, atol=0)
    assert storage.load_plain(tmp_path / "resumed")["lr"] == storage.load_plain(tmp_path / "straight")["lr"]


def each_alone(make_optimizer: Any, model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p], "weight_decay": 0.0} for p in model.parameters() if p.requires_grad]


def test_a_schedule_goes_on_with_another_number_of_groups(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "groups_of", each_alone)
    start = AtTheStart(tmp_path / "start")
    trainer = fit("single", tmp_path, start, max_steps=STEPS + 2, resume=saved("single"))
    (optimizer,) = trainer.optimizers
    assert len(optimizer.param_groups) == 7
    assert list(start.lr.values()) == pytest.approx([0.1 * (1 - STEPS / 10)] * 7)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * (1 - (STEPS + 2) / 10)] * 7)
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == pytest.approx([0.1 * (1 - (STEPS + 2) / 10)] * 7)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.01),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        partial(torch.optim.RMSprop, lr=0.01, centered=True),
        partial(torch.optim.Adagrad, lr=0.01),
    ],
)
def test_an_optimiser_of_any_state_goes_on(tmp_path: Path, optimizer: Any) -> None:
    run = partial(fit, "single", tmp_path, optimizer=optimizer)
    run(AtTheEnd(tmp_path / "first"))
    run(AtTheEnd(tmp_path / "straight"), max_steps=STEPS + 2)
    run(AtTheEnd(tmp_path / "resumed"), seed=9, max_steps=STEPS + 2, resume=tmp_path / "first")
    assert_equal(storage.load_whole(tmp_path / "straight"), storage.load_whole(tmp_path / "resumed"), rtol=0, atol=0)


class WithFrozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stem[0].requires_grad_(False)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp", "deepspeed_1", "deepspeed_2"])
def test_what_is_not_trained_is_saved_and_loaded_too(tmp_path: Path, strategy: str) -> None:
    run, start = partial(fit, strategy, tmp_path, net=WithFrozen), AtTheStart(tmp_path / "start")
    run(AtTheEnd(tmp_path / "first"))
    run(start, seed=9, max_steps=STEPS + 1, resume=tmp_path / "first")
    first = storage.load_whole(tmp_path / "first")
    assert torch.equal(first["weights/model.stem.0.weight"], ModelBuilder(Net)().stem[0].weight)
    assert_equal(first, storage.load_whole(start.folder), rtol=0, atol=0)


class WithUnused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)


def test_a_checkpoint_of_another_model_is_refused_by_name(saved: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.unused\..* is not in the checkpoint .*; build the model that was saved"
    ):
        fit("single", tmp_path, net=WithUnused, resume=saved("single"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_average_is_what_evaluations_read_where_a_checkpoint_holds_one(tmp_path: Path, strategy: str) -> None:
    class Averaged(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.strategy.start_average()

        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            save(trainer, tmp_path / "step_00000003")
            with trainer.strategy.averaged():
                save(trainer, tmp_path / "exchanged")
            save(trainer, tmp_path / "back")
            trainer.strategy.load_average(tmp_path / "step_00000003")
            save(trainer, tmp_path / "loaded")

    fit(strategy, tmp_path, Averaged())
    held = {name: storage.load_whole(tmp_path / name) for name in ("step_00000003", "exchanged", "back", "loaded")}
    untrained = ModelBuilder(Net)()
    for name, parameter in untrained.named_parameters():
        weights, average = f"weights/model.{name}", f"ema/model.{name}"
        assert torch.equal(held["step_00000003"][average], parameter), "an average that no callback moves"
        assert torch.equal(held["exchanged"][weights], parameter)
        assert torch.equal(held["loaded"][weights], parameter)
        assert torch.equal(held["back"][weights], held["step_00000003"][weights])
        assert not torch.equal(held["back"][weights], parameter)
