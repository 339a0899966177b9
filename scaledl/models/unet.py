"""U-Net: down to coarse maps and back up, with a shortcut at every size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.attention import Attention
from scaledl.layers.condition import TimeAndClass
from scaledl.layers.conv import check_images, make_norm2d
from scaledl.layers.precision import like_weights


class UNetBlock(nn.Module):
    """Two convolutions with group norm, the second norm scaled and shifted by the condition; then perhaps attention.

    (Ho et al. 2020, appendix B; the scale is Dhariwal & Nichol's, 2021, section 3.1.) Both add nothing at first.
    """

    def __init__(
        self, in_channels: int, out_channels: int, condition_dim: int, num_heads: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.in_norm = make_norm2d("group", in_channels)
        self.in_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(condition_dim, 2 * out_channels)
        self.out_norm = make_norm2d("group", out_channels)
        self.dropout = nn.Dropout(dropout)
        self.out_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        self.attention_norm = make_norm2d("group", out_channels) if num_heads else None
        self.attention = Attention(out_channels, num_heads, out_init_std=0.0) if num_heads else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.out_conv.weight)
        assert self.out_conv.bias is not None
        nn.init.zeros_(self.out_conv.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Maps (B, in_channels, H, W) and condition (B, condition_dim) -> (B, out_channels, H, W)."""
        scale, shift = self.modulation(F.silu(condition))[:, :, None, None].chunk(2, dim=1)
        h = self.in_conv(F.silu(self.in_norm(x)))
        h = F.silu(self.out_norm(h) * (1 + scale) + shift)
        x = self.shortcut(x) + self.out_conv(self.dropout(h))
        if self.attention is None or self.attention_norm is None:
            return x
        tokens = self.attention_norm(x).flatten(2).mT  # (B, H * W, C)
        return x + self.attention(tokens).mT.reshape(x.shape)


class UNet(nn.Module):
    """What is noise in an image at a time, by maps of every size (Ronneberger et al. 2015; Ho et al. 2020).

    Args:
        image_size: height and width; images are square.
        num_classes: of the labels; null = unconditional.
        dim_mults: of each size, the channels as a multiple of dim; each further size is half as large.
        attention_sizes: maps of these heights also attend.
        dim: channels of the finest maps.
        num_blocks: of each size on the way down; one more on the way up.

    Raises:
        ValueError: if the image cannot be halved so often, no map has an attention size, or x has another shape.
    """

    block_types = (UNetBlock,)

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int | None,
        dim_mults: list[int],
        attention_sizes: list[int],
        dim: int = 64,
        num_blocks: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [dim * mult for mult in dim_mults]
        sizes = [image_size >> level for level in range(len(widths))]
        if image_size % 2 ** (len(widths) - 1):
            raise ValueError(
                f"image_size={image_size} cannot be halved {len(widths) - 1} times, once for each of dim_mults but the "
                "first: give fewer"
            )
        if unknown := set(attention_sizes) - set(sizes):
            raise ValueError(f"attention_sizes={sorted(unknown)}: the maps have the sizes {sizes}, choose from them")
        self.in_shape = (in_channels, image_size, image_size)
        self.num_classes = num_classes
        condition_dim = 4 * dim
        self.condition = TimeAndClass(condition_dim, num_classes)

        def block(inward: int, outward: int, size: int) -> UNetBlock:
            return UNetBlock(inward, outward, condition_dim, num_heads if size in attention_sizes else None, dropout)

        self.in_conv = nn.Conv2d(in_channels, dim, 3, padding=1)
        down: list[nn.Module] = []
        channels, skips = dim, [dim]
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            if level:
                down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
            for _ in range(num_blocks):
                down.append(block(channels, width, size))
                channels = width
                skips.append(channels)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(block(channels, channels, sizes[-1]) for _ in range(2))
        up: list[nn.Module] = []
        for level, (width, size) in reversed(list(enumerate(zip(widths, sizes, strict=True)))):
            for _ in range(num_blocks + 1):
                up.append(block(channels + skips.pop(), width, size))
                channels = width
            if level:
                up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)))
        self.up = nn.ModuleList(up)
        self.norm = make_norm2d("group", channels)
        self.out_conv = nn.Conv2d(channels, in_channels, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.out_conv.weight)
        assert self.out_conv.bias is not None
        nn.init.zeros_(self.out_conv.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, in_channels, image_size, image_size), as x, at times t (B,) in [0, 1], of classes y (B,), or None."""
        check_images(x, self.in_shape[0], self.in_shape[1])
        x = like_weights(x, self)
        condition = self.condition(t, y, x.dtype)
        x = self.in_conv(x)
        skips = [x]
        for layer in self.down:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, condition)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, condition)
        for layer in self.up:
            x = layer(x) if isinstance(layer, nn.Sequential) else layer(torch.cat((x, skips.pop()), dim=1), condition)
        return self.out_conv(F.silu(self.norm(x)))
