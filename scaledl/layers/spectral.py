"""Layers whose weight is divided by its largest singular value, so that they stretch nothing (Miyato et al. 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.sync_batch_norm import recomputing


class _Spectral(nn.Module):
    """The weight as a matrix of rows (out, in · kernel) divided by u'Wv, after one step of the power iteration.

    u and v are buffers: each training pass moves them by the weight alone, so that they are equal on all ranks. The
    weight is read inside `forward`, where every strategy has it whole.
    """

    weight: Tensor
    u: Tensor
    v: Tensor

    def _make_buffers(self) -> None:
        rows = self.weight.flatten(1)
        self.register_buffer("u", torch.empty(rows.shape[0]))
        self.register_buffer("v", torch.empty(rows.shape[1]))

    @torch.no_grad()
    def _start(self, steps: int = 15) -> None:
        nn.init.orthogonal_(self.weight)
        self.u.normal_()
        for _ in range(steps):
            self._iterate()

    # Products and sums instead of `@`, which autocast would round.

    @torch.no_grad()
    def _iterate(self) -> None:
        rows = self.weight.flatten(1).float()
        v = F.normalize((rows * self.u.float()[:, None]).sum(0), dim=0)
        self.v.copy_(v)
        self.u.copy_(F.normalize((rows * v).sum(1), dim=0))

    def _normalized(self) -> Tensor:
        if self.training and not recomputing():
            self._iterate()
        u, v = self.u.float().clone(), self.v.float().clone()  # the next pass writes into the buffers
        sigma = (u[:, None] * self.weight.flatten(1).float() * v).sum()
        return self.weight / sigma.to(self.weight.dtype)


class SpectralConv2d(_Spectral, nn.Conv2d):
    """A convolution of spectral norm 1, as a matrix on patches; weights begin orthogonal."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self._make_buffers()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if hasattr(self, "u"):  # not when Conv2d's own constructor asks
            self._start()
            assert self.bias is not None
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._normalized(), self.bias)


class SpectralLinear(_Spectral, nn.Linear):
    """A linear map of spectral norm 1; weights begin orthogonal."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._make_buffers()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if hasattr(self, "u"):
            self._start()
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._normalized(), self.bias)
