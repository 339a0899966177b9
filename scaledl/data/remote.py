"""Files at a URL: s3://, gs://, hf://, https:// and whatever else fsspec knows, read as streams or in ranges."""

import hashlib
import io
import logging
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO

_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "generation", "blob_id")
_STAMPS = ("size", *_TAGS, "LastModified", "Last-Modified", "last_modified", "mtime")
_SIGNATURE = re.compile(r"(^|&)(sig|signature|x-\w+-signature)=", re.IGNORECASE)  # of Azure, CloudFront, S3, GCS
_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "azure", "huggingface_hub", "requests", "httpx")
_PAUSES = (1, 2, 4, 8, 16)  # seconds before another try
_MAY_PASS = (408, 429)  # of the refusals of a web server

log = logging.getLogger(__name__)


def is_url(path: str) -> bool:
    return "://" in path


def without_query(url: str) -> str:
    return _cut(url)[0]


def in_folder(url: str, name: str) -> str:
    """The URL of a file in the folder at a URL, whose query, a signature say, stays."""
    folder, query = _cut(url)
    return f"{folder.rstrip('/')}/{name}" + (f"?{query}" if query else "")


def public(url: str) -> str:
    """A URL without what opens it: user and password, and its query.

    Beside a signature the path names the file; of another query, which may name it, a hash stays.
    """
    url, query = _cut(url)
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    hashed = "?" + hashlib.sha256(query.encode()).hexdigest()[:16] if query and not _SIGNATURE.search(query) else ""
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{hashed}"


def _cut(url: str) -> tuple[str, str]:
    """A URL and its query; in stores a ? is a letter like others."""
    if not url.partition("://")[0].endswith(("http", "https")):
        return url, ""
    before, _, query = url.partition("?")
    return before, query


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


def is_failure(error: Exception) -> bool:
    """Whether a place was not reached or refused: an OSError, or a kind of the library that speaks to it."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def read_bytes(url: str) -> bytes:
    """All of a file; what may pass, a lost connection or a busy server, is waited for half a minute.

    Raises:
        OSError: it was not read.
    """
    files, inside = filesystem(url)
    for pause in (*_PAUSES, None):
        try:
            return files.cat_file(inside)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            if not is_failure(error):
                raise
            what = f"{public(url)} was not read ({type(error).__name__}: {error})"
            status = getattr(error, "status", None) or 500  # of an answer
            if pause is None or (400 <= status < 500 and status not in _MAY_PASS):
                raise OSError(what) from error
            log.warning("%s; again in %d s", what, pause)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")
