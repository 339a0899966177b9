"""Where documents come from: files (text, JSON lines, parquet), a Hugging Face dataset, or the text that Python ships.

A corpus is a stream that can be read again: pairs (document, text), documents counted from 0, a long one in several
pieces, so that no more than a few megabytes of it are in memory.
"""

import codecs
import glob
import gzip
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from scaledl.data import checks

_BLOCK_BYTES = 1 << 20
_ROWS = {".jsonl", ".ndjson", ".parquet"}
_PROSE = {".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml"}
_DATA = {".csv", ".tsv", ".json", ".yaml", ".yml", ".toml"}
_CODE = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go", ".rs", ".rb", ".sh"}
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


class Corpus(Protocol):
    """A source of documents."""

    name: str  # for messages

    def fingerprint(self) -> Any:
        """JSON that changes when the text may have changed; found without reading the text."""

    def pieces(self) -> Iterator[tuple[int, str]]:
        """(document, text), in order, no text empty."""


class Files:
    """A text file is a document, and so is each row of .jsonl or .parquet; any file may be gzipped (.gz)."""

    def __init__(self, name: str, paths: list[Path], text_column: str = "text", encoding: str = "utf-8"):
        self.name, self.paths, self.text_column, self.encoding = name, paths, text_column, encoding

    def fingerprint(self) -> Any:
        stats = [(path, path.stat()) for path in self.paths]
        stamps = [[os.path.abspath(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return {"files": stamps, "text_column": self.text_column, "encoding": self.encoding}

    def pieces(self) -> Iterator[tuple[int, str]]:
        document = -1
        for path in self.paths:
            with _reading(path):
                for is_new, text in self._read(path):
                    document += is_new
                    yield document, text

    def _read(self, path: Path) -> Iterator[tuple[bool, str]]:
        """(begins a document, text)."""
        kind = _kind(path)
        if kind == ".parquet":
            rows = _parquet_rows(path, self.text_column)
        elif kind in _ROWS:
            rows = _json_rows(path, self.text_column)
        else:
            yield from _text_blocks(path, self.encoding)
            return
        yield from ((True, row) for row in rows if row)


class HubDataset:
    """The rows of a dataset of the Hugging Face Hub; the `datasets` library keeps them on disk."""

    def __init__(self, dataset: str, config: str | None, split: str, text_column: str):
        self.name, self.config, self.split, self.text_column = dataset, config, split, text_column

    def fingerprint(self) -> Any:
        # The name alone, so that a node without a network finds what another node has prepared.
        return {"dataset": self.name, "config": self.config, "split": self.split, "text_column": self.text_column}

    def pieces(self) -> Iterator[tuple[int, str]]:
        import datasets

        try:
            rows = datasets.load_dataset(self.name, self.config, split=self.split)
        except Exception as error:  # the library raises a dozen kinds, from DNS failures to bad splits
            raise ValueError(
                f"data.dataset={self.name!r} (config {self.config}, split {self.split!r}) was not loaded: {error}; "
                "check the name or, without a network here, run `scaledl prepare` once where there is one"
            ) from error
        _check_column(self.text_column, rows.column_names, self.name)
        texts = (text for batch in rows.iter(1000) for text in batch[self.text_column] if text)
        yield from enumerate(texts)


class PythonTexts:
    """Real text that every machine has: the running Python's language reference by topic, and its library's code."""

    def __init__(self, kind: Literal["docs", "sources"]):
        self.name = f"the embedded text ({kind} of Python {sys.version.split()[0]})"
        self.kind = kind
        library = Path(sysconfig.get_path("stdlib"))
        code = sorted(library.rglob("*.py")) if kind == "sources" else []
        self.files = Files(self.name, [f for f in code if not _NOT_LIBRARY & set(f.relative_to(library).parts)])

    def fingerprint(self) -> Any:
        return {"embedded": self.kind, "python": sys.version} | self.files.fingerprint()

    def pieces(self) -> Iterator[tuple[int, str]]:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ValueError(f"this Python came without its embedded text ({error}); give data.path") from error
        texts = [text for _, text in sorted(topics.items())]
        yield from enumerate(texts)
        yield from ((len(texts) + document, text) for document, text in self.files.pieces())


def find_corpus(
    path: str | None,
    dataset: str | None,
    dataset_config: str | None,
    dataset_split: str,
    embedded: Literal["docs", "sources"],
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
    return Files(path, _find_files(path), text_column, encoding)


def _find_files(path: str) -> list[Path]:
    """A file, the readable files of a folder (sorted, hidden ones left out), or what a glob matches."""
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
        return files
    files = [Path(found) for found in sorted(glob.glob(str(where), recursive=True)) if Path(found).is_file()]
    if not files:
        raise FileNotFoundError(
            f"data.path={path!r} matches no file (looked from {Path.cwd()}); give a file, a folder or a glob, or "
            "null for the embedded text"
        )
    return files


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise ValueError(f"{path} may not be read by this user; chmod +r it or leave it out") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} was not read: {error}; is it whole and what its name says?") from error


def _text_blocks(path: Path, encoding: str) -> Iterator[tuple[bool, str]]:
    """A text file in blocks that end with a line, so that a subword rarely crosses from one to the next."""
    decoder = codecs.getincrementaldecoder(encoding)()
    is_new, kept, position = True, "", 0
    with _open(path) as file:
        while True:
            block = file.read(_BLOCK_BYTES)
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
            position += len(block)
            text = kept + text
            cut = len(text) if not block else text.rfind("\n") + 1 or len(text)
            text, kept = text[:cut], text[cut:]
            if text:
                yield is_new, text
                is_new = False
            if not block:
                return


def _refuse_binary(path: Path, position: int, block: bytes) -> None:
    if (zero := block.find(b"\0")) >= 0:
        raise ValueError(
            f"{path} is not text: byte {position + zero} is NUL; leave binary files out of "
            "data.path or, if it is UTF-16, set data.encoding=utf-16"
        )


def _json_rows(path: Path, column: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); each line must be an object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a {type(row).__name__}; each line must be an object")
            _check_column(column, list(row), f"{path}:{number}")
            if not isinstance(row[column], str | None):
                raise _not_text(f"{path}:{number}", column, type(row[column]).__name__)
            yield row[column]


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _open(path) as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a parquet file: {error}; is it whole?") from error
        _check_column(column, table.schema_arrow.names, str(path))
        kind = table.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise _not_text(str(path), column, kind)
        for batch in table.iter_batches(batch_size=1000, columns=[column]):
            yield from batch.column(0).to_pylist()


def _check_column(column: str, columns: list[str], where: str) -> None:
    if column not in columns:
        raise ValueError(f"{where}: no column {column!r}; set data.text_column to one of {', '.join(columns)}")


def _not_text(where: str, column: str, kind: object) -> ValueError:
    return ValueError(f"{where}: {column!r} holds {kind}, not text; set data.text_column to a column of text")
