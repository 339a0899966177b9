"""Numbers from samples: a value, several, or the future of a series."""

import math

from torch import Tensor

from scaledl.tasks.base import Task


class Regression(Task):
    """Least squares: `x` (B, ...), `y` (B, ...) of floats, of which the model gives as many, in any shape.

    Metrics, in the units of y as the data gives it: `loss`, the mean squared error; `mae`; of an evaluation also `rmse`
    and, where a sample has one number, `r2`, the share of the variance that is explained.

    Raises:
        ValueError: if y is no float, or the model gives another number of values.
    """

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        y = batch["y"]
        if not y.is_floating_point():
            raise ValueError(
                f"y holds {y.dtype} numbers, as classes are; take task=classification, or data whose target is a float"
            )
        predicted, y = self.model(batch["x"]).float(), y.float()
        if predicted[0].numel() != y[0].numel():
            raise ValueError(
                f"the model gives {tuple(predicted.shape[1:])} outputs a sample, but y has {tuple(y.shape[1:])}: set "
                f"model.out_dim to {y[0].numel()} (${{data.out_dim}})"
            )
        error = predicted.reshape(y.shape) - y
        metrics = {"loss": error.square().mean(), "mae": error.abs().mean()}
        if not self.training and y[0].numel() == 1:  # for r2; fp64, for it is a difference
            metrics |= {"y": y.double().mean(), "y_square": y.double().square().mean()}
        return metrics

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        mean, square = means.pop("y", 0.0), means.pop("y_square", 0.0)
        variance = square - mean**2
        r2 = {"r2": 1 - means["loss"] / variance} if variance > 0 else {}
        return means | {"rmse": math.sqrt(means["loss"])} | r2
