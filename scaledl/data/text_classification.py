"""Texts with a class each: the docstrings of the standard library by package, a file, or a Hugging Face dataset."""

import ast
import os
import sys
import sysconfig
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaledl.data import checks
from scaledl.data.base import BatchDataset, Data
from scaledl.data.corpus import PythonTexts
from scaledl.data.hub import OURS, load_splits
from scaledl.data.tokenizer import FILE, SavedTokenizer, Tokenizer, load_tokenizer

NUM_PACKAGES = 8
SHORTEST = 40  # characters; shorter docstrings ("Return the name.") say little of where they stand


class PaddedTexts:
    """Texts of many lengths: `x` (B, T) int64, padded behind with id 0 to the longest of the batch, and `y` (B,) int64.

    Args:
        ids: of each text, (length,), none of them empty.
        y: their classes (N,).
    """

    def __init__(self, ids: list[np.ndarray], y: np.ndarray):
        self.num_tokens = np.array([len(each) for each in ids], dtype=np.int64)
        self.starts = np.cumsum(self.num_tokens) - self.num_tokens
        self.ids, self.y = np.concatenate(ids), y

    def __len__(self) -> int:
        return len(self.y)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        return self.num_tokens[indices]

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        indices = np.asarray(indices)
        span = np.arange(self.num_tokens[indices].max())  # (T,)
        there = span < self.num_tokens[indices, None]  # (B, T)
        x = np.zeros(there.shape, np.int64)
        x[there] = self.ids[(self.starts[indices, None] + span)[there]]
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(self.y[indices])}


Labelled = tuple[list[str], list[str]]  # texts, and the name of the class of each


class TextClassification(Data):
    """Token ids x (B, T), padded behind with id 0, and the class y (B,) of each text.

    Where the source has no test or validation split of its own, they are parts of its training split, drawn class by
    class and always the same. Ids of a tokenizer that uses id 0 for a token are one higher here. A text without any
    token is the id 1.

    Args:
        tokenizer: fitted on the training split (data/tokenizer=words|char|byte|bpe|hf), or that of an earlier run, for
            a model that was trained with it (data/tokenizer=saved).
        seq_len: tokens of a text, at most; the rest of it is not read.
        path: a file of labelled texts: .csv, .tsv, .jsonl or .parquet; with `dataset` null too, the docstrings of the
            running Python's library, in its eight packages that have most.
        dataset: a name on the Hugging Face Hub, with `dataset_config`.
        text_column: of files and Hub rows.
        label_column: of files and Hub rows.
        val_fraction: of each class, at least one text.
        test_fraction: of each class, at least one text.
        class_names: null = found, in the order of their ids.
        num_classes: null = found.
        vocab_size: null = the tokenizer's; a larger one (a multiple of 64, say) is kept.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        global_batch_size: int,
        micro_batch_size: int,
        seq_len: int = 128,
        path: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        class_names: list[str] | None = None,
        num_classes: int | None = None,
        vocab_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        checks.one_source(path, dataset)
        if seq_len < 1:
            raise ValueError(f"data.seq_len={seq_len} must be at least 1")
        checks.held_out(val_fraction, test_fraction)
        self.tokenizer, self.seq_len = tokenizer, seq_len
        self.path = os.path.abspath(os.path.expanduser(os.path.expandvars(path))) if path else None
        self.dataset, self.dataset_config = dataset, dataset_config
        self.columns = (text_column, label_column)
        self.fractions = {"test": test_fraction, "val": val_fraction}
        self.class_names, self.num_classes, self.vocab_size = class_names, num_classes, vocab_size
        self.labelled: dict[str, Labelled] = {}

    def prepare(self) -> None:
        if self.labelled:
            return
        names: list[str] | None = None
        if self.path:
            found = {"train": read_labelled(Path(self.path), *self.columns)}
        elif self.dataset:
            found, names = read_hub(self.dataset, self.dataset_config, *self.columns)
        else:
            found = {"train": docstrings()}
        labels = {label for _, labels in found.values() for label in labels}
        self.class_names = self.class_names or names or in_order(labels)
        if self.num_classes not in (None, len(self.class_names)):
            raise ValueError(
                f"data.num_classes={self.num_classes}, but there are {len(self.class_names)} classes: "
                f"{', '.join(self.class_names[:10])}; set it to null"
            )
        self._check_labels(labels)
        wanted = {split: share for split, share in self.fractions.items() if split not in found and share}
        texts, classes = found.pop("train")
        for split, indices in stratified(classes, wanted).items():
            found[split] = [texts[i] for i in indices], [classes[i] for i in indices]
        self.tokenizer.fit(found["train"][0])
        if isinstance(self.tokenizer, SavedTokenizer) and self._shift(self.tokenizer):
            raise ValueError(
                f"the {self.tokenizer.kind} tokenizer of {self.tokenizer.path} has a token with id 0, which is padding "
                "here; train that run with data/tokenizer=words, or bpe with data.tokenizer.masked=true"
            )
        needed = self.tokenizer.vocab_size + self._shift(self.tokenizer)
        if self.vocab_size is not None and self.vocab_size < needed:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} is smaller than the {needed} ids of the {self.tokenizer.kind} "
                f"tokenizer and padding; set it to null or to at least {needed}"
            )
        self.vocab_size = self.vocab_size or needed
        self.labelled = found

    def _check_labels(self, labels: set[str]) -> None:
        unknown = labels - set(self.class_names or [])
        if unknown:
            raise ValueError(
                f"the class {min(unknown)!r} is not among data.class_names={self.class_names}; add it, or set them to "
                "null to take those of the texts"
            )

    @staticmethod
    def _shift(tokenizer: Tokenizer) -> int:
        return int(tokenizer.pad_id != 0)

    def facts(self) -> dict[str, Any]:
        assert self.class_names is not None, "prepare comes first"
        found = {"num_classes": len(self.class_names), "class_names": self.class_names, "vocab_size": self.vocab_size}
        return found | ({"path": self.path} if self.path else {})  # absolute: a run is resumed from anywhere

    @property
    def tokens_per_sample(self) -> int:
        """Of the mean text."""
        train = self.split("train")
        return round(train.num_tokens.mean()) if isinstance(train, PaddedTexts) else 0

    def describe(self) -> str:
        source = self.path or self.dataset or f"docstrings of Python {sys.version.split()[0]}'s library"
        return f"{source}, {len(self.class_names)} classes, {self.tokenizer.kind}"  # type: ignore[arg-type]

    def baselines(self) -> dict[str, float]:
        """The share of the largest class, and a logistic regression on TF-IDF weights of single words."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        texts, labels = self.labelled["train"]
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
        model.fit(texts, labels)
        largest = Counter(labels).most_common(1)[0][0]
        found = {}
        for split in sorted(self.labelled.keys() - {"train"}, reverse=True):
            texts, labels = self.labelled[split]
            found[f"majority {split}/acc"] = labels.count(largest) / len(labels)
            found[f"TF-IDF {split}/acc"] = float(model.score(texts, labels))
        return found

    def read_instead(self, text: Path, folder: Path) -> None:
        """Make a file of labelled texts the validation split, read by the tokenizer in `folder`."""
        if not text.is_file():
            raise FileNotFoundError(f"there is no file {text} to evaluate on")
        labelled = read_labelled(text, *self.columns)
        self._check_labels(set(labelled[1]))
        self._datasets = {"val": self._encoded(labelled, load_tokenizer(folder))}

    def datasets(self) -> dict[str, BatchDataset]:
        return {split: self._encoded(labelled, self.tokenizer) for split, labelled in self.labelled.items()}

    def _encoded(self, labelled: Labelled, tokenizer: Tokenizer) -> PaddedTexts:
        shift, empty = self._shift(tokenizer), np.ones(1, np.int64)
        ids = [each[: self.seq_len] + shift if len(each) else empty for each in tokenizer.encode_all(labelled[0])]
        number = {name: i for i, name in enumerate(self.class_names)}  # type: ignore[arg-type]
        return PaddedTexts(ids, np.array([number[label] for label in labelled[1]], dtype=np.int64))

    def save_to(self, folder: Path) -> None:
        if (Path(folder) / FILE).is_file() and load_tokenizer(folder).state() != self.tokenizer.state():
            raise ValueError(f"{folder} holds a run on other texts: its tokenizer differs; choose another run_id")
        self.tokenizer.save(folder)


@cache
def docstrings() -> Labelled:
    """Docstrings of the packages of the running Python's library, in those that have most of them.

    A text stands once, and not if several packages have it. Differs between Python versions: 2,680 texts in 3.11.7.
    """
    library = Path(sysconfig.get_path("stdlib"))
    packages: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, str] = {}
    for path in PythonTexts("sources").files.paths:
        package = path.relative_to(library).parts[0]
        if package == path.name:
            continue  # a module by itself
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # examples of errors, for tools to find
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                words = " ".join(text.split())
                if len(words) >= SHORTEST:
                    packages[words].add(package)
                    texts.setdefault(words, text)
    found = [(texts[words], *where) for words, where in packages.items() if len(where) == 1]
    most = {package for package, _ in Counter(package for _, package in found).most_common(NUM_PACKAGES)}
    if len(most) < NUM_PACKAGES:
        raise ValueError(
            f"this Python came with the sources of {len(most)} packages of its library, fewer than {NUM_PACKAGES}; "
            "give data.path or data.dataset"
        )
    kept = [pair for pair in found if pair[1] in most]
    return [text for text, _ in kept], [package for _, package in kept]


def read_labelled(path: Path, text_column: str, label_column: str) -> Labelled:
    """Texts and labels of a .csv, .tsv (with a line of column names), .jsonl or .parquet file (also .csv.gz)."""
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            how = csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",", newlines_in_values=True)
            as_text = csv.ConvertOptions(
                column_types=dict.fromkeys((text_column, label_column), pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            )
            table = csv.read_csv(path, parse_options=how, convert_options=as_text)
        elif kind in (".jsonl", ".ndjson"):
            table = json.read_json(path)
        elif kind == ".parquet":
            table = parquet.read_table(path)
        else:
            raise ValueError(f"data.path={str(path)!r}: labelled texts come as .csv, .tsv, .jsonl or .parquet")
    except FileNotFoundError:
        raise FileNotFoundError(f"data.path={str(path)!r} is no file; give one, or null for docstrings") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise ValueError(
            f"{path} was not read: {str(error).splitlines()[0]}; is it whole and what its name says?"
        ) from error
    return _columns(table, text_column, label_column, str(path))


def read_hub(
    dataset: str, config: str | None, text_column: str, label_column: str
) -> tuple[dict[str, Labelled], list[str] | None]:
    """A dataset of the Hugging Face Hub: its splits `train` and, if it has them, `val` and `test`; names of its classes
    if it has them."""
    splits, ours = load_splits(dataset, config), OURS
    found, names = {}, None
    for name in ours.keys() & splits.keys():
        table = splits[name].with_format("arrow")[:]
        texts, labels = _columns(table, text_column, label_column, f"{dataset}, {name}")
        names = getattr(splits[name].features[label_column], "names", None)
        if names:
            known = {str(i): each for i, each in enumerate(names)}
            if wrong := set(labels) - known.keys():
                raise ValueError(
                    f"{dataset}, {name}: the label {min(wrong)} of row {labels.index(min(wrong)) + 1} is none of the "
                    f"{len(names)} classes, 0 to {len(names) - 1}; take a dataset whose texts all have a class"
                )
            labels = [known[label] for label in labels]
        found[ours[name]] = texts, labels
    return found, names


def _columns(table: Any, text_column: str, label_column: str, where: str) -> Labelled:
    """Both columns of an arrow table, as text."""
    found = []
    for setting, name in (("text_column", text_column), ("label_column", label_column)):
        if name not in table.column_names:
            known = ", ".join(table.column_names)
            raise ValueError(f"{where}: no column {name!r}; set data.{setting} to one of {known}")
        values = table[name].to_pylist()
        if not values:
            raise ValueError(f"{where} has no rows; give texts with their labels")
        if None in values:
            raise ValueError(f"{where}: row {values.index(None) + 1} has no {name!r}; fill it in or leave the row out")
        found.append([str(value) for value in values])
    return found[0], found[1]


def in_order(labels: set[str]) -> list[str]:
    """Numbers by size, else names by the alphabet."""
    return sorted(labels, key=int) if all(label.removeprefix("-").isdecimal() for label in labels) else sorted(labels)


def stratified(labels: list[str], fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """Indices of each split, in their order: its fraction of each class, at least one; the rest is `train`."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for index in np.random.RandomState(0).permutation(len(labels)):  # RandomState: numpy keeps its stream for ever
        by_class[labels[index]].append(int(index))
    found: dict[str, list[int]] = {split: [] for split in (*fractions, "train")}
    for label, indices in by_class.items():
        if len(indices) <= len(fractions):
            raise ValueError(
                f"the class {label!r} has {len(indices)} text(s), but {', '.join(found)} need one each: add texts, "
                "leave the class out, or set data.val_fraction or data.test_fraction to 0"
            )
        begin = 0
        for split, fraction in fractions.items():
            end = begin + max(1, round(fraction * len(indices)))
            found[split] += indices[begin:end]
            begin = end
        found["train"] += indices[begin:]
    return {split: np.sort(indices) for split, indices in found.items()}
