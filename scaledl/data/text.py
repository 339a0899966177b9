"""Text for language models: windows of a long line of tokens, gathered from memory-mapped shards."""

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scaledl.data.base import BatchDataset, Data
from scaledl.data.corpus import Corpus, find_corpus
from scaledl.data.ngram import ngram_floor
from scaledl.data.pretokenize import FORMAT, prepare_tokens, speed
from scaledl.data.remote import is_url, public
from scaledl.data.sampler import endless
from scaledl.data.shard_cache import tokens_at
from scaledl.data.shards import Tokens, damage, read_manifest
from scaledl.data.tokenizer import FILE, Tokenizer, load_tokenizer

IGNORED = -100  # the label that torch's cross-entropy leaves out


class Windows:
    """Windows of `seq_len` tokens and, as labels, the token that follows each.

    Training windows are whole and begin every `stride` tokens. With `every_token` they follow one another and the last
    is padded (`pad_id`, labels -100, document -1), so that each token after the first is predicted exactly once.

    Args:
        bytes_per_token: UTF-8 bytes of the text per token: nats per token / (ln 2 * bytes per token) are bits per byte.
        shuffle_within: how many neighbouring windows are shuffled among themselves (see `permute_blocks`); None: all.
    """

    def __init__(
        self,
        tokens: Tokens,
        seq_len: int,
        *,
        pad_id: int,
        bytes_per_token: float,
        stride: int | None = None,
        every_token: bool = False,
        document_mask: bool = False,
        shuffle_within: int | None = None,
    ):
        self.tokens, self.seq_len, self.pad_id, self.bytes_per_token = tokens, seq_len, pad_id, bytes_per_token
        self.shuffle_within = shuffle_within
        self.stride, self.every_token, self.document_mask = stride or seq_len, every_token, document_mask
        self.span = np.arange(seq_len + 1)

    def __len__(self) -> int:
        predicted = len(self.tokens) - 1
        return -(-predicted // self.seq_len) if self.every_token else (predicted - self.seq_len) // self.stride + 1

    def samples_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Windows (n,) at `positions` (n,) of the endless line of training."""
        return endless(positions, len(self), seed, self.shuffle_within)

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        """`input_ids` and `labels` (B, T) int64 and, with the document mask, `document_ids` (B, T) int64."""
        positions = np.asarray(indices)[:, None] * self.stride + self.span  # (B, T + 1)
        beyond = positions >= len(self.tokens) if self.every_token else None
        if beyond is not None and beyond.any():
            positions = np.minimum(positions, len(self.tokens) - 1)
        else:
            beyond = None
        ids = self.tokens.take(positions)
        labels = ids[:, 1:].copy()
        if beyond is not None:
            ids[beyond], labels[beyond[:, 1:]] = self.pad_id, IGNORED
        batch = {"input_ids": torch.from_numpy(ids[:, :-1].copy()), "labels": torch.from_numpy(labels)}
        if self.document_mask:
            documents = self.tokens.documents(positions[:, :-1])
            if beyond is not None:
                documents[beyond[:, :-1]] = -1
            batch["document_ids"] = torch.from_numpy(documents)
        return batch


class Streams:
    """Windows as `num_streams` readers meet them, each in its own part of the text, one window after the other.

    Sample t · num_streams + s is the t-th window of reader s. `begins` (B,) is true for first windows: what a model
    carries from window to window starts anew there.
    """

    shuffled = False

    def __init__(self, windows: Windows, num_streams: int):
        self.windows, self.num_streams, self.each = windows, num_streams, len(windows) // num_streams
        if not self.each:
            raise ValueError(
                f"the text has {len(windows)} windows of data.seq_len={windows.seq_len}, too few for "
                f"{num_streams} streams, one for each sample of data.global_batch_size; take less of either"
            )

    def __len__(self) -> int:
        return self.each * self.num_streams

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        turn, stream = np.divmod(np.asarray(indices), self.num_streams)
        batch = self.windows.__getitems__(stream * self.each + turn)
        return {**batch, "begins": torch.from_numpy(turn == 0)}


def windows_of_text(text: str, tokenizer: Tokenizer, seq_len: int) -> Windows:
    """Any text as an evaluation set: every token after the first is predicted once."""
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} token(s) has nothing to predict; give at least 2 tokens")
    bytes_per_token = len(text.encode()) / len(ids)
    return Windows(
        Tokens([ids]), seq_len, pad_id=_padding(tokenizer), bytes_per_token=bytes_per_token, every_token=True
    )


def _padding(tokenizer: Tokenizer) -> int:
    return tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id


class TextData(Data):
    """A text corpus, tokenised once, in windows for next-token prediction.

    Args:
        tokenizer: fitted on the text by `prepare` (data/tokenizer=char|byte|bpe|hf).
        seq_len: tokens of a window.
        path: a file, a folder or a glob of text, .jsonl or .parquet, or a URL of these (s3://, gs://, hf://, https://);
            with `dataset` and `tokens` null too, the embedded text.
        dataset: a name on the Hugging Face Hub, with `dataset_config` and `dataset_split`.
        tokens: a folder, or its URL, that `scaledl prepare` has made; of a URL shards are fetched when they are read.
            Its tokenizer, its validation split and whether duplicates were left out are those it was made with:
            `tokenizer`, `val_fraction`, `deduplicate` and what else says how text is read are then not looked at.
        embedded: `docs`, the language reference that Python ships (English, 0.5 MB), `library`, its library's code
            (12 MB), or `sources`, both. They differ between Python versions; the manifest has version and sha256.
        text_column: of jsonl, parquet and Hub rows.
        encoding: of text files.
        stride: tokens from the begin of one training window to the next; null = seq_len, 1 = every offset is a sample.
        order: `shuffled`, or `streams`: each sample of a batch goes on where it ended in the batch before, for models
            that carry a state.
        val_seq_len: tokens of a validation window; null = seq_len.
        shuffle_within: windows that are shuffled among themselves, in blocks whose order is shuffled; null = all. With
            tokens at a URL, a block is what must be at hand.
        val_fraction: of the characters; whole documents where there are many, else the end of the text.
        deduplicate: leave out documents whose text, but for white space, was there before.
        document_mask: also give `document_ids`, so that attention can stay within a document.
        vocab_size: null = the tokenizer's; a larger one (a multiple of 64, say) is kept.
        mask_id: null = the tokenizer's, if it has one: what masked modelling puts in the place of a token.
        cache_dir: of the tokens.
        cache_bytes: of shards fetched from a URL, at most, that stay on this machine.
        num_proc: processes that tokenise; null = one a core.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        global_batch_size: int,
        micro_batch_size: int,
        seq_len: int = 64,
        path: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_split: str = "train",
        tokens: str | None = None,
        embedded: Literal["docs", "sources", "library"] = "docs",
        text_column: str = "text",
        encoding: str = "utf-8",
        stride: int | None = None,
        order: Literal["shuffled", "streams"] = "shuffled",
        shuffle_within: int | None = None,
        val_seq_len: int | None = None,
        val_fraction: float = 0.1,
        deduplicate: bool = False,
        document_mask: bool = False,
        vocab_size: int | None = None,
        mask_id: int | None = None,
        cache_dir: str = "~/.cache/scaledl",
        cache_bytes: int = 1 << 35,
        num_proc: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        at_least_one = {
            "seq_len": seq_len,
            "stride": stride,
            "num_proc": num_proc,
            "val_seq_len": val_seq_len,
            "shuffle_within": shuffle_within,
            "cache_bytes": cache_bytes,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction={val_fraction} must lie in [0, 1); 0 trains on all of the text")
        if order == "streams" and stride not in (None, seq_len):
            raise ValueError(
                f"data.order=streams reads windows one after the other, but data.stride={stride} lets them overlap or "
                f"leaves gaps; set it to null"
            )
        if order == "streams" and shuffle_within:
            raise ValueError("data.order=streams shuffles nothing: set data.shuffle_within to null")
        if tokens and (path or dataset):
            raise ValueError(
                f"data.tokens={tokens!r} and data.{'path' if path else 'dataset'} name two sources; keep one"
            )
        self.order, self.val_seq_len = order, val_seq_len or seq_len
        self.tokens, self.shuffle_within = tokens, shuffle_within
        self.deduplicate, self.cache_bytes = deduplicate, cache_bytes
        self.source = (path, dataset, dataset_config, dataset_split, embedded, text_column, encoding)
        self.tokenizer, self.vocab_size, self.mask_id = tokenizer, vocab_size, mask_id
        self.text_column, self.encoding = text_column, encoding
        self.seq_len, self.stride, self.document_mask = seq_len, stride, document_mask
        self.val_fraction, self.num_proc = val_fraction, num_proc
        self.cache_dir = Path(cache_dir).expanduser() / "text"
        self.folder: Path | None = None
        self.manifest: dict[str, Any] = {}

    @cached_property
    def corpus(self) -> Corpus:
        """Found when it is first needed: a run that only writes needs no corpus."""
        return find_corpus(*self.source)

    def prepare(self) -> None:
        if self.folder is not None:
            return
        if self.tokens:
            folder = tokens_at(self.tokens, self.cache_dir)
            self._check_tokens(folder)
        else:
            given = self.val_fraction, self.num_proc, self.deduplicate
            folder = prepare_tokens(self.cache_dir, self.corpus, self.tokenizer, *given)
        manifest, tokenizer = read_manifest(folder), load_tokenizer(folder)
        if self.vocab_size is not None and self.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} is smaller than the {tokenizer.vocab_size} of the {tokenizer.kind} "
                f"tokenizer; set it to null or to at least {tokenizer.vocab_size}"
            )
        for split, facts in manifest["splits"].items():
            if facts["tokens"] <= self.seq_len and (split == "train" or manifest["val_fraction"]):
                raise ValueError(
                    f"the {split} split of {manifest['source']['name']} has {facts['tokens']} token(s), fewer than one "
                    f"window of data.seq_len={self.seq_len} and the token after it; take a smaller seq_len, more text "
                    f"or another data.val_fraction (now {manifest['val_fraction']}; 0 is no validation)"
                )
        self.folder, self.manifest, self.tokenizer = folder, manifest, tokenizer

    def _check_tokens(self, folder: Path) -> None:
        """Of a URL the manifest alone is here, and shards are checked as they are fetched."""
        try:
            made = read_manifest(folder)["format"]
        except (KeyError, TypeError, ValueError):
            made = None
        problem = None
        if made != FORMAT:
            problem = f"its manifest.json has format {made}, not {FORMAT}; make it again with `scaledl prepare`"
        elif not self.url and (wrong := damage(folder)):
            problem = f"{wrong}; copy the folder again"
        if problem:
            place = public(self.url) if self.url else self.tokens
            raise ValueError(f"data.tokens={place!r} cannot be read: {problem}")

    @property
    def tokens_per_sample(self) -> int:
        return self.seq_len

    def describe(self) -> str:
        splits, source = self.manifest["splits"].values(), self.manifest["source"]
        left_out = f", {source['duplicates']:,} of {source['documents']:,} documents left out as duplicates"
        return f"{source['name']}, {sum(split['tokens'] for split in splits):,} {self.tokenizer.kind} tokens" + (
            left_out if self.manifest["deduplicate"] else ""
        )

    def speed(self) -> str:
        return speed(self.folder) if self.folder and not self.tokens else ""

    def baselines(self) -> dict[str, float]:
        """What counting reaches on the validation split: the loss of an interpolated 3-gram model."""
        if not self.manifest["splits"]["val"]["tokens"]:
            return {}
        train, val = (self._windows(split).tokens for split in ("train", "val"))
        ids = [tokens.take(np.arange(len(tokens))) for tokens in (train, val)]
        return {"3-gram val/loss": ngram_floor(*ids, order=3)}

    def read_instead(self, text: Path, folder: Path) -> None:
        """Make the text of a file the validation split, read by the tokenizer in `folder`; nothing is prepared."""
        if not text.is_file():
            raise FileNotFoundError(f"there is no file {text} to evaluate on")
        corpus = find_corpus(str(text), None, None, "train", "docs", self.text_column, self.encoding)
        tokenizer = load_tokenizer(folder)
        self._datasets = {
            "val": windows_of_text("".join(piece for _, piece in corpus.pieces()), tokenizer, self.seq_len)
        }

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"vocab_size": self.vocab_size or self.tokenizer.vocab_size}
        mask_id = self.tokenizer.mask_id if self.mask_id is None else self.mask_id
        if mask_id is not None:
            found["mask_id"] = mask_id
        for name, place in (("path", self.source[0]), ("tokens", self.tokens)):
            if place and not is_url(place):  # a run is resumed from anywhere
                found[name] = os.path.abspath(os.path.expanduser(os.path.expandvars(place)))
        return found

    def bytes_per_token(self, split: str = "val") -> float:
        facts = self.manifest["splits"][split]
        return facts["bytes"] / facts["tokens"]

    def datasets(self) -> dict[str, BatchDataset]:
        assert self.folder is not None, "prepare comes first"
        found: dict[str, BatchDataset] = {
            split: self._windows(split) for split in ("train", "val") if self.manifest["splits"][split]["tokens"]
        }
        if self.order == "streams":
            found["train"] = Streams(self._windows("train"), self.global_batch_size)
        return found

    def _windows(self, split: str) -> Windows:
        assert self.folder is not None
        return Windows(
            Tokens.open(self.folder, split, self.document_mask, self.url, self.cache_bytes),
            self.seq_len if split == "train" else self.val_seq_len,
            pad_id=_padding(self.tokenizer),
            bytes_per_token=self.bytes_per_token(split),
            stride=self.stride if split == "train" else None,
            every_token=split == "val",
            document_mask=self.document_mask,
            shuffle_within=self.shuffle_within,
        )

    @property
    def url(self) -> str | None:
        return self.tokens if self.tokens and is_url(self.tokens) else None

    def save_to(self, folder: Path) -> None:
        assert self.folder is not None, "prepare comes first"
        ours, theirs = self.folder / FILE, Path(folder) / FILE
        if theirs.is_file() and theirs.read_bytes() != ours.read_bytes():
            raise ValueError(f"{folder} holds a run on another text: its tokenizer differs; choose another run_id")
        shutil.copyfile(ours, theirs)
