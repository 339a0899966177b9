"""The transformer block that GPT, BERT, ViT, DiT and encoder-decoder models stack."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.attention import Attention, LayerCache
from scaledl.layers.norm import NormName, make_norm
from scaledl.layers.stochastic_depth import StochasticDepth


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward layer, each with norm and residual (Vaswani et al. 2017, section 3).

    pre_norm: x + f(norm(x)) (GPT-2, Llama, ViT), else norm(x + f(x)) (the original, BERT). cross_attention stands
    between the two and reads the `context` of an encoder. path_dropout leaves out whole branches f (`StochasticDepth`).
    With a condition_dim, a condition (B, condition_dim) shifts and scales what each branch reads and gates what it
    adds, x + gate · f(norm(x) · (1 + scale) + shift), all zero at first: adaLN-zero (Peebles & Xie 2023, section 3.2).
    The block only connects: what its parts do is said where they are made, and causality in `forward`, so that one
    block serves both directions.

    Raises:
        ValueError: if a condition is to modulate a post-norm block or one with cross attention.
    """

    def __init__(
        self,
        dim: int,
        attention: Attention,
        feedforward: nn.Module,
        *,
        cross_attention: Attention | None = None,
        norm: NormName = "layernorm",
        norm_eps: float = 1e-5,
        bias: bool = True,
        pre_norm: bool = True,
        path_dropout: float = 0.0,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        if condition_dim is not None and (cross_attention is not None or not pre_norm):
            raise ValueError(
                f"condition_dim={condition_dim} modulates a pre-norm block without cross attention; set it to null"
            )
        self.pre_norm = pre_norm
        self.path_dropout = StochasticDepth(path_dropout)
        affine = condition_dim is None  # else the condition scales and shifts
        self.modulation = None if condition_dim is None else nn.Linear(condition_dim, 6 * dim)
        self.attention_norm = make_norm(norm, dim, norm_eps, bias, affine)
        self.attention = attention
        self.cross_attention_norm = make_norm(norm, dim, norm_eps, bias) if cross_attention is not None else None
        self.cross_attention = cross_attention
        self.feedforward_norm = make_norm(norm, dim, norm_eps, bias, affine)
        self.feedforward = feedforward
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """(B, T, dim) -> (B, T, dim); context (B, S, dim) feeds cross attention, all else is as in `Attention`.

        A cache remembers the context too: it is given with the first tokens only.
        """
        attend = partial(self.attention, mask=mask, is_causal=is_causal, positions=positions, cache=cache)
        if self.modulation is not None:
            assert condition is not None, "this block is built for a condition"
            around = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)  # (B, 1, dim) each
            x = self._modulated(x, self.attention_norm, attend, *around[:3])
            return self._modulated(x, self.feedforward_norm, self.feedforward, *around[3:])
        x = self._residual(x, self.attention_norm, attend)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            remembered = None if cache is None else cache.context
            known = remembered is not None and remembered.keys is not None
            assert context is not None or known, "cross attention needs a context"
            attend = partial(self.cross_attention, context=context, mask=context_mask, cache=remembered)
            x = self._residual(x, self.cross_attention_norm, attend)
        return self._residual(x, self.feedforward_norm, self.feedforward)

    def tensor_parallel_plan(self, size: int) -> dict[str, str]:
        """How `size` ranks share the block: whole heads, slices of the hidden layer (Shoeybi et al. 2019, section 3)
        or whole experts.

        Raises:
            ValueError: if `size` does not divide the heads, the hidden layer or the experts.
        """
        plan = {}
        for name, attention in (("attention", self.attention), ("cross_attention", self.cross_attention)):
            if attention is not None:
                for layer, heads in (("q", "num_heads"), ("k", "num_kv_heads"), ("v", "num_kv_heads")):
                    count = getattr(attention, layer).out_features // attention.head_dim
                    if count % size:
                        raise ValueError(f"{size} tensor-parallel ranks cannot share {heads}={count}: choose a divisor")
                    plan[f"{name}.{layer}"] = "colwise"
                plan[f"{name}.out"] = "rowwise"
                if attention.q_norm is not None:  # one gain for all heads, each rank seeing its own heads
                    plan |= {f"{name}.q_norm": "sharded_input", f"{name}.k_norm": "sharded_input"}
        if not hasattr(self.feedforward, "tensor_parallel_plan"):
            raise ValueError(f"{type(self.feedforward).__name__} has no tensor-parallel plan; take FeedForward")
        hidden = self.feedforward.tensor_parallel_plan(size)  # type: ignore[operator]
        return plan | {f"feedforward.{layer}": style for layer, style in hidden.items()}

    def _residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.path_dropout(branch(norm(x)))
        return norm(x + self.path_dropout(branch(x)))

    def _modulated(
        self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], shift: Tensor, scale: Tensor, gate: Tensor
    ) -> Tensor:
        return x + gate * self.path_dropout(branch(norm(x) * (1 + scale) + shift))
