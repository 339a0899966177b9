"""Pairs of texts, source and target: generated dates, parallel files, a table of two columns, or a Hub dataset."""

import codecs
import copy
import csv
import datetime
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scaledl.data import checks
from scaledl.data.base import BatchDataset, Data
from scaledl.data.tokenizer import CharTokenizer, Tokenizer, load_tokenizer

PAD, UNK, BOS, EOS = range(4)
IGNORED = -100  # the label that torch's cross-entropy leaves out
TABLES = (".tsv", ".csv", ".jsonl")

Texts = tuple[list[str], list[str]]  # sources and targets


class Vocabulary:
    """The ids of one side: padding 0, unknown 1, begin 2, end 3, then those of a fitted tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.has_unknown = tokenizer.kind == "words"  # whose own ids 0 and 1 are padding and unknown already
        self.shift = 2 if self.has_unknown else 4
        self.size = tokenizer.vocab_size + self.shift
        # Byte pairs hold the space before a word: with one in front, a first word is written as any other.
        self.lead = " " if tokenizer.kind == "bpe" else ""

    def fit(self, texts: list[str]) -> None:
        self.tokenizer.fit(self.lead + text for text in texts)
        self.size = self.tokenizer.vocab_size + self.shift

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without begin and end."""
        if isinstance(self.tokenizer, CharTokenizer):  # whose own encode refuses an unknown character, -1 here
            every = [self.tokenizer.ids[np.frombuffer(text.encode("utf-32-le"), np.uint32)] for text in texts]
        else:
            every = self.tokenizer.encode_all([self.lead + text for text in texts])
        return [np.where(ids + self.shift > EOS, ids + self.shift, UNK).tolist() for ids in every]

    def decode(self, ids: list[int]) -> str:
        """The text; special ids print nothing, but that of an unknown word does."""
        own = [i - self.shift if i > EOS else UNK for i in ids if i > EOS or (i == UNK and self.has_unknown)]
        return self.tokenizer.decode(own).strip()

    def units(self, ids: list[int]) -> list[str]:
        """Each id by itself, for a picture."""
        names = {PAD: "<pad>", UNK: "<unk>", BOS: "<bos>", EOS: "<eos>"}
        return [names.get(i) or self.tokenizer.decode([i - self.shift]) for i in ids]


class Sentences:
    """Pairs as ids: `src_ids` (B, S) that end with EOS, `tgt_ids` (B, T) that begin with BOS, and `labels` (B, T), the
    token after each, EOS at last. Padded to the longest of the batch.

    Args:
        texts: kept as `sources` and `references`.
        max_len: ids of a side, at most: pairs are cut, or else left out.
    """

    def __init__(self, texts: Texts, vocabularies: tuple[Vocabulary, Vocabulary], max_len: int, cut: bool):
        pairs = zip(*texts, *(v.encode_all(side) for v, side in zip(vocabularies, texts, strict=True)), strict=True)
        kept = [pair for pair in pairs if cut or max(len(pair[2]), len(pair[3])) < max_len]
        self.num_left_out = len(texts[0]) - len(kept)
        self.sources, self.references = [pair[0] for pair in kept], [pair[1] for pair in kept]
        self.src_ids, self.tgt_ids = (
            [torch.tensor([*pair[side][: max_len - 1], EOS]) for pair in kept] for side in (2, 3)
        )
        self.src_lengths, self.tgt_lengths = (
            np.array([len(ids) for ids in side], dtype=np.int64) for side in (self.src_ids, self.tgt_ids)
        )

    def __len__(self) -> int:
        return len(self.sources)

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        labels = pad_sequence([self.tgt_ids[i] for i in indices], batch_first=True, padding_value=IGNORED)
        before = torch.cat((torch.full((len(labels), 1), BOS), labels[:, :-1]), dim=1)
        return {
            "src_ids": pad_sequence([self.src_ids[i] for i in indices], batch_first=True, padding_value=PAD),
            "tgt_ids": before.masked_fill(labels == IGNORED, PAD),
            "labels": labels,
        }

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """By which the samples of a global batch are ordered: length of the target, then of the source."""
        return self.tgt_lengths[indices] * (self.src_lengths.max() + 1) + self.src_lengths[indices]

    def weights(self, indices: np.ndarray) -> np.ndarray:
        """Target tokens of each sample, over which the loss is a mean."""
        return self.tgt_lengths[indices].astype(np.float64)


class Pairs(Data):
    """Pairs of texts for sequence to sequence, kept in memory as ids.

    Args:
        tokenizer: fitted on the training split (data/tokenizer=char|byte|bpe|words|hf).
        joint: one vocabulary for both sides, fitted on both; else each side has its own.
        path: a folder with `<split>.<source>` and `<split>.<target>`, alike line by line, or with `<split>.tsv`, `.csv`
            or `.jsonl`; or one such table. Any may be gzipped (.gz).
        dataset: instead, a name on the Hugging Face Hub, with `dataset_config`. Without both: generated dates.
        source, target: endings of the files, or columns of the table.
        train, val, test: names of the splits in the folder or dataset; null: there is no such split.
        val_fraction, test_fraction: of one table or the dates; the same pairs whatever the seed.
        num_samples: of the dates, all splits together.
        lowercase: small letters only, in the references too.
        encoding: of the files.
        max_len: tokens of a side with its end. Longer pairs are left out of the training, and cut in other splits.
        src_vocab_size, tgt_vocab_size: null = found out; models link to them.

    Raises:
        ValueError: settings or files contradict each other.
        FileNotFoundError: a split has no file.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        global_batch_size: int,
        micro_batch_size: int,
        joint: bool = True,
        path: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        source: str = "source",
        target: str = "target",
        train: str = "train",
        val: str | None = "val",
        test: str | None = "test",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        num_samples: int = 10_000,
        lowercase: bool = False,
        encoding: str = "utf-8",
        max_len: int = 128,
        src_vocab_size: int | None = None,
        tgt_vocab_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        checks.one_source(path, dataset)
        if max_len < 2:
            raise ValueError(f"data.max_len={max_len}: a side is at least a token and its end, give 2 or more")
        checks.held_out(val_fraction, test_fraction)
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f"data.encoding={encoding!r} is unknown; utf-8 and latin-1 are two that are") from None
        self.tokenizer, self.joint = tokenizer, joint
        self.path = None if path is None else Path(os.path.expandvars(path)).expanduser()
        self.dataset, self.dataset_config = dataset, dataset_config
        self.columns, self.names = (source, target), {"train": train, "val": val, "test": test}
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.num_samples, self.lowercase, self.encoding, self.max_len = num_samples, lowercase, encoding, max_len
        self.given = {"src_vocab_size": src_vocab_size, "tgt_vocab_size": tgt_vocab_size}
        self.texts: dict[str, Texts] = {}
        self.vocabularies: tuple[Vocabulary, Vocabulary] | None = None

    def prepare(self) -> None:
        if self.vocabularies is not None:
            return
        self.texts = {split: self._cleaned(texts) for split, texts in self._read().items()}
        sources, targets = self.texts["train"]
        if not sources:
            raise ValueError(f"{self.describe()}: no training pair has text on both sides")
        source = Vocabulary(self.tokenizer)
        target = source if self.joint else Vocabulary(copy.deepcopy(self.tokenizer))
        source.fit(sources + targets if self.joint else sources)
        if not self.joint:
            target.fit(targets)
        self.vocabularies = source, target
        for name, found in self._sizes().items():
            if self.given[name] not in (None, found):
                raise ValueError(f"data.{name}={self.given[name]}, but the tokenizer has {found}; set it to null")

    def facts(self) -> dict[str, Any]:
        where = {} if self.path is None else {"path": os.path.abspath(self.path)}  # a run is resumed from anywhere
        return self._sizes() | where

    def _sizes(self) -> dict[str, int]:
        assert self.vocabularies is not None, "prepare comes first"
        return {"src_vocab_size": self.vocabularies[0].size, "tgt_vocab_size": self.vocabularies[1].size}

    def datasets(self) -> dict[str, BatchDataset]:
        assert self.vocabularies is not None, "prepare comes first"
        made = {
            split: Sentences(texts, self.vocabularies, self.max_len, cut=split != "train")
            for split, texts in self.texts.items()
        }
        if not len(made["train"]):
            raise ValueError(f"every training pair has a side longer than data.max_len={self.max_len} tokens; raise it")
        return {split: sentences for split, sentences in made.items() if len(sentences)}

    @property
    def tokens_per_sample(self) -> int:
        """Of the source and the target together, on average."""
        train = self.split("train")
        assert isinstance(train, Sentences)
        return round(float((train.src_lengths + train.tgt_lengths).mean()))

    def describe(self) -> str:
        where = self.dataset or (str(self.path) if self.path else "generated dates")
        train = self.split("train") if self.vocabularies else None
        longer = f", {train.num_left_out:,} longer than {self.max_len}" if getattr(train, "num_left_out", 0) else ""
        return f"{where}, pairs of {self.tokenizer.kind} tokens{longer}"

    def save_to(self, folder: Path) -> None:
        assert self.vocabularies is not None, "prepare comes first"
        for side, vocabulary in zip(("source", "target"), self.vocabularies, strict=True):
            place = folder / "tokenizers" / side
            if place.exists() and load_tokenizer(place).state() != vocabulary.tokenizer.state():
                raise ValueError(f"{folder} holds a run on other pairs: its tokenizer differs; choose another run_id")
            place.mkdir(parents=True, exist_ok=True)
            vocabulary.tokenizer.save(place)

    def load_from(self, folder: Path) -> None:
        """Read the vocabularies that `save_to` left in a run directory; nothing is prepared."""
        source, target = (Vocabulary(load_tokenizer(folder / "tokenizers" / side)) for side in ("source", "target"))
        self.vocabularies = source, target

    def as_source(self, texts: list[str]) -> Tensor:
        """`src_ids` (B, S) of texts that are not in the data."""
        assert self.vocabularies is not None, "prepare or load_from comes first"
        every = self.vocabularies[0].encode_all(self._spelled(texts))
        ids = [torch.tensor([*each[: self.max_len - 1], EOS]) for each in every]
        return pad_sequence(ids, batch_first=True, padding_value=PAD)

    def _spelled(self, texts: list[str]) -> list[str]:
        return [text.strip().lower() if self.lowercase else text.strip() for text in texts]

    def _cleaned(self, texts: Texts) -> Texts:
        """Without the pairs that lack a side."""
        sources, targets = map(self._spelled, texts)
        both = [(source, target) for source, target in zip(sources, targets, strict=True) if source and target]
        return [source for source, _ in both], [target for _, target in both]

    # -- where the texts come from -----------------------------------------------------------------------------------

    def _read(self) -> dict[str, Texts]:
        if self.dataset is not None:
            return self._by_split(self._of_hub)
        if self.path is None:
            return self._divided(date_pairs(self.num_samples))
        if self.path.is_dir():
            return self._by_split(self._of_folder)
        if not self.path.is_file():
            raise FileNotFoundError(f"data.path={str(self.path)!r}: there is no such file or folder")
        return self._divided(self._of_table(self.path))

    def _by_split(self, read: Callable[[str], Texts]) -> dict[str, Texts]:
        return {split: read(name) for split, name in self.names.items() if name is not None}

    def _divided(self, texts: Texts) -> dict[str, Texts]:
        order, found = np.random.default_rng(0).permutation(len(texts[0])).tolist(), {}
        for split, fraction in self.fractions.items():
            size = round(fraction * len(texts[0]))
            found[split], order = order[:size], order[size:]
        found["train"] = order
        return {split: ([texts[0][i] for i in part], [texts[1][i] for i in part]) for split, part in found.items()}

    def _of_folder(self, name: str) -> Texts:
        assert self.path is not None
        source, target = (self._find(f"{name}.{column}") for column in self.columns)
        if source and target:
            sides = [_lines(_text(path, self.encoding)) for path in (source, target)]
            if len(sides[0]) != len(sides[1]):
                raise ValueError(
                    f"{source} has {len(sides[0]):,} lines and {target} has {len(sides[1]):,}; line n of one must "
                    "translate line n of the other, so bring them to the same number"
                )
            return sides[0], sides[1]
        tables = [path for ending in TABLES if (path := self._find(f"{name}{ending}"))]
        if tables:
            return self._of_table(tables[0])
        there = ", ".join(sorted(path.name for path in self.path.iterdir())[:12]) or "nothing"
        raise FileNotFoundError(
            f"{self.path} has neither {name}.{self.columns[0]} and {name}.{self.columns[1]} nor {name}.tsv, .csv or "
            f".jsonl (also with .gz), but {there}; set data.source and data.target to the endings and data.train, val "
            "and test to the names before them, or to null where there is no such split"
        )

    def _find(self, name: str) -> Path | None:
        assert self.path is not None
        return next((path for path in (self.path / name, self.path / f"{name}.gz") if path.is_file()), None)

    def _of_table(self, path: Path) -> Texts:
        kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if kind not in TABLES:
            raise ValueError(f"{path} is no table; give .tsv, .csv or .jsonl (also with .gz), or a folder")
        text, found = _text(path, self.encoding), ([], [])  # type: ignore[var-annotated]
        for where, row in _json_rows(path, text) if kind == ".jsonl" else _rows(path, text, kind):
            for side, column in zip(found, self.columns, strict=True):
                if not isinstance(row.get(column), str):
                    raise ValueError(
                        f"{where}: no text in column {column!r}; the columns are {', '.join(map(str, row))}: set "
                        "data.source and data.target to two of them"
                    )
                side.append(row[column])
        return found

    def _of_hub(self, name: str) -> Texts:
        import datasets

        try:
            rows = datasets.load_dataset(self.dataset, self.dataset_config, split=name)
        except Exception as error:  # the library raises a dozen kinds, from DNS failures to bad splits
            raise ValueError(
                f"data.dataset={self.dataset!r} (config {self.dataset_config}, split {name!r}) was not loaded: {error}"
                "; check the names or, without a network here, run `scaledl prepare` once where there is one"
            ) from error
        missing = [column for column in self.columns if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"{self.dataset}: no column {missing[0]!r}; set data.source and data.target to two of "
                f"{', '.join(rows.column_names)}"
            )
        return list(rows[self.columns[0]]), list(rows[self.columns[1]])


def _text(path: Path, encoding: str) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {encoding}: byte {error.start} is 0x{error.object[error.start]:02x}; name its encoding, as "
            "in data.encoding=latin-1"
        ) from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} was not read: {error}; is it whole and what its name says?") from error


def _lines(text: str) -> list[str]:
    """Not splitlines(), which also parts a line at rarer signs, and so one side from the other."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def _rows(path: Path, text: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    quoting: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), **quoting), start=2):
        yield f"{path}: row {number}", row


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(text), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be an object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a {type(row).__name__}; each line must be an object")
            yield f"{path}:{number}", row


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{day} {mon} {year}",
    "{mon} {day}, {year}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {day}, {year}",
    "the {nth} of {month} {year}",
    "{month} {nth}, {year}",
    "{day}.{number}.{year}",
    "{number}/{day}/{year}",
)
_FIRST, _NUM_DAYS = datetime.date(1900, 1, 1), 73_049  # up to 2099-12-31


def date_pairs(num_samples: int) -> Texts:
    """Dates as people write them, in ten forms with and without capitals, and as ISO 8601; no day comes twice.

    Raises:
        ValueError: there are not so many days.
    """
    if not 10 <= num_samples <= _NUM_DAYS:
        raise ValueError(f"data.num_samples={num_samples}: give 10 to {_NUM_DAYS}, the days of two centuries")
    generator = np.random.default_rng(0)
    days = generator.permutation(_NUM_DAYS)[:num_samples].tolist()
    forms = generator.integers(2 * len(_FORMS), size=num_samples).tolist()
    sources, targets = [], []
    for day, form in zip(days, forms, strict=True):
        date = _FIRST + datetime.timedelta(day)
        month, ones = _MONTHS[date.month - 1], 0 if 10 < date.day < 14 else date.day % 10
        text = _FORMS[form // 2].format(
            day=date.day,
            nth=f"{date.day}{('th', 'st', 'nd', 'rd')[ones] if ones < 4 else 'th'}",
            month=month,
            mon=month[:3],
            number=date.month,
            year=date.year,
            weekday=_WEEKDAYS[date.weekday()],
        )
        sources.append(text.lower() if form % 2 else text)
        targets.append(date.isoformat())
    return sources, targets
