"""What a generative model draws, and what a judge says of it."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor

from scaledl import atomic, judge
from scaledl.callbacks.metrics import record
from scaledl.callbacks.predictions import save
from scaledl.callbacks.reconstructions import sheet
from scaledl.callbacks.test import at_best
from scaledl.data.sampler import EvalBatches
from scaledl.distributed import group
from scaledl.distributed.noise import Noise

BEHIND_TRAINING = 2**62  # positions of samples, which no training sample reaches
BEHIND_VALIDATION = BEHIND_TRAINING + 2**32
MOST_PIXELS = 4_096  # of an image whose covariance is taken


class SampleGrid(pl.Callback):
    """Draws `samples/step_<n>.png` at each validation, a row of samples for each class beside training images.

    The task has `samples(noise, labels (n,)) -> (n, C, H, W)`, images like the data's, and `conditional = True` where
    they follow the labels. Noise is keyed by the number of the sample, so that a grid is the same on any number of
    ranks, which share the work, and from step to step the same samples are seen to grow. Averaged weights draw, where
    an average is kept.

    A judge (scaledl/judge.py) compares `num_samples` further ones, labelled as often as the training images are, with
    training images: `val/frechet`, `val/precision`, `val/recall`, `val/coverage` and, if conditional,
    `val/conditional_acc`, the share that it takes for what they are meant to be; all in `samples/step_<n>.json`, too.
    At the end the best checkpoint draws other samples, which are compared with the test images: `test/frechet`, ...
    What the distances mean on these data, `baseline/frechet_*` says before training: of noise, of a Gaussian with the
    pixels' mean and covariance, and of real images that were held out, below which no generator comes but by memory.

    Args:
        num_samples: that the judge sees each time; a Frechet distance of fewer is larger.
        num_shown: samples of each class in the picture.
        judged: false draws only.
        batch_size: samples that a rank draws at once; null: data.micro_batch_size.
        judge_seed: of the judge's own training.

    Raises:
        ValueError: at the start of the training, if the task draws no samples or the data are no images with classes.
    """

    def __init__(
        self,
        num_samples: int = 1_000,
        num_shown: int = 8,
        judged: bool = True,
        batch_size: int | None = None,
        judge_seed: int = 0,
    ):
        if num_samples < 2 or num_shown < 1:
            raise ValueError(
                f"callbacks.sample_grid.num_samples={num_samples} must be at least 2, which have a covariance, and "
                f"num_shown={num_shown} at least 1"
            )
        self.num_samples, self.num_shown, self.judged = num_samples, num_shown, judged
        self.batch_size, self.judge_seed = batch_size, judge_seed
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "samples"):
            raise ValueError(
                f"callbacks.sample_grid draws what a task generates, but {type(pl_module).__name__} has no samples(); "
                "remove it (~callbacks.sample_grid)"
            )
        labelled = self.judged or getattr(pl_module, "conditional", False)
        x, y = judge.images_of(trainer.datamodule.split("train"), labelled)  # type: ignore[attr-defined]
        self._num_classes = int(y.max()) + 1
        shown = range(min(self._num_classes, 10))
        self._shown = torch.tensor([label for label in shown for _ in range(self.num_shown)])  # (n,)
        order = torch.linspace(0, len(y) - 1, self.num_samples, dtype=torch.float64).long()
        self._labels = y[order]  # (num_samples,), each class as often as in training
        self._examples = torch.stack([x[y == label][:4] if (y == label).sum() >= 4 else x[:4] for label in shown])
        if self.judged:
            group.agreed(lambda: self._learn(x, y, pl_module.device))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        labels = torch.cat([self._shown, self._labels]) if self.judged else self._shown
        drawn = self._draw(trainer, pl_module, labels, BEHIND_TRAINING)
        shown, judged = drawn.split([len(self._shown), len(labels) - len(self._shown)])
        measured = group.agreed(lambda: self._measures(pl_module, judged, self._real)) if self.judged else {}
        for name, value in measured.items():
            pl_module.log(f"val/{name}", value, logger=False)  # callbacks metrics and progress log and print it
        if trainer.is_global_zero:
            self._write(trainer, shown, measured)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        test = trainer.datamodule.split("test")  # type: ignore[attr-defined]
        if test is None or not self.judged:
            return
        with at_best(trainer, self.run_dir):
            drawn = self._draw(trainer, pl_module, self._labels, BEHIND_VALIDATION)

        def compared() -> dict[str, float]:
            return self._measures(pl_module, drawn, judge.see(self._judge, self._known(test)))

        record(trainer, {f"test/{name}": value for name, value in group.agreed(compared).items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.judged and trainer.global_step == 0:
            record(trainer, group.agreed(lambda: self._anchors(trainer)))

    def _anchors(self, trainer: pl.Trainer) -> dict[str, float]:
        """What distances mean here: of noise, of a Gaussian with the pixels' moments, and of images held out."""
        x = judge.images_of(trainer.datamodule.split("train"))[0].flatten(1)  # type: ignore[attr-defined]
        low, high = x.aminmax()
        noise = Noise(0, torch.arange(self.num_samples) + BEHIND_TRAINING)
        drawn = {"noise": low + (high - low) * noise.uniform("noise", x.shape[1])}
        if x.shape[1] <= MOST_PIXELS:
            values, vectors = torch.linalg.eigh(x.double().T.cov())
            root = vectors * values.clamp(min=0).sqrt()
            normal = noise.normal("gaussian", x.shape[1]).double()
            drawn["gaussian"] = (x.double().mean(0) + normal @ root.T).clamp(low.item(), high.item()).float()
        shape = self._examples.shape[2:]
        found = {name: images.view(-1, *shape) for name, images in drawn.items()}
        split = next((s for s in ("test", "val") if trainer.datamodule.split(s) is not None), None)  # type: ignore[attr-defined]
        if split is not None:
            found["held_out"] = self._known(trainer.datamodule.split(split))  # type: ignore[attr-defined]
        return {
            f"baseline/frechet_{name}": judge.frechet_distance(
                self._real.features, judge.see(self._judge, images).features
            )
            for name, images in found.items()
        }

    def _known(self, dataset: Any) -> Tensor:
        """The images (N, C, H, W) of a split whose classes training has seen."""
        x, y = judge.images_of(dataset)
        return x[torch.isin(y, self._labels)]

    def _learn(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        self._judge = judge.trained_judge(x, y, self._num_classes, self.judge_seed, device)
        self._real = judge.see(self._judge, x)

    @torch.no_grad()
    def _draw(self, trainer: pl.Trainer, task: Any, labels: Tensor, first: int) -> Tensor:
        """Images (n, C, H, W) for labels (n,), on the host of every rank; all ranks draw together."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = EvalBatches(
            len(labels), self.batch_size or data.micro_batch_size, rank=data.rank, world_size=data.world_size
        )
        was_training = task.training
        task.eval()
        found: dict[int, Tensor] = {}
        # Without inference mode, in which a task that follows a gradient of its samples could not turn gradients on.
        with torch.inference_mode(False), torch.no_grad(), trainer.precision_plugin.forward_context():
            for index in range(len(batches)):
                positions = batches.positions(index)
                noise = Noise(task.model_builder.seed, (positions + first).to(task.device))
                drawn = task.samples(noise, labels[positions].to(task.device))
                found[int(positions[0])] = drawn.detach().float().cpu()
        task.train(was_training)
        if group.world_size() > 1:
            shares: list[dict[int, Tensor]] = [{}] * group.world_size()
            dist.all_gather_object(shares, found)
            found = {start: part for share in shares for start, part in share.items()}
        return torch.cat([found[start] for start in sorted(found)])

    def _measures(self, task: Any, drawn: Tensor, real: judge.Seen) -> dict[str, float]:
        if not drawn.isfinite().all():
            raise ValueError(f"{type(task).__name__} draws samples that are not finite; take a smaller optimizer.lr")
        seen = judge.see(self._judge, drawn)
        precision, recall = judge.precision_recall(real.features, seen.features)
        measured = {
            "frechet": judge.frechet_distance(real.features, seen.features),
            "precision": precision,
            "recall": recall,
            "coverage": judge.coverage(real.probabilities, seen.probabilities),
        }
        if getattr(task, "conditional", False):
            measured["conditional_acc"] = float((seen.probabilities.argmax(1) == self._labels).double().mean())
        return measured

    def _write(self, trainer: pl.Trainer, shown: Tensor, measured: dict[str, float]) -> None:
        name = f"step_{trainer.global_step:08d}"
        title = "  ".join(f"{name} {value:.3f}" for name, value in measured.items())
        figure = _figure(
            self._examples, shown.unflatten(0, (-1, self.num_shown)), f"step {trainer.global_step}\n{title}"
        )
        save(figure, self.run_dir, f"{name}.png", folder="samples")
        if measured:
            atomic.write_text(self.run_dir / "samples" / f"{name}.json", json.dumps(measured, indent=2) + "\n")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                path = str(self.run_dir / "samples" / f"{name}.png")
                logger.log_image("samples", [path], step=trainer.global_step)


def _figure(examples: Tensor, shown: Tensor, title: str) -> Figure:
    """Training images (rows, 4, C, H, W) on the left, samples (rows, columns, C, H, W) on the right."""
    low, high = examples.amin(), examples.amax()
    rows, (left, right) = len(shown), (examples.shape[1], shown.shape[1])
    figure = Figure(figsize=(0.5 * (left + right) + 0.6, 0.5 * rows + 1.0), layout="constrained")
    figure.suptitle(title, fontsize=8)
    panels = figure.subplots(1, 2, width_ratios=(left, right))
    for axes, images, name in zip(panels, (examples, shown), ("training images", "samples"), strict=True):
        axes.imshow(sheet(images, low, high), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    return figure
