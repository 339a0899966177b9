"""Several texts in fixed shares: which source a position takes is a function of the position alone."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scaledl.data.base import BatchDataset, Data
from scaledl.data.corpus import Corpus
from scaledl.data.pretokenize import alone
from scaledl.data.sampler import endless
from scaledl.data.text import TextData, Windows
from scaledl.data.tokenizer import FILE, SavedTokenizer, Tokenizer

PERIOD = 1 << 14  # positions; weights are rounded to whole parts of it


@dataclass
class Source:
    """A text among several; its share of the samples is its weight over the sum of all. For the rest see TextData."""

    weight: float = 1.0
    path: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    embedded: Literal["docs", "sources", "library"] = "docs"
    text_column: str = "text"
    encoding: str = "utf-8"


class Schedule:
    """The source of each position, so that after any number of them each source has its share to within one sample.

    Sources take turns by the earliest deadline, which for shares that sum to one is always kept: the chairman
    assignment problem (Tijdeman 1980). The order repeats after a period, so it is known everywhere without counting.
    """

    def __init__(self, weights: list[float]):
        shares = np.array(weights) / sum(weights) * PERIOD
        counts = np.maximum(shares.astype(np.int64), 1)
        rest = np.argsort(counts - shares, kind="stable")  # those that rounding has cost most
        while (missing := PERIOD - int(counts.sum())) != 0:
            if missing > 0:
                counts[rest[:missing]] += 1
            else:
                counts[counts.argmax()] += missing
        self.counts = counts // math.gcd(*counts.tolist())
        period = int(self.counts.sum())
        self.sources, self.numbers = np.empty(period, np.int64), np.empty(period, np.int64)
        taken = np.zeros_like(counts)
        for position in range(period):
            deadlines = -(-(taken + 1) * period // self.counts)
            may = taken * period // self.counts <= position
            source = int(np.argmin(np.where(may, deadlines, period + 1)))
            self.sources[position], self.numbers[position] = source, taken[source]
            taken[source] += 1

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position (n,), and how many positions before it (n,) are of the same source."""
        turns, places = np.divmod(positions, len(self.sources))
        sources = self.sources[places]
        return sources, turns * self.counts[sources] + self.numbers[places]


class Mixed:
    """The windows of several sources, counted one source after the other; each has an order and epochs of its own.

    Args:
        parts: name, first window and share of each source, as an evaluation has them.
    """

    def __init__(self, windows: list[Windows], names: list[str], weights: list[float]):
        self.windows, self._weights = windows, weights
        self.begins = np.cumsum([0, *(len(each) for each in windows)])
        shares = [weight / sum(weights) for weight in weights]
        self.parts = list(zip(names, self.begins[:-1].tolist(), shares, strict=True))
        self.bytes_per_token = sum(s * each.bytes_per_token for s, each in zip(shares, windows, strict=True))

    @cached_property
    def schedule(self) -> Schedule:
        """Made when it is first asked for, which an evaluation never does."""
        return Schedule(self._weights)

    def __len__(self) -> int:
        return int(self.begins[-1])

    def samples_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Windows (n,) at `positions` (n,) of the endless line of training."""
        sources, numbers = self.schedule.at(positions)
        samples = np.empty_like(positions)
        for source in np.unique(sources):
            here, windows = sources == source, self.windows[source]
            own_seed = seed * len(self.windows) + int(source)
            samples[here] = self.begins[source] + endless(numbers[here], len(windows), own_seed, windows.shuffle_within)
        return samples

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        indices = np.asarray(indices)
        sources = np.searchsorted(self.begins, indices, side="right") - 1
        order = np.argsort(sources, kind="stable")
        batches = [
            self.windows[source].__getitems__(indices[sources == source] - self.begins[source])
            for source in np.unique(sources)
        ]
        back = torch.from_numpy(np.argsort(order))
        return {name: torch.cat([batch[name] for batch in batches])[back] for name in batches[0]}


class MixtureData(Data):
    """Text from several sources, each with its share of the samples, read by one tokenizer.

    A batch does not depend on ranks, and a run goes on from the number of samples seen alone. Validation tells each
    source's loss (`val/docs/loss`), and `val/loss` is their mean by the weights.

    Args:
        tokenizer: fitted on the sources in turns, by their weights, unless it is one that was fitted before.
        sources: by name.

    The rest is as for TextData.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sources: dict[str, Source],
        global_batch_size: int,
        micro_batch_size: int,
        seq_len: int = 64,
        stride: int | None = None,
        shuffle_within: int | None = None,
        val_seq_len: int | None = None,
        val_fraction: float = 0.1,
        deduplicate: bool = False,
        document_mask: bool = False,
        vocab_size: int | None = None,
        mask_id: int | None = None,
        cache_dir: str = "~/.cache/scaledl",
        num_proc: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        wrong = {name: source.weight for name, source in sources.items() if not 0 < source.weight < math.inf}
        if wrong or not sources:
            raise ValueError(f"data.sources={wrong}: give one source or more, each with a weight above 0")
        if parted := [name for name in sources if "/" in name]:
            raise ValueError(f"data.sources has {parted}: leave out the /, which in val/<source>/loss ends the name")
        if len(sources) > PERIOD:
            raise ValueError(f"data.sources are {len(sources)}, more than {PERIOD}: join some")
        self.tokenizer, self.sources, self.seq_len = tokenizer, sources, seq_len
        shared: dict[str, Any] = {
            "seq_len": seq_len,
            "stride": stride,
            "shuffle_within": shuffle_within,
            "val_seq_len": val_seq_len,
            "val_fraction": val_fraction,
            "deduplicate": deduplicate,
            "document_mask": document_mask,
            "vocab_size": vocab_size,
            "mask_id": mask_id,
            "cache_dir": cache_dir,
            "num_proc": num_proc,
        }
        self.texts: dict[str, TextData] = {}
        for name, source in sources.items():
            own = {key: value for key, value in asdict(source).items() if key != "weight"}
            self.texts[name] = TextData(tokenizer, global_batch_size, micro_batch_size, **own, **shared)

    def prepare(self) -> None:
        texts = list(self.texts.values())
        if texts[0].folder is not None:
            return
        corpora = [text.corpus for text in texts]
        weights = [source.weight for source in self.sources.values()]
        folder = shared_tokenizer(texts[0].cache_dir, corpora, weights, self.tokenizer)
        for text in texts:
            text.tokenizer = SavedTokenizer(str(folder))
            text.prepare()
        self.tokenizer = texts[0].tokenizer

    def facts(self) -> dict[str, Any]:
        found = [text.facts() for text in self.texts.values()]
        own = {
            name: {"_target_": f"{Source.__module__}.{Source.__qualname__}", **asdict(source)}
            | {key: value for key, value in facts.items() if key == "path"}
            for (name, source), facts in zip(self.sources.items(), found, strict=True)
        }
        return {key: value for key, value in found[0].items() if key != "path"} | {"sources": own}

    def datasets(self) -> dict[str, BatchDataset]:
        found = {name: text.datasets() for name, text in self.texts.items()}
        return {
            split: Mixed(
                [found[name][split] for name in names],  # type: ignore[misc]
                names,
                [self.sources[name].weight for name in names],
            )
            for split in ("train", "val")
            if (names := [name for name in found if split in found[name]])
        }

    @property
    def tokens_per_sample(self) -> int:
        return self.seq_len

    def describe(self) -> str:
        total = sum(source.weight for source in self.sources.values())
        shares = [f"{source.weight / total:.1%} {self.texts[name].describe()}" for name, source in self.sources.items()]
        return "; ".join(shares)

    def speed(self) -> str:
        return "; ".join(filter(None, (text.speed() for text in self.texts.values())))

    def read_instead(self, text: Path, folder: Path) -> None:
        first = next(iter(self.texts.values()))
        first.read_instead(text, folder)
        self._datasets = first._datasets

    def save_to(self, folder: Path) -> None:
        next(iter(self.texts.values())).save_to(folder)


def shared_tokenizer(root: Path, corpora: list[Corpus], weights: list[float], tokenizer: Tokenizer) -> Path:
    """A folder under `root` with the tokenizer fitted on all corpora; made now unless it is there."""
    parts = [[corpus.fingerprint() for corpus in corpora], weights, tokenizer.settings()]
    key = "tokenizer-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / key
    if not (folder / FILE).is_file():
        with alone(root, key):
            if not (folder / FILE).is_file():
                tokenizer.fit(_in_turns(corpora, weights))
                folder.mkdir(exist_ok=True)
                tokenizer.save(folder)
    return folder


def _in_turns(corpora: list[Corpus], weights: list[float]) -> Iterator[str]:
    """Texts of all corpora, so that the first so many characters, which BPE learns from, are mixed by the weights."""
    streams = {number: corpus.pieces() for number, corpus in enumerate(corpora)}
    taken = dict.fromkeys(streams, 0.0)
    while streams:
        number = min(streams, key=lambda number: taken[number] / weights[number])
        try:
            _, text = next(streams[number])
        except StopIteration:
            del streams[number]
            continue
        taken[number] += len(text)
        yield text
