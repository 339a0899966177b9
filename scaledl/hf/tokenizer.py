"""Our tokenizers as the files that `AutoTokenizer` reads, and theirs as one of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaledl.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    HubTokenizer,
    SubwordTokenizer,
    Tokenizer,
)
from scaledl.hf.read import settings_of

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_OLDER = ("tokenizer.model", "vocab.json", "spiece.model")  # which transformers turns into a tokenizer.json


def files_of(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, str]:
    """The text of each file, by its name.

    Raises:
        ValueError: the library `tokenizers` has no parts that do the same.
    """
    import tokenizers

    if isinstance(tokenizer, SubwordTokenizer):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    elif isinstance(tokenizer, ByteTokenizer):
        vocabulary = {sign: byte for byte, sign in enumerate(_signs_of_bytes())}
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
    elif isinstance(tokenizer, CharTokenizer):
        characters = tokenizer.codes.tobytes().decode("utf-32-le")
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(characters)}))
        each = tokenizers.Regex(r"[\s\S]")
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(each, "isolated")
        backend.decoder = tokenizers.decoders.Fuse()
    else:
        raise ValueError(f"a {tokenizer.kind} tokenizer cannot be written for transformers; char, byte, bpe and hf can")
    if backend.id_to_token(tokenizer.eos_id) is None:
        backend.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True)])
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    for role, i in (("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id), ("mask", tokenizer.mask_id)):
        if i is not None:
            settings[f"{role}_token"] = backend.id_to_token(i)
    return {FILE: backend.to_str(pretty=True), SETTINGS: json.dumps(settings, indent=2) + "\n"}


def from_folder(folder: Path, config: Mapping[str, Any], name: str) -> Tokenizer | None:
    """The tokenizer of a folder made by `save_pretrained`; None where it holds none.

    Args:
        config: of the model, which may tell the end of a document where the tokenizer does not.
        name: that it is remembered by.

    Raises:
        ValueError: its files cannot be read.
    """
    import tokenizers

    found = HubTokenizer(str(folder))
    if (folder / FILE).is_file():
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises no other
            raise ValueError(
                f"{folder / FILE} is no tokenizer that this version of tokenizers reads: {error}"
            ) from error
        vocabulary = backend.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values()) + 1
        eos = _end_of_document(folder, config, vocabulary, size)
        found._set_backend(backend)
        found.eos_id = size if eos is None else eos
        found.vocab_size = max(size, found.eos_id + 1)
    elif any((folder / file).is_file() for file in _OLDER):
        found.fit(())
    else:
        return None
    found.name = f"{name} (imported)"  # no folder, whose files would be looked at again at every load
    return found


def _end_of_document(folder: Path, config: Mapping[str, Any], vocabulary: dict[str, int], size: int) -> int | None:
    token = _settings(folder / SETTINGS).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str | None):
        raise ValueError(f"{folder / SETTINGS} has eos_token={token!r}, which is no text; copy it again")
    if token in vocabulary:
        return vocabulary[token]
    theirs = [file.get("eos_token_id") for file in (config, _settings(folder / "generation_config.json"))]
    eos = next((i[0] if isinstance(i, list) else i for i in theirs if i not in (None, [])), None)
    limit = max(n for n in (size, config.get("vocab_size")) if isinstance(n, int))
    if eos is not None and (type(eos) is not int or not 0 <= eos < limit):
        raise ValueError(f"{folder} has eos_token_id={eos!r}, which is none of its {limit} ids; copy it again")
    return eos


def _settings(path: Path) -> dict[str, Any]:
    return settings_of(path) if path.is_file() else {}


def _signs_of_bytes() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies: itself where it can be seen (GPT-2)."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]
