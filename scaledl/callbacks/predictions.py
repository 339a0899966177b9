"""Where a classifier errs: its confusion matrix, and the images it got most wrong or was least sure of."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.tasks.base import Task


class Predictions(pl.Callback):
    """Draws `plots/confusion.png` and, for images, `plots/hardest.png` when training ends, with its last weights.

    Of the test split where there is one, else of the validation split. The hardest are those whose own class has the
    least probability: the confident mistakes first, then the doubtful ones.

    Args:
        num_images: how many of the hardest are shown.
    """

    def __init__(self, num_images: int = 24):
        self.num_images = num_images
        self.run_dir = Path()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        splits = dict(trainer.datamodule.splits())  # type: ignore[attr-defined]
        name = "test" if "test" in splits else "val"
        if name not in splits:
            return
        samples = splits[name].__getitems__(np.arange(len(splits[name])))
        x, y = samples["x"], samples["y"]
        probabilities = logits_of(trainer, pl_module, x).softmax(1)  # (N, C)
        if not trainer.is_global_zero:
            return
        wrong = int((probabilities.argmax(1) != y).sum())
        title = f"{name}: {wrong} of {len(y)} wrong after {trainer.global_step:,} steps"
        save(_confusion(probabilities, y, title), self.run_dir, "confusion.png")
        if x.ndim == 4 and x.shape[1] in (1, 3):
            save(_hardest(x, probabilities, y, title, self.num_images), self.run_dir, "hardest.png")


@torch.no_grad()
def logits_of(trainer: pl.Trainer, task: Task, x: Tensor) -> Tensor:
    """Logits (N, C) on the host of samples x (N, ...), as in an evaluation.

    Every rank calls it and reads all of x: a sharded model is gathered by all of its ranks together.
    """
    was_training, size = task.training, trainer.datamodule.micro_batch_size  # type: ignore[attr-defined]
    precision = trainer.strategy.precision_plugin
    task.eval()
    with trainer.strategy.averaged(), precision.forward_context():  # type: ignore[attr-defined]
        found = [task.model(precision.convert_input(part.to(task.device))).float().cpu() for part in x.split(size)]
    task.train(was_training)
    return torch.cat(found)


def save(figure: Figure, run_dir: Path, name: str, folder: str = "plots") -> None:
    FigureCanvasAgg(figure)  # a canvas of the figure's own: no display, and no state that other code shares
    (run_dir / folder).mkdir(exist_ok=True)
    figure.savefig(run_dir / folder / name, dpi=120, bbox_inches="tight")


def show_image(axes: Axes, image: Tensor) -> None:
    """Draws an image (C, H, W) over its own range of values, which may have been standardised: one channel as ink."""
    low, high = image.amin(), image.amax()
    scaled = (image - low) / (high - low).clamp(min=1e-8)
    axes.imshow(scaled.movedim(0, -1).squeeze(-1), cmap="gray_r")
    axes.set_axis_off()


def _confusion(probabilities: Tensor, y: Tensor, title: str) -> Figure:
    num_classes = probabilities.shape[1]
    counts = torch.bincount(y * num_classes + probabilities.argmax(1), minlength=num_classes**2)
    counts = counts.reshape(num_classes, num_classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = 2.5 + 0.4 * min(num_classes, 30)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    # The square root lifts the few mistakes off the white ground.
    axes.imshow(shares.sqrt(), cmap="Blues", vmin=0, vmax=1)
    if num_classes <= 20:
        axes.set_xticks(range(num_classes))
        axes.set_yticks(range(num_classes))
        for row, column in counts.nonzero().tolist():
            color = "white" if shares[row, column] > 0.35 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=color)
    axes.set(xlabel="predicted class", ylabel="class")
    axes.set_title(title, fontsize=10)
    return figure


def _hardest(x: Tensor, probabilities: Tensor, y: Tensor, title: str, num_images: int) -> Figure:
    own = probabilities.gather(1, y[:, None]).squeeze(1)  # (N,)
    order = own.argsort()[:num_images].tolist()
    columns = min(8, len(order))
    rows = -(-len(order) // columns)
    figure = Figure(figsize=(1.2 * columns, 1.5 * rows + 0.5), layout="constrained")
    figure.suptitle(f"{title}; least probability of the own class first", fontsize=10)
    for place, index in enumerate(order):
        axes = figure.add_subplot(rows, columns, place + 1)
        show_image(axes, x[index])
        chosen = int(probabilities[index].argmax())
        right = chosen == int(y[index])
        label = f"{int(y[index])} at {own[index]:.0%}"
        axes.set_title(label if right else f"{label}\nsaid {chosen}", fontsize=8, color="black" if right else "tab:red")
    return figure
