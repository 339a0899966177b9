import pytest
import torch

from scaledl.layers.attention import Attention
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.stochastic_depth import StochasticDepth
from scaledl.layers.transformer import TransformerBlock


def test_a_sample_keeps_its_branch_whole_or_not_at_all() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 2)
    y = StochasticDepth(0.3)(x)
    kept = (y != 0).flatten(1).any(1)
    torch.testing.assert_close(y, x * kept[:, None, None] / 0.7)
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.03)  # 4 standard deviations


def test_an_evaluation_keeps_every_branch() -> None:
    x = torch.randn(8, 3)
    assert torch.equal(StochasticDepth(0.9).eval()(x), x)
    assert torch.equal(StochasticDepth(0.0)(x), x)


def test_a_block_without_its_branches_is_the_identity() -> None:
    block, x = TransformerBlock(8, Attention(8, 2), FeedForward(8), path_dropout=0.999999), torch.randn(4, 6, 8)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_share_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=rf"path_dropout={p} must lie in \[0, 1\)"):
        StochasticDepth(p)
