"""Whether a density tells what it has not seen: energies of foreign samples against those of data."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from scaledl.callbacks.metrics import record
from scaledl.callbacks.predictions import save
from scaledl.callbacks.test import at_best
from scaledl.distributed import group
from scaledl.distributed.noise import Noise

BEHIND_TRAINING = 2**62  # positions of the foreign samples' noise, which no training sample reaches
COMPONENTS = 10  # of the Gaussian mixture


class OutOfDistribution(pl.Callback):
    """Logs `val/auroc_<kind>`: how often a foreign sample has a higher energy than one of the split (ties half).

    Kinds: `uniform` noise over the range of the training data; `shuffled`, the split's own images with their pixels in
    random order; `class_<n>`, classes that training left out (`data.leave_out`), which are the hard test. The task has
    `energy(x) -> (B,)`. The classical density, scikit-learn's mixture of Gaussians with full covariances, is measured
    alike before training, as `baseline/gmm_auroc_<kind>`, and its mean log-density as `baseline/gmm_log_density`, in
    nats. At the end the best checkpoint is measured on the test split, and `plots/energies.png` shows the histograms.

    Args:
        held_out: the classes that training left out.
        mixture: measure the Gaussian mixture.

    Raises:
        ValueError: at the start of the training, if the task has no energy, or training sees a held-out class.
    """

    def __init__(self, held_out: list[int] | None = None, mixture: bool = True):
        self.held_out, self.mixture = held_out or [], mixture
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "energy"):
            raise ValueError(
                f"callbacks.out_of_distribution compares energies, and {type(pl_module).__name__} has no energy(); "
                "remove it (~callbacks.out_of_distribution)"
            )
        x, y = _all(trainer, "train")
        if seen := set(self.held_out) & set(y.tolist()):
            raise ValueError(
                f"callbacks.out_of_distribution.held_out={self.held_out}, but training sees {sorted(seen)}: give "
                "data.leave_out the same classes"
            )
        self._range = x.amin().item(), x.amax().item()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.mixture and trainer.global_step == 0:  # a resumed run has it
            group.agreed(lambda: self._baseline(trainer, pl_module, _all(trainer, "train")[0]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit":
            energies = {kind: _energies(trainer, pl_module, x) for kind, x in self._kinds(trainer, "val").items()}
            for name, value in aurocs(energies).items():
                pl_module.log(f"val/auroc_{name}", value, logger=False)  # callbacks/metrics.py logs it

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        splits = dict(trainer.datamodule.splits())  # type: ignore[attr-defined]
        split = next((name for name in ("test", "val") if name in splits), None)
        if split is None:
            return
        with at_best(trainer, self.run_dir):
            energies = {kind: _energies(trainer, pl_module, x) for kind, x in self._kinds(trainer, split).items()}
        record(trainer, {f"{split}/auroc_{name}": value for name, value in aurocs(energies).items()})
        if trainer.is_global_zero:
            save(_figure(energies, split), self.run_dir, "energies.png")

    def _kinds(self, trainer: pl.Trainer, split: str) -> dict[str, Tensor]:
        """Samples (n, ...) of the split, under "data", and foreign ones, by kind."""
        x, y = _all(trainer, split)
        foreign = torch.isin(y, torch.tensor(self.held_out, dtype=y.dtype))
        data = x[~foreign]
        noise = Noise(0, torch.arange(len(data)) + BEHIND_TRAINING)
        low, high = self._range
        order = noise.permutation("shuffled", data[0].numel())
        kinds = {
            "data": data,
            "uniform": low + (high - low) * noise.uniform("uniform", *data.shape[1:]),
            "shuffled": data.flatten(1).gather(1, order).view_as(data),
        }
        return kinds | {f"class_{label}": x[y == label] for label in self.held_out if (y == label).any()}

    def _baseline(self, trainer: pl.Trainer, task: Any, x: Tensor) -> None:
        split = "val" if trainer.datamodule.split("val") is not None else "train"  # type: ignore[attr-defined]
        # The floor of the variances is that of data in 17 levels, of which many pixels use one only.
        mixture = GaussianMixture(COMPONENTS, reg_covar=1e-3, random_state=0).fit(x.flatten(1).double().numpy())
        scores = {
            kind: mixture.score_samples(samples.flatten(1).double().numpy())
            for kind, samples in self._kinds(trainer, split).items()
        }
        measured = {f"baseline/gmm_auroc_{n}": v for n, v in aurocs({k: -s for k, s in scores.items()}).items()}
        record(trainer, measured | {"baseline/gmm_log_density": float(scores["data"].mean())})


def aurocs(energies: dict[str, np.ndarray]) -> dict[str, float]:
    """For each kind but "data", the area under the curve of telling it from data by a higher energy."""
    data = energies["data"]
    return {
        kind: float(roc_auc_score(np.repeat([0, 1], [len(data), len(found)]), np.concatenate((data, found))))
        for kind, found in energies.items()
        if kind != "data"
    }


def _all(trainer: pl.Trainer, split: str) -> tuple[Tensor, Tensor]:
    dataset = trainer.datamodule.split(split)  # type: ignore[attr-defined]
    samples = dataset.__getitems__(np.arange(len(dataset)))
    return samples["x"], samples["y"]


@torch.no_grad()
def _energies(trainer: pl.Trainer, task: Any, x: Tensor) -> np.ndarray:
    """Energies (n,) on every rank; all ranks compute all, for a sharded model is gathered by them together."""
    was_training, size = task.training, trainer.datamodule.eval_batch_size  # type: ignore[attr-defined]
    precision = trainer.precision_plugin
    task.eval()
    with precision.forward_context():
        parts = [task.energy(precision.convert_input(part.to(task.device))).float().cpu() for part in x.split(size)]
    task.train(was_training)
    return torch.cat(parts).numpy()


def _figure(energies: dict[str, np.ndarray], split: str) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    areas = aurocs(energies)
    edges = np.histogram_bin_edges(np.concatenate(list(energies.values())), 60)
    for kind, found in energies.items():
        label = f"{split} data" if kind == "data" else f"{kind}: AUROC {areas[kind]:.3f}"
        axes.hist(found, edges, density=True, alpha=0.5, label=label)
    axes.set(xlabel="energy", ylabel="density")
    axes.legend(fontsize=8)
    return figure
