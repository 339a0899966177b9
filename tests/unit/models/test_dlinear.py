from functools import partial

import numpy as np
import pytest
import torch

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.dlinear import DLinear


def make() -> DLinear:
    return ModelBuilder(partial(DLinear, seq_len=10, horizon=4, kernel_size=5), seed=0)()


def test_it_is_two_linear_maps_of_the_moving_average_and_the_rest() -> None:
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(3, 10, 2)
    found = model(x)
    assert found.shape == (3, 4, 2)
    for sample in range(3):
        for column in range(2):
            past = x[sample, :, column].double().numpy()
            padded = np.concatenate([past[:1], past[:1], past, past[-1:], past[-1:]])
            trend = np.convolve(padded, np.ones(5) / 5, "valid")
            weights = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
            expected = weights["trend.weight"] @ trend + weights["remainder.weight"] @ (past - trend)
            expected += weights["trend.bias"] + weights["remainder.bias"]
            np.testing.assert_allclose(found[sample, :, column].detach().numpy(), expected, atol=1e-5)


def test_the_decomposition_is_autoformers() -> None:
    transformers = pytest.importorskip("transformers.models.autoformer.modeling_autoformer", reason="the reference")
    config = pytest.importorskip("transformers").AutoformerConfig(moving_average=5)
    layer = transformers.AutoformerSeriesDecompositionLayer(config)
    model, x = make(), torch.randn(3, 10, 2)
    seasonal, trend = layer(x)
    expected = model.trend(trend.mT) + model.remainder(seasonal.mT)
    torch.testing.assert_close(model(x), expected.mT)


def test_it_begins_as_the_mean_of_the_past_and_every_parameter_has_a_gradient() -> None:
    model, x = make(), torch.randn(3, 10, 2)
    with torch.no_grad():
        for linear in (model.trend, model.remainder):
            linear.bias.zero_()
    torch.testing.assert_close(model(x), x.mean(1, keepdim=True).expand(-1, 4, -1))
    model(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        DLinear(10, 4, kernel_size=4)
    with pytest.raises(ValueError, match="x has 9 points, but the model was built with seq_len=10"):
        make()(torch.zeros(2, 9, 1))
