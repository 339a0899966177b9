"""Plain convolutional networks, LeNet-5, AlexNet and VGG among them: stages of convolution and pooling, then an MLP."""

from typing import Literal

from torch import Tensor, nn

from scaledl.layers.conv import NormName, make_norm2d
from scaledl.models.mlp import ACTIVATIONS, GAINS, MLP, Activation, init_layer

PoolName = Literal["max", "average"]


class ConvStage(nn.Module):
    """Convolution -> norm -> activation -> pooling. pool_size=1 leaves the pooling out."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int,
        pool_size: int,
        stride: int = 1,
        pool_stride: int | None = None,
        *,
        activation: Activation,
        pool: PoolName,
        norm: NormName | Literal["none"],
        bias: bool,
    ) -> None:
        super().__init__()
        self.gain = GAINS[activation]
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.norm = make_norm2d(norm, out_channels)
        self.activation = ACTIVATIONS[activation]()
        self.pool: nn.Module = nn.Identity()
        if pool_size > 1:
            self.pool = (nn.MaxPool2d if pool == "max" else nn.AvgPool2d)(pool_size, pool_stride)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_layer(self.conv, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.activation(self.norm(self.conv(x))))


class CNN(nn.Module):
    """Features found anywhere in the image, coarser and richer from stage to stage (LeCun et al. 1998).

    AlexNet (Krizhevsky 2014, arXiv:1404.5997) and VGG (Simonyan & Zisserman 2015, arXiv:1409.1556) are stage tables.

    Args:
        image_size: height and width; images are square.
        stages: a row [out_channels, kernel_size, padding, pool_size] for each stage, and, where they are not 1 and
            pool_size, a stride and a pool_stride behind these; pool_size 1 does not pool.
        hidden_dims: of the MLP on the flattened maps of the last stage.
        norm: of the stages (see `make_norm2d`).
        bias: of the convolutions; null = where no batch norm would subtract it again.
        dropout: after each hidden layer of the MLP.

    Raises:
        ValueError: if a row is not numbers that fit the size that reaches the stage, or x has another shape.
    """

    block_types = (ConvStage,)

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        stages: list[list[int]],
        hidden_dims: list[int],
        out_dim: int,
        activation: Activation = "relu",
        pool: PoolName = "max",
        norm: NormName | Literal["none"] = "none",
        dropout: float = 0.0,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = (in_channels, image_size, image_size)
        bias = norm not in ("batch", "sync_batch") if bias is None else bias
        channels, size, built = in_channels, image_size, []
        for index, row in enumerate(stages):
            out_size = _out_size(index, row, size, image_size)
            built.append(ConvStage(channels, *row, activation=activation, pool=pool, norm=norm, bias=bias))
            channels, size = row[0], out_size
        self.stages = nn.Sequential(*built)
        self.head = MLP(channels * size * size, hidden_dims, out_dim, activation, dropout)
        self.num_features = self.head.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, image_size, image_size)."""
        return self.head(self._maps(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last hidden layer (B, num_features)."""
        return self.head.forward_features(self._maps(x))

    def _maps(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.in_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape[1:])}, but the model was built for {self.in_shape}: "
                "make in_channels and image_size those of the data"
            )
        return self.stages(x)  # (B, C, H, W) of the last stage


def _out_size(index: int, row: list[int], size: int, image_size: int) -> int:
    """Height and width after a stage."""
    where = f"stages[{index}]={list(row)}"
    if not 4 <= len(row) <= 6:
        raise ValueError(
            f"{where}: a stage is four numbers, [out_channels, kernel_size, padding, pool_size], and up to two more "
            "behind them, stride and pool_stride"
        )
    out_channels, kernel_size, padding, pool_size = row[:4]
    stride, pool_stride = row[4] if len(row) > 4 else 1, row[5] if len(row) > 5 else pool_size
    if min(out_channels, kernel_size, pool_size, stride, pool_stride) < 1 or padding < 0:
        raise ValueError(
            f"{where}: out_channels, kernel_size and pool_size must be at least 1, so must strides, and padding at "
            "least 0"
        )
    convolved = (size + 2 * padding - kernel_size) // stride + 1
    if convolved < pool_size:
        raise ValueError(
            f"{where}: {size}x{size} maps reach this stage (image_size={image_size}), too small for its "
            f"{kernel_size}x{kernel_size} kernel with padding {padding} and {pool_size}x{pool_size} pooling; take "
            "a smaller kernel, more padding, less pooling, fewer stages or larger images"
        )
    return (convolved - pool_size) // pool_stride + 1
