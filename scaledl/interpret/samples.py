"""Which samples of a run are explained, and the score of each."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scaledl.data.base import BatchDataset
from scaledl.data.tokenizer import Tokenizer
from scaledl.interpret.embedding import of_embeddings
from scaledl.interpret.subject import Subject, of_image, of_parts
from scaledl.tasks.base import Task

Kind = Literal["image", "table", "tokens"]
CONTEXT = 64  # tokens before the one that is explained, of a text that the data gives
SHOWN = 5  # likeliest tokens


@dataclass(frozen=True)
class Sample:
    """One row of the page.

    Attributes:
        inputs: (1, ...), what the model reads.
        names: of the columns, or the texts of the tokens; none for an image.
        words: what is predicted, and what is true.
        next_token: whether that is the token after a text.
    """

    kind: Kind
    inputs: Tensor
    subject: Subject
    names: list[str]
    words: str
    next_token: bool = False


def spread(dataset: BatchDataset, count: int) -> np.ndarray:
    """Numbers of `count` samples: in turns the first of each class, among 32 times as many at equal distances."""
    pool = np.linspace(0, len(dataset) - 1, min(len(dataset), 32 * count)).astype(int)
    y = dataset.__getitems__(pool)["y"].numpy()
    turn = [np.count_nonzero(y[:place] == label) for place, label in enumerate(y)]
    return pool[np.lexsort((y, turn))[:count]]


def of_classifier(task: Task, x: Tensor, y: int, class_names: list[str], names: list[str]) -> Sample:
    """A sample x (1, ...) of class y, whose score is the logit of the class that the model takes it for.

    Args:
        names: of the columns, or the texts of the tokens.
    """
    kind: Kind = "image" if x.ndim == 4 else "table"
    values, baseline, read = x, torch.zeros_like(x), task.model
    if not x.is_floating_point():
        kind, (values, baseline, read) = "tokens", of_embeddings(task.model, x)
    elif not (x.ndim == 2 or (x.ndim == 4 and x.shape[1] in (1, 3))):
        raise ValueError(
            f"a sample of this run has the shape {tuple(x.shape[1:])}; scaledl explain shows images of 1 or 3 channels "
            "(C, H, W), rows of a table (F,) and texts (T,)"
        )
    with torch.no_grad():
        probabilities = task.model(x)[0].float().softmax(0)
    target = int(probabilities.argmax())
    words = f"{class_names[target]}, {probabilities[target]:.1%}"
    words += " (right)" if target == y else f" (wrong: {class_names[y]}, {probabilities[y]:.1%})"

    def score(z: Tensor) -> Tensor:
        return read(z).float()[:, target]

    subject = of_image(score, x) if kind == "image" else of_parts(score, values, baseline)
    return Sample(kind, x, subject, names, words)


def of_language_model(task: Task, input_ids: Tensor, tokenizer: Tokenizer, following: int | None) -> Sample:
    """A text input_ids (1, T), whose score is the logit of the token that the model takes for the likeliest next.

    Args:
        following: the token that does come next, where it is known.
    """
    embeddings, baseline, read = of_embeddings(task.model, input_ids)
    with torch.no_grad():
        probabilities = task.model(input_ids)[0, -1].float().softmax(0)
    likeliest = probabilities.topk(min(SHOWN, len(probabilities)))
    target = int(likeliest.indices[0])
    found = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    words = "next: " + ", ".join(f"{piece_of(tokenizer, token)} {p:.1%}" for token, p in found)
    if following is not None:
        words += f" (the text goes on with {piece_of(tokenizer, following)}, {probabilities[following]:.1%})"
    names = pieces(tokenizer, input_ids[0].tolist())
    subject = of_parts(lambda z: read(z).float()[:, -1, target], embeddings, baseline)
    return Sample("tokens", input_ids, subject, names, words, next_token=True)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """What each token adds to the text: what stands between words belongs to the later one."""
    texts = [tokenizer.decode(ids[:end]) for end in range(len(ids) + 1)]
    return [
        now.removeprefix(before) if now.startswith(before) else tokenizer.decode([token])  # half a character before
        for before, now, token in zip(texts, texts[1:], ids, strict=False)
    ]


def piece_of(tokenizer: Tokenizer, token: int) -> str:
    return "“" + tokenizer.decode([token]).replace("\n", "⏎") + "”"


def names_of_classes(data: Any, count: int) -> list[str]:
    found = getattr(data, "class_names", None) or getattr(data, "classes", None)
    return [str(name) for name in found or range(count)]


def names_of_columns(data: Any, count: int) -> list[str]:
    return getattr(data, "feature_names", None) or [f"x{number}" for number in range(1, count + 1)]
