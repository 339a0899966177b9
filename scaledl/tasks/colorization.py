"""The colours of an image, from its light alone."""

import torch
from torch import Tensor

from scaledl.tasks.base import Task

LIGHT = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


class Colorization(Task):
    """Mean squared error of blue and red less the light, from the light (Zhang et al. 2016, arXiv:1603.08511, with a
    plain regression for their classes).

    Reads images `x` (B, 3, H, W); the model makes two channels of one. Metrics: `loss`, and `gray_loss`, that of an
    image left gray.
    """

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["x"]
        light = self.visible(x)
        colours = x[:, [2, 0]] - light
        error = (self.model(light).float() - colours).square().mean()
        return {"loss": error, "gray_loss": colours.square().mean()}

    def visible(self, x: Tensor) -> Tensor:
        """What the model is shown of x (B, 3, H, W): its light (B, 1, H, W)."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"images of shape {tuple(x.shape[1:])} have no colours: take (3, H, W) (data=photographs)")
        return torch.einsum("bchw,c->bhw", x, x.new_tensor(LIGHT)).unsqueeze(1)

    @torch.no_grad()
    def paint(self, x: Tensor) -> Tensor:
        """The image (B, 3, H, W) that the model makes of the light of x."""
        light = self.visible(x)
        blue, red = (self.model(light).to(x.dtype) + light).unbind(1)
        parts = LIGHT[0] * red + LIGHT[2] * blue
        return torch.stack((red, (light.squeeze(1) - parts) / LIGHT[1], blue), dim=1)
