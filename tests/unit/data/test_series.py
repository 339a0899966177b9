from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaledl.data.series import Series

STEPS = np.arange(100.0)
RISING = {"day": list(range(100)), "up": list(1 + STEPS), "wave": list(2 + np.sin(STEPS / 5))}


def written(folder: Path, **changes: list) -> str:
    columns = RISING | changes
    lines = [",".join(columns)]
    lines += [",".join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    (folder / "s.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "s.csv")


def make(**settings: Any) -> Series:
    data = Series(8, 8, **settings)
    data.prepare()
    return data


def everything(data: Series, split: str) -> dict[str, torch.Tensor]:
    windows = data.split(split)
    return windows.__getitems__(np.arange(len(windows)))


@pytest.mark.parametrize(("settings", "shape"), [({}, (3, 2)), ({"target": "wave"}, (3,))])
def test_windows_and_what_comes_next(tmp_path: Path, settings: dict, shape: tuple) -> None:
    data = make(path=written(tmp_path), columns=["up", "wave"], seq_len=5, horizon=3, **settings)
    assert data.facts() == {"in_dim": 2, "out_dim": int(np.prod(shape))}
    values = np.stack([RISING["up"], RISING["wave"]], 1)
    standardised = (values - values[:70].mean(0)) / values[:70].std(0)  # by the training part
    batch = data.split("train").__getitems__(np.array([4, 0, 4]))
    assert batch["x"].shape == (3, 5, 2)
    assert batch["y"].shape == (3, *shape)
    np.testing.assert_allclose(batch["x"][0], standardised[4:9], atol=1e-5)
    expected = standardised[9:12] if len(shape) == 2 else standardised[9:12, 1]
    np.testing.assert_allclose(batch["y"][0], expected, atol=1e-5)
    torch.testing.assert_close(batch["y"][0], batch["y"][2])
    assert batch["y"].dtype == torch.float32


def test_every_point_is_forecast_in_one_split_only_and_never_from_its_future(tmp_path: Path) -> None:
    data = make(path=written(tmp_path), columns=["up"], seq_len=5, horizon=2)
    mean, std = data.mean, data.std
    asked: dict[str, set] = {}
    for split in ("train", "val", "test"):
        batch = everything(data, split)
        x, y = ((batch[name].double().numpy() * std + mean).round().astype(int) - 1 for name in ("x", "y"))  # rows
        assert (y[:, 0] == x[:, -1] + 1).all()
        asked[split] = set(y.ravel().tolist())
    assert asked == {"train": set(range(5, 70)), "val": set(range(70, 80)), "test": set(range(80, 100))}


def test_fractions_of_zero_leave_splits_out(tmp_path: Path) -> None:
    data = make(path=written(tmp_path), columns=["up"], val_fraction=0.0, test_fraction=0.0)
    assert [name for name, _ in data.splits()] == ["train"]
    assert data.baselines() == {}


def test_log_returns_are_of_the_price(tmp_path: Path) -> None:
    data = make(path=written(tmp_path), columns=["up"], transform="log_return", seq_len=4)
    returns = np.log(1 + 1 / (1 + STEPS[:-1]))
    x = everything(data, "train")["x"].double().numpy()[0, :, 0]
    np.testing.assert_allclose(x * data.std + data.mean, returns[:4], rtol=1e-5)
    zero = data.simple_forecasts("test")["zero"] * float(data.std[0]) + float(data.mean[0])
    np.testing.assert_allclose(zero, 0, atol=1e-8)


def test_the_simple_forecasts_of_the_eeg_are_those_of_others() -> None:
    """Persistence 0.683 and AR(24) 0.529 standard deviations, as measured apart from this code."""
    data = make(dataset="eeg", columns=["channel_0"], val_fraction=0.0)
    mean = everything(data, "test")["y"].square().mean().sqrt().item()
    expected = {"persistence test/rmse": 0.683, "AR(24) test/rmse": 0.529, "mean test/rmse": mean}
    assert data.baselines() == pytest.approx(expected, abs=1e-3)


def test_ar_recovers_the_process_that_made_the_series(tmp_path: Path) -> None:
    draw, values = np.random.default_rng(0), [0.0, 0.0]
    for _ in range(2000):
        values.append(1.2 * values[-1] - 0.5 * values[-2] + draw.standard_normal())
    (tmp_path / "s.csv").write_text("v\n" + "\n".join(map(str, values)) + "\n")
    data = make(path=str(tmp_path / "s.csv"), seq_len=2, horizon=2)
    forecast, x = data.simple_forecasts("test")["AR(2)"], everything(data, "test")["x"]
    one = 1.2 * x[:, 1, 0] - 0.5 * x[:, 0, 0]
    two = 1.2 * one - 0.5 * x[:, 1, 0]
    torch.testing.assert_close(forecast[:, 0, 0], one, atol=0.15, rtol=0)
    torch.testing.assert_close(forecast[:, 1, 0], two, atol=0.2, rtol=0)
    assert data.baselines()["AR(2) test/rmse"] < data.baselines()["mean test/rmse"]


def test_several_columns_and_one_target_agree(tmp_path: Path) -> None:
    path = written(tmp_path, noise=np.random.default_rng(0).standard_normal(100).tolist())
    settings = {"path": path, "columns": ["wave", "noise"], "seq_len": 6, "horizon": 2}
    both, one = make(**settings), make(**settings, target="noise")
    for name, forecast in one.simple_forecasts("test").items():
        assert forecast.shape == everything(one, "test")["y"].shape
        torch.testing.assert_close(forecast, both.simple_forecasts("test")[name][..., 1])


@pytest.mark.parametrize(
    ("settings", "names", "rows"),
    [
        ({"dataset": "eeg"}, 4, 800),
        ({"dataset": "goog"}, 6, 1047),
        ({"dataset": "stocks", "columns": ["^GSPC", "IBM"]}, 2, 390),
    ],
)
def test_what_matplotlib_ships(settings: dict, names: int, rows: int) -> None:
    data = make(**settings, seq_len=10)
    assert len(data.names) == data.facts()["in_dim"] == names
    assert sum(len(split) for _, split in data.splits()) == rows - 10
    assert settings["dataset"] in data.describe()


@pytest.mark.parametrize(("missing", "at_7"), [("forward", 7.0), ("drop", 9.0)])
def test_holes_are_filled_from_the_past_or_left_out(tmp_path: Path, missing: str, at_7: float) -> None:
    path = written(tmp_path, up=[None if i == 7 else 1.0 + i for i in range(100)])
    with pytest.raises(ValueError, match=r"the first in row 7: 1 of up; choose data.columns .* data.missing=forward"):
        make(path=path, columns=["up"])
    data = make(path=path, columns=["up"], missing=missing, seq_len=10)
    x = everything(data, "train")["x"][0, :, 0].double().numpy() * data.std + data.mean
    assert x[7] == pytest.approx(at_7, abs=1e-4)


def test_time_must_rise_without_gaps(tmp_path: Path) -> None:
    assert make(path=written(tmp_path), time="day").names == ["up", "wave"]
    with pytest.raises(ValueError, match="day does not rise from row 4 to row 5; sort the rows"):
        make(path=written(tmp_path, day=[*range(5), *range(4, 99)]), time="day")
    gap = written(tmp_path, day=[*range(50), *range(60, 110)])
    with pytest.raises(ValueError, match="between rows 49 and 50, day makes a step of 11 of its median steps"):
        make(path=gap, time="day")
    assert make(path=gap, time="day", max_gap=None).names == ["up", "wave"]
    days = [str(np.datetime64("2024-02-20") + i) for i in range(100)]
    assert make(path=written(tmp_path, day=days), time="day").names == ["up", "wave"]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"seq_len": 70}, "rows 0 to 69 of 100 are for train, and hold no window of data.seq_len=70"),
        ({}, {"horizon": 11}, "rows 70 to 79 of 100 are for val"),
        ({"up": [1.0] * 70 + [2.0] * 30}, {}, "up never changes over the training part"),
        ({"up": [0.0, *range(1, 100)]}, {"transform": "log_return"}, "up is 0 in row 0, and only a positive price"),
        ({"up": [None, *range(99)]}, {"missing": "forward"}, "the first in row 0: 1 of up; .* begin the file later"),
        ({"up": ["nan", *range(99)]}, {}, "the first in row 0: 1 of up"),
        ({"up": ["inf", *range(99)]}, {}, "the first in row 0: 1 of up"),
        ({}, {"columns": ["down"]}, "0 columns 'down'; it has day, up, wave"),
        ({}, {"target": "down"}, "data.target='down' is none of the columns up, wave"),
        ({"up": list("ab" * 50)}, {}, "column 'up' holds string, no numbers"),
        ({}, {"in_dim": 7}, "data.in_dim=7, but .* has 2; set it to null"),
    ],
)
def test_bad_series_are_refused(tmp_path: Path, changes: dict, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"path": written(tmp_path, **changes), "columns": ["up", "wave"], **settings})


def test_a_file_without_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("a\nx\ny\n")
    with pytest.raises(ValueError, match="has no column of numbers; it has a"):
        make(path=str(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.dataset=None and data.path=None: give one"),
        ({"dataset": "eeg", "seq_len": 0}, "data.seq_len=0 and data.horizon=1 must be at least 1"),
        ({"dataset": "eeg", "val_fraction": 0.9}, "leave something below 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Series(8, 8, **settings)
