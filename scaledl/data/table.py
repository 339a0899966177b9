"""Tables: a row is a sample, a column what is to be predicted."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from sklearn import datasets as sklearn_datasets
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split

from scaledl.data import checks
from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples

Dataset = Literal["iris", "wine", "breast_cancer", "diabetes"]
LARGEST_NUMBER_OF_CLASSES = 20  # that whole numbers are taken for, if nothing else is said


class Table(Data):
    """Rows x (B, in_dim) float32, and of each a class y (B,) int64 or a number y (B,) float32.

    Numbers are standardised by the training rows, the target too, so that a regression's errors are in standard
    deviations. Text and true/false are categories; one that no training row has is all zeros. The split is stratified
    by class and does not depend on the seed.

    Args:
        dataset: one of scikit-learn's, if there is no path.
        path: a .csv (.tsv, also .gz) with names in its first row, or a .parquet file.
        target: the column of a file to predict.
        columns: the columns of a file to read; null = all others.
        kind: what to predict; "auto" = classes if the target is text, true/false or at most 20 whole numbers.
        categories: "one_hot", or "codes": the place in alphabetical order, standardised as a number.
        missing: of numbers: "error", or "mean", that of the training rows.
        val_fraction, test_fraction: of all rows.
        in_dim, out_dim, num_classes: null = found out; a regression has 0 classes.

    Raises:
        ValueError: the table has no rows to split, or holes; a column is missing or no number nor category.
    """

    def __init__(
        self,
        global_batch_size: int,
        micro_batch_size: int,
        dataset: Dataset | None = None,
        path: str | None = None,
        target: str | None = None,
        columns: list[str] | None = None,
        kind: Literal["auto", "class", "number"] = "auto",
        categories: Literal["one_hot", "codes"] = "one_hot",
        missing: Literal["error", "mean"] = "error",
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        in_dim: int | None = None,
        out_dim: int | None = None,
        num_classes: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        if (dataset is None) == (path is None):
            raise ValueError(f"data.dataset={dataset} and data.path={path}: give one of them, and leave the other null")
        if path is not None and target is None:
            raise ValueError(f"data.path={path} needs data.target, the column to predict")
        checks.held_out(val_fraction, test_fraction)
        self.dataset, self.path, self.target, self.columns = dataset, path, target, columns
        self.kind, self.categories, self.missing = kind, categories, missing
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.given = {"in_dim": in_dim, "out_dim": out_dim, "num_classes": num_classes}
        self.name = dataset or str(path)
        self.classes: list[Any] = []
        self.feature_names: list[str] = []  # of the in_dim values; a category's are numbered
        self._splits: dict[str, Samples] = {}

    def prepare(self) -> None:
        if self._splits:
            return
        table, self.target = _of_sklearn(self.dataset) if self.dataset else (read_table(str(self.path)), self.target)
        y = self._target(column_of(table, str(self.target), self.name))
        rows = self._rows(y)
        names = [name for name in self.columns or table.column_names if name != self.target]
        parts = [self._feature(column_of(table, name, self.name), name, rows["train"]) for name in names]
        x = np.concatenate(parts, 1)
        widths = zip(names, (part.shape[1] for part in parts), strict=True)
        self.feature_names = [f"{name} #{i}" if n > 1 else name for name, n in widths for i in range(1, n + 1)]
        if not self.classes:
            y = ((y - y[rows["train"]].mean()) / (y[rows["train"]].std() or 1.0)).astype(np.float32)
        self._splits = {split: Samples(x[chosen], y[chosen]) for split, chosen in rows.items()}
        for name, given in self.given.items():
            if given not in (None, self.facts()[name]):
                raise ValueError(f"data.{name}={given}, but {self.name} has {self.facts()[name]}; set it to null")

    def facts(self) -> dict[str, int]:
        num_classes = len(self.classes)
        in_dim = self._splits["train"].x.shape[1]
        return {"in_dim": in_dim, "out_dim": num_classes or 1, "num_classes": num_classes}

    def describe(self) -> str:
        what = f"{len(self.classes)} classes" if self.classes else "a number"
        return f"{self.name}: {what} ({self.target}) from {self.facts()['in_dim']} values"

    def datasets(self) -> dict[str, BatchDataset]:
        return dict(self._splits)

    def baselines(self) -> dict[str, float]:
        """The commonest class or the mean, and a linear model, on the test split (else the validation split)."""
        split = "test" if "test" in self._splits else "val"
        if split not in self._splits:
            return {}
        train, held_out = self._splits["train"], self._splits[split]
        train_x, train_y, x, y = (part.numpy() for part in (train.x, train.y, held_out.x, held_out.y))
        if self.classes:
            linear = LogisticRegression(max_iter=1000).fit(train_x, train_y)
            commonest = np.bincount(train_y).argmax()
            return {
                f"commonest class {split}/acc": float((y == commonest).mean()),
                f"logistic regression {split}/acc": float(linear.score(x, y)),
            }
        wrong = {"mean": y, "linear regression": y - LinearRegression().fit(train_x, train_y).predict(x)}
        return {f"{name} {split}/rmse": float(np.sqrt((error**2).mean())) for name, error in wrong.items()}

    def _target(self, column: pa.ChunkedArray) -> np.ndarray:
        """(N,): class numbers, with their names in `self.classes`, or float64."""
        holes = pc.sum(pc.is_null(column, nan_is_null=True)).as_py()
        if holes:
            raise ValueError(
                f"{self.name}: {holes} of {len(column)} rows have no {self.target}, which is to be "
                "predicted; remove them"
            )
        few = pa.types.is_integer(column.type) and len(column.unique()) <= LARGEST_NUMBER_OF_CLASSES
        if self.kind == "number" or (self.kind == "auto" and not _is_category(column) and not few):
            y = numbers_of(column, str(self.target), self.name)
            if not len(y) or y.std() == 0:
                raise ValueError(f"{self.name}: every row has the same {self.target}; there is nothing to predict")
            return y
        names, y = np.unique(np.array(column.to_pylist()), return_inverse=True)
        self.classes = names.tolist()
        return y.astype(np.int64)

    def _rows(self, y: np.ndarray) -> dict[str, np.ndarray]:
        """Row numbers by split."""
        wanted = [split for split, fraction in self.fractions.items() if fraction]
        if self.classes:
            counts = np.bincount(y)
            if len(counts) < 2 or counts.min() <= len(wanted):
                raise ValueError(
                    f"{self.name}: class {self.classes[counts.argmin()]} of {self.target} has {counts.min()} of "
                    f"{len(y)} rows; there must be at least 2 classes, each with {len(wanted) + 1} rows, one for each "
                    "of " + ", ".join(["train", *wanted]) + ": merge or remove rare classes, or set data.kind=number"
                )
        rows, rest = {}, np.arange(len(y))
        for split in reversed(wanted):
            size = max(round(self.fractions[split] * len(y)), len(self.classes), 1)
            if size >= len(rest):
                raise ValueError(f"{self.name} has {len(y)} rows, too few for data.{split}_fraction; give more rows")
            by = y[rest] if self.classes else None
            rest, rows[split] = train_test_split(rest, test_size=size, stratify=by, random_state=0)
        return {"train": rest, **rows}

    def _feature(self, column: pa.ChunkedArray, name: str, train: np.ndarray) -> np.ndarray:
        """(N, 1), or (N, number of categories)."""
        if _is_category(column):
            values = np.array([str(value) for value in column.to_pylist()])
            known = np.unique(values[train])
            if self.categories == "one_hot":
                return (values[:, None] == known).astype(np.float32)
            number = np.searchsorted(known, values).astype(np.float64)
            number[~np.isin(values, known)] = np.nan
        else:
            number = numbers_of(column, name, self.name)
            if self.missing == "error" and np.isnan(number).any():
                raise ValueError(
                    f"{self.name}: {np.isnan(number).sum()} of {len(number)} values of {name} are missing or not "
                    "finite; fill them, leave the column out of data.columns, or set data.missing=mean"
                )
        mean, std = np.nanmean(number[train]), np.nanstd(number[train])
        return np.nan_to_num((number - mean) / (std or 1.0)).astype(np.float32)[:, None]


def read_table(path: str) -> pa.Table:
    """The columns of a .csv, .tsv or .parquet file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or has no rows.
    """
    where = Path(os.path.expandvars(path)).expanduser()
    if not where.is_file():
        raise FileNotFoundError(f"there is no file {path}; data.path is a .csv, .tsv or .parquet file")
    kind = where.name.removesuffix(".gz").rpartition(".")[2]
    if kind not in ("csv", "tsv", "parquet"):
        raise ValueError(f"data.path={path} is no .csv, .tsv or .parquet file")
    try:
        if kind == "parquet":
            table = pyarrow.parquet.read_table(where)
        else:
            options = pyarrow.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",")
            table = pyarrow.csv.read_csv(where, parse_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not table.num_rows:
        raise ValueError(f"{path} has no rows")
    return table


def column_of(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if table.column_names.count(name) != 1:
        raise ValueError(
            f"{where} has {table.column_names.count(name)} columns {name!r}; it has {', '.join(table.column_names)}"
        )
    return table[name]


def _is_category(column: pa.ChunkedArray) -> bool:
    types, kind = pa.types, column.type
    return types.is_dictionary(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)


def numbers_of(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """(N,) float64, what is missing or infinite as NaN."""
    try:
        numbers = pc.cast(column, pa.float64()).to_numpy().copy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(
            f"{where}: column {name!r} holds {column.type}, no numbers; leave it out of data.columns"
        ) from None
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _of_sklearn(dataset: Dataset) -> tuple[pa.Table, str]:
    """A table that scikit-learn ships, and its target."""
    settings = {"scaled": False} if dataset == "diabetes" else {}
    bunch = getattr(sklearn_datasets, f"load_{dataset}")(**settings)
    columns = dict(zip(bunch.feature_names, bunch.data.T, strict=True))
    if "target_names" in bunch:
        return pa.table(columns | {"class": bunch.target_names.astype(str)[bunch.target]}), "class"
    return pa.table(columns | {"progression": bunch.target}), "progression"
