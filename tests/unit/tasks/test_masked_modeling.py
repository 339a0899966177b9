"""Which tokens are hidden, behind what, and that it depends on nothing but the seed and the sample's position."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.bert import BERT
from scaledl.tasks.masked_modeling import IGNORED, MaskedModeling

MASK, VOCAB = 1, 50


class Uniform(nn.Module):
    """Every token is as likely as any other; remembers what it was given."""

    def forward(self, input_ids: Tensor, predict_at: Tensor) -> Tensor:
        self.read = input_ids
        return torch.zeros(*predict_at.shape, VOCAB)


def task_of(model: Any = Uniform, seed: int = 0, positions: Any = None, **settings: Any) -> MaskedModeling:
    task = MaskedModeling(ModelBuilder(model, seed=seed), partial(torch.optim.AdamW, lr=3e-3), VOCAB, MASK, **settings)
    task.configure_model()
    if positions is not None:
        task.noise = Noise(seed, torch.as_tensor(positions))
    return task


def batch_of(lengths: list[int], size: int = 64) -> dict[str, Tensor]:
    """Samples of so many tokens from 2 on, filled up with zeros to `size`."""
    ids = torch.randint(2, VOCAB, (len(lengths), size), generator=torch.Generator().manual_seed(1))
    real = torch.arange(size) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids.where(real, 0), "labels": ids.where(real, IGNORED)}


def test_of_n_tokens_15_percent_are_chosen_and_none_twice() -> None:
    lengths = [64, 63, 40, 20, 10, 7, 3, 2, 1, 0]
    batch = batch_of(lengths)
    task = task_of(positions=range(len(lengths)))
    input_ids, chosen, targets = task.hide(batch)
    counts = [max(1, round(0.15 * n)) if n else 0 for n in lengths]
    assert (targets != IGNORED).sum(1).tolist() == counts
    assert task.weight(batch).item() == sum(counts)
    for row, (n, count) in enumerate(zip(lengths, counts, strict=True)):
        at = chosen[row, :count]
        assert len(at.unique()) == count
        assert (at < n).all()
        assert torch.equal(targets[row, :count], batch["input_ids"][row, at])
        untouched = torch.ones(64, dtype=torch.bool)
        untouched[at] = False
        assert torch.equal(input_ids[row, untouched], batch["input_ids"][row, untouched])


@pytest.mark.parametrize("size", range(1, 130))
def test_there_is_room_for_all_that_are_chosen(size: int) -> None:
    batch = batch_of([size], size)
    assert (task_of(positions=[0]).hide(batch)[2] != IGNORED).sum() == max(1, round(0.15 * size))


def test_of_the_chosen_80_percent_are_masked_10_random_and_10_as_they_were() -> None:
    batch = batch_of([64] * 2000)
    input_ids, chosen, targets = task_of(positions=range(2000)).hide(batch)
    now = input_ids.take_along_dim(chosen, dim=1)
    assert now.numel() == 20_000
    masked, same = now == MASK, now == targets
    other = ~masked & ~same
    # A random token is the mask, or what stood there, once in VOCAB times each.
    expected = [0.8 + 0.1 / VOCAB, 0.1 + 0.1 / VOCAB, 0.1 - 0.2 / VOCAB]
    shares = [kind.float().mean().item() for kind in (masked, same, other)]
    assert shares == pytest.approx(expected, abs=0.01)  # 3.5 standard deviations
    values = now[other].bincount(minlength=VOCAB).float() / other.sum()
    assert values[MASK] == 0
    assert values[values > 0].numel() == VOCAB - 1
    assert values.max() < 3 / VOCAB
    where = chosen.flatten().bincount(minlength=64) / chosen.numel()
    assert where.max() < 1.4 / 64
    assert where.min() > 0.6 / 64


def test_what_is_hidden_depends_on_the_seed_and_the_position_alone() -> None:
    batch = batch_of([64, 30, 64, 9, 50, 64])
    torch.manual_seed(1)
    whole = task_of(positions=[5, 6, 7, 8, 9, 10]).hide(batch)
    torch.manual_seed(2)
    for part in (slice(0, 2), slice(2, 6)):  # as two ranks would
        found = task_of(positions=range(5, 11)[part]).hide({name: value[part] for name, value in batch.items()})
        for one, two in zip(found, whole, strict=True):
            assert torch.equal(one, two[part])
    same_text = {name: value[:1].expand(6, -1) for name, value in batch.items()}
    at_each = task_of(positions=range(6)).hide(same_text)[0]
    assert len(at_each.unique(dim=0)) == 6
    assert not torch.equal(at_each, task_of(seed=1, positions=range(6)).hide(same_text)[0])


def test_the_loss_and_the_share_found_go_over_the_hidden_tokens_alone() -> None:
    batch = batch_of([64, 10])
    task = task_of(positions=[0, 1])
    metrics = task.objective(batch)
    assert metrics["loss"].item() == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert metrics["acc"].item() == 0  # token 0 is the first of equals, and no text
    assert torch.equal(task.model.read, task.hide(batch)[0])
    assert task.summarize({"loss": 1.0, "acc": 0.5}) == {"loss": 1.0, "acc": 0.5, "perplexity": math.e}
    assert math.isfinite(task.summarize({"loss": 1e6})["perplexity"])


def test_means_over_parts_weighted_by_their_hidden_tokens_are_the_mean_of_the_whole() -> None:
    bert = partial(BERT, VOCAB, 64, dim=16, depth=1, num_heads=2, dropout=0.0, init_std=0.3)
    batch, positions = batch_of([64, 64, 9, 1, 33, 20]), np.arange(3, 9)
    whole = task_of(bert, positions=positions).objective(batch)
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    found = {"loss": 0.0, "acc": 0.0}
    for part in parts:
        some = {name: value[part] for name, value in batch.items()}
        task = task_of(bert, positions=positions[part])
        share = (task.weight(some) / task.weight(batch)).item()
        for name, value in task.objective(some).items():
            found[name] += share * value.item()
    assert found == pytest.approx({name: value.item() for name, value in whole.items()}, rel=1e-5)


def test_every_parameter_of_bert_has_a_gradient_and_it_overfits_one_batch() -> None:
    task = task_of(partial(BERT, VOCAB, 32, dim=32, depth=2, num_heads=2, dropout=0.0), positions=range(4))
    batch = batch_of([32, 32, 32, 20], 32)
    optimizer = task.configure_optimizers()["optimizer"]
    losses = []
    for step in range(150):
        loss = task.objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        if step == 1:
            for name, parameter in task.model.named_parameters():
                # A bias on keys shifts all scores of a query alike: softmax makes its gradient zero in theory.
                assert parameter.grad is not None, name
                assert name.endswith(".k.bias") or parameter.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.3)
    assert losses[-1] < 0.1


def test_it_runs_without_memory() -> None:
    """`build.check_fit` reads a sample on the meta device before the run directory exists."""
    task = MaskedModeling(ModelBuilder(partial(BERT, VOCAB, 64, dim=16, depth=1, num_heads=2)), torch.optim.SGD, 50, 1)
    task.model = task.model_builder.on_meta()
    task.noise = Noise(0, torch.zeros(1, dtype=torch.int64, device="meta"))
    metrics = task.objective({name: value.to("meta") for name, value in batch_of([64]).items()})
    assert {name: value.shape for name, value in metrics.items()} == {"loss": (), "acc": ()}


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_id is null: .* data/tokenizer=bpe_masked"):
        MaskedModeling(ModelBuilder(Uniform), torch.optim.SGD, VOCAB, None)
    with pytest.raises(ValueError, match=r"mask_ratio=1.0 must lie in \(0, 1\)"):
        task_of(mask_ratio=1.0)
