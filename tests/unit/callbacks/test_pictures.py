"""Pictures and texts at the end of a run: they are drawn, from the right weights, and leave the run as it was."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from scaledl.callbacks import decision_boundary, feature_maps, predictions
from scaledl.callbacks.text_samples import TextSamples
from scaledl.data.base import BatchDataset, Data
from scaledl.data.digits import Digits
from scaledl.data.points import Points
from scaledl.data.text import windows_of_text
from scaledl.data.tokenizer import CharTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.cnn import CNN
from scaledl.models.gpt import GPT
from scaledl.models.mlp import MLP
from scaledl.tasks.classification import Classification
from scaledl.tasks.language_modeling import LanguageModeling

Fit = Callable[..., pl.Trainer]
TEXT = "to be or not to be, that is the question\n" * 5


class Written(Data):
    """A text in memory."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.tokenizer = CharTokenizer()
        self.tokenizer.fit([TEXT])

    def datasets(self) -> dict[str, BatchDataset]:
        return {"train": windows_of_text(TEXT, self.tokenizer, 8)}


class ByHeight(nn.Linear):
    """Says class 1 above the horizontal axis and class 0 below it, whatever it is taught."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.requires_grad_(False)
        self.unused = nn.Parameter(torch.zeros(1, 1))

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[0.0, -50.0], [0.0, 50.0]]))
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.unused


def classifier(model: partial | type[nn.Module], num_classes: int) -> Classification:
    return Classification(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01), num_classes)


def assert_is_a_picture(path: Path) -> None:
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.02, "a blank picture"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures of a run by file name, as they are before they become pixels."""
    found: dict[str, Figure] = {}
    for module in (decision_boundary, feature_maps, predictions):
        monkeypatch.setattr(module, "save", lambda figure, run_dir, name: found.update({name: figure}))
    return found


def test_a_decision_boundary_is_drawn(fit: Fit, tmp_path: Path) -> None:
    task = classifier(partial(MLP, 2, [8], 3), 3)
    fit(decision_boundary.DecisionBoundary(20), max_steps=2, task=task, data=Points("spirals", 8, 8, num_samples=60))
    assert_is_a_picture(tmp_path / "plots" / "decision_boundary.png")


def test_a_decision_boundary_colours_the_plane_as_the_model_divides_it(fit: Fit, figures: dict[str, Figure]) -> None:
    data = Points("circles", 4, 4, num_samples=40)
    fit(decision_boundary.DecisionBoundary(20), max_steps=1, task=classifier(ByHeight, 2), data=data)
    axes = figures["decision_boundary.png"].axes[0]
    ground = axes.images[0].get_array()  # row 0 is drawn at the bottom
    assert axes.images[0].origin == "lower"
    palette = np.array(colormaps["tab10"]([0, 1]))[:, :3]
    np.testing.assert_allclose(ground[0], np.tile(0.6 + 0.4 * palette[0], (20, 1)), atol=1e-4)
    np.testing.assert_allclose(ground[-1], np.tile(0.6 + 0.4 * palette[1], (20, 1)), atol=1e-4)
    test = data.split("test").__getitems__(np.arange(8))
    wrong = int(((test["x"][:, 1] > 0).long() != test["y"]).sum())
    assert axes.get_title() == f"test: {wrong} of 8 wrong after 1 steps"


def test_a_decision_boundary_of_images_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"draws points of the plane, but samples have shape \(1, 8, 8\)"):
        fit(
            decision_boundary.DecisionBoundary(),
            max_steps=1,
            task=classifier(partial(MLP, 64, [8], 10), 10),
            data=Digits(16, 16),
        )


def test_predictions_and_feature_maps_of_images_are_drawn(fit: Fit, tmp_path: Path) -> None:
    task = classifier(partial(CNN, 1, 8, [[6, 3, 1, 2]], [], 10), 10)
    callbacks = [predictions.Predictions(num_images=5), feature_maps.FeatureMaps(num_filters=4, num_images=3)]
    fit(*callbacks, max_steps=2, task=task, data=Digits(16, 16))
    for name in ("confusion.png", "hardest.png", "feature_maps.png"):
        assert_is_a_picture(tmp_path / "plots" / name)
    assert not any(module._forward_hooks for module in task.model.modules())


def test_the_confusion_matrix_counts_every_sample_of_the_test_split(fit: Fit, figures: dict[str, Figure]) -> None:
    data = Points("circles", 4, 4, num_samples=100)
    fit(predictions.Predictions(), max_steps=1, task=classifier(ByHeight, 2), data=data)
    test = data.split("test").__getitems__(np.arange(20))
    expected: dict[tuple[float, float], int] = {}
    for (_, height), y in zip(test["x"].tolist(), test["y"].tolist(), strict=True):
        place = (int(height > 0), y)  # (column: predicted, row: class)
        expected[place] = expected.get(place, 0) + 1
    axes = figures["confusion.png"].axes[0]
    assert {text.get_position(): int(text.get_text()) for text in axes.texts} == expected
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "class")
    assert "hardest.png" not in figures  # points are no images


def test_logits_are_those_of_an_evaluation_and_training_goes_on_after(fit: Fit) -> None:
    task = classifier(partial(MLP, 2, [8], 2, dropout=0.5), 2)
    trainer = fit(max_steps=1, task=task, data=Points("moons", 8, 8, num_samples=40))
    x = torch.randn(21, 2)  # no multiple of the micro-batch
    task.train()
    found = predictions.logits_of(trainer, task, x)
    assert task.model.training
    task.eval()
    torch.testing.assert_close(found, task.model(x).detach())


def test_feature_maps_of_a_model_without_convolution_are_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match="draws the first convolution, but MLP has none"):
        fit(
            feature_maps.FeatureMaps(),
            max_steps=1,
            task=classifier(partial(MLP, 2, [8], 2), 2),
            data=Points("moons", 8, 8, num_samples=40),
        )


def writer() -> LanguageModeling:
    model = partial(GPT, Written().tokenizer.vocab_size, 8, dim=16, depth=1, num_heads=2)
    return LanguageModeling(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01))


def test_a_text_sample_is_what_the_trained_model_writes(fit: Fit, tmp_path: Path) -> None:
    task, data = writer(), Written()
    (tmp_path / "samples").mkdir()  # of a run that goes on
    fit(TextSamples("to be", 20, temperature=0.7, top_k=5), max_steps=3, task=task, data=data)
    prompt = data.tokenizer.encode("to be").tolist()
    expected = data.tokenizer.decode([*prompt, *task.generate(prompt, 20, temperature=0.7, top_k=5)])
    assert (tmp_path / "samples" / "step_00000003.txt").read_text() == expected
    assert expected.startswith("to be")


def test_a_prompt_that_does_not_fit_fails_before_the_training(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="☃"):
        fit(TextSamples("☃"), max_steps=10**9, task=writer(), data=Written())
    assert not (tmp_path / "samples").exists()
