"""Text to token ids and back: characters, bytes, byte-level BPE trained here, or a tokenizer of the Hugging Face Hub.

A tokenizer is fitted once, saved as JSON beside the tokens and in the run directory, and read back from there without
the data and without running any code. Imports little, because every process that tokenises imports this file.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scaledl.atomic import write_text

FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
PADS, MASKS = ("[PAD]", "<pad>"), ("[MASK]", "<mask>")  # as BERT and as RoBERTa write them
UNKNOWN_WORD = "<unk>"
_WORD = re.compile(r"\w+|[^\w\s]")
_UNKNOWN = -1
_BPE_TRAINING_CHARACTERS = 1 << 28  # training holds its word counts in memory; more text hardly changes the merges


class Tokenizer(ABC):
    """Text to ids and back. `vocab_size` and the ids are known after `fit` or a load.

    `eos_id` ends a document. Some vocabularies have a `pad_id`, that fills up short samples, and a `mask_id`, that
    hides a token in masked modelling; no text is encoded as either.
    """

    kind: str
    vocab_size: int = 0
    eos_id: int = 0
    pad_id: int | None = None
    mask_id: int | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the result of `fit`, together with the text: part of the key of the token cache."""
        return {"kind": self.kind}

    def fit(self, texts: Iterable[str]) -> None:  # noqa: B027 (bytes have nothing to learn)
        """Learn the vocabulary."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids (n,) int64, without an end-of-document id."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text; the end-of-document id and ids beyond the vocabulary print nothing, broken UTF-8 prints U+FFFD."""

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def special_id(self, name: str) -> int | None:
        """The id of a special token, which no text is encoded as."""
        return None

    def describe(self) -> dict[str, Any]:
        return self.settings() | {"vocab_size": self.vocab_size, "eos_id": self.eos_id}

    def state(self) -> dict[str, Any]:
        """All of a fitted tokenizer, as JSON."""
        return self.describe()

    def load_state(self, state: dict[str, Any]) -> None:
        self.vocab_size, self.eos_id = state["vocab_size"], state["eos_id"]

    def save(self, folder: Path) -> None:
        write_text(Path(folder) / FILE, json.dumps(self.state(), ensure_ascii=False))


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, then the end of a document: any text, nothing to learn."""

    kind = "byte"
    vocab_size, eos_id = 257, 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, np.int64)
        return ids[ids < self.eos_id].astype(np.uint8).tobytes().decode(errors="replace")


class CharTokenizer(Tokenizer):
    """The sorted characters of the text, then the end of a document."""

    kind = "char"

    def fit(self, texts: Iterable[str]) -> None:
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            seen[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
        self._set_codes(np.flatnonzero(seen))

    def _set_codes(self, codes: np.ndarray) -> None:
        self.codes = codes.astype("<u4")
        self.ids = np.full(0x110000, _UNKNOWN, dtype=np.int64)
        self.ids[codes] = np.arange(len(codes))
        self.vocab_size, self.eos_id = len(codes) + 1, len(codes)

    def encode(self, text: str) -> np.ndarray:
        ids = self.ids[np.frombuffer(text.encode("utf-32-le"), np.uint32)]
        if len(ids) and ids.min() == _UNKNOWN:
            unknown = sorted({text[i] for i in np.flatnonzero(ids == _UNKNOWN)})
            first = ", ".join(repr(character) for character in unknown[:5])
            raise ValueError(
                f"{len(unknown)} character(s) are not among the {self.eos_id} that this tokenizer knows: {first}"
                f"{', ...' if len(unknown) > 5 else ''}; remove them or train with data/tokenizer=byte (any text)"
            )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, np.int64)
        return self.codes[ids[ids < self.eos_id]].tobytes().decode("utf-32-le")

    def state(self) -> dict[str, Any]:
        return self.describe() | {"characters": self.codes.tobytes().decode("utf-32-le")}

    def load_state(self, state: dict[str, Any]) -> None:
        self._set_codes(np.frombuffer(state["characters"].encode("utf-32-le"), np.uint32))


class SubwordTokenizer(Tokenizer):
    """What BPE and Hub tokenizers share: a `tokenizers.Tokenizer` (Rust) that does the work."""

    def _set_backend(self, backend: Any) -> None:
        backend.encode_special_tokens = True  # a document that quotes <|endoftext|> must not end there
        self.backend = backend
        self.pad_id, self.mask_id = (
            next((i for name in names if (i := backend.token_to_id(name)) is not None), None) for names in (PADS, MASKS)
        )

    def encode(self, text: str) -> np.ndarray:
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        # array: a fifth of what np.array takes for a list of ints
        return [np.frombuffer(array("I", each.ids), np.uint32).astype(np.int64) for each in encoded]

    def special_id(self, name: str) -> int | None:
        return self._special.get(name)

    @cached_property
    def _special(self) -> dict[str, int]:
        return {token.content: i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.backend.decode([i for i in np.asarray(ids).tolist() if i != self.eos_id], skip_special_tokens=True)

    def state(self) -> dict[str, Any]:
        return self.describe() | {"backend": json.loads(self.backend.to_str())}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._set_backend(_tokenizers().Tokenizer.from_str(json.dumps(state["backend"])))


class BpeTokenizer(SubwordTokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes as in GPT-2); the last id ends a document.

    Args:
        vocab_size: 256 bytes, merges and the end of a document; a short text may have fewer merges to learn.
        masked: the first two ids are padding and the mask of masked modelling.
    """

    kind = "bpe"

    def __init__(self, vocab_size: int = 1024, masked: bool = False):
        least = 259 if masked else 257
        if vocab_size < least:
            held = "256 bytes, padding, the mask" if masked else "256 bytes"
            raise ValueError(f"BPE vocab_size={vocab_size} is below {least} ({held} and an end of document); raise it")
        self.wanted, self.masked = vocab_size, masked

    def settings(self) -> dict[str, Any]:
        plain = {"kind": self.kind, "wanted": self.wanted}  # as it was before there was a mask: the key of old caches
        return plain | {"masked": True} if self.masked else plain

    def fit(self, texts: Iterable[str]) -> None:
        library = _tokenizers()
        backend = library.Tokenizer(library.models.BPE())
        backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = library.decoders.ByteLevel()
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
        train = library.trainers.BpeTrainer
        special = [PADS[0], MASKS[0]] if self.masked else []
        trainer = train(
            vocab_size=self.wanted - 1, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        )
        backend.train_from_iterator(_first(texts, _BPE_TRAINING_CHARACTERS), trainer)
        backend.add_special_tokens([library.AddedToken(END_OF_TEXT, special=True)])
        self._set_backend(backend)
        self.vocab_size = backend.get_vocab_size()
        self.eos_id = self.vocab_size - 1

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.wanted, self.masked = state["wanted"], state.get("masked", False)


class HubTokenizer(SubwordTokenizer):
    """A trained tokenizer by name on the Hugging Face Hub or by the folder it was saved in (needs `transformers`)."""

    kind = "hf"

    def __init__(self, name: str):
        self.name = name

    def settings(self) -> dict[str, Any]:
        folder = Path(self.name)
        files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
        stamps = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        return {"kind": self.kind, "name": self.name, "files": stamps}

    def fit(self, texts: Iterable[str]) -> None:
        _tokenizers()
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError(
                f"tokenizer {self.name!r} needs transformers; pip install 'scaledl[hf]', or take data/tokenizer=bpe"
            ) from error
        try:
            found = AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer {self.name!r} was not loaded: {str(error).splitlines()[0]}; give a name on the Hugging "
                "Face Hub (reached or cached from this machine) or a folder made by save_pretrained"
            ) from error
        if not found.is_fast:
            raise ValueError(f"tokenizer {self.name!r} has no fast version; choose one that has, or data/tokenizer=bpe")
        self._set_backend(found.backend_tokenizer)
        self.vocab_size = max(self.backend.get_vocab(with_added_tokens=True).values()) + 1
        known = [i for i in (found.eos_token_id, found.sep_token_id) if i is not None]
        self.eos_id = known[0] if known else self.vocab_size
        self.vocab_size = max(self.vocab_size, self.eos_id + 1)

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.name = state["name"]


class WordTokenizer(Tokenizer):
    """Words and single signs between them, the most frequent first; id 0 is padding, id 1 stands for any other word.

    Args:
        min_count: how often a word must occur in the text to have an id.
        max_words: how many have one, at most; null = all.
        lower: read capitals as small letters.
    """

    kind = "words"
    eos_id, pad_id = 0, 0

    def __init__(self, min_count: int = 2, max_words: int | None = None, lower: bool = True):
        self.min_count, self.max_words, self.lower = min_count, max_words, lower

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "min_count": self.min_count, "max_words": self.max_words, "lower": self.lower}

    def fit(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in self._words(text))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        self._set_words([word for word, count in ordered[: self.max_words] if count >= self.min_count])

    def _words(self, text: str) -> list[str]:
        return _WORD.findall(text.lower() if self.lower else text)

    def _set_words(self, words: list[str]) -> None:
        self.words = [PADS[1], UNKNOWN_WORD, *words]
        self.ids = {word: i for i, word in enumerate(words, start=2)}
        self.vocab_size = len(self.words)

    def encode(self, text: str) -> np.ndarray:
        return np.array([self.ids.get(word, 1) for word in self._words(text)], dtype=np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return " ".join(self.words[i] for i in np.asarray(ids).tolist() if 0 < i < self.vocab_size)

    def state(self) -> dict[str, Any]:
        return self.describe() | {"words": self.words[2:]}

    def load_state(self, state: dict[str, Any]) -> None:
        self.__init__(state["min_count"], state["max_words"], state["lower"])  # type: ignore[misc]
        self._set_words(state["words"])


class SavedTokenizer(Tokenizer):
    """The tokenizer of an earlier run, for a model that was trained on its ids.

    Args:
        path: the run directory.
    """

    kind = "saved"

    def __init__(self, path: str | None):
        self.path = path

    @cached_property
    def saved(self) -> Tokenizer:
        if self.path is None:
            raise ValueError("data.tokenizer.path=null: give the run whose tokenizer this is, or init_from=RUN")
        return load_tokenizer(Path(self.path).expanduser())

    def settings(self) -> dict[str, Any]:
        return self.saved.state()

    def fit(self, texts: Iterable[str]) -> None:
        saved = self.saved
        self.kind, self.vocab_size = saved.kind, saved.vocab_size
        self.eos_id, self.pad_id, self.mask_id = saved.eos_id, saved.pad_id, saved.mask_id

    def encode(self, text: str) -> np.ndarray:
        return self.saved.encode(text)

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        return self.saved.encode_all(texts)

    def special_id(self, name: str) -> int | None:
        return self.saved.special_id(name)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.saved.decode(ids)

    def describe(self) -> dict[str, Any]:
        return self.saved.describe()

    def state(self) -> dict[str, Any]:
        return self.saved.state()


def first_ids(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """Ids to begin with: those of the prompt or, without one, a new line where the tokenizer knows it."""
    try:
        ids = tokenizer.encode("\n" if prompt is None else prompt).tolist()
    except ValueError:
        if prompt is not None:
            raise
        ids = []
    return ids or [tokenizer.eos_id]


def stream_text(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids that come one by one, in whole characters: bytes of an unfinished one wait for the next id."""
    seen: list[int] = []
    start, shown = 0, 0  # seen[start:shown] is out already, and kept because a decoder may join tokens by what precedes
    before = ""
    for i in ids:
        seen.append(int(i))
        now = tokenizer.decode(seen[start:])
        if now != before and not now.endswith("\ufffd"):
            yield now[len(before) :]
            start, shown = shown, len(seen)
            before = tokenizer.decode(seen[start:shown])
    rest = tokenizer.decode(seen[start:])[len(before) :]
    if rest:
        yield rest


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that was saved in `folder` (a run directory, a token cache)."""
    path = Path(folder) / FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        made: Tokenizer
        match state["kind"]:
            case "byte":
                made = ByteTokenizer()
            case "char":
                made = CharTokenizer()
            case "bpe":
                made = BpeTokenizer(state["wanted"])
            case "hf":
                made = HubTokenizer(state["name"])
            case "words":
                made = WordTokenizer()
            case other:
                raise ValueError(f"unknown kind {other!r}")
        made.load_state(state)
    except FileNotFoundError:
        raise FileNotFoundError(f"no {FILE} in {folder}; give the directory of a run trained on text") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no tokenizer saved by scaledl ({error}); copy it again") from error
    return made


def _tokenizers() -> Any:
    # Set, it keeps the library from a warning at every later fork (loader workers), which never tokenise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            return
