"""Translations and alignments: what is measured, from which weights, and what is drawn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from scaledl.bleu import corpus_bleu
from scaledl.callbacks import alignment
from scaledl.callbacks.alignment import Alignment
from scaledl.callbacks.ema import EMA
from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.translations import Translations
from scaledl.data.pairs import BOS, EOS, Pairs
from scaledl.data.tokenizer import CharTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.bahdanau import Bahdanau
from scaledl.models.encoder_decoder import EncoderDecoder
from scaledl.tasks.seq2seq import Seq2Seq

Fit = Callable[..., pl.Trainer]


def dates() -> Pairs:
    data = Pairs(CharTokenizer(), 8, 8, num_samples=300, val_fraction=0.3, test_fraction=0.2, max_len=40)
    data.prepare()
    return data


class Copies(nn.Module):
    """Writes the source, in the order of the alphabet of ids; its one parameter is not used."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.unused = nn.Parameter(torch.zeros(1, 1))

    def make_cache(self, batch_size: int, max_len: int) -> SimpleNamespace:
        return SimpleNamespace(length=0, select=lambda rows: None)

    def forward(self, src_ids: Tensor, tgt_ids: Tensor, *, cache: SimpleNamespace | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        if cache is not None:
            cache.length += tgt_ids.shape[1]
        padded = nn.functional.pad(src_ids, (0, 99), value=EOS)[:, start : start + tgt_ids.shape[1]]
        return 9 * nn.functional.one_hot(padded, self.vocab_size).float() + 0 * self.unused


def copier(data: Pairs) -> Seq2Seq:
    model = partial(Copies, data.vocabularies[1].size)
    return Seq2Seq(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01))


def small(data: Pairs, model: type[nn.Module], **sizes: int) -> Seq2Seq:
    made = partial(model, data.vocabularies[0].size, data.vocabularies[1].size, **sizes)
    return Seq2Seq(ModelBuilder(made), partial(torch.optim.AdamW, lr=0.01))


def test_bleu_and_exact_matches_are_of_what_is_written(fit: Fit, tmp_path: Path) -> None:
    data, metrics = dates(), Metrics()
    fit(metrics, Translations(num_val_pairs=5, batch_size=3), max_steps=2, val_every=1, task=copier(data), data=data)
    val, test = data.split("val"), data.split("test")
    assert metrics.last["val/bleu"] == pytest.approx(corpus_bleu(val.sources[:5], val.references[:5]))
    assert metrics.last["test/bleu"] == pytest.approx(corpus_bleu(test.sources, test.references))
    assert metrics.last["val/exact_match"] == metrics.last["test/exact_match"] == 0
    lines = (tmp_path / "samples" / "step_00000002.txt").read_text().splitlines()
    assert lines[:3] == [
        f"source      {test.sources[0]}",
        f"reference   {test.references[0]}",
        f"hypothesis  {test.sources[0]}",
    ]
    assert sum(line.startswith("hypothesis") for line in lines) == 20


def test_the_same_text_is_an_exact_match_in_its_place(fit: Fit) -> None:
    data, metrics = dates(), Metrics()
    test = data.split("test")
    test.references = [s if i % 3 else "other" for i, s in enumerate(test.sources)]
    fit(metrics, Translations(num_val_pairs=0, num_shown=1), max_steps=1, task=copier(data), data=data)
    assert metrics.last["test/exact_match"] == pytest.approx(40 / 60)
    assert "val/bleu" not in metrics.last


def test_averaged_weights_write_where_an_average_is_kept(fit: Fit) -> None:
    data = dates()
    task = small(data, EncoderDecoder, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2)
    seen: list[Tensor] = []
    original = task.translate

    def spy(*arguments, **named):
        seen.append(task.model.embedding.weight.detach().clone())
        return original(*arguments, **named)

    task.translate = spy
    trainer = fit(EMA(0.9), Translations(num_val_pairs=8), max_steps=3, val_every=3, task=task, data=data)
    average = trainer.strategy.average[0]
    weights = task.model.embedding.weight
    assert average.shape == weights.shape
    assert len(seen) == 1 + 8  # 8 pairs of the validation and 60 of the test, in batches of 8
    for found in seen:
        torch.testing.assert_close(found, average)
    assert not torch.equal(weights, average)


def test_an_alignment_is_drawn_of_what_the_model_writes(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    data = dates()
    task = small(data, Bahdanau, dim=8, hidden_dim=8)
    original = alignment.save
    monkeypatch.setattr(alignment, "save", lambda figure, *where: (figures.append(figure), original(figure, *where)))
    fit(Alignment(num_pairs=3), max_steps=2, task=task, data=data)
    pixels = matplotlib.image.imread(tmp_path / "plots" / "alignment.png")
    assert pixels[..., :3].std() > 0.02
    assert [bool(axes.images) for axes in figures[0].axes] == [True, True, True, False]
    val, vocabulary = data.split("val"), data.vocabularies[1]
    task.eval()
    for index in range(3):
        axes = figures[0].axes[index]
        assert "".join(label.get_text() for label in axes.get_xticklabels()) == val.sources[index] + "<eos>"
        src_ids = val.src_ids[index][None]
        (target,), _ = task.translate(src_ids, data.max_len)
        assert [label.get_text() for label in axes.get_yticklabels()] == vocabulary.units([*target, EOS])
        weights = torch.as_tensor(axes.images[0].get_array())
        torch.testing.assert_close(weights.sum(1), torch.ones(len(target) + 1))
        first = alignment.alignment(task, src_ids, target)[0]  # the first row looks with the decoder's first state
        attention, (states, state) = (
            task.model.decoder.attention,
            task.model.encoder(src_ids, torch.tensor([src_ids.shape[1]])),
        )
        torch.testing.assert_close(first, attention(state, states, attention.key(states))[1][0].detach())
        torch.testing.assert_close(weights[0], first)
    assert not task.model.decoder.attention._forward_hooks
    assert BOS not in target


def test_a_model_without_additive_attention_has_no_alignment(fit: Fit) -> None:
    data = dates()
    task = small(data, EncoderDecoder, dim=16, encoder_depth=1, decoder_depth=1, num_heads=2)
    with pytest.raises(ValueError, match="draws additive attention, but EncoderDecoder has none"):
        fit(Alignment(), max_steps=1, task=task, data=data)
