"""Which words are near each other."""

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor, nn

from scaledl.callbacks.predictions import save
from scaledl.data.tokenizer import Tokenizer
from scaledl.tasks.base import Task


class EmbeddingMap(pl.Callback):
    """Draws `plots/embeddings.png`, words in the plane, and prints the nearest neighbours of some, when training ends.

    Vectors are the rows of the model's first embedding; near means a small angle.

    Args:
        words: that are drawn; null: the most frequent ones.
        num_words: how many of these.
        method: `pca`, the plane in which the vectors differ most, or `tsne`, which keeps neighbours together.
        asked: words whose neighbours are printed; null: the first ten of those that are drawn.
        num_neighbours: how many of each.

    Raises:
        ValueError: at the start of the training, if a word has no vector, or the model no embedding of words.
    """

    def __init__(
        self,
        words: list[str] | None = None,
        num_words: int = 150,
        method: Literal["pca", "tsne"] = "pca",
        asked: list[str] | None = None,
        num_neighbours: int = 5,
    ):
        self.words, self.num_words, self.method = words, num_words, method
        self.asked, self.num_neighbours = asked, num_neighbours
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        tokenizer = getattr(trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if _embedding(pl_module) is None or tokenizer is None or tokenizer.kind != "words":
            raise ValueError(
                "callbacks.embedding_map draws vectors of words, but there are none: remove it "
                "(~callbacks.embedding_map), or take a model with an embedding and data/tokenizer=words"
            )
        self._ids(tokenizer, [*(self.words or []), *(self.asked or [])])

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        embedding, tokenizer = _embedding(pl_module), trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        assert embedding is not None
        with trainer.strategy.averaged():  # type: ignore[attr-defined]
            vectors = trainer.strategy.whole(embedding.weight).float().cpu()  # type: ignore[attr-defined]  # (V, dim)
        if not trainer.is_global_zero:
            return
        vectors = F.normalize(vectors[: tokenizer.vocab_size], dim=1)
        words = self.words or frequent(tokenizer, self.num_words)
        save(self._figure(words, vectors[self._ids(tokenizer, words)]), self.run_dir, "embeddings.png")
        table = Table("word", "its nearest neighbours", title="cosine similarity", title_justify="left")
        for word in self.asked or words[:10]:
            found = neighbours(vectors, self._ids(tokenizer, [word])[0], self.num_neighbours)
            table.add_row(word, ", ".join(f"{tokenizer.decode([i])} {value:.2f}" for i, value in found))
        Console().print(table)

    def _ids(self, tokenizer: Tokenizer, words: list[str]) -> list[int]:
        ids = [tokenizer.encode(word).tolist() for word in words]
        unknown = [word for word, each in zip(words, ids, strict=True) if len(each) != 1 or each[0] < 2]
        if unknown:
            raise ValueError(
                f"callbacks.embedding_map: {', '.join(unknown)} has no vector; take words of the text that occur at "
                "least data.tokenizer.min_count times"
            )
        return [each[0] for each in ids]

    def _figure(self, words: list[str], vectors: Tensor) -> Figure:
        if self.method == "pca":
            places = PCA(2, random_state=0).fit_transform(vectors.numpy())
        else:
            perplexity = min(30.0, (len(words) - 1) / 3)
            places = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors.numpy())
        figure = Figure(figsize=(10, 8), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(*places.T, s=6, color="tab:blue")
        for word, place in zip(words, places, strict=True):
            axes.annotate(word, place, fontsize=8, xytext=(2, 2), textcoords="offset points")
        axes.set_axis_off()
        axes.set_title(f"{len(words)} words ({self.method})", fontsize=10)
        return figure


def frequent(tokenizer: Tokenizer, count: int) -> list[str]:
    """The most frequent words, signs left out: the tokenizer counts ids from them down."""
    words = (tokenizer.decode([i]) for i in range(2, tokenizer.vocab_size))
    return [word for word in words if word.isalpha()][:count]


def neighbours(vectors: Tensor, index: int, count: int) -> list[tuple[int, float]]:
    """(id, cosine) of the words nearest to one, of unit vectors (V, dim) whose first two are no words."""
    near = vectors @ vectors[index]
    near[[0, 1, index]] = -2.0
    found = near.topk(min(count, len(near) - 3))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _embedding(task: Task) -> nn.Embedding | nn.EmbeddingBag | None:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return next((module for module in task.model.modules() if isinstance(module, kinds)), None)
