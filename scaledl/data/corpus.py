"""Where documents come from: files (text, JSON lines, parquet), here or at a URL, a Hugging Face dataset, or the text
that Python ships.

A corpus is cut into parts that any process can read by itself: runs of files, byte ranges of one, row groups. Where the
cuts lie is a function of the corpus alone. A part is a stream of texts, a long document in several pieces, so that no
more than a few megabytes of it are in memory.
"""

import codecs
import glob
import gzip
import json
import os
import sys
import sysconfig
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

from scaledl.data import checks, remote

PART_BYTES = 1 << 21  # at least, where there is so much
_LARGE_PART_BYTES = 1 << 26  # what an interruption may cost a process, up to MAX_PARTS of it
_FEW_PARTS, MAX_PARTS = 64, 400  # a part becomes a shard of each split, each a file that stays open
_BLOCK_BYTES = 1 << 20
_LINES_ARE_BYTES = {"utf-8", "iso8859-1", "ascii", "cp1252"}  # a byte 10 ends a line there, and nothing else
_ROWS = {".jsonl", ".ndjson", ".parquet"}
_PROSE = {".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml"}
_DATA = {".csv", ".tsv", ".json", ".yaml", ".yml", ".toml"}
_CODE = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh"}
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


class Corpus(ABC):
    """A source of documents. It is sent to other processes."""

    name: str  # for messages

    @abstractmethod
    def fingerprint(self) -> Any:
        """JSON that changes when the text may have changed; found without reading the text."""

    def parts(self) -> list[Any]:
        """What `read` takes, one after the other, as JSON."""
        return [None]

    @abstractmethod
    def read(self, part: Any) -> Iterator[tuple[bool, str]]:
        """(begins a document, text), in order, no text empty."""

    def pieces(self) -> Iterator[tuple[int, str]]:
        """(document, text) of the whole, documents counted from 0."""
        document = -1
        for part in self.parts():
            for begins, text in self.read(part):
                document += begins
                yield document, text


def part_bytes(total: int) -> int:
    """How much a part of a corpus of so many bytes holds: some dozens of parts, and not too small or large ones."""
    return max(PART_BYTES, min(_LARGE_PART_BYTES, total // _FEW_PARTS), -(-total // MAX_PARTS))


class Files(Corpus):
    """A text file is a document, and so is each row of .jsonl or .parquet; any file may be gzipped (.gz), or a URL."""

    def __init__(self, name: str, paths: list[Path | str], text_column: str = "text", encoding: str = "utf-8"):
        self.name, self.paths, self.text_column, self.encoding = name, paths, text_column, encoding

    def fingerprint(self) -> Any:
        stamps = [
            [remote.public(path), *remote.stamp(path)]
            if isinstance(path, str)
            else [os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns]
            for path in self.paths
        ]
        return {"files": stamps, "text_column": self.text_column, "encoding": self.encoding}

    def parts(self) -> list[Any]:
        """Lists of [file, first, last]: bytes or row groups; lines belong to where they begin. Last null: the whole."""
        sizes = [remote.size(path) if isinstance(path, str) else path.stat().st_size for path in self.paths]
        size = part_bytes(sum(sizes))
        parts: list[Any] = [[]]
        filled = 0
        for number, path in enumerate(self.paths):
            with _reading(path):
                for first, last, length in self._spans(path, sizes[number], size):
                    if filled >= size:
                        parts.append([])
                        filled = 0
                    parts[-1].append([number, first, last])
                    filled += length
        return parts

    def _spans(self, path: Path | str, length: int, size: int) -> Iterator[tuple[int, int | None, int]]:
        """(first, last, bytes) of what a file is cut into."""
        kind = _kind(path)
        if length <= size or _suffix(path) == ".gz":
            yield 0, None, length
        elif kind == ".parquet":
            yield from _row_groups(path, size)
        elif codecs.lookup("utf-8" if kind in _ROWS else self.encoding).name not in _LINES_ARE_BYTES or (
            isinstance(path, str) and not remote.has_ranges(path)
        ):
            yield 0, None, length
        else:
            for first in range(0, length, size):
                yield first, min(first + size, length), min(size, length - first)

    def read(self, part: Any) -> Iterator[tuple[bool, str]]:
        for number, first, last in part:
            with _reading(self.paths[number]):
                yield from self._read(self.paths[number], first, last)

    def _read(self, path: Path | str, first: int, last: int | None) -> Iterator[tuple[bool, str]]:
        kind = _kind(path)
        if kind == ".parquet":
            rows = _parquet_rows(path, self.text_column, first, last)
        elif kind in _ROWS:
            rows = _json_rows(path, self.text_column, first, last)
        else:
            yield from _text_blocks(path, self.encoding, first, last)
            return
        yield from ((True, row) for row in rows if row)


class HubDataset(Corpus):
    """The rows of a dataset of the Hugging Face Hub; the `datasets` library keeps them on disk."""

    def __init__(self, dataset: str, config: str | None, split: str, text_column: str):
        self.name, self.config, self.split, self.text_column = dataset, config, split, text_column

    def fingerprint(self) -> Any:
        # The name alone, so that a node without a network finds what another node has prepared.
        return {"dataset": self.name, "config": self.config, "split": self.split, "text_column": self.text_column}

    @cached_property
    def rows(self) -> Any:
        """Travels to other processes as the names of the files that it maps."""
        import datasets

        try:
            rows = datasets.load_dataset(self.name, self.config, split=self.split)
        except Exception as error:  # the library raises a dozen kinds, from DNS failures to bad splits
            raise ValueError(
                f"data.dataset={self.name!r} (config {self.config}, split {self.split!r}) was not loaded: {error}; "
                "check the name or, without a network here, run `scaledl prepare` once where there is one"
            ) from error
        _check_column(self.text_column, rows.column_names, self.name)
        return rows

    def parts(self) -> list[Any]:
        """[the data's own fingerprint, first row, last row]."""
        number = max(1, min(len(self.rows), self.rows.data.nbytes // part_bytes(self.rows.data.nbytes)))
        edges = [len(self.rows) * part // number for part in range(number + 1)]
        return [[self.rows._fingerprint, first, last] for first, last in pairwise(edges)]

    def read(self, part: Any) -> Iterator[tuple[bool, str]]:
        _, first, last = part
        rows = self.rows.select(range(first, last))
        yield from ((True, text) for batch in rows.iter(1000) for text in batch[self.text_column] if text)


class PythonTexts(Corpus):
    """Real text that every machine has: the running Python's language reference by topic, and its library's code.

    `sources` is both, `library` the code alone.
    """

    def __init__(self, kind: Literal["docs", "sources", "library"]):
        self.name = f"the embedded text ({kind} of Python {sys.version.split()[0]})"
        self.kind = kind
        library = Path(sysconfig.get_path("stdlib"))
        code = [] if kind == "docs" else sorted(library.rglob("*.py"))
        paths: list[Path | str] = [f for f in code if not _NOT_LIBRARY & set(f.relative_to(library).parts)]
        self.files = Files(self.name, paths)

    def fingerprint(self) -> Any:
        return {"embedded": self.kind, "python": sys.version} | self.files.fingerprint()

    def parts(self) -> list[Any]:
        return [None] * (self.kind != "library") + (self.files.parts() if self.files.paths else [])

    def read(self, part: Any) -> Iterator[tuple[bool, str]]:
        if part is not None:
            yield from self.files.read(part)
            return
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ValueError(f"this Python came without its embedded text ({error}); give data.path") from error
        yield from ((True, text) for _, text in sorted(topics.items()))


def find_corpus(
    path: str | None,
    dataset: str | None,
    dataset_config: str | None,
    dataset_split: str,
    embedded: Literal["docs", "sources", "library"],
    text_column: str,
    encoding: str,
) -> Corpus:
    checks.one_source(path, dataset)
    if dataset:
        return HubDataset(dataset, dataset_config, dataset_split, text_column)
    if not path:
        return PythonTexts(embedded)
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"data.encoding={encoding!r} is unknown; utf-8 and latin-1 are two that are") from None
    name = remote.public(path) if remote.is_url(path) else path
    return Files(name, _find_files(path), text_column, encoding)


def _find_files(path: str) -> list[Path | str]:
    """A file, the readable files of a folder (sorted, hidden ones left out), or what a glob matches."""
    if remote.is_url(path):
        found: list[Path | str] = [*remote.find(path, lambda name: _kind(name) in _PROSE | _DATA | _CODE | _ROWS)]
        return found
    where = Path(os.path.expandvars(path)).expanduser()
    if where.is_file():
        return [where]
    if where.is_dir():
        inside = sorted(file for file in where.rglob("*") if file.is_file())
        wanted = _PROSE | _DATA | _CODE | _ROWS
        files = [f for f in inside if _kind(f) in wanted and not any(p[0] == "." for p in f.relative_to(where).parts)]
        if not files:
            raise ValueError(
                f"data.path={path!r} is a folder with no text among its {len(inside)} file(s); known endings are "
                f"{' '.join(sorted(wanted))} (also with .gz); name others by a glob: data.path='{path}/*.log'"
            )
        return [*files]
    files = [Path(found) for found in sorted(glob.glob(str(where), recursive=True)) if Path(found).is_file()]
    if not files:
        raise FileNotFoundError(
            f"data.path={path!r} matches no file (looked from {Path.cwd()}); give a file, a folder or a glob, or "
            "null for the embedded text"
        )
    return [*files]


def _suffix(path: Path | str) -> str:
    return Path(remote.without_query(path) if isinstance(path, str) else path).suffix


def _kind(path: Path | str) -> str:
    name = Path(remote.without_query(path) if isinstance(path, str) else path)
    return (name.with_suffix("") if name.suffix == ".gz" else name).suffix.lower()


def _open(path: Path | str) -> BinaryIO:
    if isinstance(path, str):
        file = remote.open_file(path)
        return gzip.open(file, "rb") if _suffix(path) == ".gz" else file  # type: ignore[return-value]
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(path, Path) and isinstance(error, PermissionError):
            raise ValueError(f"{path} may not be read by this user; chmod +r it or leave it out") from error
        # A lost network or disk may come back, so what is made already must be kept, as it is for an OSError alone. Of
        # local files, the system's errors have a number; those of gzip and parquet, which find a file wrong, have none.
        lost = remote.is_failure(error) if isinstance(path, str) else getattr(error, "errno", None) is not None
        if lost and not isinstance(error, gzip.BadGzipFile):
            raise OSError(f"{path} was not read: {error or type(error).__name__}; start again to go on") from error
        if isinstance(error, OSError | EOFError | zlib.error):
            raise ValueError(f"{path} was not read: {error}; is it whole and what its name says?") from error
        raise


def _to_line(file: BinaryIO, first: int) -> int:
    """Go to the first line that begins at byte `first` or after it, and tell where that is."""
    if not first:
        return 0
    position = file.seek(first - 1)
    while line := file.readline(_BLOCK_BYTES):
        position += len(line)
        if line.endswith(b"\n"):
            break
    return position


def _blocks(file: BinaryIO, first: int, last: int | None) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) of the lines that begin in [first, last), and no bytes at the end."""
    position, block = _to_line(file, first), b"\n"
    while last is None or position < last:
        block = file.read(_BLOCK_BYTES if last is None else min(_BLOCK_BYTES, last - position))
        if not block:
            break
        yield position, block
        position += len(block)
    while block and not block.endswith(b"\n"):
        block = file.readline(_BLOCK_BYTES)
        if block:
            yield position, block
            position += len(block)
    yield position, b""


def _text_blocks(path: Path | str, encoding: str, first: int, last: int | None) -> Iterator[tuple[bool, str]]:
    """A text file in blocks that end with a line, so that a subword rarely crosses from one to the next."""
    decoder = codecs.getincrementaldecoder(encoding)()
    is_new, kept = first == 0, ""
    with _open(path) as file:
        for position, block in _blocks(file, first, last):
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                _refuse_binary(path, position, block)
                raise ValueError(
                    f"{path} is not {encoding}: byte {position - waiting + error.start} is "
                    f"0x{error.object[error.start]:02x} ({error.reason}); name its encoding, as in "
                    "data.encoding=latin-1 (there every byte is a character), or convert it (iconv -t utf-8)"
                ) from error
            if "\0" in text:
                _refuse_binary(path, position, block)
            text = kept + text
            cut = len(text) if not block else text.rfind("\n") + 1 or len(text)
            text, kept = text[:cut], text[cut:]
            if text:
                yield is_new, text
                is_new = False


def _refuse_binary(path: Path | str, position: int, block: bytes) -> None:
    if (zero := block.find(b"\0")) >= 0:
        raise ValueError(
            f"{path} is not text: byte {position + zero} is NUL; leave binary files out of "
            "data.path or, if it is UTF-16, set data.encoding=utf-16"
        )


def _json_rows(path: Path | str, column: str, first: int, last: int | None) -> Iterator[str]:
    with _open(path) as file:
        position = _to_line(file, first)
        for number, line in enumerate(file, start=1):
            if last is not None and position >= last:
                return
            position += len(line)
            if line.isspace():
                continue
            problem = None
            try:
                row = json.loads(line)
            except ValueError as error:
                problem = f"not JSON ({error})"
            else:
                if not isinstance(row, dict):
                    problem = f"a {type(row).__name__}"
            if problem or column not in row or not isinstance(row[column], str | None):
                at = f"{path}:{number + _lines_before(path, first)}"
                if problem:
                    raise ValueError(f"{at}: {problem}; each line must be an object")
                _check_column(column, list(row), at)
                raise _not_text(at, column, type(row[column]).__name__)
            yield row[column]


def _lines_before(path: Path | str, first: int) -> int:
    """How many lines begin before the one that a part at byte `first` begins with."""
    if not first:
        return 0
    with _open(path) as file:
        end = _to_line(file, first)
        file.seek(0)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(min(1 << 20, end - file.tell())), b""))


@contextmanager
def _parquet(path: Path | str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(path) as file:
        try:
            yield pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a parquet file: {error}; is it whole?") from error


def _row_groups(path: Path | str, size: int) -> Iterator[tuple[int, int | None, int]]:
    """(first, last, bytes) of row groups taken together until they fill a part."""
    with _parquet(path) as table:
        sizes = [table.metadata.row_group(group).total_byte_size for group in range(table.num_row_groups)]
    first, filled = 0, 0
    for group, length in enumerate(sizes, start=1):
        filled += length
        if filled >= size or group == len(sizes):
            yield first, group, filled
            first, filled = group, 0


def _parquet_rows(path: Path | str, column: str, first: int, last: int | None) -> Iterator[str]:
    import pyarrow as pa

    with _parquet(path) as table:
        _check_column(column, table.schema_arrow.names, str(path))
        kind = table.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise _not_text(str(path), column, kind)
        groups = list(range(first, table.num_row_groups if last is None else last))
        for batch in table.iter_batches(batch_size=1000, row_groups=groups, columns=[column]):
            yield from batch.column(0).to_pylist()


def _check_column(column: str, columns: list[str], where: str) -> None:
    if column not in columns:
        raise ValueError(f"{where}: no column {column!r}; set data.text_column to one of {', '.join(columns)}")


def _not_text(where: str, column: str, kind: object) -> ValueError:
    return ValueError(f"{where}: {column!r} holds {kind}, not text; set data.text_column to a column of text")
