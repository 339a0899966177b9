"""What every task inherits: exact means, one optimiser step whatever the micro-batches, noise without a state."""

from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.distributed.strategy import Single
from scaledl.layers.lora import LoRA
from scaledl.models.mlp import MLP
from scaledl.optim.schedule import linear
from scaledl.tasks.base import Task
from scaledl.tasks.classification import Classification


class Points(Data):
    """Random points: 24 to train on, and a number to validate and test on that no micro-batch of 4 divides."""

    def datasets(self) -> dict[str, BatchDataset]:
        draw = np.random.default_rng(0)
        return {
            split: Samples(draw.standard_normal((size, 3)).astype(np.float32), draw.integers(0, 4, size))
            for split, size in {"train": 24, "val": 11, "test": 9}.items()
        }


def classification(optimizer: Any = None, seed: int = 0, **settings: Any) -> Classification:
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.5)
    return Classification(ModelBuilder(partial(MLP, 3, [8], 4), seed=seed), optimizer, 4, **settings)


def trainer(max_steps: int = 1, accumulation: int = 1, val_every: int = 1000, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=val_every * accumulation,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=accumulation,
        accelerator="cpu",
        devices=1,
        strategy=Single(),
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def fit(task: Task, data: Data, **arguments: Any) -> Task:
    trainer(accumulation=data.accumulation, **arguments).fit(task, datamodule=data)
    return task


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradients_are_in_memory_from_backward_to_the_step_only(accumulation: int) -> None:
    """Lightning alone would free them after the next forward pass, when activations need the most."""
    there = []

    class Looks(Classification):
        def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            there.append(any(parameter.grad is not None for parameter in self.parameters()))
            return super().objective(batch)

    task = Looks(ModelBuilder(partial(MLP, 3, [8], 4), seed=0), partial(torch.optim.SGD, lr=0.5), 4)
    fit(task, Points(4 * accumulation, 4), max_steps=2)
    assert there == 2 * [False, *[True] * (accumulation - 1)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_is_the_mean_over_the_whole_set_though_its_last_batch_is_short(split: str) -> None:
    task, data, runner = classification(), Points(4, 4), trainer()
    (runner.validate if split == "val" else runner.test)(task, datamodule=data, verbose=False)
    everything = data.split(split).__getitems__(np.arange(len(data.split(split))))
    expected = {f"{split}/{name}": value.item() for name, value in task.objective(everything).items()}
    assert {name: value.item() for name, value in runner.callback_metrics.items()} == pytest.approx(expected, rel=1e-5)


class InParts(Samples):
    """Two sources, each with a loss of its own."""

    parts = (("one", 0, 0.25), ("two", 8, 0.75))


class TwoSources(Data):
    def datasets(self) -> dict[str, BatchDataset]:
        x = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
        x[9] = np.nan
        return {"val": InParts(x, np.arange(16) % 4)}


def test_a_source_whose_loss_is_no_number_leaves_the_others_theirs() -> None:
    task, runner = classification(), trainer()
    runner.validate(task, datamodule=TwoSources(4, 4), verbose=False)
    found = {name: value.item() for name, value in runner.callback_metrics.items()}
    assert np.isfinite(found["val/one/loss"])
    assert np.isnan(found["val/two/loss"])
    assert np.isnan(found["val/loss"])


def test_each_evaluation_begins_anew() -> None:
    task, data, alone, after = classification(), Points(4, 4), trainer(), trainer()
    alone.test(task, datamodule=data, verbose=False)
    trainer().validate(task, datamodule=data, verbose=False)
    after.test(task, datamodule=data, verbose=False)
    assert set(after.callback_metrics) == {"test/loss", "test/acc"}
    assert after.callback_metrics == alone.callback_metrics


class Sums(Task):
    """Says the sum of x, weighted by what its `weight` says, and reports a value that is no mean."""

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.model(batch["x"]).mean(), "x": batch["x"].mean()}

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["y"].sum()

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {"twice": 2 * means["x"]}


def test_the_weight_of_a_batch_is_the_task_s_own_and_summarize_has_the_last_word() -> None:
    task, data, runner = Sums(ModelBuilder(partial(nn.Linear, 3, 1)), torch.optim.SGD), Points(4, 4), trainer()
    runner.validate(task, datamodule=data, verbose=False)
    val = data.split("val")
    batches = [val.__getitems__(np.arange(i, min(i + 4, 11))) for i in (0, 4, 8)]
    weights = np.array([batch["y"].sum().item() for batch in batches])
    means = np.array([batch["x"].double().mean().item() for batch in batches])
    assert {name: value.item() for name, value in runner.callback_metrics.items()} == {
        "val/twice": pytest.approx(2 * (weights * means).sum() / weights.sum(), rel=1e-5)
    }


def test_micro_batches_make_the_step_and_the_metrics_of_the_whole_batch() -> None:
    whole = fit(classification(), Points(12, 12), max_steps=3, gradient_clip_val=0.1)
    split = fit(classification(), Points(12, 3), max_steps=3, gradient_clip_val=0.1)
    assert set(whole.step_metrics) == {"loss", "acc", "grad_norm", "skipped"}
    torch.testing.assert_close(split.step_metrics, whole.step_metrics, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(split.model.state_dict(), whole.model.state_dict(), rtol=1e-5, atol=1e-6)
    assert not any(value.requires_grad for value in split.step_metrics.values())


def test_clipping_reports_the_norm_before_it_and_bounds_the_step() -> None:
    data = Points(12, 12)
    task = fit(classification(partial(torch.optim.SGD, lr=1.0)), data, gradient_clip_val=0.01)
    untrained = classification()
    untrained.configure_model()
    before = untrained.model
    first = next(iter(data.train_dataloader().batch_sampler))
    untrained.objective(data.split("train").__getitems__(first))["loss"].backward()
    norm = torch.stack([p.grad.norm() for p in before.parameters()]).norm()
    assert norm > 0.01
    torch.testing.assert_close(task.step_metrics["grad_norm"], norm)
    moved = torch.stack([(a - b).norm() for a, b in zip(task.model.parameters(), before.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_without_clipping_the_norm_is_reported_and_the_step_is_whole() -> None:
    clipped = fit(classification(), Points(12, 12), gradient_clip_val=1e9)
    free = fit(classification(), Points(12, 12))
    assert free.step_metrics == clipped.step_metrics
    assert free.step_metrics["grad_norm"] > 0
    torch.testing.assert_close(free.model.state_dict(), clipped.model.state_dict())


class Poisoned(Classification):
    """Its loss is not finite in the training batches that `poison` names."""

    poison: tuple[int, ...] = ()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.factor = float("nan") if batch_idx in self.poison else 1.0

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().objective(batch)
        return {**metrics, "loss": metrics["loss"] * self.factor}


@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=False)]
)
@pytest.mark.parametrize("bad", [0, 4, 8])  # of three micro-batches a step: one of the first, second and third step
def test_one_bad_micro_batch_leaves_its_step_out_and_no_other(optimizer: Any, bad: int) -> None:
    def trained(poison: tuple[int, ...], max_steps: int) -> Poisoned:
        task = Poisoned(ModelBuilder(partial(MLP, 3, [8], 4)), optimizer, 4)
        task.poison = poison
        return fit(task, Points(12, 4), max_steps=max_steps, gradient_clip_val=1.0)

    step = bad // 3
    left_out = trained((bad,), step + 1)
    assert left_out.step_metrics["skipped"] == 1
    before = trained((), step).model if step else ModelBuilder(partial(MLP, 3, [8], 4))()
    torch.testing.assert_close(left_out.model.state_dict(), before.state_dict(), rtol=0, atol=0)
    after = trained((bad,), step + 2)
    assert after.step_metrics["skipped"] == 0
    assert all(
        a.isfinite().all() and not torch.equal(a, b)
        for a, b in zip(after.model.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (torch.optim.AdamW, True),
        (partial(torch.optim.SGD, lr=0.1), True),
        (partial(torch.optim.AdamW, fused=False), False),  # a choice is kept
        (partial(torch.optim.AdamW, foreach=True, fused=False), False),
    ],
)
def test_the_fused_optimiser_is_taken_where_nothing_else_was_chosen(optimizer: Any, fused: bool) -> None:
    task = classification(optimizer)
    task.configure_model()
    assert task.configure_optimizers()["optimizer"].defaults["fused"] is fused


def test_an_optimiser_that_knows_no_fusing_is_taken_as_it_is() -> None:
    task = classification(partial(torch.optim.RMSprop, lr=0.1))
    task.configure_model()
    assert isinstance(task.configure_optimizers()["optimizer"], torch.optim.RMSprop)


def test_weight_decay_is_for_matrices_only() -> None:
    task = classification(partial(torch.optim.AdamW, weight_decay=0.3))
    task.configure_model()
    decays = {p: g["weight_decay"] for g in task.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert {name: decays[p] for name, p in task.model.named_parameters()} == {
        "hidden.0.weight": 0.3,
        "hidden.0.bias": 0.0,
        "out.weight": 0.3,
        "out.bias": 0.0,
    }


@pytest.mark.parametrize("micro_batch_size", [12, 4])
def test_the_schedule_goes_by_optimiser_steps(micro_batch_size: int) -> None:
    task = classification(partial(torch.optim.SGD, lr=1.0), scheduler=partial(linear, max_steps=10))
    fit(task, Points(12, micro_batch_size), max_steps=4)
    assert task.optimizers().param_groups[0]["lr"] == pytest.approx(0.6)


class Noisy(Task):
    """Remembers the noise that each training micro-batch draws; an evaluation draws some as well."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.drawn: list[float] = []

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        noise = torch.rand(())
        if self.training:
            self.drawn.append(noise.item())
        return {"loss": (self.model(batch["x"]) * noise).square().mean()}


def drawn(seed: int, **arguments: Any) -> list[float]:
    task = Noisy(ModelBuilder(partial(nn.Linear, 3, 1), seed=seed), partial(torch.optim.SGD, lr=0.1))
    fit(task, Points(12, 4), max_steps=4, **arguments)
    return task.drawn


def test_the_noise_of_a_micro_batch_depends_on_the_seed_and_its_index_alone() -> None:
    torch.manual_seed(1)
    straight = drawn(seed=5)
    torch.manual_seed(2)
    between_evaluations = drawn(seed=5, val_every=1)
    assert len(set(straight)) == 12
    assert between_evaluations == straight
    assert not set(straight) & set(drawn(seed=6))


class Counted(MLP):
    """Which changes itself after each step, as a router of experts does."""

    moved = 0

    def step_counts(self) -> Tensor:
        return torch.ones(1)

    def after_step(self, counts: Tensor, good: Tensor) -> None:
        self.moved += 1


@pytest.mark.parametrize(("adapt", "moved"), [(None, 2), (LoRA(targets=["out"]), 0)])
def test_after_a_step_a_model_moves_itself_unless_it_is_frozen(adapt: LoRA | None, moved: int) -> None:
    task = Classification(ModelBuilder(partial(Counted, 3, [8], 4), adapt=adapt), partial(torch.optim.SGD, lr=0.5), 4)
    assert fit(task, Points(12, 4), max_steps=2).model.moved == moved
    assert task.step_counts == 3  # which is counted all the same


def test_the_model_is_built_once() -> None:
    task = classification()
    assert task.model is None
    task.configure_model()
    model = task.model
    task.configure_model()
    assert task.model is model


def test_a_task_without_an_objective_says_its_name() -> None:
    class Forgetful(Task):
        pass

    with pytest.raises(NotImplementedError, match="Forgetful must return its losses and metrics"):
        Forgetful(ModelBuilder(nn.Identity), torch.optim.SGD).objective({})
