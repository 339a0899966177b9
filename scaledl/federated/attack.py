"""What a server reads in the update of one client: the very sample that it was trained on."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor, nn

from scaledl.callbacks.predictions import save, show_image


def read_input(weight_update: Tensor, bias_update: Tensor) -> Tensor:
    """The input x (in,) of a linear layer, from the change (out, in) and (out,) that one sample made to it.

    With y = W x + b the gradients are g x^T and g, so each row of one over the entry of the other is x (Phong et al.
    2018, section 3). The row of the largest entry loses least to rounding.
    """
    row = bias_update.abs().argmax()
    return weight_update[row] / bias_update[row]


def first_linear(model: nn.Module) -> str:
    """The name of the layer that reads the sample.

    Raises:
        ValueError: the model's first layer is no linear one with a bias.
    """
    first = next(((name, m) for name, m in model.named_modules() if list(m.parameters(recurse=False))), ("", model))
    if not isinstance(first[1], nn.Linear) or first[1].bias is None:
        raise ValueError(
            f"federation.attack reads samples from a linear layer with a bias, but the first layer of "
            f"{type(model).__name__} is {type(first[1]).__name__}; set federation.attack=false, or take model=mlp"
        )
    return first[0]


def draw(sample: Tensor, reads: dict[str, Tensor], run_dir: Path) -> dict[str, float]:
    """`plots/attack.png`: the client's sample (C, H, W) beside what was read of it; how far each is off, by name.

    A relative error of 1 or more is no better than a blank picture.
    """
    figure = Figure(figsize=(2.2 * (len(reads) + 1), 2.5), layout="constrained")
    axes = figure.subplots(1, len(reads) + 1)
    errors = {name: float((x - sample).norm() / sample.norm()) for name, x in reads.items()}
    titles = ["the client's sample", *(f"{name}\nrelative error {errors[name]:.0e}" for name in reads)]
    for one, image, title in zip(axes, [sample, *reads.values()], titles, strict=True):
        show_image(one, (image if image.ndim == 3 else image.reshape(1, 1, -1)).float())
        one.set_title(title, fontsize=9)
    save(figure, run_dir, "attack.png")
    return errors
