"""From a model's recipe to a model that trains: initialise -> checkpoint -> compile -> shard, always in this order.

A model says two things about parallelism, as class attributes: `block_types`, the unit of all of these, and
`entry_points`, the methods besides `forward` that a task calls. One block at a time is brought to life, initialised and
sharded, so that no rank ever holds the whole of a sharded model.
"""

import zlib
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from scaledl.layers import grouped, linear

Checkpointing = Literal["none", "selective", "full"]

aten = torch.ops.aten
# bmm's, attention's scores, are too large
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.convolution.default, *linear.PRODUCTS, *grouped.PRODUCTS}
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


class ModelBuilder:
    """Builds the model when asked and not before.

    Args:
        make: constructs the model with its plain arguments.
        seed: of the initial weights.
        compile: torch.compile each block.
        activation_checkpointing: what the backward pass computes again, see `checkpointed`.
        adapt: changes the model that was made, in place, before anything else (LoRA).
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seed: int = 0,
        compile: bool = False,
        activation_checkpointing: Checkpointing = "none",
        adapt: Callable[[nn.Module], None] | None = None,
    ):
        self.make, self.seed, self.compile, self.activation_checkpointing = (
            make,
            seed,
            compile,
            activation_checkpointing,
        )
        self.adapt = adapt

    def on_meta(self) -> nn.Module:
        """The model without memory, for its shapes and counts."""
        with torch.device("meta"):
            model = self.make()
        if self.adapt is not None:
            self.adapt(model)
        return model

    def __call__(
        self,
        split: Callable[[nn.Module], None] | None = None,
        shard: Callable[[nn.Module], None] | None = None,
    ) -> nn.Module:
        """The model on the host, whose generator gives the same weights on every machine.

        Args:
            split: divides a block over tensor-parallel ranks; called for each block.
            shard: gives each rank its share of a block; called for each block, and last for the model as a whole.
        """
        if self.compile and self.activation_checkpointing != "none":
            # What a block notes (the loads of experts) it notes in the forward pass alone: it would not compile else.
            torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        model = self.on_meta()
        blocks, names = _blocks(model), {module: name for name, module in model.named_modules()}
        inside = {module for _, _, block in blocks for module in block.modules()}
        for parent, name, block in blocks:
            _bring_to_life(block)
            initialize(block, self.seed, prefix=names[block])
            if split is not None:
                split(block)
            if self.activation_checkpointing != "none":
                block = checkpointed(block, self.activation_checkpointing)
                setattr(parent, name, block)
            if self.compile:
                block.compile()
            if shard is not None:
                shard(block)
        rest = [module for module in model.modules() if module not in inside]
        for module in rest:
            _bring_to_life(module, recurse=False)
        initialize(model, self.seed, only=set(rest))
        if self.compile and not blocks:
            model.compile()
        if shard is not None:
            shard(model)
        return model


def checkpointed(block: nn.Module, kind: Checkpointing) -> nn.Module:
    """The block, of whose forward pass the backward pass computes again what was not kept (Chen et al. 2016).

    full: nothing but its input was kept. selective: what matrix products, convolutions and attention gave was, which is
    slow to compute, so that only norms, activations and the like are computed again (Korthikanti et al. 2022).
    """
    if kind == "none":
        return block
    if kind == "full":
        return checkpoint_wrapper(block)
    return checkpoint_wrapper(block, context_fn=partial(create_selective_checkpoint_contexts, _kept))


def _kept(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    keep = operation in PRODUCTS or operation in ATTENTION
    if operation in ATTENTION:  # what draws numbers is computed again, or later draws would not be those of before
        inputs = dict(zip((argument.name for argument in operation._schema.arguments), arguments, strict=False)) | named
        keep = not inputs.get("dropout_p")
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def initialize(model: nn.Module, seed: int, prefix: str = "", only: Collection[nn.Module] | None = None) -> None:
    """Give every module its initial weights, children before parents, each from a seed of (seed, the module's name).

    So a weight does not depend on the order in which modules were built, or on which others exist. A module's
    `reset_parameters` may change its children's parameters, but not those inside a block (see `block_types`).
    """
    modules = {name: module for name, module in model.named_modules(prefix=prefix) if only is None or module in only}
    with torch.random.fork_rng(devices=[]):
        for name in sorted(modules, key=lambda name: (-(name.count(".") + bool(name)), name)):
            reset = getattr(modules[name], "reset_parameters", None)
            if reset is not None:
                torch.manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
                reset()


def _bring_to_life(module: nn.Module, recurse: bool = True) -> None:
    """Memory on the host for parameters and buffers that have none."""
    module.to_empty(device="cpu", recurse=recurse)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [block for _, _, block in _blocks(model)]


def stacks_of(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that hold a matrix for each index of axis 0, which a module says of its own (`stacked`)."""
    return {p for m in model.modules() if getattr(m, "stacked", False) for p in m.parameters(recurse=False)}


def _blocks(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, block) of every module of the model's `block_types`; a block inside a block is part of it."""
    types = getattr(model, "block_types", ())
    found: list[tuple[nn.Module, str, nn.Module]] = []

    def walk(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if types and isinstance(child, types):
                found.append((parent, name, child))
            else:
                walk(child)

    walk(model)
    return found
