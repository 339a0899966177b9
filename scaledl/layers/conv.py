"""What convolutional networks are made of: convolution with norm and activation, attention over channels and places."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.sync_batch_norm import BatchNorm, SyncBatchNorm

NormName = Literal["batch", "sync_batch", "group", "layer"]
Activation = Literal["relu", "relu6", "silu", "gelu"]
AttentionName = Literal["none", "se", "eca", "cbam"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def make_norm2d(norm: NormName | Literal["none"], channels: int, eps: float = 1e-5) -> nn.Module:
    """A norm of maps (B, C, H, W), by what shares its statistics.

    batch: the micro-batch of one rank; sync_batch: those of all ranks; layer: one image (Ba et al. 2016); group: 32
    groups of one image's channels (Wu & He 2018), or as many as halve evenly and leave two channels in each.
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return BatchNorm(channels, eps)
    if norm == "sync_batch":
        return SyncBatchNorm(channels, eps)
    return nn.GroupNorm(1 if norm == "layer" else math.gcd(32, channels, channels // 2), channels, eps)


def init_conv(conv: nn.Conv1d | nn.Conv2d, std: float | None = None) -> None:
    """Weights N(0, 2 / fan_out), fan_out of one group (He et al. 2015), or N(0, std²) cut at 2 std; bias zero."""
    if std is None:
        fan_out = conv.out_channels // conv.groups * math.prod(conv.kernel_size)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
    else:
        nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def check_images(x: Tensor, in_channels: int, smallest: int = 1) -> None:
    """Raises ValueError: images x (B, C, H, W) have other channels than the model, or are too small for it."""
    if x.ndim != 4 or x.shape[1] != in_channels or min(x.shape[2:]) < smallest:
        needed = f"({in_channels}, H, W)" + f" with H and W of {smallest} or more" * (smallest > 1)
        raise ValueError(
            f"images of shape {tuple(x.shape[1:])}, but the model was built for {needed}: make in_channels that of the "
            "data" + ", or take larger images" * (smallest > 1)
        )


class ConvNorm(nn.Module):
    """Convolution -> norm -> activation; padded by half the kernel unless told otherwise.

    Initial weights are those of `init_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        norm: NormName | Literal["none"] = "batch",
        norm_eps: float = 1e-5,
        activation: Activation | Literal["none"] = "relu",
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.init_std = init_std
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        pad = (kernel[0] // 2, kernel[1] // 2) if padding is None else (padding, padding)
        # Without a bias: a norm follows, at once or at the head of the next block, and has one.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, pad, groups=groups, bias=False)
        self.norm = make_norm2d(norm, out_channels, norm_eps)
        self.activation = ACTIVATIONS[activation]()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.conv, self.init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Channels weighted by a small MLP on their means (Hu et al. 2018)."""

    def __init__(self, channels: int, hidden_dim: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden_dim, 1)
        self.activation = ACTIVATIONS[activation]()
        self.expand = nn.Conv2d(hidden_dim, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.reduce)
        init_conv(self.expand)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * self.expand(self.activation(self.reduce(means))).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Channels weighted by a convolution over the means of their neighbours (Wang et al. 2020, ECA, eq. 12)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reach = int((math.log2(channels) + 1) / 2)
        kernel_size = max(3, reach + 1 - reach % 2)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))[:, None]  # (B, 1, C)
        return x * self.conv(means).sigmoid().transpose(1, 2)[..., None]


class ChannelAttention(nn.Module):
    """Channels weighted by one MLP on their means and on their maxima (Woo et al. 2018, CBAM, eq. 2)."""

    def __init__(self, channels: int, hidden_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden_dim, 1, bias=False)
        self.expand = nn.Conv2d(hidden_dim, channels, 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_conv(self.reduce)
        init_conv(self.expand)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        average, largest = (self.expand(F.relu(self.reduce(values))) for values in pooled)  # (B, C, 1, 1)
        return x * (average + largest).sigmoid()


class SpatialAttention(nn.Module):
    """Places weighted by a convolution over the mean and the maximum of all channels (Woo et al. 2018, CBAM, eq. 3)."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention_map(x)[:, None]

    def attention_map(self, x: Tensor) -> Tensor:
        """The weight of each place, (B, H, W) in (0, 1)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)  # (B, 2, H, W)
        return self.conv(pooled).sigmoid().squeeze(1)


class CBAM(nn.Module):
    """Channel attention, then spatial attention (Woo et al. 2018)."""

    def __init__(self, channels: int, hidden_dim: int) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, hidden_dim)
        self.spatial = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))


class NonLocal(nn.Module):
    """Self-attention of one head between all places of a map, added to it (Wang et al. 2018, embedded Gaussian).

    The last norm's gain begins at zero, so that the block begins as the identity (their section 4.1).
    """

    def __init__(self, channels: int, norm: NormName = "batch") -> None:
        super().__init__()
        hidden_dim = max(1, channels // 2)
        self.query = nn.Conv2d(channels, hidden_dim, 1)
        self.key = nn.Conv2d(channels, hidden_dim, 1, bias=False)  # it would cancel in the softmax
        self.value = nn.Conv2d(channels, hidden_dim, 1)
        self.out = ConvNorm(hidden_dim, channels, 1, norm=norm, activation="none")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.query, self.key, self.value):
            init_conv(conv, 0.01)
        nn.init.zeros_(self.out.norm.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value))  # (B, HW, dim)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))

    def attention_map(self, x: Tensor) -> Tensor:
        """How much all places together attend to each, (B, H, W) with sum 1."""
        q, k = self.query(x).flatten(2), self.key(x).flatten(2)  # (B, dim, HW)
        weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)  # (B, HW, HW)
        return weights.mean(1).unflatten(1, x.shape[2:])


def make_attention(attention: AttentionName, channels: int, reduction: int = 16) -> nn.Module:
    """A layer that weights maps (B, C, H, W); reduction: channels over hidden units, of se and cbam."""
    hidden_dim = max(1, channels // reduction)
    if attention == "se":
        return SqueezeExcite(channels, hidden_dim)
    if attention == "eca":
        return EfficientChannelAttention(channels)
    return CBAM(channels, hidden_dim) if attention == "cbam" else nn.Identity()
