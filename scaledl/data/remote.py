"""Files at a URL: s3://, gs://, hf://, https:// and whatever else fsspec knows, read as streams or in ranges."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO

_STAMPS = ("size", "ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "last_modified", "mtime")


def is_url(path: str) -> bool:
    return "://" in path


def without_query(url: str) -> str:
    return url.partition("?")[0] if url.startswith("http") else url


def filesystem(url: str) -> tuple[Any, str]:
    """What reads a URL, and the path within it."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be read: {error}; fsspec needs a package for it: s3fs for s3://, gcsfs for gs://, "
            "huggingface_hub for hf://, aiohttp for https://"
        ) from error


def find(path: str, is_text: Callable[[str], bool]) -> list[str]:
    """URLs of a file, of what a glob matches, or of the texts below a folder; sorted."""
    files, inside = filesystem(path)
    if files.isfile(inside):
        return [path]
    if "*" in inside:
        found = sorted(name for name, info in files.glob(inside, detail=True).items() if info["type"] == "file")
    else:
        found = sorted(name for name in files.find(inside) if is_text(name)) if files.isdir(inside) else []
    if not found:
        raise FileNotFoundError(f"data.path={path!r} matches no file there; give a file, a folder or a glob")
    return [files.unstrip_protocol(name) for name in found]


def _info(url: str) -> dict[str, Any]:
    files, inside = filesystem(url)
    return files.info(inside)


def stamp(url: str) -> list[Any]:
    """What changes with the content, as far as the place tells: size, tag, date."""
    found = _info(url)
    return [[name, str(found[name])] for name in _STAMPS if found.get(name) is not None]


def size(url: str) -> int:
    """Bytes; 0 where the place does not tell."""
    return _info(url).get("size") or 0


@cache
def has_ranges(url: str) -> bool:
    """Whether a part can be read alone; some web servers send files only as a whole."""
    if not url.startswith("http"):
        return True
    files, inside = filesystem(url)
    if size(url) < 2:
        return False
    try:
        with files.open(inside, "rb", block_size=1, cache_type="none") as file:
            file.seek(1)
            return len(file.read(1)) == 1
    except ValueError:
        return False


def open_file(url: str) -> BinaryIO:
    files, inside = filesystem(url)
    whole = {} if has_ranges(url) else {"block_size": 0}  # as one stream
    return io.BufferedReader(files.open(inside, "rb", **whole), 1 << 20)  # its lines are found faster than fsspec's


def read_bytes(url: str) -> bytes:
    files, inside = filesystem(url)
    return files.cat_file(inside)
