"""Which methods and samples `scaledl explain` takes; tests/e2e/test_explain.py has the command."""

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from scaledl import cli
from scaledl import explain as module
from scaledl.data.digits import Digits
from scaledl.data.samples import Samples
from scaledl.data.tokenizer import ByteTokenizer, WordTokenizer
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.explain import _attributed, _fitting, _split
from scaledl.interpret.methods import METHODS
from scaledl.interpret.samples import of_classifier, pieces, spread
from scaledl.models.cnn import CNN
from scaledl.models.text_cnn import TextCNN
from scaledl.tasks.classification import Classification
from scaledl.tasks.regression import Regression

X = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def task(model: partial, num_classes: int) -> Classification:
    made = Classification(ModelBuilder(model), partial(torch.optim.AdamW, lr=0.01), num_classes)
    made.configure_model()
    return made.eval()


@pytest.fixture
def cnn() -> Classification:
    return task(partial(CNN, 1, 8, [[4, 3, 1, 2]], [], 10), 10)


@pytest.fixture
def no_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_without_captum_the_rest_is_drawn(cnn: Classification, no_captum: None) -> None:
    with pytest.warns(UserWarning, match=r'pip install "scaledl\[explain\]"'):
        methods, words = _fitting(cnn.model, "image", X, None, None)
    assert set(METHODS) - set(methods) == {"lime", "shap", "attention"}
    assert "captum" in words
    assert _fitting(cnn.model, "image", X, ["occlusion", "saliency"], None) == (["saliency", "occlusion"], "")


def test_what_needs_captum_says_so(cnn: Classification, no_captum: None) -> None:
    with pytest.raises(ImportError, match=r'need captum: pip install "scaledl\[explain\]"'):
        _fitting(cnn.model, "image", X, ["shap"], None)


def test_of_tokens_what_takes_long_is_only_drawn_when_asked_for(no_captum: None) -> None:
    model = task(partial(TextCNN, 20, 3), 3).model
    assert not {"lime", "shap", "grad_cam"} & set(_fitting(model, "tokens", torch.ones(1, 9).long(), None, None)[0])


@pytest.mark.parametrize("name", ["saliency", "integrated_gradients", "grad_cam", "occlusion", "lime", "shap"])
def test_every_method_gives_a_number_for_each_part(cnn: Classification, name: str) -> None:
    if name in ("lime", "shap"):
        pytest.importorskip("captum")
    names = [str(number) for number in range(10)]
    found, note = _attributed(name, cnn.model, of_classifier(cnn, X, 3, names, []), seed=0)
    assert found.shape == (8, 8)  # also the last maps, which are not pooled yet
    assert found.abs().max() > 0
    assert bool(note) == (name == "integrated_gradients")
    if name == "grad_cam":
        return
    text = task(partial(TextCNN, 20, 3), 3)
    sample = of_classifier(text, torch.arange(1, 10)[None], 1, names, [])
    assert sample.kind == "tokens"
    found, _ = _attributed(name, text.model, sample, seed=0)
    assert found.shape == (9,)
    assert found.abs().max() > 0


def test_samples_are_of_all_classes_in_turn() -> None:
    y = np.repeat(np.arange(4), 50)
    dataset = Samples(np.zeros((200, 2), np.float32), y)
    assert y[spread(dataset, 6)].tolist() == [0, 1, 2, 3, 0, 1]
    assert len(spread(dataset, 500)) == 200


def test_the_words_of_a_sample(cnn: Classification) -> None:
    names = [f"class {number}" for number in range(10)]
    logits = cnn.model(X)[0]
    likeliest = int(logits.argmax())
    assert of_classifier(cnn, X, likeliest, names, []).words.endswith("(right)")
    sample = of_classifier(cnn, X, (likeliest + 1) % 10, names, [])
    assert sample.words.startswith(f"class {likeliest}, ")
    assert f"(wrong: class {(likeliest + 1) % 10}, " in sample.words
    torch.testing.assert_close(sample.subject.score(X), logits[likeliest][None])


def test_pieces_make_up_the_text() -> None:
    words = WordTokenizer(min_count=1)
    words.fit(["a word, and another"])
    assert pieces(words, words.encode("another word").tolist()) == ["another", " word"]
    data = ByteTokenizer()
    assert pieces(data, data.encode("aé\n").tolist())[0::3] == ["a", "\n"]


def test_other_shapes_are_refused(cnn: Classification) -> None:
    cnn.model = torch.nn.Flatten()
    with pytest.raises(ValueError, match=r"has the shape \(5, 2\)"):
        of_classifier(cnn, torch.rand(1, 5, 2), 0, [], [])


def test_a_split_that_is_not_there() -> None:
    data = Digits(16, 16)
    assert _split(data, None)[0] == "test"
    assert len(_split(data, "val")[1]) == len(data.split("val"))
    data._datasets = {"train": data.split("train")}
    assert _split(data, None)[0] == "train"
    with pytest.raises(ValueError, match="--split val: this run's data has train"):
        _split(data, "val")


def test_a_task_that_is_no_classifier_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Regression(ModelBuilder(partial(torch.nn.Linear, 2, 1)), partial(torch.optim.AdamW, lr=0.01))
    monkeypatch.setattr(module, "load_run", lambda *_: (task, None, None, tmp_path))
    with pytest.raises(ValueError, match=r"is a Regression; scaledl explain serves classifiers .* and language models"):
        module.explain(tmp_path, "best", None, 8, None, None, None, 0, [])
    assert not list(tmp_path.iterdir())


def test_methods_are_checked_before_torch_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["explain", "run", "--methods", "salience"], debug=False)
    assert "invalid choice: 'salience'" in capsys.readouterr().err
