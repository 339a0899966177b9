"""From a model's recipe to a model that trains: initialise -> checkpoint -> compile, always in this order.

A model says two things about parallelism, as class attributes: `block_types`, the unit of all of these, and
`entry_points`, the methods besides `forward` that a task calls.
"""

import zlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


class ModelBuilder:
    """Builds the model when asked and not before.

    Args:
        make: constructs the model with its plain arguments.
        seed: of the initial weights.
        compile: torch.compile each block.
        activation_checkpointing: "full" recomputes each block in the backward pass.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seed: int = 0,
        compile: bool = False,
        activation_checkpointing: Literal["none", "full"] = "none",
    ):
        self.make, self.seed, self.compile, self.activation_checkpointing = (
            make,
            seed,
            compile,
            activation_checkpointing,
        )

    def on_meta(self) -> nn.Module:
        """The model without memory, for its shapes and counts."""
        with torch.device("meta"):
            return self.make()

    def __call__(self) -> nn.Module:
        """The model on the host, whose generator gives the same weights on every machine."""
        model = self.on_meta().to_empty(device="cpu")
        initialize(model, self.seed)
        blocks = _blocks(model)
        if self.activation_checkpointing == "full":
            for parent, name, block in blocks:
                setattr(parent, name, checkpoint_wrapper(block))
        if self.compile:
            for block in (getattr(parent, name) for parent, name, _ in blocks):
                block.compile()
            if not blocks:
                model.compile()
        return model


def initialize(model: nn.Module, seed: int) -> None:
    """Give every module its initial weights, children before parents, each from a seed of (seed, the module's name).

    So a weight does not depend on the order in which modules were built, or on which others exist.
    """
    modules = dict(model.named_modules())
    with torch.random.fork_rng(devices=[]):
        for name in sorted(modules, key=lambda name: (-(name.count(".") + bool(name)), name)):
            reset = getattr(modules[name], "reset_parameters", None)
            if reset is not None:
                torch.manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
                reset()


def _blocks(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, block) of every module of the model's `block_types`."""
    types = getattr(model, "block_types", ())
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if types and isinstance(child, types)
    ]
