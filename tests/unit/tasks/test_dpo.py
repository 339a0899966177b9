"""DPO against its formula, with either kind of reference."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.lora import LoRA
from scaledl.models.gpt import GPT
from scaledl.tasks.dpo import DPO, log_likelihood

BATCH = {
    "input_ids": torch.tensor([[[1, 2, 3, 4], [1, 2, 5, 0]], [[7, 2, 3, 0], [7, 2, 8, 9]]]),
    "labels": torch.tensor([[[-100, 3, 4, 5], [-100, 5, 6, -100]], [[-100, 3, 4, -100], [-100, 8, 9, 9]]]),
}


def task_of(adapt: LoRA | None, **settings) -> DPO:
    make = partial(GPT, 11, 8, dim=16, depth=2, num_heads=2, init_std=0.4, dropout=settings.pop("dropout", 0.0))
    task = DPO(ModelBuilder(make, seed=1, adapt=adapt), partial(torch.optim.AdamW, lr=0.01), **settings)
    task.configure_model()
    return task


def learnt(task: DPO) -> DPO:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return task


def sums(model: nn.Module) -> torch.Tensor:
    """log p of each answer, token by token."""
    found = torch.zeros(2, 2)
    for b, side, t in torch.nonzero(BATCH["labels"] >= 0).tolist():
        logits = model(BATCH["input_ids"][b, side][None])[0, t]
        found[b, side] += logits.log_softmax(0)[BATCH["labels"][b, side, t]]
    return found


@pytest.mark.parametrize("adapt", [None, LoRA(rank=2)], ids=["copy", "adapters"])
def test_the_loss_begins_at_ln_2_and_follows_its_formula(adapt: LoRA | None) -> None:
    task = task_of(adapt, beta=0.3)
    first = task.objective(BATCH)
    assert first["loss"].item() == pytest.approx(math.log(2), abs=1e-7)
    assert first["margin"].item() == first["acc"].item() == 0.0
    before = sums(task.model).detach()
    ratio = sums(learnt(task).model) - before
    found, margin = task.objective(BATCH), 0.3 * (ratio[:, 0] - ratio[:, 1])
    expected = [-math.log(1 / (1 + math.exp(-m))) for m in margin.tolist()]
    assert found["loss"].item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert found["margin"].item() == pytest.approx(margin.mean().item(), rel=1e-4)
    assert found["acc"].item() == (margin > 0).float().mean().item()
    assert found["reward_chosen"].item() == pytest.approx(0.3 * ratio[:, 0].mean().item(), rel=1e-4)
    assert found["reward_rejected"].item() == pytest.approx(0.3 * ratio[:, 1].mean().item(), rel=1e-4)


def test_smoothing_takes_some_pairs_to_be_wrong_in_training_only() -> None:
    task = learnt(task_of(LoRA(rank=2), label_smoothing=0.2, beta=0.3))
    ratio = sums(task.model) - sums_without(task)
    margin = 0.3 * (ratio[:, 0] - ratio[:, 1])
    plain = -nn.functional.logsigmoid(margin)
    assert task.eval().objective(BATCH)["loss"].item() == pytest.approx(plain.mean().item(), rel=1e-4)
    smooth = 0.8 * plain - 0.2 * nn.functional.logsigmoid(-margin)
    assert task.train().objective(BATCH)["loss"].item() == pytest.approx(smooth.mean().item(), rel=1e-4)


def sums_without(task: DPO) -> torch.Tensor:
    from scaledl.layers.lora import without_adapters

    with without_adapters(task.model):
        return sums(task.model)


def test_the_reference_neither_drops_nor_learns() -> None:
    task = task_of(None, dropout=0.5).train()
    assert task.reference is not None
    task.objective(BATCH)["loss"].backward()
    assert not any(parameter.requires_grad for parameter in task.reference.parameters())
    assert task.model.training
    rates = [task.objective(BATCH)["margin"].item() for _ in range(3)]
    assert len(set(rates)) == 3  # the model itself drops
    plain = task_of(LoRA(rank=2), dropout=0.5).train()
    plain.objective(BATCH)
    assert all(module.training for module in plain.model.modules())


def test_it_learns_which_answer_is_better() -> None:
    task = task_of(LoRA(rank=4))
    optimizer = task.configure_optimizers()["optimizer"]
    for _ in range(30):
        optimizer.zero_grad()
        task.objective(BATCH)["loss"].backward()
        optimizer.step()
    found = task.objective(BATCH)
    assert found["acc"] == 1
    assert found["loss"] < 0.5
    assert found["reward_chosen"] > found["reward_rejected"]


def test_the_likelihood_counts_labels_only() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]]))
    labels = torch.tensor([[-100, 1, 0]])
    assert log_likelihood(logits, labels).item() == pytest.approx(math.log(0.75) + math.log(0.1), rel=1e-5)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            task_of(None, **wrong)
