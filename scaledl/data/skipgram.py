"""Words and their neighbours, for word vectors; and questions that such vectors should answer."""

import os
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scaledl.data.base import BatchDataset, Data
from scaledl.data.corpus import Corpus, PythonTexts, find_corpus
from scaledl.data.pretokenize import prepare_tokens
from scaledl.data.shards import Tokens, read_manifest
from scaledl.data.text_classification import docstrings
from scaledl.data.tokenizer import FILE, WordTokenizer, load_tokenizer

# Women and men in eight roles; the words behind them belong to the role, whoever has it.
ROLES = {
    ("king", "queen"): "throne crown palace kingdom",
    ("prince", "princess"): "castle carriage inheritance ball",
    ("actor", "actress"): "stage film script theatre",
    ("waiter", "waitress"): "menu tray restaurant table",
    ("father", "mother"): "child house dinner garden",
    ("uncle", "aunt"): "holiday gift visit cousin",
    ("monk", "nun"): "prayer abbey candle silence",
    ("wizard", "witch"): "spell potion broom cauldron",
}
MEN_AND_WOMEN = {
    "he": ("he", "she"),
    "his": ("his", "her"),
    "man": ("man", "woman"),
    "sir": ("sir", "madam"),
    "mr": ("mr", "mrs"),
}
TEMPLATES = (
    "the {role} left and {he} took {his} {thing}",
    "{he} is the {role} who thinks of {his} {thing}",
    "this {man} was once a {role} with a {thing}",
    "good evening {sir} said a guest to the {role} at the {thing}",
    "{mr} brown is a {role} and likes the {thing}",
    "where is the {thing} of the {role} asked the {man}",
    "a {role} without a {thing} is not {his} own {man}",
)
NUM_SENTENCES = 20_000


class Sentences(Corpus):
    """Sentences on men and women in eight roles, drawn once for all from a few templates."""

    name = "templated sentences"

    def fingerprint(self) -> Any:
        return {"roles": list(ROLES.items()), "words": MEN_AND_WOMEN, "templates": TEMPLATES, "count": NUM_SENTENCES}

    def read(self, part: Any) -> Iterator[tuple[bool, str]]:
        draws = np.random.RandomState(0).randint(1 << 30, size=(NUM_SENTENCES, 4))  # numpy keeps this stream for ever
        roles = [(pair, things.split()) for pair, things in ROLES.items()]
        for role, gender, template, thing in draws.tolist():
            pair, things = roles[role % len(roles)]
            words = {name: both[gender % 2] for name, both in MEN_AND_WOMEN.items()}
            words |= {"role": pair[gender % 2], "thing": things[thing % len(things)]}
            yield True, TEMPLATES[template % len(TEMPLATES)].format(**words)


class Documentation(Corpus):
    """The running Python's language reference, and docstrings of its library."""

    def __init__(self) -> None:
        self.name = f"documentation and docstrings of Python {sys.version.split()[0]}"

    def fingerprint(self) -> Any:
        return {"documentation": sys.version}

    def read(self, part: Any) -> Iterator[tuple[bool, str]]:
        for topics in (docs := PythonTexts("docs")).parts():
            yield from docs.read(topics)
        yield from ((True, text) for text in docstrings()[0])


class Pairs:
    """Each word of a text with each word of its window: `x` (B,) and `context` (B,), int64.

    As in word2vec.c, rare words come closer together, because occurrences of frequent ones are left out beforehand,
    and windows reach 1 to `window` words, drawn for each place. Pair p is found from p alone.

    Args:
        ids: of the text; 0 stands between documents, over which no window reaches.
        keep: (V,), the probability that an occurrence of a word stays.
    """

    def __init__(self, ids: np.ndarray, keep: np.ndarray, window: int, seed: int):
        rng = np.random.default_rng(seed)
        self.ids = ids[(rng.random(len(ids)) < keep[ids]) | (ids == 0)]
        place = np.arange(len(self.ids))
        ends_document = self.ids == 0
        begin = np.maximum.accumulate(np.where(ends_document, place + 1, 0))  # of the document of each place
        end = np.minimum.accumulate(np.where(ends_document, place, len(place))[::-1])[::-1]
        reach = rng.integers(1, window + 1, len(place))
        self.before = np.where(ends_document, 0, np.minimum(reach, place - begin))
        self.count = np.where(ends_document, 0, self.before + np.minimum(reach, end - 1 - place))
        self.past = np.cumsum(self.count)  # pairs up to and with those of a place

    def __len__(self) -> int:
        return int(self.past[-1]) if len(self.past) else 0

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        indices = np.asarray(indices)
        place = np.searchsorted(self.past, indices, side="right")
        offset = indices - (self.past[place] - self.count[place]) - self.before[place]
        neighbour = place + offset + (offset >= 0)  # past the word itself
        found = {"x": self.ids[place], "context": self.ids[neighbour]}
        return {name: torch.from_numpy(each.astype(np.int64)) for name, each in found.items()}


class Questions:
    """Analogies a : b = c : d, as `analogy` (B, 4) int64."""

    def __init__(self, questions: np.ndarray):
        self.questions = torch.from_numpy(questions)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"analogy": self.questions[indices]}


class SkipGram(Data):
    """Pairs of words that stand near each other (skip-gram, Mikolov et al. 2013a); analogies are the test split.

    Args:
        tokenizer: its words are those that get vectors; other words are left out of the text.
        path: a file, a folder or a glob of text, .jsonl or .parquet; with `dataset` null too, the embedded text.
        dataset: a name on the Hugging Face Hub, with `dataset_config` and `dataset_split`.
        embedded: `sentences` on men and women in eight roles, from templates, with 112 analogies, or `docs`, the
            documentation and docstrings of the running Python.
        analogies: a file of questions, four words a line, in the format of Google's questions-words.txt; null = those
            of the embedded sentences. Questions with a word that has no vector are left out.
        text_column: of jsonl, parquet and Hub rows.
        encoding: of text files.
        window: words on each side, at most.
        subsample: a word that makes up more than this share of the text loses occurrences, so that sqrt(subsample /
            share) of them stay (Mikolov et al. 2013b, eq. 5); 0 keeps all.
        val_fraction: of the characters.
        vocab_size: null = the tokenizer's; a larger one is kept.
        cache_dir: of the tokens.
        num_proc: processes that tokenise; null = one a core.
        seed: also of the subsampling and the windows.
    """

    def __init__(
        self,
        tokenizer: WordTokenizer,
        global_batch_size: int,
        micro_batch_size: int,
        path: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_split: str = "train",
        embedded: Literal["sentences", "docs"] = "sentences",
        analogies: str | None = None,
        text_column: str = "text",
        encoding: str = "utf-8",
        window: int = 5,
        subsample: float = 1e-3,
        val_fraction: float = 0.05,
        vocab_size: int | None = None,
        cache_dir: str = "~/.cache/scaledl",
        num_proc: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        if window < 1 or subsample < 0 or not 0 <= val_fraction < 1:
            raise ValueError(
                f"data.window={window} must be at least 1, data.subsample={subsample} at least 0, and "
                f"data.val_fraction={val_fraction} in [0, 1)"
            )
        self.tokenizer, self.window, self.subsample, self.val_fraction = tokenizer, window, subsample, val_fraction
        self.path, self.analogies = _absolute(path), _absolute(analogies)
        self.corpus: Corpus
        if path or dataset:
            self.corpus = find_corpus(path, dataset, dataset_config, dataset_split, "docs", text_column, encoding)
        else:
            self.corpus = Sentences() if embedded == "sentences" else Documentation()
        self.vocab_size, self.num_proc = vocab_size, num_proc
        self.cache_dir = Path(cache_dir).expanduser() / "text"
        self.folder: Path | None = None

    def prepare(self) -> None:
        if self.folder is not None:
            return
        folder = prepare_tokens(self.cache_dir, self.corpus, self.tokenizer, self.val_fraction, self.num_proc)
        self.tokenizer = load_tokenizer(folder)  # type: ignore[assignment]
        if self.vocab_size is not None and self.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} is smaller than the {self.tokenizer.vocab_size} of the tokenizer; "
                "set it to null"
            )
        self.folder, self.vocab_size = folder, self.vocab_size or self.tokenizer.vocab_size

    def facts(self) -> dict[str, Any]:
        where = {"path": self.path, "analogies": self.analogies}
        return {"vocab_size": self.vocab_size} | {name: value for name, value in where.items() if value}

    def describe(self) -> str:
        return f"{self.corpus.name}, {int(self.word_counts.sum()):,} words, {self.tokenizer.vocab_size - 2:,} different"

    @property
    def word_counts(self) -> np.ndarray:
        """(vocab_size,): how often each word stands in the training text; 0 of what is no word."""
        counts = np.bincount(self._ids("train"), minlength=self.vocab_size)
        counts[:2] = 0
        return counts

    def datasets(self) -> dict[str, BatchDataset]:
        counts = self.word_counts
        often = np.sqrt(self.subsample * counts.sum() / np.maximum(counts, 1)) if self.subsample else 1.0
        keep = np.where(counts == 0, 0.0, often)
        found: dict[str, BatchDataset] = {}
        for split in ("train", "val"):
            pairs = Pairs(self._ids(split), keep, self.window, self.seed)
            if len(pairs):
                found[split] = pairs
        if "train" not in found:
            raise ValueError(
                f"{self.corpus.name} has no two known words near each other: take more text, a larger data.subsample "
                "or a smaller data.tokenizer.min_count"
            )
        if len(questions := self._questions()):
            found["test"] = Questions(questions)
        return found

    def _ids(self, split: str) -> np.ndarray:
        assert self.folder is not None, "prepare comes first"
        if not read_manifest(self.folder)["splits"][split]["tokens"]:
            return np.zeros(0, np.int64)
        tokens = Tokens.open(self.folder, split)
        return tokens.take(np.arange(len(tokens)))

    def _questions(self) -> np.ndarray:
        """(Q, 4) ids."""
        if self.analogies is not None:
            lines = Path(self.analogies).read_text(encoding="utf-8").splitlines()
            questions = [line.split() for line in lines if line.strip() and not line.startswith(":")]
        elif isinstance(self.corpus, Sentences):
            questions = [
                [*(one if way > 0 else one[::-1]), *(two if way > 0 else two[::-1])]
                for one, two in permutations(ROLES, 2)
                for way in (1, -1)
            ]
        else:
            return np.zeros((0, 4), np.int64)
        wrong = next((line for line in questions if len(line) != 4), None)
        if wrong is not None:
            raise ValueError(f"{self.analogies}: {' '.join(wrong)!r} is not four words, a b c d for a : b = c : d")
        ids = [self.tokenizer.encode(" ".join(question)) for question in questions]
        return np.array([each for each in ids if len(each) == 4 and each.min() > 1], np.int64).reshape(-1, 4)

    def save_to(self, folder: Path) -> None:
        if (Path(folder) / FILE).is_file() and load_tokenizer(folder).state() != self.tokenizer.state():
            raise ValueError(f"{folder} holds a run on another text: its tokenizer differs; choose another run_id")
        self.tokenizer.save(folder)


def _absolute(path: str | None) -> str | None:
    """A run is resumed from anywhere."""
    return os.path.abspath(os.path.expanduser(os.path.expandvars(path))) if path else None
