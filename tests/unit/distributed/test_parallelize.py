"""Initial weights depend on the seed and a module's name alone; wrapping changes no number."""

import shutil

import pytest
import torch
from torch import nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.gpt import GPT


def make() -> nn.Module:
    return GPT(vocab_size=11, max_seq_len=8, dim=16, depth=2, num_heads=2)


def build(**arguments) -> nn.Module:
    return ModelBuilder(make, **arguments)()


def loss_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.arange(8).reshape(2, 4)
    loss = model(ids).square().mean()
    loss.backward()
    named = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    return loss, named


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    weights = [model.state_dict()["blocks.1.feedforward.up.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_weight_does_not_depend_on_the_depth_of_the_rest() -> None:
    deep = ModelBuilder(lambda: GPT(vocab_size=11, max_seq_len=8, dim=16, depth=3, num_heads=2), seed=1)
    key = "blocks.0.attention.q.weight"
    assert torch.equal(build(seed=1).state_dict()[key], deep().state_dict()[key])


def test_building_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build()
    assert torch.equal(torch.rand(3), expected)


def test_meta_allocates_nothing() -> None:
    assert all(parameter.is_meta for parameter in ModelBuilder(make).on_meta().parameters())


def test_activation_checkpointing_changes_no_number_and_no_name() -> None:
    plain, checkpointed = build(), build(activation_checkpointing="full")
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    loss, gradients = loss_and_gradients(plain)
    other_loss, other_gradients = loss_and_gradients(checkpointed)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


@pytest.mark.compile
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on CPU needs a C++ compiler")
def test_compile_changes_no_number_and_no_name() -> None:
    plain, compiled = build(), build(compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    loss, gradients = loss_and_gradients(plain)
    other_loss, other_gradients = loss_and_gradients(compiled)
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-6)
    for name in gradients:
        torch.testing.assert_close(gradients[name], other_gradients[name], rtol=1e-4, atol=1e-6)
