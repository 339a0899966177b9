"""Random changes of images that leave their classes as they are.

Each takes images x (B, C, H, W), whose channels have mean 0, the noise of the batch and a name for its draws. The task
applies them on the device, in training only. What a sample gets depends on its position in the training stream: it is
another in each epoch, and neither ranks nor loader processes change it.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl.distributed.noise import Noise


class RandomCrop:
    """Shift by up to `padding` pixels (He et al. 2016, section 4.2).

    Args:
        mode: what comes in from outside: `constant`, the mean, or `reflect`, a mirror image.
    """

    def __init__(self, padding: int, mode: Literal["constant", "reflect"] = "constant"):
        if padding < 1:
            raise ValueError(f"padding={padding} pixels must be at least 1; leave the crop out to shift nothing")
        self.padding, self.mode = padding, mode

    def __call__(self, x: Tensor, noise: Noise, name: str) -> Tensor:
        B, _, H, W = _shape(x, self)
        if self.mode == "reflect" and self.padding >= min(H, W):
            raise ValueError(f"padding={self.padding} is more than {H}x{W} images can reflect; take less")
        rows, columns = noise.integers(name, 2 * self.padding + 1, 2).unbind(1)  # (B,)
        padded = F.pad(x, [self.padding] * 4, mode=self.mode)
        windows = padded.unfold(2, H, 1).unfold(3, W, 1)  # (B, C, shifts, shifts, H, W), a view
        return windows[torch.arange(B, device=x.device), :, rows, columns]


class HorizontalFlip:
    """Mirror left and right with probability `p`."""

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is no probability; choose it between 0 and 1")
        self.p = p

    def __call__(self, x: Tensor, noise: Noise, name: str) -> Tensor:
        _shape(x, self)
        return torch.where(noise.bernoulli(name, self.p, 1, 1, 1), x.flip(3), x)


class RandomAffine:
    """Rotate, shift and scale around the centre, interpolating; with the mean outside (Simard et al. 2003).

    Args:
        degrees: largest rotation, either way.
        translate: largest shift in both directions, as a share of the side.
        scale: largest change of size, as a share.
    """

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: float = 0.0):
        if min(degrees, translate, scale) < 0 or scale >= 1:
            raise ValueError(
                f"degrees={degrees}, translate={translate} and scale={scale} are the largest changes: from 0 up, scale "
                "below 1"
            )
        self.degrees, self.translate, self.scale = degrees, translate, scale

    def __call__(self, x: Tensor, noise: Noise, name: str) -> Tensor:
        _shape(x, self)
        drawn = noise.uniform(name, 4) * 2 - 1  # (B, 4) in [-1, 1)
        angle, factor = drawn[:, 0] * math.radians(self.degrees), 1 + drawn[:, 1] * self.scale
        sine, cosine, shift = angle.sin() / factor, angle.cos() / factor, 2 * self.translate * drawn[:, 2:]
        # Where in the input a pixel of the output comes from: the image spans [-1, 1].
        inverse = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).view(-1, 2, 3)
        grid = F.affine_grid(inverse, list(x.shape), align_corners=False)  # (B, H, W, 2)
        return F.grid_sample(x.float(), grid, align_corners=False).to(x.dtype)


class BrightnessContrast:
    """Add to an image up to `brightness` standard deviations, and stretch it around its mean by up to `contrast`."""

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2):
        if brightness < 0 or not 0 <= contrast <= 1:
            raise ValueError(f"brightness={brightness} must be at least 0, and contrast={contrast} lie in [0, 1]")
        self.brightness, self.contrast = brightness, contrast

    def __call__(self, x: Tensor, noise: Noise, name: str) -> Tensor:
        _shape(x, self)
        added, stretched = (noise.uniform(name, 2, 1, 1, 1) * 2 - 1).unbind(1)  # (B, 1, 1, 1)
        mean = x.mean((1, 2, 3), keepdim=True)
        return (mean + added * self.brightness + (x - mean) * (1 + stretched * self.contrast)).to(x.dtype)


class Cutout:
    """Cover a square of `size` pixels, anywhere and so partly outside, with the mean (DeVries & Taylor 2017)."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size={size} pixels must be at least 1; leave cutout out to cover nothing")
        self.size = size

    def __call__(self, x: Tensor, noise: Noise, name: str) -> Tensor:
        _, _, H, W = _shape(x, self)
        drawn = noise.uniform(name, 2)  # (B, 2)
        rows, columns = (self._covered(side, drawn[:, axis]) for axis, side in enumerate((H, W)))
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    def _covered(self, side: int, drawn: Tensor) -> Tensor:
        """(B, side) bool: the pixels along an axis that the square covers."""
        first = (drawn * side).long()[:, None] - self.size // 2
        place = torch.arange(side, device=drawn.device)
        return (first <= place) & (place < first + self.size)


def _shape(x: Tensor, change: object) -> torch.Size:
    if x.ndim != 4:
        raise ValueError(
            f"{type(change).__name__} changes images (B, C, H, W), but a sample of this data is {tuple(x.shape[1:])}; "
            "leave it out of task.augment"
        )
    return x.shape
