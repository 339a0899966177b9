"""What is counted without memory is what real tensors take."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.lora import LoRA
from scaledl.models.gpt import GPT
from scaledl.optim.groups import groups_of
from scaledl.optim.lion import Lion
from scaledl.optim.muon import Muon
from scaledl.planning.simulation import REST, simulate, simulate_optimizer
from scaledl.tasks.base import Task
from scaledl.tasks.dpo import DPO

SIZES = {"dim": 32, "depth": 3, "num_heads": 2}
IDS = torch.zeros(4, 24, dtype=torch.int64)
BATCH = {"input_ids": IDS, "labels": IDS}


class NextToken(Task):
    """With the logits as a whole, as PyTorch's autograd saves them."""

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.model(batch["input_ids"])
        return {"loss": F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())}


def task(make_optimizer=torch.optim.AdamW, adapt: LoRA | None = None, **arguments) -> Task:
    return NextToken(ModelBuilder(partial(GPT, 61, 24, **(SIZES | arguments)), adapt=adapt), make_optimizer)


def really_saved(checkpointing: str) -> int:
    """Bytes that the forward pass on real tensors leaves for the backward pass, and the batch and the loss."""
    real = task()
    real.model = ModelBuilder(real.model_builder.make, activation_checkpointing=checkpointing)().train()
    real.noise = Noise(0, torch.zeros(1, dtype=torch.int64))
    own = {parameter.untyped_storage().data_ptr() for parameter in real.model.parameters()}
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = real.objective({name: tensor.clone() for name, tensor in BATCH.items()})["loss"]
    storages |= {loss.untyped_storage().data_ptr(): loss.nbytes}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def test_activations_are_those_that_autograd_saves() -> None:
    saved = simulate(task(), BATCH).saved
    assert saved == really_saved("none")
    # 3 blocks of: two norms' inputs and outputs, q, k, v, attention's output, 4 wide ones twice around the activation
    assert saved > 3 * 16 * 4 * 24 * 32 * 4


def test_checkpointing_keeps_a_block_s_input_only() -> None:
    none, selective, full = (simulate(task(), BATCH, checkpointing=kind) for kind in ("none", "selective", "full"))
    assert none.saved > selective.saved > full.saved
    # 3 blocks' inputs; the rest (embeddings, the last norm, logits) is saved in any case
    tokens, logits = 4 * 24 * 32 * 4, 4 * 24 * 61 * 4
    assert full.saved < 3 * tokens + 4 * tokens + 2 * logits
    # again: all products of blocks but their last, which nothing needs; none outside of them
    assert 1.15 < full.costs["matrix", 4].flops / none.costs["matrix", 4].flops < 4 / 3


def test_a_larger_micro_batch_takes_more_in_proportion() -> None:
    two, four = (simulate(task(), {name: tensor[:n] for name, tensor in BATCH.items()}) for n in (2, 4))
    assert four.saved == pytest.approx(2 * two.saved, rel=1e-3)
    assert two.weights == four.weights


def test_mixed_precision_keeps_a_copy_of_the_weights_in_bf16() -> None:
    fp32, mixed, low = (
        simulate(task(), BATCH, **settings)
        for settings in ({}, {"precision": "bf16-mixed"}, {"precision": "bf16-mixed", "low_weights": True})
    )
    matrices = sum(p.numel() for p in task().model_builder.on_meta().blocks.parameters() if p.ndim == 2)
    assert mixed.saved - low.saved >= 2 * matrices
    assert low.weights == fp32.weights / 2
    assert mixed.saved < fp32.saved + 2 * matrices


def test_a_tensor_parallel_rank_holds_its_share_of_the_matrices() -> None:
    one, two = (simulate(task(), BATCH, tensor_parallel_size=size) for size in (1, 2))
    block = 12 * 32 * 32  # q, k, v, out, up and down
    biases = (3 + 4) * 32  # of q, k, v and up: those of what sums over ranks stay whole
    assert one.parameters[0] - two.parameters[0] == (block + biases) // 2
    assert one.parameters[REST] == two.parameters[REST]
    assert two.exchanged == 3 * (2 + 4) * 4 * 24 * 32 * 4  # two sums forward, four of gradients, in 3 blocks


def test_a_tensor_parallel_rank_holds_some_of_the_experts() -> None:
    moe = task(num_experts=4, experts_per_token=2, hidden_dim=48)
    one, two = (simulate(moe, BATCH, tensor_parallel_size=size) for size in (1, 2))
    attention, experts = 4 * 32 * 32 + 3 * 32, 4 * 2 * 32 * 48
    assert one.parameters[0] - two.parameters[0] == (attention + experts) // 2
    tokens = 4 * 24
    # of attention one sum forward and three of gradients; of experts one each, and the gradient of two weights a token
    assert two.exchanged == 3 * ((1 + 3 + 2) * tokens * 32 * 4 + tokens * 2 * 4)
    divided = 3 * 3 * 2 * tokens * (4 * 32 * 32 + 2 * 2 * 32 * 48) / 2  # forward, and twice that backward
    assert one.costs["matrix", 4].flops - two.costs["matrix", 4].flops == divided


def test_gradients_come_as_activations_go() -> None:
    found = simulate(task(), BATCH)
    gradients = sum(parameter.numel() for parameter in task().model_builder.on_meta().parameters()) * 4
    assert max(found.work, gradients) <= found.with_gradients < found.work + gradients


@pytest.mark.parametrize(
    ("make", "states"),
    [
        (torch.optim.AdamW, 2),
        (partial(torch.optim.SGD, momentum=0.9), 1),
        (torch.optim.SGD, 0),
        (Lion, 1),
        (torch.optim.RMSprop, 1),
        (Muon, 1.12),  # two of embeddings, biases and gains, one of the matrices inside
    ],
)
def test_an_optimizer_has_the_states_that_it_really_makes(make, states: float) -> None:
    planned = simulate_optimizer(task(make))
    model = ModelBuilder(partial(GPT, 61, 24, **SIZES))()
    optimizer = make(groups_of(make, model), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    real = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value is not None)
    assert planned.states == pytest.approx(real, rel=1e-3)
    assert planned.states == pytest.approx(states * planned.weights, rel=0.02)


def test_of_an_adapted_model_the_adapters_alone_learn() -> None:
    whole, adapted = task(), task(adapt=LoRA(rank=2))
    learn = {n: p.numel() for n, p in adapted.model_builder.on_meta().named_parameters() if ".lora_" in n}
    planned, before = simulate_optimizer(adapted), simulate_optimizer(whole)
    assert planned.trained == sum(learn.values())
    assert planned.gradients == planned.weights - before.weights == 4 * planned.trained
    assert planned.states == pytest.approx(2 * planned.gradients, rel=0.02)
    passed = simulate(adapted, BATCH)
    assert sum(passed.trained.values()) == planned.trained
    assert sum(passed.parameters.values()) * 4 == planned.weights
    with pytest.raises(ValueError, match="lora needs whole matrices"):
        simulate(adapted, BATCH, tensor_parallel_size=2)


class OfItself(DPO):
    configure_model = Task.configure_model  # no copy


@pytest.mark.parametrize(("adapt", "copies"), [(None, 1), (LoRA(rank=2), 0)], ids=["copy", "adapters"])
def test_a_reference_of_its_own_is_held_and_learns_nothing(adapt: LoRA | None, copies: int) -> None:
    planned = DPO(task(adapt=adapt).model_builder, torch.optim.AdamW)
    batch = {name: ids.view(2, 2, 24) for name, ids in BATCH.items()}
    for _ in range(2):
        masters = simulate_optimizer(planned)
        assert masters.frozen == copies * masters.weights
        assert simulate(planned, batch, precision="bf16-true").frozen == masters.frozen / 2
        assert planned.model is planned.reference is None
    if copies:
        alone = simulate_optimizer(task())
        assert (masters.trained, masters.gradients, masters.states) == (alone.trained, alone.gradients, alone.states)
        one, two = (simulate(planned, batch, tensor_parallel_size=size) for size in (1, 2))
        itself = simulate(OfItself(task().model_builder, torch.optim.AdamW), batch)
        assert (one.work, one.weights) == (itself.work, itself.weights)
        assert two.exchanged == 3 * (2 + 2 + 4) * 4 * 24 * 32 * 4  # the reference's two sums forward, besides


def test_nothing_is_left_in_the_task() -> None:
    planned = task()
    simulate(planned, BATCH)
    assert planned.model is None
    assert planned.noise is None


class NeedsValues(NextToken):
    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.model(batch["input_ids"]).mean() * int(batch["labels"].sum())}


def test_an_objective_that_reads_values_is_refused() -> None:
    with pytest.raises(ValueError, match="NeedsValues cannot be planned"):
        simulate(NeedsValues(ModelBuilder(partial(GPT, 61, 24, **SIZES)), torch.optim.AdamW), BATCH)
