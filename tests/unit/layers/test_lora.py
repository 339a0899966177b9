"""Adapters begin as nothing, learn alone, and can be merged."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.lora import LoRA, LoRALinear, is_adapted, merged, without_adapters
from scaledl.models.gpt import GPT

IDS = torch.arange(8).reshape(2, 4)


def make(**changes) -> nn.Module:
    return GPT(vocab_size=11, max_seq_len=8, dim=16, depth=2, num_heads=2, activation="swiglu", dropout=0.0, **changes)


def adapted(**settings) -> nn.Module:
    return ModelBuilder(make, seed=3, adapt=LoRA(**{"rank": 2, "alpha": 6.0, **settings}))()


def perturbed(model: nn.Module) -> nn.Module:
    """With adapters that have learnt something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b)
    return model


def test_the_layer_is_its_formula() -> None:
    layer = perturbed(LoRALinear(3, 5, True, rank=2, alpha=6.0, dropout=0.0))
    x = torch.randn(7, 3)
    expected = x @ layer.weight.T + layer.bias + 3.0 * (x @ layer.lora_a.T @ layer.lora_b.T)
    torch.testing.assert_close(layer(x), expected)


def test_an_adapted_model_begins_with_the_weights_and_the_output_of_the_plain_one() -> None:
    plain, model = ModelBuilder(make, seed=3)(), adapted()
    assert not is_adapted(plain)
    assert is_adapted(model)
    held = model.state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in plain.state_dict().items())
    assert {name.rpartition(".")[2] for name in held.keys() - plain.state_dict().keys()} == {"lora_a", "lora_b"}
    assert torch.equal(model(IDS), plain(IDS))


def test_only_adapters_learn() -> None:
    model = perturbed(adapted())
    model(IDS).square().mean().backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learns == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(learns) == 2 * 2 * 7
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in learns)


def test_merged_weights_compute_the_same_without_adapters() -> None:
    model, plain = perturbed(adapted()), make()
    plain.load_state_dict(merged(model.state_dict(), 3.0))
    torch.testing.assert_close(plain(IDS), model(IDS))
    assert not torch.allclose(plain(IDS), ModelBuilder(make, seed=3)()(IDS), atol=1e-3)


@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_the_loss_in_chunks_is_that_of_an_adapted_head(chunk_tokens: int | None) -> None:
    adapt = LoRA(rank=2, alpha=6.0, targets=["q", "head"])
    model = perturbed(ModelBuilder(lambda: make(tie_embeddings=False), seed=3, adapt=adapt)())
    labels = IDS.roll(-1, 1)

    def chunked() -> Tensor:
        return model.loss(IDS, labels, chunk_tokens=chunk_tokens)

    def whole() -> Tensor:
        return F.cross_entropy(model(IDS).flatten(0, 1), labels.flatten())

    found, expected = (
        (loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
        for loss in (chunked(), whole())
    )
    torch.testing.assert_close(found, expected)
    with without_adapters(model):
        torch.testing.assert_close(chunked(), whole())
        assert chunked() != found[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(chunked(), found[0], rtol=0.01, atol=0.01)


def test_adapters_are_switched_off_for_a_while() -> None:
    model, plain = perturbed(adapted()), ModelBuilder(make, seed=3)()
    with without_adapters(model):
        assert torch.equal(model(IDS), plain(IDS))
    assert not torch.allclose(model(IDS), plain(IDS), atol=1e-3)


def test_dropout_is_that_of_the_adapter_alone() -> None:
    layer = perturbed(LoRALinear(3, 5, False, rank=2, alpha=2.0, dropout=0.9))
    x, off = torch.randn(100, 3), layer.weight
    torch.manual_seed(0)
    is_dropped = ((layer(x) - x @ off.T).abs() < 1e-6).all(1)
    assert 0.5 < is_dropped.float().mean() < 0.95
    assert not ((layer.eval()(x) - x @ off.T).abs() < 1e-6).all(1).any()


def test_targets_are_last_names_or_patterns() -> None:
    names = [
        name for name, module in adapted(targets=["q|v", "do.*"]).named_modules() if isinstance(module, LoRALinear)
    ]
    assert [name.rpartition(".")[2] for name in names] == ["q", "v", "down"] * 2


def test_experts_are_frozen_and_get_none() -> None:
    def mixture() -> nn.Module:
        return GPT(11, 8, dim=16, depth=1, num_heads=2, activation="swiglu", num_experts=4, num_shared_experts=1)

    model = ModelBuilder(mixture, adapt=LoRA(rank=2))()
    learns = {name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    layers = [f"attention.{name}" for name in ("q", "k", "v", "out")]
    layers += [f"feedforward.shared.{name}" for name in ("gate", "up", "down")]
    assert learns == {f"blocks.0.{name}" for name in layers}


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"names no linear layer of GPT; it has down, gate, k, out, q, up, v"):
        adapted(targets=["query"])
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoRA(**wrong)
