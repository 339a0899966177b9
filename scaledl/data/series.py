"""Series: windows of the past and what came after, split in time."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import torch
from torch import Tensor

from scaledl.data import checks
from scaledl.data.base import BatchDataset, Data
from scaledl.data.table import column_of, numbers_of, read_table

Dataset = Literal["eeg", "goog", "stocks"]


class Windows:
    """x (B, seq_len, C), the past, and y (B, horizon, C), what came next, or (B, horizon) of one column.

    Args:
        values: (T, C) of the whole series.
        first, last: a window's future begins at row `first` or later and ends before `last`; its past may reach back
            over `first`, for by then it is known.
    """

    def __init__(self, values: Tensor, first: int, last: int, seq_len: int, horizon: int, target: int | None):
        self.values, self.first, self.target = values, max(first, seq_len), target
        self.count = last - self.first - horizon + 1
        self.past, self.future = torch.arange(-seq_len, 0), torch.arange(horizon)

    def __len__(self) -> int:
        return max(0, self.count)

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]:
        now = self.first + torch.as_tensor(np.asarray(indices))[:, None]  # (B, 1)
        y = self.values[now + self.future]  # (B, horizon, C)
        return {"x": self.values[now + self.past], "y": y if self.target is None else y[..., self.target]}

    def whole(self) -> dict[str, Tensor]:
        return self.__getitems__(np.arange(len(self)))


class Series(Data):
    """A series of C columns in windows for forecasting: x (B, seq_len, C), y (B, horizon, C) or (B, horizon).

    The last rows are the test, those before them validation, the first training; each column is standardised by its
    training rows, so that errors are in standard deviations. Nothing of a split's future is in another split.

    Args:
        dataset: if there is no path, one that matplotlib ships: `eeg` (4 channels, 800 points), `goog` (Google's
            share, 1,047 days of 2004 to 2008) or `stocks` (10 shares and indices, 390 months of 1990 to 2022).
        path: a .csv (.tsv, also .gz) with names in its first row, or a .parquet file, its rows in the order of time.
        columns: which to read; null = all numbers.
        target: the one of them to forecast; null = all.
        seq_len: points of the past that a model sees.
        horizon: points to forecast.
        transform: "log_return" makes log(v_t / v_{t-1}) of prices.
        time: a column of a file that must rise from row to row; null = rows are taken to be evenly spaced.
        max_gap: the largest step of `time`, in its median steps; null = any.
        missing: "error"; "forward": the last value before it; "drop": leave the row out.
        val_fraction, test_fraction: of the rows.
        in_dim, out_dim: null = found out: C, and the numbers that a sample asks for.

    Raises:
        ValueError: the series is too short, has holes, or its time does not rise.
    """

    def __init__(
        self,
        global_batch_size: int,
        micro_batch_size: int,
        dataset: Dataset | None = None,
        path: str | None = None,
        columns: list[str] | None = None,
        target: str | None = None,
        seq_len: int = 24,
        horizon: int = 1,
        transform: Literal["none", "log_return"] = "none",
        time: str | None = None,
        max_gap: float | None = 5.0,
        missing: Literal["error", "forward", "drop"] = "error",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        in_dim: int | None = None,
        out_dim: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        if (dataset is None) == (path is None):
            raise ValueError(f"data.dataset={dataset} and data.path={path}: give one of them, and leave the other null")
        if seq_len < 1 or horizon < 1:
            raise ValueError(f"data.seq_len={seq_len} and data.horizon={horizon} must be at least 1")
        checks.held_out(val_fraction, test_fraction)
        self.dataset, self.path, self.columns, self.target = dataset, path, columns, target
        self.seq_len, self.horizon, self.transform = seq_len, horizon, transform
        self.time, self.max_gap, self.missing = time, max_gap, missing
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.given = {"in_dim": in_dim, "out_dim": out_dim}
        self.name = dataset or str(path)
        self.names: list[str] = []
        self._splits: dict[str, Windows] = {}

    def prepare(self) -> None:
        if self._splits:
            return
        values = self._values(BUILT_IN[self.dataset]() if self.dataset else read_table(str(self.path)))  # (T, C)
        if self.target is not None and self.target not in self.names:
            raise ValueError(f"data.target={self.target!r} is none of the columns {', '.join(self.names)}")
        target = None if self.target is None else self.names.index(self.target)
        test = len(values) - round(self.test_fraction * len(values))
        val = test - round(self.val_fraction * len(values))
        self.mean, self.std = values[:val].mean(0), values[:val].std(0)
        if not self.std.all():
            still = [name for name, std in zip(self.names, self.std, strict=True) if not std]
            raise ValueError(
                f"{self.name}: {', '.join(still)} never changes over the training part; leave it out of data.columns"
            )
        standardised = torch.from_numpy(((values - self.mean) / self.std).astype(np.float32))
        borders = {"train": (0, val), "val": (val, test), "test": (test, len(values))}
        for split, (first, last) in borders.items():
            if first == last:
                continue
            windows = Windows(standardised, first, last, self.seq_len, self.horizon, target)
            if not len(windows):
                raise ValueError(
                    f"{self.name}: rows {first} to {last - 1} of {len(values)} are for {split}, and hold no window of "
                    f"data.seq_len={self.seq_len} and horizon={self.horizon}: make these or the fractions smaller"
                )
            self._splits[split] = windows
        for name, given in self.given.items():
            if given not in (None, self.facts()[name]):
                raise ValueError(f"data.{name}={given}, but {self.name} has {self.facts()[name]}; set it to null")

    def facts(self) -> dict[str, int]:
        num_targets = len(self.names) if self.target is None else 1
        return {"in_dim": len(self.names), "out_dim": num_targets * self.horizon}

    def describe(self) -> str:
        shown = ", ".join(self.names[:4]) + ", ..." * (len(self.names) > 4)
        what = "log returns" if self.transform == "log_return" else "values"
        return f"{self.name}: {what} of {shown}, {self.seq_len} points -> {self.horizon}"

    def datasets(self) -> dict[str, BatchDataset]:
        return dict(self._splits)

    def baselines(self) -> dict[str, float]:
        """The errors of `simple_forecasts` on the test split (else the validation split)."""
        split = "test" if "test" in self._splits else "val"
        if split not in self._splits:
            return {}
        y = self._splits[split].whole()["y"]
        return {
            f"{name} {split}/rmse": float((forecast - y).square().mean().sqrt())
            for name, forecast in self.simple_forecasts(split).items()
        }

    def simple_forecasts(self, split: str) -> dict[str, Tensor]:
        """Forecasts as y of all windows, by name.

        `persistence`: the last value again. `mean`: that of the training part. `zero`, of returns: the price stays.
        `AR(p)`: each column from its own p = seq_len last values, by least squares on the training windows, one
        regression for each point ahead.
        """
        windows, train = self._splits[split].whole(), self._splits["train"].whole()
        past, future = (self._of_target(batch["x"]) for batch in (windows, train))  # (N, seq_len, targets)
        y = train["y"].reshape(len(train["y"]), self.horizon, -1)
        persistence = past[:, -1:].expand(-1, self.horizon, -1)
        zero = -self._of_target(torch.from_numpy(self.mean / self.std)).float().expand_as(persistence)
        regressed = [_regressed(future[..., c], y[..., c], past[..., c]) for c in range(y.shape[-1])]
        found = {"persistence": persistence, "mean": torch.zeros_like(persistence)}
        if self.transform == "log_return":
            found["zero"] = zero
        found[f"AR({self.seq_len})"] = torch.stack(regressed, -1)
        return {name: forecast.reshape(windows["y"].shape) for name, forecast in found.items()}

    def _of_target(self, values: Tensor) -> Tensor:
        """The columns (..., C) that are forecast."""
        return values if self.target is None else values[..., self.names.index(self.target), None]

    def _values(self, table: pa.Table) -> np.ndarray:
        """(T, C) float64 without holes."""
        if self.time is not None:
            self._check_time(column_of(table, self.time, self.name))
        self.names = self.columns or [
            field.name
            for field in table.schema
            if field.name != self.time and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
        ]
        if not self.names:
            raise ValueError(f"{self.name} has no column of numbers; it has {', '.join(table.column_names)}")
        values = np.stack([numbers_of(column_of(table, name, self.name), name, self.name) for name in self.names], 1)
        holes = np.isnan(values)
        if self.missing == "drop":
            values = values[~holes.any(1)]
        elif self.missing == "forward":  # never from the future
            row = np.maximum.accumulate(np.where(holes, 0, np.arange(len(values))[:, None]), 0)
            values = np.take_along_axis(values, row, 0)
        if np.isnan(values).any():
            counts = {name: int(n) for name, n in zip(self.names, np.isnan(values).sum(0), strict=True) if n}
            way = "begin the file later" if self.missing == "forward" else "set data.missing=forward or drop"
            raise ValueError(
                f"{self.name}: values are missing or not finite, the first in row {np.isnan(values).any(1).argmax()}: "
                + ", ".join(f"{n} of {name}" for name, n in counts.items())
                + f"; choose data.columns without them, or {way}"
            )
        if self.transform == "log_return":
            if (values <= 0).any():
                row, column = np.argwhere(values <= 0)[0]
                raise ValueError(
                    f"{self.name}: {self.names[column]} is {values[row, column]:g} in row {row}, and only a positive "
                    "price has a log return; leave the column out, or set data.transform=none"
                )
            values = np.diff(np.log(values), axis=0)
        return values

    def _check_time(self, column: pa.ChunkedArray) -> None:
        if pa.types.is_temporal(column.type):
            column = pc.cast(pc.cast(column, pa.timestamp("us")), pa.int64())
        steps = np.diff(numbers_of(column, str(self.time), self.name))
        if not (steps > 0).all():
            row = int((~(steps > 0)).argmax()) + 1
            raise ValueError(f"{self.name}: {self.time} does not rise from row {row - 1} to row {row}; sort the rows")
        gap = steps.max() / np.median(steps)
        if self.max_gap is not None and gap > self.max_gap:
            row = int(steps.argmax())
            raise ValueError(
                f"{self.name}: between rows {row} and {row + 1}, {self.time} makes a step of {gap:.3g} of its median "
                f"steps, more than data.max_gap={self.max_gap:g}: fill the gap, cut the series there, or set "
                "data.max_gap=null to read on over it"
            )


def _regressed(train_past: Tensor, train_future: Tensor, past: Tensor) -> Tensor:
    """Least squares with a constant: (M, L), (M, H), (N, L) -> (N, H)."""
    known, asked = (torch.nn.functional.pad(x.double(), (0, 1), value=1.0) for x in (train_past, past))
    return (asked @ torch.linalg.lstsq(known, train_future.double(), driver="gelsd").solution).float()


def _sample_data(name: str) -> Path:
    return Path(matplotlib.get_data_path()) / "sample_data" / name


def _eeg() -> pa.Table:
    channels = np.fromfile(_sample_data("eeg.dat")).reshape(-1, 4)
    return pa.table({f"channel_{index}": channel for index, channel in enumerate(channels.T)})


def _goog() -> pa.Table:
    prices = np.load(_sample_data("goog.npz"))["price_data"]
    return pa.table({name: prices[name] for name in prices.dtype.names})


def _stocks() -> pa.Table:
    """Of the first of each month: other rows are empty, but for the last, which repeats."""
    options = pyarrow.csv.ReadOptions(skip_rows=1)
    table = pyarrow.csv.read_csv(_sample_data("Stocks.csv"), read_options=options)
    return table.filter(pc.equal(pc.day(table["Date"]), 1))


BUILT_IN: dict[str, Callable[[], pa.Table]] = {"eeg": _eeg, "goog": _goog, "stocks": _stocks}
