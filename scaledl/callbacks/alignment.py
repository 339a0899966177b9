"""Where a model that translates looks: the weights of its additive attention."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scaledl.callbacks.predictions import save
from scaledl.layers.attention import AdditiveAttention
from scaledl.tasks.seq2seq import Seq2Seq


class Alignment(pl.Callback):
    """Draws `plots/alignment.png` when training ends: source tokens across, the model's target tokens down.

    As in figure 3 of Bahdanau et al. (2015): how much of each source token goes into each target token.

    Args:
        num_pairs: the first so many of the validation split.

    Raises:
        ValueError: at the start of the training, if the model has no additive attention.
    """

    def __init__(self, num_pairs: int = 4):
        self.num_pairs = num_pairs
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Seq2Seq) -> None:  # type: ignore[override]
        if _attention(pl_module) is None:
            raise ValueError(
                f"callbacks.alignment draws additive attention, but {type(pl_module.model).__name__} has none: remove "
                "it (~callbacks.alignment) or take model=bahdanau"
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Seq2Seq) -> None:  # type: ignore[override]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sentences = data.split("val") or data.split("train")
        was_training = pl_module.training
        pl_module.eval()
        pictures = []
        with trainer.strategy.averaged(), trainer.precision_plugin.forward_context():  # type: ignore[attr-defined]
            for index in range(min(self.num_pairs, len(sentences))):
                src_ids = sentences.__getitems__(np.array([index]))["src_ids"].to(pl_module.device)
                (target,), _ = pl_module.translate(src_ids, data.max_len)
                weights = alignment(pl_module, src_ids, target)
                source, end = data.vocabularies[0].units(src_ids[0].tolist()), [pl_module.eos_id]
                pictures.append((source, data.vocabularies[1].units(target + end), weights))
        pl_module.train(was_training)
        if trainer.is_global_zero:
            save(_figure(pictures), self.run_dir, "alignment.png")


@torch.no_grad()
def alignment(task: Seq2Seq, src_ids: Tensor, target: list[int]) -> Tensor:
    """The weights (T + 1, S) with which a target of T tokens, and its end, are written from src_ids (1, S)."""
    attention, rows = _attention(task), []
    assert attention is not None
    handle = attention.register_forward_hook(lambda module, inputs, output: rows.append(output[1][0].float().cpu()))
    task.model(src_ids, torch.tensor([[task.bos_id, *target]], device=src_ids.device))
    handle.remove()
    return torch.stack(rows)


def _attention(task: Seq2Seq) -> AdditiveAttention | None:
    return next((module for module in task.model.modules() if isinstance(module, AdditiveAttention)), None)


def _figure(pictures: list[tuple[list[str], list[str], Tensor]]) -> Figure:
    columns = min(2, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(6 * columns, 4.5 * rows), layout="constrained")
    figure.suptitle("how much of each source token (across) goes into each target token (down)", fontsize=10)
    for axes, (source, target, weights) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, pictures, strict=False
    ):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), source, rotation=90 if max(map(len, source)) > 1 else 0, fontsize=8)
        axes.set_yticks(range(len(target)), target, fontsize=8)
        axes.xaxis.tick_top()
    for axes in figure.axes[len(pictures) :]:
        axes.set_axis_off()
    return figure
