"""One process; tests/distributed/test_sync_batch_norm.py has several."""

import pytest
import torch
from torch import nn

from scaledl.layers.sync_batch_norm import BatchNorm, SyncBatchNorm, _Normalize


@pytest.mark.parametrize("kind", [BatchNorm, SyncBatchNorm])
@pytest.mark.parametrize(("shape", "theirs"), [((6, 3), nn.BatchNorm1d), ((6, 3, 4, 5), nn.BatchNorm2d)])
def test_alone_it_is_torchs(kind: type[nn.Module], shape: tuple[int, ...], theirs: type[nn.Module]) -> None:
    ours, reference = kind(3, 1e-3), theirs(3, 1e-3)
    for norm in (ours, reference):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, 0.5)
    for _ in range(3):
        x = torch.randn(shape) * 2 + 1
        torch.testing.assert_close(ours(x), reference(x))
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.running_var, reference.running_var)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


@pytest.mark.parametrize("kind", [BatchNorm, SyncBatchNorm])
@pytest.mark.parametrize("training", [True, False])
def test_gains_may_have_another_dtype_than_running_statistics(kind: type[nn.Module], training: bool) -> None:
    """As under FSDP with bf16-mixed, which torch's own refuses."""
    norm = kind(3).train(training)
    norm.weight.data, norm.bias.data = norm.weight.data.bfloat16(), norm.bias.data.bfloat16()
    x = torch.randn(8, 3, 4, 4).bfloat16().requires_grad_()
    y = norm(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == norm.weight.grad.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32


def test_the_gradient_of_the_synced_path_is_that_of_its_formula(process_group: None) -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    y, mean, var, count = _Normalize.apply(x, 1e-5)
    torch.testing.assert_close(y, nn.functional.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0))
    assert count.tolist() == [16] * 3
    assert torch.autograd.gradcheck(lambda x: _Normalize.apply(x, 1e-5)[0], x)


def test_a_large_mean_costs_no_digits(process_group: None) -> None:
    x = torch.randn(64, 2) + 1e4
    y = _Normalize.apply(x, 0.0)[0]
    expected = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    torch.testing.assert_close(y.double(), expected, atol=5e-3, rtol=0)
