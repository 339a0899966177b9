"""How a chat is written: conversations as token ids, with a mask of what the assistant says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from scaledl.data.tokenizer import Tokenizer

_MARKERS = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])")  # <|user|>, <start_of_turn>, [INST]
_AT_ONCE = 1000  # conversations that are encoded together
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
Message = Mapping[str, str]  # role, one of ROLES, and content


class ChatTemplate:
    """How messages become a sequence: begin, then of each message before, content, end, after.

    A marker such as <|user|> is one id where the tokenizer has a special token of that name, else its text. What a
    message contains is text only, so that nobody can write a special token into it; a role is a part of markers.

    Args:
        begin: of a conversation.
        before: of a message; {role} stands for who speaks.
        end: what the assistant learns to end its messages with; null: the tokenizer's end of a document.
        after: between the end of a message and the next.
    """

    def __init__(
        self, begin: str = "", before: str = "<|{role}|>\n", end: str | None = None, after: str = "\n"
    ) -> None:
        self.begin, self.before, self.end, self.after = begin, before, end, after

    def end_ids(self, tokenizer: Tokenizer) -> list[int]:
        return [tokenizer.eos_id] if self.end is None else _marked(tokenizer, self.end)

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """Ids (n,) of a conversation, and (n,) which of them the assistant writes: its words and their end."""
        return next(self.encode_all(tokenizer, [messages]))

    def encode_all(
        self, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], last_only: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `encode` gives for each, and faster: a tokenizer reads many texts at a time in parallel.

        last_only: only the last message of a conversation counts as what the assistant writes.
        """
        for begin in range(0, len(conversations), _AT_ONCE):
            part = conversations[begin : begin + _AT_ONCE]
            contents = iter(tokenizer.encode_all([message["content"] for messages in part for message in messages]))
            for messages in part:
                yield self._joined(tokenizer, messages, contents, last_only)

    def _joined(
        self, tokenizer: Tokenizer, messages: Sequence[Message], contents: Iterator[np.ndarray], last_only: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        ids = list(_marked(tokenizer, self.begin))
        answers = [False] * len(ids)
        for number, message in enumerate(messages, start=1):
            own = message["role"] == "assistant" and (number == len(messages) or not last_only)
            parts = (
                (_marked(tokenizer, self.before.format(role=message["role"])), False),
                (next(contents).tolist(), own),
                (self.end_ids(tokenizer), own),
                (_marked(tokenizer, self.after), False),
            )
            for part, counts in parts:
                ids += part
                answers += [counts] * len(part)
        return np.array(ids, dtype=np.int64), np.array(answers, dtype=bool)

    def prompt(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that the assistant is to go on with."""
        ids, _ = self.encode(tokenizer, messages)
        return ids.tolist() + _marked(tokenizer, self.before.format(role="assistant"))

    def texts(self, messages: Sequence[Message]) -> str:
        """What a tokenizer that is trained on conversations learns from one."""
        every = (f"{self.before.format(role=m['role'])}{m['content']}{self.end or ''}{self.after}" for m in messages)
        return self.begin + "".join(every)


@lru_cache(maxsize=64)
def _marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a part of the template, which every conversation has."""
    ids: list[int] = []
    for part in filter(None, _MARKERS.split(text)):
        known = tokenizer.special_id(part)
        ids += tokenizer.encode(part).tolist() if known is None else [known]
    return ids
