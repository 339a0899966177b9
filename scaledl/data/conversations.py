"""Conversations to learn from: of a file, the Hugging Face Hub, or made of the library's documentation."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scaledl.data import checks
from scaledl.data.base import BatchDataset, Data
from scaledl.data.chat import ROLES, ChatTemplate
from scaledl.data.documentation import questions
from scaledl.data.hub import OURS, load_splits
from scaledl.data.tokenizer import FILE, Tokenizer, load_tokenizer

IGNORED = -100  # the label that torch's cross-entropy leaves out
Row = dict[str, Any]


class Conversations:
    """`input_ids` and `labels` (B, T): the token after each where the assistant writes it, else -100.

    Padded behind, to the longest of the batch: a causal model's answers do not see it.

    Args:
        sequences: ids, and which of them the assistant writes.
    """

    def __init__(self, sequences: list[tuple[np.ndarray, np.ndarray]]):
        self.ids = [torch.from_numpy(ids[:-1]) for ids, _ in sequences]
        self.labels = [torch.from_numpy(np.where(answers, ids, IGNORED)[1:]) for ids, answers in sequences]
        self.num_tokens = np.array([len(ids) for ids in self.ids], dtype=np.int64)
        self.num_targets = np.array([int((labels >= 0).sum()) for labels in self.labels], dtype=np.float64)

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        return self.num_tokens[indices]

    def weights(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of the assistant, over which the loss is a mean."""
        return self.num_targets[indices]

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {
            "input_ids": pad_sequence([self.ids[i] for i in indices], batch_first=True),
            "labels": pad_sequence([self.labels[i] for i in indices], batch_first=True, padding_value=IGNORED),
        }


class ConversationData(Data):
    """Rows of messages, each with a `role` and its `content`, kept in memory as ids; the assistant's are learnt.

    Args:
        tokenizer: that of the run that is tuned (data/tokenizer=init_from); others are fitted on the training split.
        chat: how messages are written (data/chat=plain|chatml|llama3).
        seq_len: tokens of a conversation, at most; the rest is not read, and one without an answer before it left out.
        path: a .jsonl file; with `dataset` null too, questions about the running Python's library with their answers.
        dataset: a name on the Hugging Face Hub, with `dataset_config`.
        messages_column: of files and Hub rows.
        val_fraction: of the rows, where the source has no split of its own; the same whatever the seed.
        vocab_size: null = the tokenizer's.

    Raises:
        ValueError: settings contradict each other, or a row is no conversation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat: ChatTemplate,
        global_batch_size: int,
        micro_batch_size: int,
        seq_len: int = 256,
        path: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        messages_column: str = "messages",
        val_fraction: float = 0.1,
        vocab_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        checks.one_source(path, dataset)
        checks.held_out(val_fraction, 0.0)
        if seq_len < 2:
            raise ValueError(f"data.seq_len={seq_len}: a question and its answer are at least 2 tokens")
        self.tokenizer, self.chat, self.seq_len, self.vocab_size = tokenizer, chat, seq_len, vocab_size
        self.path = os.path.abspath(os.path.expanduser(os.path.expandvars(path))) if path else None
        self.dataset, self.dataset_config = dataset, dataset_config
        self.messages_column, self.val_fraction = messages_column, val_fraction
        self._conversations: dict[str, list[list[list[Row]]]] | None = None  # of each row of a split, until encoded
        self.num_left_out = 0

    # -- what kinds of rows differ in ------------------------------------------------------------------------------

    def embedded(self) -> dict[str, list[Row]]:
        """Rows by split, made of the documentation."""
        found: dict[str, list[Row]] = {"train": [], "val": []}
        for q in questions():
            messages = [{"role": "user", "content": q.text}, {"role": "assistant", "content": q.answer}]
            found[q.split].append({self.messages_column: messages})
        return found

    def conversations(self, row: Row, where: str) -> list[list[Row]]:
        """The conversations that a row holds.

        Raises:
            ValueError: it holds none.
        """
        return [as_messages(row, self.messages_column, "messages_column", where)]

    def encoded(self, rows: list[list[list[Row]]]) -> BatchDataset:
        every = self.chat.encode_all(self.tokenizer, [messages for (messages,) in rows])
        cut = ((ids[: self.seq_len + 1], answers[: self.seq_len + 1]) for ids, answers in every)
        kept = [(ids, answers) for ids, answers in cut if answers[1:].any()]
        self.num_left_out += len(rows) - len(kept)
        return Conversations(kept)

    # -- the same for all ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        if self._conversations is not None:
            return
        if self.path:
            rows = {"train": read_jsonl(Path(self.path))}
        elif self.dataset:
            rows = read_hub(self.dataset, self.dataset_config)
        else:
            rows = self.embedded()
        if "val" not in rows and self.val_fraction:
            rows = divided(rows["train"], self.val_fraction)
        where = self.path or self.dataset or "the documentation"
        self._conversations = {
            split: [self.conversations(row, f"{where}, row {i}") for i, row in enumerate(of_split, start=1)]
            for split, of_split in rows.items()
        }
        self.tokenizer.fit(self.chat.texts(each) for row in self._conversations["train"] for each in row)
        self.vocab_size = checks.vocab_size(self.vocab_size, self.tokenizer)

    def facts(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size} | ({"path": self.path} if self.path else {})

    def datasets(self) -> dict[str, BatchDataset]:
        assert self._conversations
        found = {split: self.encoded(rows) for split, rows in self._conversations.items()}
        self._conversations = {}  # the text may be much larger than its ids
        for split, dataset in found.items():
            if not len(dataset):
                raise ValueError(f"no answer of the {split} split begins within data.seq_len={self.seq_len}; raise it")
        return found

    @property
    def tokens_per_sample(self) -> int:
        """Of the mean conversation, without padding."""
        train = self.split("train")
        return round(train.num_tokens.mean()) if isinstance(train, Conversations) else 0

    def describe(self) -> str:
        self.splits()
        left_out = f", {self.num_left_out} left out" if self.num_left_out else ""
        return f"{self.path or self.dataset or 'questions about the library of this Python'}{left_out}"

    def save_to(self, folder: Path) -> None:
        if (Path(folder) / FILE).is_file() and load_tokenizer(folder).state() != self.tokenizer.state():
            raise ValueError(f"{folder} holds a run on other texts: its tokenizer differs; choose another run_id")
        self.tokenizer.save(folder)


def as_messages(row: Row, column: str, setting: str, where: str) -> list[Row]:
    """The messages of a row's column.

    Raises:
        ValueError: they are none, or one is of an unknown role.
    """
    if column not in row:
        raise ValueError(f"{where}: no column {column!r}; set data.{setting} to one of {', '.join(row)}")
    messages = row[column]
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages)
        or not all(isinstance(m.get("content"), str) for m in messages)
    ):
        raise ValueError(
            f'{where}: {column!r} is no list of messages as in [{{"role": "user", "content": "..."}}]; correct it'
        )
    if strange := [m["role"] for m in messages if m["role"] not in ROLES]:
        raise ValueError(f"{where}: {column!r} has the role {strange[0]!r}; rename it to one of {', '.join(ROLES)}")
    return messages


def read_jsonl(path: Path) -> list[Row]:
    """The objects of a file that has one on each line."""
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"data.path={str(path)!r} is no file; give a .jsonl file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be an object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a {type(row).__name__}; each line must be an object")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def read_hub(dataset: str, config: str | None) -> dict[str, list[Row]]:
    """The rows of a dataset of the Hugging Face Hub, by our names of splits."""
    splits, ours = load_splits(dataset, config), OURS
    return {ours[name]: splits[name].to_list() for name in ours if name in splits}


def divided(rows: Sequence[Row], val_fraction: float) -> dict[str, list[Row]]:
    """The rows in a training and a validation split, at least one in each."""
    order = np.random.RandomState(0).permutation(len(rows))  # RandomState: numpy keeps its stream for ever
    held = set(order[: max(1, round(val_fraction * len(rows)))].tolist())
    if len(held) == len(rows):
        raise ValueError(f"{len(rows)} row(s) cannot be divided for validation; add some or set data.val_fraction to 0")
    return {"train": _at(rows, held, False), "val": _at(rows, held, True)}


def _at(rows: Iterable[Row], chosen: set[int], inside: bool) -> list[Row]:
    return [row for i, row in enumerate(rows) if (i in chosen) == inside]
