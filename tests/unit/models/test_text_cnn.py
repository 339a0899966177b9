from functools import partial

import torch
from torch import Tensor

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.text_cnn import TextCNN

SMALL = {"vocab_size": 20, "out_dim": 3, "dim": 8, "kernel_sizes": [2, 3], "channels": 5}


def make(**changes: object) -> TextCNN:
    return ModelBuilder(partial(TextCNN, **{**SMALL, **changes}), seed=0)().eval()


def texts() -> Tensor:
    return torch.tensor([[4, 2, 2, 9, 11], [7, 0, 0, 0, 0], [3, 19, 4, 0, 0]])


def test_features_are_the_best_answers_of_the_kernels() -> None:
    """By hand: every window that begins at a word, filled up with zeros behind."""
    model = make()
    for row, found in zip(texts(), model.forward_features(texts()), strict=True):
        words = row[row != 0]
        embedded = torch.cat([model.embedding.weight[words], torch.zeros(2, 8)])
        expected = []
        for convolution, size in zip(model.convolutions, (2, 3), strict=True):
            windows = torch.stack([embedded[i : i + size].T for i in range(len(words))])  # (n, dim, size)
            answers = torch.einsum("nds,cds->nc", windows, convolution.weight) + convolution.bias
            expected.append(answers.amax(0).relu())
        torch.testing.assert_close(found, torch.cat(expected))
    assert model.num_features == 10


def test_padding_makes_no_difference_and_short_texts_fit() -> None:
    model = make()
    longer = torch.cat([texts(), torch.zeros(3, 6, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(longer), model(texts()))
    torch.testing.assert_close(model(texts()[1:2, :1]), model(texts())[1:2])
    assert model(torch.zeros(1, 1, dtype=torch.int64)).isfinite().all()


def test_number_of_parameters() -> None:
    model = ModelBuilder(partial(TextCNN, 1000, 2, dim=128, kernel_sizes=[3, 4, 5], channels=100)).on_meta()
    assert sum(p.numel() for p in model.parameters()) == 1000 * 128 + (3 + 4 + 5) * 128 * 100 + 300 + 300 * 2 + 2


def test_a_gradient_for_every_parameter_but_none_for_padding() -> None:
    model = make()
    model(texts()).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
    assert not model.embedding.weight[0].any()
    assert not model.embedding.weight.grad[0].any()


def test_state_dict_round_trip_and_bf16() -> None:
    model, other = make(), make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(texts()), model(texts()), atol=0, rtol=0)
    torch.testing.assert_close(other.bfloat16()(texts()).float(), model(texts()), atol=0.1, rtol=0.05)
