import sys
from functools import partial
from typing import Any

import pytest
import torch

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.timm_model import TimmModel


def test_a_timm_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ImportError, match=r"model.name=resnet18 is of timm, which cannot be imported .*pip install timm"
    ):
        TimmModel("resnet18", 3, 10)


@pytest.mark.parametrize(("name", "side"), [("resnet10t", 64), ("vit_tiny_patch16_224", 224)])
def test_it_begins_as_timm_makes_it_and_computes_the_same(timm: Any, name: str, side: int) -> None:
    ours, again = (ModelBuilder(partial(TimmModel, name, 1, 7), seed=3)().eval() for _ in range(2))
    theirs = timm.create_model(name, in_chans=1, num_classes=7).eval()
    for (key, value), fresh in zip(ours.model.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, again.model.state_dict()[key]), key
        if value.numel() > 2000:
            assert value.std().item() == pytest.approx(fresh.std().item(), rel=0.2, abs=1e-6), key
    theirs.load_state_dict(ours.model.state_dict())
    x = torch.randn(2, 1, side, side)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        assert ours.forward_features(x).shape == (2, ours.num_features)


def test_the_yaml_is_a_model(timm: Any, count) -> None:
    assert count("timm", in_channels=3, out_dim=1000) == 11_689_512


def test_an_unknown_name_gets_a_hint(timm: Any) -> None:
    with pytest.raises(ValueError, match=r"model.name=resnet1 8: timm .* has no such model; did you mean .*resnet18"):
        TimmModel("resnet1 8", 3, 10)
