"""The picture of a forecast shows the model's, the simplest one and the truth, at the right points."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from scaledl.callbacks import forecast
from scaledl.callbacks.forecast import Forecast
from scaledl.data.points import Points
from scaledl.data.series import Series
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.dlinear import DLinear
from scaledl.tasks.regression import Regression

Fit = Callable[..., pl.Trainer]


class Tenth(nn.Module):
    """Forecasts a tenth of the last value, whatever it is taught."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.unused = horizon, nn.Parameter(torch.zeros(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1:].expand(-1, self.horizon, -1) / 10 + 0 * self.unused


def regression(model: partial) -> Regression:
    return Regression(ModelBuilder(model), partial(torch.optim.AdamW, lr=1e-2))


def eeg(horizon: int) -> Series:
    data = Series(8, 8, dataset="eeg", columns=["channel_0", "channel_1"], seq_len=6, horizon=horizon)
    data.prepare()
    return data


def test_a_forecast_is_drawn(fit: Fit, tmp_path: Path) -> None:
    fit(Forecast(), max_steps=1, task=regression(partial(DLinear, 6, 2, 3)), data=eeg(2))
    pixels = matplotlib.image.imread(tmp_path / "plots" / "forecast.png")
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.02, "a blank picture"


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_lines_are_the_end_of_the_test_part(fit: Fit, monkeypatch: pytest.MonkeyPatch, horizon: int) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(forecast, "save", lambda figure, run_dir, name: figures.append(figure))
    data = eeg(horizon)
    fit(Forecast(num_points=30, max_columns=1), max_steps=1, task=regression(partial(Tenth, horizon)), data=data)
    (axes,) = figures[0].axes
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines()}
    series = data.split("test").values[:, 0].numpy()
    known = series[-31:-1] if horizon == 1 else np.repeat(series[-31:-1:horizon], horizon)
    expected = {"truth": series[-30:], "model": known / 10, "persistence": known}
    assert lines.keys() == expected.keys()
    for name, line in expected.items():
        np.testing.assert_allclose(lines[name], line, atol=1e-5)
    persistence = data.baselines()["persistence test/rmse"]
    assert f"persistence {persistence:.3f}" in figures[0].get_suptitle()


def test_data_that_is_no_series_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"callbacks.forecast draws a series, and Points is none"):
        fit(Forecast(), max_steps=1, data=Points("moons", 8, 8, num_samples=40))
