"""Any image model of timm (Wightman 2019), an optional package."""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from scaledl.layers.conv import check_images


class TimmModel(nn.Module):
    """`timm.create_model(name)` with the channels of the data and as many outputs as it has classes.

    FSDP and activation checkpointing take it as one block, for its blocks' types are unknown here; its batch norms take
    one rank's statistics.

    Args:
        pretrained: begin with the published weights, which timm downloads; its seed is then of the head alone.
        dropout, path_dropout: timm's drop_rate and drop_path_rate; null leaves the model's own, and must be null
            where it has none.

    Raises:
        ImportError: timm is not installed.
        ValueError: it has no model of that name, or images have other channels.
    """

    block_types = ()

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_dim: int,
        pretrained: bool = False,
        dropout: float | None = None,
        path_dropout: float | None = None,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"model.name={name} is of timm, which cannot be imported ({error}): pip install timm, with the "
                "torchvision that fits this torch"
            ) from error
        if not timm.is_model(name.split(".")[0]):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
            raise ValueError(f"model.name={name}: timm {timm.__version__} has no such model; {hint}")
        self.settings: dict[str, Any] = {"model_name": name, "in_chans": in_channels, "num_classes": out_dim}
        for key, value in (("drop_rate", dropout), ("drop_path_rate", path_dropout)):
            if value is not None:
                self.settings[key] = value
        self.in_channels, self.pretrained = in_channels, pretrained
        self.model = timm.create_model(**self.settings)
        self.num_features = self.model.num_features

    def reset_parameters(self) -> None:
        """Copy a model that timm has initialised: its modules cannot all initialise themselves."""
        import timm

        with torch.device("cpu"):
            fresh = timm.create_model(**self.settings, pretrained=self.pretrained)
        with torch.no_grad():
            for mine, theirs in (
                (self.model.parameters(), fresh.parameters()),
                (self.model.buffers(), fresh.buffers()),
            ):
                for one, other in zip(mine, theirs, strict=True):
                    one.copy_(other)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        check_images(x, self.in_channels)
        return self.model(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """What the last layer reads, (B, num_features)."""
        check_images(x, self.in_channels)
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)
