"""Which documents are the same text again, by hashes of 128 bits; the first one stays."""

from hashlib import blake2b

import numpy as np


class TextHash:
    """Hashes of documents that come in pieces. White space of any kind and number counts as one space."""

    def __init__(self) -> None:
        self.done: list[bytes] = []
        self.current = blake2b(digest_size=16)
        self.empty = True

    def add(self, text: str, begins: bool) -> None:
        if begins and not self.empty:
            self.done.append(self.current.digest())
            self.current = blake2b(digest_size=16)
        if words := text.split():
            self.current.update(" ".join([*words, ""]).encode())
        self.empty = False

    def finish(self) -> np.ndarray:
        """(documents, 2) uint64."""
        found = [*self.done, *([] if self.empty else [self.current.digest()])]
        return np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2)


def first_of_each(hashes: list[np.ndarray], first: np.ndarray, number: int) -> np.ndarray:
    """(number,) bool: whether a document is the first with its hash.

    Takes 16 bytes a document and some 30 more while they are sorted.

    Args:
        hashes: (documents, 2) uint64 of each part.
        first: (parts,), which document each part begins with. One that lies in several parts has the hash of its
            hashes: it is the same as another only where both are cut in the same places, as equal files are.
    """
    whole = np.zeros((number, 2), np.uint64)
    filled = np.zeros(number, bool)
    for part, begin in zip(hashes, first, strict=True):
        if len(part) and filled[begin]:
            joined = blake2b(whole[begin].tobytes() + part[0].tobytes(), digest_size=16).digest()
            part = np.concatenate([np.frombuffer(joined, np.uint64)[None], part[1:]])
        whole[begin : begin + len(part)] = part
        filled[begin : begin + len(part)] = True
    order = np.lexsort((whole[:, 1], whole[:, 0]))  # stable, so that of equal ones the first stands first
    ordered = whole[order]
    is_first = np.ones(number, bool)
    is_first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return is_first
