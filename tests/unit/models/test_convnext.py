from typing import Any

import pytest
import torch

from scaledl.models.convnext import ConvNeXt

TINY: dict[str, Any] = {"depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768]}


def test_counts(count) -> None:
    assert count("convnext_t", in_channels=3, out_dim=1000) == 28_589_128


def test_convnext_t_is_transformers_own(take_weights) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference")
    config = transformers.ConvNextConfig(num_labels=11, layer_scale_init_value=0.1, layer_norm_eps=1e-6)
    theirs = transformers.ConvNextForImageClassification(config).eval()
    ours = ConvNeXt(3, 11, **TINY).eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)


def test_blocks_begin_as_the_identity_up_to_the_layer_scale() -> None:
    x = torch.randn(2, 8, 4, 4)
    small, large = (ConvNeXt(1, 5, depths=[1], dims=[8], layer_scale=scale).stages[0][0] for scale in (1e-6, 1.0))
    torch.testing.assert_close(small(x), x, atol=1e-5, rtol=0)
    assert (large(x) - x).abs().max() > 1e-3


def test_more_of_a_branch_is_left_out_from_block_to_block() -> None:
    model = ConvNeXt(1, 5, depths=[2, 2], dims=[4, 8], path_dropout=0.3)
    rates = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1]}, r"depths=\[1\], dims=\[4, 8\]: give one number of 1 or more for each stage"),
        ({"kernel_size": 4}, "kernel_size=4 has no middle: take an odd number"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvNeXt(**{"in_channels": 1, "out_dim": 5, "depths": [1, 1], "dims": [4, 8], **changes})


def test_images_that_do_not_fit_are_refused() -> None:
    model = ConvNeXt(1, 5, depths=[1, 1], dims=[4, 8])
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(
        ValueError, match=r"shape \(1, 7, 8\), but the model was built for \(1, H, W\) with H and W of 8"
    ):
        model(torch.zeros(2, 1, 7, 8))
