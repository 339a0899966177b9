from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure

from scaledl.callbacks import embedding_map
from scaledl.callbacks.embedding_map import EmbeddingMap, frequent, neighbours
from scaledl.data.points import Points
from scaledl.data.skipgram import SkipGram
from scaledl.data.text_classification import TextClassification
from scaledl.data.tokenizer import ByteTokenizer, WordTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.bag_of_words import BagOfWords
from scaledl.models.mlp import MLP
from scaledl.models.word2vec import Word2Vec
from scaledl.tasks.classification import Classification
from scaledl.tasks.word2vec import NegativeSampling

Fit = Callable[..., pl.Trainer]
TEXT = "the cat and the dog saw the bird; the bird saw neither cat nor dog, and the dog ran. " * 20


def pairs(tmp_path: Path) -> SkipGram:
    (tmp_path / "a.txt").write_text(TEXT)
    data = SkipGram(WordTokenizer(), 8, 8, path=str(tmp_path / "a.txt"), subsample=0, cache_dir=str(tmp_path))
    data.prepare()
    return data


def texts(tmp_path: Path, tokenizer=None) -> TextClassification:
    (tmp_path / "a.csv").write_text("text,label\n" + "a good one,1\na bad one,0\n" * 10)
    data = TextClassification(tokenizer or WordTokenizer(), 4, 4, path=str(tmp_path / "a.csv"))
    data.prepare()
    return data


def word_vectors(data: SkipGram) -> NegativeSampling:
    return NegativeSampling(ModelBuilder(partial(Word2Vec, data.vocab_size, 4)), partial(torch.optim.AdamW, lr=0.01))


def test_words_are_drawn_and_neighbours_printed(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    data = pairs(tmp_path)
    task = word_vectors(data)
    fit(EmbeddingMap(num_words=6, asked=["dog"], num_neighbours=2), max_steps=3, task=task, data=data)
    pixels = matplotlib.image.imread(tmp_path / "plots" / "embeddings.png")
    assert pixels[..., :3].std() > 0.02, "a blank picture"
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│ dog"))
    vectors = torch.nn.functional.normalize(task.model.embedding.weight.detach(), dim=1)
    for index, cosine in neighbours(vectors, data.tokenizer.ids["dog"], 2):
        assert f"{data.tokenizer.words[index]} {cosine:.2f}" in printed


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_chosen_words_stand_at_their_places(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    figures: dict[str, Figure] = {}
    monkeypatch.setattr(embedding_map, "save", lambda figure, run_dir, name: figures.update({name: figure}))
    data = pairs(tmp_path)
    chosen = ["cat", "dog", "bird", "saw"]
    fit(EmbeddingMap(words=chosen, method=method), max_steps=2, task=word_vectors(data), data=data)
    axes = figures["embeddings.png"].axes[0]
    places = axes.collections[0].get_offsets()
    assert [(text.get_text(), tuple(text.xy)) for text in axes.texts] == [
        (word, tuple(place)) for word, place in zip(chosen, places, strict=True)
    ]
    assert len({tuple(place) for place in places}) == 4


def test_vectors_of_a_classifier_are_drawn_too(fit: Fit, tmp_path: Path) -> None:
    data = texts(tmp_path)
    model = partial(BagOfWords, data.vocab_size, 2, dim=4)
    task = Classification(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01), 2)
    fit(EmbeddingMap(), max_steps=1, task=task, data=data)
    assert (tmp_path / "plots" / "embeddings.png").exists()


def test_neighbours_are_ordered_by_angle_and_leave_out_what_is_no_word() -> None:
    vectors = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 0.0]]), dim=1
    )
    found = neighbours(vectors, 2, 9)
    assert [index for index, _ in found] == [4, 3, 5]
    assert [value for _, value in found] == pytest.approx([2 / 5**0.5, 0.0, -1.0])


def test_frequent_words_are_no_signs(tmp_path: Path) -> None:
    tokenizer = pairs(tmp_path).tokenizer
    assert frequent(tokenizer, 3) == ["the", "dog", "and"]
    assert set(frequent(tokenizer, 99)) == {"the", "cat", "and", "dog", "saw", "bird", "neither", "nor", "ran"}


def test_what_has_no_word_vectors_is_refused_before_the_training(fit: Fit, tmp_path: Path) -> None:
    data = pairs(tmp_path)
    with pytest.raises(ValueError, match=r"callbacks.embedding_map: unicorn, the dog has no vector"):
        fit(EmbeddingMap(words=["cat", "unicorn", "the dog"]), max_steps=10**9, task=word_vectors(data), data=data)
    bytes_ = texts(tmp_path, ByteTokenizer())
    task = Classification(ModelBuilder(partial(BagOfWords, 258, 2)), torch.optim.AdamW, 2)
    with pytest.raises(ValueError, match="draws vectors of words, but there are none: remove it"):
        fit(EmbeddingMap(), max_steps=10**9, task=task, data=bytes_)
    task = Classification(ModelBuilder(partial(MLP, 2, [], 2)), torch.optim.AdamW, 2)
    with pytest.raises(ValueError, match="draws vectors of words, but there are none: remove it"):
        fit(EmbeddingMap(), max_steps=10**9, task=task, data=Points("moons", 8, 8, num_samples=40))
