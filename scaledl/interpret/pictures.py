"""Pixels of images and of what speaks for and against, ready to stand in a page."""

import io

import matplotlib.image
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from scaledl.html_page import image_uri

FOR, AGAINST = (0.80, 0.14, 0.13), (0.10, 0.36, 0.78)  # red and blue; of what has no sign, red alone
INK = 0.5  # gray that can be read on white and on black


def data_uri(pixels: Tensor) -> str:
    """Pixels (H, W, 3) in [0, 1] as a PNG in a URI."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, (pixels.clamp(0, 1) * 255).round().byte().numpy(), format="png")
    return image_uri(buffer.getvalue())


def figure_uri(figure: Figure) -> str:
    """A figure as a PNG in a URI, its frame, ticks and words gray on a clear ground."""
    FigureCanvasAgg(figure)
    for axes in figure.axes:
        axes.tick_params(colors=str(INK), which="both")
        for part in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.spines.values()):
            part.set_color(str(INK))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, transparent=True, bbox_inches="tight")
    return image_uri(buffer.getvalue())


def plain(image: Tensor) -> Tensor:
    """An image (C, H, W), over its own range, as pixels (H, W, 3): one channel as ink on paper."""
    low, high = image.amin(), image.amax()
    scaled = ((image - low) / (high - low).clamp(min=1e-8)).movedim(0, -1).float().cpu()
    return (1 - scaled).expand(-1, -1, 3) if scaled.shape[2] == 1 else scaled


def shown_on(image: Tensor, amount: Tensor) -> Tensor:
    """amount (h, w), over its own largest size, as colour on a pale image (C, H, W): pixels (H, W, 3)."""
    pale = 0.72 + 0.28 * plain(image).mean(2, keepdim=True)
    if amount.shape != image.shape[1:]:
        amount = F.interpolate(amount[None, None], tuple(image.shape[1:]), mode="bilinear")[0, 0]
    return coloured(amount, pale.expand(-1, -1, 3))


def coloured(amount: Tensor, ground: Tensor | None = None) -> Tensor:
    """amount (H, W) as pixels (H, W, 3): red above zero and blue below, over the ground (H, W, 3), or white."""
    amount = amount.float().cpu()
    share = (amount / amount.abs().amax().clamp(min=1e-12))[..., None]  # (H, W, 1)
    colour = torch.where(share > 0, torch.tensor(FOR), torch.tensor(AGAINST))
    ground = torch.ones_like(colour) if ground is None else ground
    return ground + share.abs() * (colour - ground)
