"""Pairs of answers to the same prompt, of which one is preferred."""

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from scaledl.data.base import BatchDataset
from scaledl.data.chat import ChatTemplate
from scaledl.data.conversations import ConversationData, Conversations, Row, as_messages
from scaledl.data.documentation import questions, wrong_answers
from scaledl.data.tokenizer import Tokenizer


class Preferences:
    """`input_ids` and `labels` (B, 2, T) of chosen and rejected answers, each as of `Conversations`."""

    def __init__(self, chosen: Conversations, rejected: Conversations):
        self.sides = chosen, rejected
        self.num_tokens = chosen.num_tokens + rejected.num_tokens

    def __len__(self) -> int:
        return len(self.num_tokens)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        return np.maximum(*(side.num_tokens[indices] for side in self.sides))

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        both = [(side, i) for i in indices for side in self.sides]
        ids = pad_sequence([side.ids[i] for side, i in both], batch_first=True)
        labels = pad_sequence([side.labels[i] for side, i in both], batch_first=True, padding_value=-100)
        return {"input_ids": ids.unflatten(0, (-1, 2)), "labels": labels.unflatten(0, (-1, 2))}


class PreferenceData(ConversationData):
    """Rows of `prompt`, `chosen` and `rejected`: texts, or messages (then the prompt may be part of both answers).

    Only the last message of the assistant counts. Without a source, questions about the running Python's library, with
    their answer and that of another question.

    Args:
        tokenizer, chat, seq_len, path, dataset, dataset_config, val_fraction, vocab_size: as of `ConversationData`.
        prompt_column: of files and Hub rows; null where the answers hold the prompt.
        chosen_column: of files and Hub rows.
        rejected_column: of files and Hub rows.
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
        prompt_column: str | None = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        val_fraction: float = 0.1,
        vocab_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(
            tokenizer,
            chat,
            global_batch_size,
            micro_batch_size,
            seq_len,
            path,
            dataset,
            dataset_config,
            val_fraction=val_fraction,
            vocab_size=vocab_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.columns = prompt_column, chosen_column, rejected_column

    def embedded(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {"train": [], "val": []}
        prompt, chosen, rejected = self.columns
        for q in questions():
            found[q.split].append({prompt or "prompt": q.text, chosen: q.answer, rejected: wrong_answers(q, 1)[0]})
        return found

    def conversations(self, row: Row, where: str) -> list[list[Row]]:
        prompt_column, *answers = self.columns
        prompt = _as_messages(row, prompt_column, "prompt_column", where, "user") if prompt_column else []
        found = []
        for column, setting in zip(answers, ("chosen_column", "rejected_column"), strict=True):
            messages = _as_messages(row, column, setting, where, "assistant")
            whole = messages if messages[: len(prompt)] == prompt else [*prompt, *messages]
            if whole[-1]["role"] != "assistant" or len(whole) < 2:
                raise ValueError(f"{where}: {column!r} must end with the assistant's answer to a prompt; correct it")
            found.append(whole)
        return found

    def encoded(self, rows: list[list[list[Row]]]) -> BatchDataset:
        every = self.chat.encode_all(self.tokenizer, [messages for row in rows for messages in row], last_only=True)
        cut = [(ids[: self.seq_len + 1], answers[: self.seq_len + 1]) for ids, answers in every]
        pairs = zip(cut[::2], cut[1::2], strict=True)
        kept = [pair for pair in pairs if all(answers[1:].any() for _, answers in pair)]
        self.num_left_out += len(rows) - len(kept)
        return Preferences(Conversations([pair[0] for pair in kept]), Conversations([pair[1] for pair in kept]))

    @property
    def tokens_per_sample(self) -> int:
        """Of the mean pair, without padding."""
        train = self.split("train")
        return round(train.num_tokens.mean()) if isinstance(train, Preferences) else 0


def _as_messages(row: Row, column: str, setting: str, where: str, role: str) -> list[Row]:
    if isinstance(row.get(column), str):
        return [{"role": role, "content": row[column]}]
    return as_messages(row, column, setting, where)
