import pytest
import torch

from scaledl.layers.attention import Attention
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.norm import make_norm
from scaledl.layers.transformer import TransformerBlock


def make(cross: bool = False, **arguments) -> TransformerBlock:
    torch.manual_seed(0)
    return TransformerBlock(
        16,
        Attention(16, 4, init_std=0.3),
        FeedForward(16, 32, activation="relu", init_std=0.3),
        cross_attention=Attention(16, 4, init_std=0.3) if cross else None,
        **arguments,
    ).eval()


def copy_attention(ours: Attention, theirs: torch.nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.zero_()


def copy_feedforward(ours: FeedForward, theirs: torch.nn.Module) -> None:
    theirs.linear1.load_state_dict(ours.up.state_dict())
    theirs.linear2.load_state_dict(ours.down.state_dict())


@pytest.mark.parametrize("pre_norm", [True, False])
def test_encoder_block_equals_torch(pre_norm: bool) -> None:
    ours = make(pre_norm=pre_norm)
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=pre_norm).eval()
    copy_attention(ours.attention, theirs.self_attn)
    copy_feedforward(ours.feedforward, theirs)
    x = torch.randn(2, 6, 16)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    expected = theirs(x, src_key_padding_mask=~real)
    torch.testing.assert_close(ours(x, mask=real[:, None, None, :])[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_decoder_block_with_cross_attention_equals_torch(pre_norm: bool) -> None:
    ours = make(cross=True, pre_norm=pre_norm)
    theirs = torch.nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, norm_first=pre_norm).eval()
    copy_attention(ours.attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    copy_feedforward(ours.feedforward, theirs)
    x, context = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = theirs(x, context, tgt_mask=~torch.ones(6, 6, dtype=torch.bool).tril(), memory_key_padding_mask=~real)
    y = ours(x, is_causal=True, context=context, context_mask=real[:, None, None, :])
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_a_gradient_for_every_parameter_and_for_the_context() -> None:
    block, context = make(cross=True, norm="rmsnorm"), torch.randn(2, 4, 16, requires_grad=True)
    block(torch.randn(2, 6, 16), context=context).square().sum().backward()
    assert context.grad is not None
    for name, parameter in block.named_parameters():
        # A bias on keys shifts all scores of a query alike: softmax makes its gradient zero in theory.
        assert parameter.grad is not None, name
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 0, name


def test_norms_equal_their_formulas() -> None:
    x = torch.randn(3, 16) + 1
    rms, layer = make_norm("rmsnorm", 16, 1e-3, True), make_norm("layernorm", 16, 1e-3, False)
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt())
    variance = x.var(-1, keepdim=True, unbiased=False)
    torch.testing.assert_close(layer(x), (x - x.mean(-1, keepdim=True)) / (variance + 1e-3).sqrt())
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
