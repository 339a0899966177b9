"""How much of the classes is in features that were learned without them: a linear probe and nearest neighbours."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize
from torch import Tensor

from scaledl.callbacks.metrics import record
from scaledl.callbacks.predictions import save
from scaledl.callbacks.test import at_best
from scaledl.data.sampler import EvalBatches
from scaledl.distributed import group
from scaledl.layers.features import features
from scaledl.tasks.base import Task


class Probe(pl.Callback):
    """Logs `val/probe_acc`, of a logistic regression on frozen features, and `val/knn_acc`, of the nearest neighbours.

    Both learn from the training split. Features are the model's `forward_features`; ranks share the samples, and rank 0
    measures. At the end both are measured on the test split with the best checkpoint, and `plots/features.png` shows
    that split's features in the plane, each sample in the colour of its class.

    Args:
        num_neighbours: that vote, by cosine.
        num_train_samples: of the training split, evenly spaced, that are learned from; null: all.
        strength: C of scikit-learn's LogisticRegression, on standardised features.
        method: of the picture: `pca`, the plane in which features differ most, or `tsne`, which keeps neighbours.

    Raises:
        ValueError: at the start of the training, if the model has no features or the data no classes.
    """

    def __init__(
        self,
        num_neighbours: int = 5,
        num_train_samples: int | None = 10_000,
        strength: float = 1.0,
        method: Literal["pca", "tsne"] = "tsne",
    ):
        self.num_neighbours, self.num_train_samples = num_neighbours, num_train_samples
        self.strength, self.method = strength, method
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        sample = trainer.datamodule.split("train").__getitems__(np.arange(1))  # type: ignore[attr-defined]
        y = sample.get("y")
        if not hasattr(pl_module.model, "forward_features") or y is None or y.is_floating_point():
            raise ValueError(
                f"callbacks.probe asks for classes `y` in the data, which gives {', '.join(sample)}, and for "
                f"forward_features of the model, {type(pl_module.model).__name__}: remove it (~callbacks.probe)"
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        if trainer.state.fn == "fit":
            measured, _ = self._measured(trainer, pl_module, "val")
            for name, value in measured.items():
                pl_module.log(name, value, logger=False)  # callbacks/metrics.py logs it

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        splits = dict(trainer.datamodule.splits())  # type: ignore[attr-defined]
        split = next((name for name in ("test", "val") if name in splits), None)
        if split is None:
            return
        with at_best(trainer, self.run_dir):
            measured, held_out = self._measured(trainer, pl_module, split)
        record(trainer, measured)
        if trainer.is_global_zero:
            title = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            save(self._figure(*held_out, title), self.run_dir, "features.png")

    def _measured(
        self, trainer: pl.Trainer, task: Task, split: str
    ) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
        """The two accuracies on every rank, and the split's features and classes."""
        known, classes = self._features_of(trainer, task, "train", self.num_train_samples)
        held_out, truth = self._features_of(trainer, task, split, None)

        def measure() -> dict[str, float]:
            scaler = StandardScaler().fit(known)
            probe = LogisticRegression(C=self.strength, max_iter=1000).fit(scaler.transform(known), classes)
            neighbours = KNeighborsClassifier(self.num_neighbours).fit(normalize(known), classes)
            return {
                f"{split}/probe_acc": float(probe.score(scaler.transform(held_out), truth)),
                f"{split}/knn_acc": float(neighbours.score(normalize(held_out), truth)),
            }

        return group.agreed(measure), (held_out, truth)

    def _features_of(
        self, trainer: pl.Trainer, task: Task, split: str, at_most: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, num_features) and classes (N,) of evenly spaced samples of a split, whole on every rank."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dataset = data.split(split)
        count = min(len(dataset), at_most or len(dataset))
        chosen = np.linspace(0, len(dataset) - 1, count).round().astype(np.int64)
        batches = EvalBatches(count, data.eval_batch_size, rank=data.rank, world_size=data.world_size)
        was_training = task.training
        task.eval()
        found = torch.zeros(count, task.model.num_features, device=task.device)  # type: ignore[call-overload]
        for index, places in enumerate(batches):
            x = dataset.__getitems__(chosen[places])["x"].to(task.device)
            part = features_of(trainer, task, getattr(task, "visible", lambda x: x)(x))
            if not batches.repeats(index):
                found[torch.from_numpy(places).to(task.device)] = part
        task.train(was_training)
        if data.world_size > 1:
            dist.all_reduce(found)
            found /= group.world_size() // data.world_size  # tensor-parallel ranks computed the same
        y = np.concatenate([dataset.__getitems__(part)["y"] for part in np.array_split(chosen, -(-count // 1024))])
        return found.cpu().numpy(), y

    def _figure(self, held_out: np.ndarray, truth: np.ndarray, title: str) -> Figure:
        if self.method == "pca":
            places = PCA(2, random_state=0).fit_transform(held_out)
        else:
            perplexity = min(30.0, (len(held_out) - 1) / 3)
            places = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(normalize(held_out))
        figure = Figure(figsize=(8, 7), layout="constrained")
        axes = figure.add_subplot()
        labels = np.unique(truth)
        palette = colormaps["tab10" if len(labels) <= 10 else "tab20"]
        for index, label in enumerate(labels):
            axes.scatter(*places[truth == label].T, s=12, color=palette(index % palette.N), label=str(label))
        if len(labels) <= 20:
            axes.legend(markerscale=2, fontsize=8)
        axes.set_axis_off()
        axes.set_title(f"features in the plane ({self.method}); {title}", fontsize=10)
        return figure


@torch.no_grad()
def features_of(trainer: pl.Trainer, task: Task, x: Tensor) -> Tensor:
    """The model's features (B, num_features) in fp32 of x (B, ...); all ranks ask together."""
    precision = trainer.strategy.precision_plugin
    with precision.forward_context(), torch.compiler.set_stance("force_eager"):  # compiled blocks know `forward` only
        return features(task.model, precision.convert_input(x)).float()
