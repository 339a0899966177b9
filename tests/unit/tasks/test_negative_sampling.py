from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.word2vec import Word2Vec
from scaledl.tasks.word2vec import NegativeSampling

COUNTS = np.array([0, 0, 80, 15, 4, 1])


def make(counts: np.ndarray = COUNTS, dim: int = 4, **settings: object) -> NegativeSampling:
    task = NegativeSampling(ModelBuilder(partial(Word2Vec, len(counts), dim)), torch.optim.AdamW, **settings)
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(word_counts=counts))
    task.setup("fit")
    task._trainer = None
    task.configure_model()
    return task


def noise(samples: int) -> Noise:
    return Noise(0, torch.arange(samples))


def test_loss_is_that_of_the_paper() -> None:
    task = make(num_negatives=3)
    nn.init.normal_(task.model.context_embedding.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(task.model.embedding.weight, generator=torch.Generator().manual_seed(2))
    x, context = torch.tensor([2, 3, 5, 4]), torch.tensor([3, 2, 4, 5])
    task.noise = noise(4)
    negatives = task.negatives(torch.device("cpu"))
    assert (negatives == context[:, None]).any(), "no random word is the neighbour: the test would not see it"
    v, u = task.model.embedding.weight.double(), task.model.context_embedding.weight.double()
    expected = 0.0
    for i in range(4):
        expected -= (v[x[i]] @ u[context[i]]).sigmoid().log()
        for k in negatives[i]:
            if k != context[i]:
                expected -= (-v[x[i]] @ u[k]).sigmoid().log()
    loss = task.objective({"x": x, "context": context})["loss"]
    assert loss.item() == pytest.approx(expected.item() / 4, rel=1e-5)
    assert task.weight({"x": x, "context": context}) == 4


def test_a_fresh_model_has_the_loss_of_guessing() -> None:
    task = make(np.array([0, 0, *[5] * 200]), num_negatives=5)
    task.noise = noise(3)
    batch = {"x": torch.tensor([2, 3, 4]), "context": torch.tensor([5, 6, 7])}
    assert not (task.negatives(torch.device("cpu")) == batch["context"][:, None]).any()
    assert task.objective(batch)["loss"].item() == pytest.approx(6 * np.log(2), rel=1e-5)


def test_random_words_come_by_their_counts_to_the_power() -> None:
    task = make(num_negatives=50)
    task.noise = noise(4000)
    negatives = task.negatives(torch.device("cpu"))
    assert negatives.shape == (4000, 50)
    shares = torch.bincount(negatives.flatten(), minlength=6) / negatives.numel()
    expected = COUNTS**0.75 / (COUNTS**0.75).sum()
    np.testing.assert_allclose(shares, expected, atol=0.005)
    assert not shares[:2].any()


def test_random_words_belong_to_the_sample_not_to_the_batch() -> None:
    task = make()
    task.noise = noise(8)
    whole = task.negatives(torch.device("cpu"))
    task.noise = Noise(0, torch.arange(4, 8))
    assert torch.equal(task.negatives(torch.device("cpu")), whole[4:])


def test_analogies_are_solved_by_angles_without_the_words_of_the_question() -> None:
    counts = np.array([0, 0, 1, 1, 1, 1, 1, 0])
    task = make(counts, dim=3)
    man, woman, king, queen, other, gone = 2, 3, 4, 5, 6, 7
    vectors = torch.zeros(8, 3)
    vectors[man], vectors[woman] = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    vectors[king], vectors[queen] = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, 2.0])
    vectors[other] = torch.tensor([0.0, 3.0, 1.0])
    vectors[gone] = vectors[queen]  # no word of the training text
    vectors[:2] = vectors[queen]  # padding and the unknown word
    with torch.no_grad():
        task.model.embedding.weight.copy_(vectors)
    questions = torch.tensor([[man, woman, king, queen], [man, woman, king, other], [woman, man, queen, king]])
    assert task.solved(questions).tolist() == [True, False, True]
    assert task.objective({"analogy": questions}) == {"analogies": pytest.approx(2 / 3)}


def test_it_overfits_pairs() -> None:
    task = make(np.array([0, 0, *[1] * 8]), dim=16)
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.05)
    batch = {"x": torch.arange(2, 10), "context": torch.arange(2, 10).roll(1)}
    losses = []
    for step in range(200):
        task.noise = Noise(0, torch.arange(8) + 8 * step)
        loss = task.objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.5
    assert np.mean(losses[-10:]) < 0.02


def test_no_random_words_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task.num_negatives=0: vectors need at least 1 word"):
        NegativeSampling(ModelBuilder(nn.Identity), torch.optim.AdamW, num_negatives=0)
