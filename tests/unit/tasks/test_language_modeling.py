"""Next-token prediction against hand values, and writing against a loop that remembers nothing."""

import math
from functools import partial
from itertools import islice, pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from scaledl.data.base import BatchDataset, Data
from scaledl.data.text import windows_of_text
from scaledl.data.tokenizer import CharTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.gpt import GPT
from scaledl.tasks.language_modeling import LanguageModeling, sample_token

# A bigram model's probabilities of the next of three tokens, by the token before.
BIGRAMS = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]])


class Bigram(nn.Embedding):
    """Logits of the next token from the one before alone; it may also read a fourth, the padding."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight[:3] = BIGRAMS.log() + 7.0  # logits have no zero of their own
            self.weight[3] = 0.0


def task_of(model: Any, lr: float = 0.01) -> LanguageModeling:
    task = LanguageModeling(ModelBuilder(model), partial(torch.optim.AdamW, lr=lr))
    task.configure_model()
    return task


def gpt(**settings: Any) -> LanguageModeling:
    """Twenty times the usual initial weights, so that what it says depends on what it read."""
    sizes = {"dim": 16, "depth": 2, "num_heads": 2, "init_std": 0.4, "tie_embeddings": False}
    return task_of(partial(GPT, 11, 8, **{**sizes, **settings}))


def test_the_loss_is_nats_per_token() -> None:
    batch = {"input_ids": torch.tensor([[0, 1], [2, 2]]), "labels": torch.tensor([[0, 1], [0, 2]])}
    task = task_of(Bigram)
    expected = -(math.log(0.5) + math.log(0.75) + math.log(0.25) + math.log(0.5)) / 4
    assert task.objective(batch)["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert task.weight(batch).item() == 4


def test_a_label_of_minus_100_counts_nothing() -> None:
    batch = {"input_ids": torch.tensor([[0, 1, 1], [2, 2, 0]]), "labels": torch.tensor([[0, -100, 1], [-100] * 3])}
    task = task_of(Bigram)
    assert task.objective(batch)["loss"].item() == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, rel=1e-6)
    assert task.weight(batch).item() == 2


def test_the_models_own_loss_takes_chunks() -> None:
    task = gpt()
    batch = {"input_ids": torch.tensor([[0, 1, 2, 3]]), "labels": torch.tensor([[1, 2, 3, -100]])}
    logits = task.model(batch["input_ids"])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    for task.chunk_tokens in (None, 3):
        torch.testing.assert_close(task.objective(batch)["loss"], expected, atol=0, rtol=1e-6)
    task.chunk_tokens = 0
    with pytest.raises(ValueError, match="chunk_tokens=0"):
        task.objective(batch)


def test_the_loss_is_taken_in_fp32() -> None:
    task = gpt().bfloat16()
    batch = {"input_ids": torch.tensor([[0, 1]]), "labels": torch.tensor([[1, 2]])}
    assert task.objective(batch)["loss"].dtype == torch.float32


def test_documents_do_not_see_each_other_where_the_data_tells_them_apart() -> None:
    task = gpt()
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "labels": torch.tensor([[-100, -100, -100, 5]])}
    apart = batch | {"document_ids": torch.tensor([[0, 0, 1, 1]])}
    other_beginning = apart | {"input_ids": torch.tensor([[9, 8, 3, 4]])}
    assert torch.equal(task.objective(apart)["loss"], task.objective(other_beginning)["loss"])
    assert not torch.equal(task.objective(apart)["loss"], task.objective(batch)["loss"])


class Text(Data):
    """A text of three letters, ä among them, that two bytes stand for."""

    text = "abäbaäabba" * 3

    def datasets(self) -> dict[str, BatchDataset]:
        tokenizer = CharTokenizer()
        tokenizer.fit([self.text])
        windows = windows_of_text(self.text, tokenizer, 4)
        return {"train": windows, "val": windows}


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_an_evaluation_counts_every_token_once_and_adds_perplexity_and_bits_per_byte(micro_batch_size: int) -> None:
    """29 predicted tokens in 8 windows, the last of them padded."""
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    trainer.validate(task_of(Bigram), datamodule=Text(micro_batch_size, micro_batch_size), verbose=False)
    letters = ["abä".index(letter) for letter in Text.text]
    loss = -sum(math.log(BIGRAMS[a, b]) for a, b in pairwise(letters)) / 29
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == pytest.approx(
        {
            "val/loss": loss,
            "val/perplexity": math.exp(loss),
            "val/bpb": loss / math.log(2) * 30 / len(Text.text.encode()),
        },
        rel=1e-6,
    )


def test_perplexity_of_a_diverged_loss_is_a_number() -> None:
    task = task_of(Bigram)
    task.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    found = task.summarize({"loss": 1e6})
    assert math.isfinite(found["perplexity"])
    assert "bpb" not in found  # this data does not say what a token stands for


def test_it_overfits_one_batch() -> None:
    task = task_of(partial(GPT, 11, 8, dim=32, depth=2, num_heads=2))
    ids = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    optimizer = task.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(100):
        loss = task.objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(11), abs=0.2)
    assert losses[-1] < 0.15  # below it lies the uncertainty of a window's first tokens
    assert list(task.generate(ids[0, :4].tolist(), 5, temperature=0)) == ids[0, 4:].tolist()


@torch.no_grad()
def naive(task: LanguageModeling, prompt: list[int], count: int, **settings: Any) -> list[int]:
    """Reads all of its context again for every token; a full context of T tokens becomes its last T // 2."""
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    size = task.model.max_seq_len
    context, written = prompt, []
    if len(context) > size:
        context = context[-(size // 2 + 1) :]
    for _ in range(count):
        logits = task.model.eval()(torch.tensor([context]))[0, -1]
        written.append(
            sample_token(logits, settings["temperature"], settings.get("top_k"), settings.get("top_p", 1.0), generator)
        )
        context = [*context, written[-1]] if len(context) < size else [*context[size // 2 :], written[-1]]
    return written


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "seed": 3}])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize(
    ("prompt", "count"),
    [([3], 4), ([3, 1, 4], 5), ([3, 1, 4], 30), ([3, 1, 4, 1, 5, 9, 2, 6, 5], 12)],
    ids=["short", "fills the window", "slides", "prompt longer than the window"],
)
def test_writing_through_the_cache_is_writing_without_one(
    prompt: list[int], count: int, position: str, settings: dict[str, Any]
) -> None:
    task = gpt(position=position)
    written = list(task.generate(list(prompt), count, **settings))
    assert written == naive(task, list(prompt), count, **settings)
    assert len(written) == count
    assert count < 12 or len(set(written)) > 2, "a model that repeats itself proves little"


def test_writing_has_no_dropout_and_leaves_the_prompt_alone() -> None:
    prompt = [1, 2, 3]
    with_dropout, without = gpt(dropout=0.5), gpt(dropout=0.0)
    with_dropout.train()
    assert list(with_dropout.generate(prompt, 12, temperature=0)) == list(without.generate(prompt, 12, temperature=0))
    assert prompt == [1, 2, 3]


def test_a_seed_gives_its_own_text_every_time_and_token_by_token() -> None:
    task = gpt()
    first = list(task.generate([1], 20, seed=1))
    torch.manual_seed(99)
    assert list(task.generate([1], 20, seed=1)) == first
    assert list(task.generate([1], 20, seed=2)) != first
    assert list(islice(task.generate([1], 10**9, seed=1), 5)) == first[:5]


PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])


def draws(count: int = 4000, **settings: Any) -> Tensor:
    """How often each token of PROBABILITIES is drawn, as a share."""
    chosen = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | settings
    generator = torch.Generator().manual_seed(0)
    logits = PROBABILITIES.log() - 3.0
    tokens = [sample_token(logits, generator=generator, **chosen) for _ in range(count)]
    return torch.bincount(torch.tensor(tokens), minlength=5) / count


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 4}, [1, 2, 3, 4]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 50}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),  # the smallest set that reaches it
        ({"top_p": 0.64}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 4]),
        ({"top_p": 0.96}, [0, 1, 2, 3, 4]),
        ({"top_k": 2, "top_p": 0.5}, [1]),  # of the two that are left, 0.4 / 0.65 is enough
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
    ],
)
def test_exactly_the_right_tokens_are_kept_and_drawn_by_their_probability(settings: dict, kept: list[int]) -> None:
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    shares = draws(**settings)
    assert set(shares.nonzero().flatten().tolist()) == set(kept)
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)  # 4 standard deviations


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    expected = PROBABILITIES ** (1 / temperature)
    torch.testing.assert_close(draws(temperature=temperature), expected / expected.sum(), atol=0.03, rtol=0)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert draws(20, temperature=0)[1] == 1
