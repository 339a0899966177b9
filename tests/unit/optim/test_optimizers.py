"""Our optimisers, step by step, against the formula or torch's own; every choice trains."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scaledl.config.folders import CONF, options
from scaledl.models.gpt import GPT
from scaledl.models.mlp import MLP
from scaledl.optim.groups import parameter_groups
from scaledl.optim.lion import Lion
from scaledl.optim.muon import Muon, orthogonalize, orthogonalize_all
from scaledl.train import composed


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_lion_is_its_formula() -> None:
    parameter = nn.Parameter(drawn(3, 4))
    optimizer = Lion([parameter], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    w, m = parameter.detach().numpy().astype(float), np.zeros((3, 4))
    for step in range(5):
        parameter.grad = drawn(3, 4, seed=step + 1)
        g = parameter.grad.numpy().astype(float)
        optimizer.step()
        w = w - 0.01 * (np.sign(0.8 * m + 0.2 * g) + 0.1 * w)
        m = 0.95 * m + 0.05 * g
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_muon_of_matrices_is_torchs(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)  # in which torch's computes
    ours, theirs = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape))
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    muon = Muon([{"params": [ours], "hidden": True}], **settings)
    reference = torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        ours.grad = drawn(*shape, seed=step + 1)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_matrices_of_one_shape_are_computed_together_and_kernels_as_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaledl.optim.muon._AT_ONCE", 40)  # two of 16 elements
    stacks = []
    monkeypatch.setattr("scaledl.optim.muon.orthogonalize", lambda x: stacks.append(x.shape) or orthogonalize(x))
    wholes = [drawn(*shape, seed=i) for i, shape in enumerate([(4, 4), (3, 2, 3, 3), (4, 4), (4, 4)])]
    found = orthogonalize_all(wholes)
    assert stacks == [(2, 4, 4), (1, 4, 4), (1, 3, 18)]
    for whole, direction in zip(wholes, found, strict=True):
        torch.testing.assert_close(direction.flatten(1), orthogonalize(whole.flatten(1)[None])[0])
        assert direction.shape == whole.shape


def test_a_stack_too_large_for_one_time_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaledl.optim.muon._AT_ONCE", 40)  # three of 12 elements
    counts = []
    monkeypatch.setattr("scaledl.optim.muon.orthogonalize", lambda x: counts.append(len(x)) or orthogonalize(x))
    wholes = [drawn(4, 3, 4, seed=0), drawn(3, 4, 3, seed=1).mT]
    found = orthogonalize_all(wholes, stacked=True)
    assert counts == [3, 3, 1]
    for whole, direction in zip(wholes, found, strict=True):
        torch.testing.assert_close(direction, orthogonalize(whole))


def test_stacked_matrices_step_as_each_alone() -> None:
    class Experts(nn.Module):
        stacked = True

        def __init__(self) -> None:
            super().__init__()
            self.up, self.gain = nn.Parameter(drawn(3, 6, 4)), nn.Parameter(drawn(4))

    model, alone = Experts(), [nn.Parameter(matrix) for matrix in drawn(3, 6, 4)]
    muon, each = Muon(parameter_groups(model, by_use=True)), Muon([{"params": alone, "hidden": True}])
    model.up.grad = drawn(3, 6, 4, seed=1)
    for parameter, gradient in zip(alone, model.up.grad, strict=True):
        parameter.grad = gradient
    muon.step()
    each.step()
    torch.testing.assert_close(model.up.detach(), torch.stack([parameter.detach() for parameter in alone]))


def test_muon_of_the_rest_is_adamw() -> None:
    ours, theirs = nn.Parameter(drawn(5)), nn.Parameter(drawn(5))
    muon = Muon([ours], lr=1.0, adamw_lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)
    for step in range(5):
        ours.grad = drawn(5, seed=step + 1)
        theirs.grad = ours.grad.clone()
        muon.step()
        reference.step()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4)])
def test_an_orthogonalized_matrix_has_singular_values_near_one_and_the_same_directions(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape)
    found = orthogonalize(matrix[None])[0]
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    assert (found * (u @ vt)).sum() / found.norm() / (u @ vt).norm() > 0.95


def hidden_in(model: nn.Module) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p] for g in parameter_groups(model, by_use=True) if g.get("hidden") for p in g["params"]}


def test_hidden_matrices_are_neither_embeddings_nor_the_output() -> None:
    gpt = GPT(11, 8, dim=4, depth=1, num_heads=1, tie_embeddings=False)
    inside = {f"blocks.0.attention.{part}.weight" for part in ("q", "k", "v", "out")}
    assert hidden_in(gpt) == inside | {f"blocks.0.feedforward.{part}.weight" for part in ("up", "down")}
    assert hidden_in(MLP(4, [5, 6], 3)) == {"hidden.0.weight", "hidden.2.weight"}


@pytest.mark.parametrize("name", options("optimizer", [CONF]))
def test_every_choice_learns(name: str) -> None:
    from scaledl import build

    config = composed(["experiment=mlp/circles", f"optimizer={name}"], [CONF], [])
    model, x = MLP(2, [16], 1), drawn(64, 2)
    y = x.prod(1, keepdim=True)
    make = build.instantiate(config.optimizer)
    optimizer = make(parameter_groups(model, by_use=name == "muon"))

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    before = loss().item()
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * before


@pytest.mark.parametrize("make", [partial(Lion, lr=-1.0), partial(Lion, betas=(0.9, 1.0)), partial(Muon, momentum=1.0)])
def test_settings_that_cannot_be_are_refused(make: partial) -> None:
    with pytest.raises(ValueError, match=r"lr=|betas=|momentum="):
        make([nn.Parameter(drawn(2))])
