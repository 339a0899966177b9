"""Mixture of experts: many feed-forward layers, of which each token uses a few."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from scaledl.layers.feedforward import FUNCTIONS, Activation, FeedForward
from scaledl.layers.grouped import grouped_linear
from scaledl.layers.precision import without_autocast
from scaledl.layers.sync_batch_norm import recomputing

Score = Literal["softmax", "sigmoid"]
Balance = Literal["bias", "loss", "none"]


class Router(nn.Module):
    """Scores s = softmax(W x) (Shazeer et al. 2017; Mixtral) or sigmoid(W x) (DeepSeek-V3); the k largest are chosen.

    normalize: the chosen scores are divided by their sum, which for softmax is a softmax over the chosen. It computes
    in fp32 (Fedus et al. 2022, section 2.4), with W as it is given: where W comes in bf16, as FSDP gathers it under
    bf16-mixed, near ties are chosen otherwise than where it is in fp32. How experts come to be used alike (`balance`):
    `bias`: what is added to the scores for the choice alone; after each step it rises by balance_rate where an expert
    had fewer tokens than the mean, and falls where it had more (Wang et al. 2024, arXiv:2408.15664, algorithm 1).
    `loss`: balance_rate · Σ_e f_e p_e, f the share of choices and p the mean score of an expert, times the number of
    experts, so that 1 is balance (Fedus et al. 2022, eq. 4). Taken within each sequence and then averaged (DeepSeek-V3,
    eq. 17), it does not depend on which sequences share a micro-batch or a rank.
    z_loss: weight of the mean of logsumexp(W x)², which keeps logits small (Zoph et al. 2022, eq. 5).

    After a forward pass in training, `load` holds how many tokens chose each expert (E,), `losses` what is to be
    minimised besides, by name.
    """

    bias: Tensor | None

    def __init__(
        self,
        dim: int,
        num_experts: int,
        experts_per_token: int,
        *,
        score: Score = "softmax",
        normalize: bool = True,
        balance: Balance = "bias",
        balance_rate: float = 1e-3,
        z_loss: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.experts_per_token, self.score, self.normalize = experts_per_token, score, normalize
        self.balance, self.balance_rate, self.z_loss = balance, balance_rate, z_loss
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        bias = torch.empty(num_experts, dtype=torch.float32) if balance == "bias" else None  # whatever the default is
        self.register_buffer("bias", bias)
        self.load: Tensor | None = None
        self.losses: dict[str, Tensor] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, dim) -> weights (B, T, k) in fp32 and the experts that they belong to (B, T, k)."""
        with without_autocast(x):
            logits = F.linear(x.float(), self.weight.float())  # (B, T, E)
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        biased = scores if self.bias is None else scores + self.bias
        chosen = biased.topk(self.experts_per_token, sorted=False).indices
        weights = scores.gather(-1, chosen)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        if self.training:
            load, losses = self._statistics(logits, scores, chosen)
            if not recomputing():  # a second forward pass, whose graph nobody would free
                self.load, self.losses = load, losses
        return weights, chosen

    @torch.no_grad()
    def after_step(self, load: Tensor, good: Tensor) -> None:
        """Move the bias by the load (E,) of the whole step, unless the step was not good (a bool scalar)."""
        if self.bias is not None:
            self.bias += self.balance_rate * good * (load.mean() - load).sign()

    def _statistics(self, logits: Tensor, scores: Tensor, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        used = torch.zeros_like(scores).scatter(-1, chosen, 1.0)  # (B, T, E)
        losses = {}
        if self.balance == "loss":
            share = used.mean(-2) / self.experts_per_token  # (B, E)
            mean_score = (scores / scores.sum(-1, keepdim=True)).mean(-2)
            losses["balance_loss"] = self.balance_rate * len(self.weight) * (share * mean_score).sum(-1).mean()
        if self.z_loss:
            losses["z_loss"] = self.z_loss * logits.logsumexp(-1).square().mean()
        return used.detach().flatten(0, -2).sum(0), losses

    def _apply(self, fn: Any, recurse: bool = True) -> "Router":
        """Whatever the precision of the weights, the bias stays in fp32: bf16 would lose its small steps."""
        before = self.bias
        super()._apply(fn, recurse)
        after = self.bias
        if before is not None and after is not None and after.dtype != before.dtype:
            self.bias = before.to(after.device)
        return self


class Experts(nn.Module):
    """The feed-forward layers (see `FeedForward`, without biases) as stacked matrices, an expert each along axis 0.

    No parameter is ever unused: an expert without tokens has zeros for its gradient. No token is dropped: rows are
    sorted by expert, and each expert multiplies as many as it has.

    Of experts that are divided over tensor-parallel ranks, a rank computes its own, from `first_expert` on; the sum
    over the ranks is the output.
    """

    stacked = True  # each parameter holds a matrix for each index of axis 0, for optimisers and shards

    def __init__(
        self,
        dim: int,
        num_experts: int,
        hidden_dim: int,
        *,
        activation: Activation = "gelu",
        init_std: float = 0.02,
        out_init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.num_experts, self.first_expert = num_experts, 0
        self.activation = FUNCTIONS[activation]
        self.init_std, self.out_init_std = init_std, init_std if out_init_std is None else out_init_std
        gated = activation == "swiglu"
        self.gate = nn.Parameter(torch.empty(num_experts, hidden_dim, dim)) if gated else None
        self.up = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.down = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight, std in ((self.gate, self.init_std), (self.up, self.init_std), (self.down, self.out_init_std)):
            if weight is not None:
                nn.init.normal_(weight, std=std)

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """x (N, dim), weights and the experts that they belong to (N, k) -> Σ_k weight · expert(x), (N, dim)."""
        gate, up, down = (_here(weight) for weight in (self.gate, self.up, self.down))
        held, k = len(up), chosen.shape[1]
        experts = chosen.flatten() - self.first_expert
        if held < self.num_experts:  # others' come last, as one more expert
            experts = torch.where((experts >= 0) & (experts < held), experts, held)
        experts, order = experts.sort(stable=True)  # (N·k,)
        place = order.argsort()
        ends = torch.searchsorted(experts, torch.arange(held, device=x.device), right=True, out_int32=True)
        rows = _Take.apply(x, order // k, place)
        own = (experts < held).unsqueeze(1) if held < self.num_experts else None
        if own is not None:  # `grouped_linear` leaves the others' undefined, forward and backward
            rows = rows.where(own, 0)
        hidden = grouped_linear(rows, up, ends)  # (N·k, hidden_dim)
        gates = None if gate is None else grouped_linear(rows, gate, ends)
        hidden = self.activation(hidden) if gates is None else self.activation(gates) * hidden
        y = grouped_linear(hidden, down, ends)  # (N·k, dim)
        if own is not None:
            y = y.where(own, 0)
        y = _Take.apply(y, place, order).unflatten(0, chosen.shape)  # (N, k, dim)
        return (y * weights.to(y.dtype).unsqueeze(-1)).sum(1)


class MixtureOfExperts(nn.Module):
    """Σ over the k chosen experts of weight · expert(x), plus experts that every token uses (Dai et al. 2024, eq. 9).

    hidden_dim (default 4·dim) is that of one expert; the shared ones are one `FeedForward`, num_shared_experts times as
    wide. See `Router` for the choice and how it is balanced, `Experts` for the computation.

    Raises:
        ValueError: if experts_per_token is not between 1 and num_experts, or a number cannot be meant.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        experts_per_token: int,
        hidden_dim: int | None = None,
        *,
        num_shared_experts: int = 0,
        activation: Activation = "gelu",
        score: Score = "softmax",
        normalize: bool = True,
        balance: Balance = "bias",
        balance_rate: float = 1e-3,
        z_loss: float = 0.0,
        dropout: float = 0.0,
        init_std: float = 0.02,
        out_init_std: float | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= experts_per_token <= num_experts:
            raise ValueError(
                f"experts_per_token={experts_per_token} must lie between 1 and num_experts={num_experts}, of which a "
                "token uses so many"
            )
        for name, value in (
            ("num_shared_experts", num_shared_experts),
            ("balance_rate", balance_rate),
            ("z_loss", z_loss),
        ):
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0; 0 switches it off")
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        self.router = Router(
            dim,
            num_experts,
            experts_per_token,
            score=score,
            normalize=normalize,
            balance=balance,
            balance_rate=balance_rate,
            z_loss=z_loss,
            init_std=init_std,
        )
        self.experts = Experts(
            dim, num_experts, hidden_dim, activation=activation, init_std=init_std, out_init_std=out_init_std
        )
        self.shared = None
        if num_shared_experts:
            self.shared = FeedForward(
                dim,
                num_shared_experts * hidden_dim,
                activation=activation,
                bias=False,
                init_std=init_std,
                out_init_std=out_init_std,
            )
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x)
        y = self.experts(x.flatten(0, -2), weights.flatten(0, -2), chosen.flatten(0, -2)).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        return self.out_dropout(y)

    def tensor_parallel_plan(self, size: int) -> dict[str, str]:
        """Each of `size` ranks holds whole experts (they see the same tokens), and a slice of the shared ones.

        Raises:
            ValueError: if `size` does not divide their number, or the shared hidden layer.
        """
        if self.experts.num_experts % size:
            raise ValueError(
                f"{size} tensor-parallel ranks cannot share num_experts={self.experts.num_experts}: choose a divisor"
            )
        shared = {} if self.shared is None else self.shared.tensor_parallel_plan(size)
        return {"experts": "experts", **{f"shared.{layer}": style for layer, style in shared.items()}}


class _Take(torch.autograd.Function):
    """x[index], where place[j] says at which row of the result the j-th use of x stands, each row being used as often.

    Its gradient is a gather too, so that it adds in one order; that of x[index] would scatter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grad.index_select(0, place).unflatten(0, (ctx.rows, -1)).sum(1), None, None


def _here(weight: Tensor | None) -> Any:
    return weight.to_local() if isinstance(weight, DTensor) else weight
