"""The probe measures features as scikit-learn does by hand, with the weights that an evaluation has."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scaledl.callbacks.masked_images import MaskedImages
from scaledl.callbacks.probe import Probe
from scaledl.data.digits import Digits
from scaledl.data.points import Points
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.cnn import CNN
from scaledl.models.mae import MAE
from scaledl.tasks.masked_autoencoding import MaskedAutoencoding
from scaledl.tasks.pretext import Rotation

BUILDER = ModelBuilder(partial(CNN, 1, 8, [[4, 3, 1, 2], [8, 3, 1, 2]], [16], 4))


def test_accuracies_are_those_of_frozen_features(fit: Callable[..., Any], tmp_path: Path) -> None:
    task, data = Rotation(BUILDER, partial(torch.optim.AdamW, lr=1e-3)), Digits(50, 50)
    trainer = fit(Probe(num_train_samples=300), max_steps=2, val_every=2, task=task, data=data)
    assert task.model.training
    sets = dict(data.splits())
    train = sets["train"].__getitems__(np.linspace(0, 1292, 300).round().astype(int))
    val = sets["val"].__getitems__(np.arange(144))
    with torch.no_grad():
        known, held_out = (task.model.forward_features(part["x"]).numpy() for part in (train, val))
    cosines = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (known, held_out)]
    knn = KNeighborsClassifier(5).fit(cosines[0], train["y"]).score(cosines[1], val["y"])
    mean, std = known.mean(0), known.std(0)
    std[std == 0] = 1
    probe = LogisticRegression(max_iter=1000).fit((known - mean) / std, train["y"])
    assert trainer.callback_metrics["val/knn_acc"].item() == pytest.approx(knn)
    expected = probe.score((held_out - mean) / std, val["y"])
    assert trainer.callback_metrics["val/probe_acc"].item() == pytest.approx(expected, abs=0.008)
    assert knn > 0.3
    assert (tmp_path / "plots/features.png").stat().st_size > 5_000


def test_data_without_classes_and_models_without_features_are_refused(fit: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"forward_features of the model, Linear: remove it \(~callbacks.probe\)"):
        fit(Probe(), max_steps=1, data=Points("moons", 4, 4, num_samples=40))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_masked_images_are_drawn(fit: Callable[..., Any], tmp_path: Path, norm_pix_loss: bool) -> None:
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    builder = ModelBuilder(partial(MAE, 1, 8, 2, **sizes))
    task = MaskedAutoencoding(builder, partial(torch.optim.AdamW, lr=1e-3), norm_pix_loss=norm_pix_loss)
    fit(MaskedImages(), max_steps=1, task=task, data=Digits(64, 64))
    assert (tmp_path / "plots/masked_images.png").stat().st_size > 5_000
    assert task.model.training
