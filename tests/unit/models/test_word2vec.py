from functools import partial

import torch

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.word2vec import Word2Vec


def make() -> Word2Vec:
    return ModelBuilder(partial(Word2Vec, 12, dim=6), seed=0)()


def test_scores_are_products_of_a_word_and_its_neighbours() -> None:
    model = make()
    torch.nn.init.normal_(model.context_embedding.weight, generator=torch.Generator().manual_seed(0))
    x, context = torch.tensor([3, 7]), torch.tensor([[1, 2, 3], [4, 5, 7]])
    scores = model(x, context)
    for i in range(2):
        expected = model.context_embedding.weight[context[i]] @ model.embedding.weight[x[i]]
        torch.testing.assert_close(scores[i], expected)
    assert torch.equal(model(x), model.embedding.weight[x])


def test_it_begins_as_word2vec_does() -> None:
    model = make()
    assert not model.context_embedding.weight.any()
    assert model.embedding.weight.abs().max() <= 0.5 / 6
    assert model.embedding.weight.std() > 0.2 / 6
    assert sum(p.numel() for p in model.parameters()) == 2 * 12 * 6


def test_a_gradient_for_both_and_bf16() -> None:
    model = make()
    torch.nn.init.normal_(model.context_embedding.weight)
    x, context = torch.arange(12), torch.arange(12)[:, None]
    model(x, context).sum().backward()
    assert all(parameter.grad.abs().amin() > 0 for parameter in model.parameters())
    expected = model(x, context)
    torch.testing.assert_close(make_like(model).bfloat16()(x, context).float(), expected, atol=0.02, rtol=0.05)


def make_like(model: Word2Vec) -> Word2Vec:
    other = make()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(torch.arange(3), torch.ones(3, 2).long()), model(torch.arange(3), torch.ones(3, 2).long()))
    return other
