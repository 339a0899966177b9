"""Files and folders that are whole or not there: written beside, then renamed over."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace what `path` holds; a kill at any moment leaves the old file or the new one."""
    # Not the process's number: containers on different nodes that share a folder often have the same.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder beside `to` that becomes it at the end; what goes wrong before leaves nothing."""
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f".{to.name}.{secrets.token_hex(8)}.tmp")
    beside.mkdir()
    try:
        yield beside
        os.replace(beside, to)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def clear(folder: Path) -> None:
    """Remove what kills have left half written in a folder. Nobody may be writing there."""
    for beside in folder.glob(".*.tmp"):
        if beside.is_file():
            beside.unlink(missing_ok=True)
