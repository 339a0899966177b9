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

from scaledl.callbacks import attention_maps
from scaledl.callbacks.attention_maps import AttentionMaps, on_places
from scaledl.data.digits import Digits
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.models.resnet import ResNet
from scaledl.tasks.classification import Classification

Fit = Callable[..., pl.Trainer]
RESNET = partial(ResNet, 1, 10, depths=[2, 1], dims=[4, 8], stem="cifar", attention="cbam", non_local=[0])


def classifier(model: partial) -> Classification:
    return Classification(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01), 10)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures of a run by file name, as they are before they become pixels."""
    found: dict[str, Figure] = {}
    monkeypatch.setattr(attention_maps, "save", lambda figure, run_dir, name: found.update({name: figure}))
    return found


def test_a_picture_is_drawn_and_the_model_left_as_it_was(fit: Fit, tmp_path: Path) -> None:
    task = classifier(RESNET)
    fit(AttentionMaps(num_images=3), max_steps=2, task=task, data=Digits(16, 16))
    pixels = matplotlib.image.imread(tmp_path / "plots" / "attention.png")
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.02, "a blank picture"
    assert not any(module._forward_pre_hooks for module in task.model.modules())


def test_every_layer_is_drawn_for_every_image(fit: Fit, figures: dict[str, Figure]) -> None:
    task, data = classifier(RESNET), Digits(16, 16)
    fit(AttentionMaps(num_images=5), max_steps=1, task=task, data=data)
    axes = figures["attention.png"].axes
    titles = [one.get_title() for one in axes if one.get_title()]
    assert titles == ["0.0 spatial\n8x8", "0.1\n8x8", "0.2 spatial\n8x8", "1.0 spatial\n4x4"]
    assert len(axes) == 5 * (1 + 4)
    # The first map of the second image is what the layer gives for it in an evaluation.
    samples = data.split("val").__getitems__(np.arange(len(data.split("val"))))
    x = samples["x"][samples["y"] == 1][:1]
    block = task.eval().model.stages[0][0]
    with torch.no_grad():
        stem = task.model.stem(x)
        expected = block.attention.spatial.attention_map(block.attention.channel(block.layers(stem)))
    np.testing.assert_allclose(axes[5 + 1].images[1].get_array(), expected[0], atol=1e-5)


def test_layers_are_chosen_from_the_first_to_the_last(fit: Fit, figures: dict[str, Figure]) -> None:
    fit(AttentionMaps(num_images=1, num_layers=2), max_steps=1, task=classifier(RESNET), data=Digits(16, 16))
    titles = [one.get_title() for one in figures["attention.png"].axes]
    assert titles == ["", "0.0 spatial\n8x8", "1.0 spatial\n4x4"]


class OfTokens(nn.Module):
    """Looks at the patches with the brightest pixels, from a class token before 16 patches."""

    def forward(self, x: Tensor, *, sharpness: float) -> Tensor:
        return x

    def attention_map(self, x: Tensor, *, sharpness: float) -> Tensor:
        weights = (sharpness * nn.functional.adaptive_max_pool2d(x[:, 0], 4).flatten(1)).softmax(1)  # (B, 16)
        row = torch.cat([torch.zeros(len(x), 1), weights], 1)
        return row[:, None, None].expand(-1, 2, 17, -1)


class Reader(MLP):
    def __init__(self) -> None:
        super().__init__(64, [], 10)
        self.attention = OfTokens()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.attention(x, sharpness=50.0))


def test_attention_of_tokens_is_drawn_over_the_patches(fit: Fit, figures: dict[str, Figure]) -> None:
    fit(AttentionMaps(num_images=2), max_steps=1, task=classifier(partial(Reader)), data=Digits(16, 16))
    image, under = figures["attention.png"].axes[:2]
    assert under.get_title() == "attention\n4x4"
    pixels = torch.as_tensor(np.asarray(image.images[0].get_array()))[None, None]
    patches = nn.functional.adaptive_max_pool2d(pixels, 4)
    shown = nn.functional.adaptive_max_pool2d(torch.as_tensor(np.asarray(under.images[1].get_array()))[None, None], 4)
    assert torch.equal(shown.flatten() > shown.max() / 2, patches.flatten() == 1)


def test_tokens_become_places() -> None:
    weights = torch.rand(2, 3, 10, 10)
    torch.testing.assert_close(on_places(weights), weights.mean(1)[:, 0, 1:].reshape(2, 3, 3))  # a class token
    weights = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(on_places(weights), weights.mean((1, 2)).reshape(2, 3, 3))
    with pytest.raises(ValueError, match="12 tokens are no square of patches"):
        on_places(torch.rand(2, 3, 12, 12))


def test_a_model_without_attention_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"draws layers with a method attention_map, but MLP has none: remove it"):
        fit(AttentionMaps(), max_steps=1, task=classifier(partial(MLP, 64, [8], 10)), data=Digits(16, 16))
