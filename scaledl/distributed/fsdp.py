"""Each rank holds a share of every block (FSDP2), whole copies of that for groups of ranks (HSDP), or a share of every
matrix product (tensor parallel), and these together."""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from scaledl.distributed import group
from scaledl.distributed.expert_parallel import ExpertParallel
from scaledl.distributed.gradients import local
from scaledl.distributed.parallelize import stacks_of
from scaledl.distributed.state import RunState


class FSDP(RunState, ModelParallelStrategy):
    """Parameters, gradients and optimiser states in shards; a block's parameters are gathered while it computes.

    (Zhao et al. 2023, in its second form, `torch.distributed.fsdp.fully_shard`; Megatron's split of matrices, Shoeybi
    et al. 2019.) Ranks that follow one another share matrices, then shards.

    Args:
        shard_size: ranks over which parameters are divided; null = all. Each group of so many holds a whole copy.
        tensor_parallel_size: ranks over which each matrix product of a block is divided.
        reshard_after_forward: give the gathered parameters back after the forward pass; false is faster and larger.
        cpu_offload: keep shards and optimiser states in the host's memory.

    Raises:
        ValueError: the ranks cannot be divided so.
    """

    def __init__(
        self,
        shard_size: int | None = None,
        tensor_parallel_size: int = 1,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
    ) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)
        ranks = group.world_size()
        if tensor_parallel_size < 1 or ranks % tensor_parallel_size:
            raise ValueError(
                f"strategy.tensor_parallel_size={tensor_parallel_size} does not divide the {ranks} ranks of this run; "
                "start a multiple of it, or choose a divisor"
            )
        data_ranks = ranks // tensor_parallel_size
        shard_size = data_ranks if shard_size is None else shard_size
        if shard_size < 1 or data_ranks % shard_size:
            raise ValueError(
                f"strategy.shard_size={shard_size} does not divide the {data_ranks} data-parallel ranks of this run; "
                "choose a divisor, or null for all of them"
            )
        if shard_size > 1:
            self.cannot = {
                "second_order_gradients": "FSDP gives gathered parameters back before a second backward pass reads them"
            }
        self.tensor_parallel_size, self.shard_size = tensor_parallel_size, shard_size
        self.num_copies = data_ranks // shard_size
        self.reshard_after_forward, self.cpu_offload = reshard_after_forward, cpu_offload
        names = {
            "hsdp": self.num_copies > 1,
            "fsdp": self.num_copies == 1 and data_ranks > 1,
            "tp": tensor_parallel_size > 1,
        }
        self.strategy_name = "+".join(name for name, used in names.items() if used) or "fsdp"

    def setup_environment(self) -> None:
        # Not ModelParallelStrategy's own, which would lay out a mesh of two axes.
        ParallelStrategy.setup_environment(self)
        group.join()
        self.set_world_ranks()
        sizes = {"copy": self.num_copies, "shard": self.shard_size, "tensor": self.tensor_parallel_size}
        self._mesh = init_device_mesh(self.root_device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        self._device_mesh = self._mesh

    def model_to_device(self) -> None:
        if self.cpu_offload:
            assert self.model is not None
            for buffer in self.model.buffers():
                buffer.data = buffer.data.to(self.root_device)
        else:
            super().model_to_device()

    def split(self, block: nn.Module) -> None:
        """Divide a block's matrices as its own plan says."""
        if self.tensor_parallel_size == 1:
            return
        plan = tensor_parallel_plan(block, self.tensor_parallel_size)
        styles = {
            "colwise": ColwiseParallel(),
            "rowwise": RowwiseParallel(),
            "sharded_input": SequenceParallel(
                sequence_dim=1, use_local_output=True
            ),  # sums its gradient over the ranks
            "experts": ExpertParallel(),
        }
        layers = {path: styles[style] for path, style in plan.items()}
        block.to(self.root_device)
        # Every rank has drawn the same weights: each cuts its own part, nothing is sent.
        parallelize_module(block, self._mesh["tensor"], layers, src_data_rank=None)

    def shard(self, module: nn.Module) -> None:
        if self.num_copies * self.shard_size == 1:
            return
        mixed = self.precision_plugin.precision == "bf16-mixed"
        settings: dict[str, Any] = {"offload_policy": CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda")}
        fully_shard(
            module,
            mesh=self._data_mesh(),
            reshard_after_forward=self.reshard_after_forward,
            shard_placement_fn=partial(axis_of, stacks=stacks_of(module), ranks=self.shard_size),
            # Inputs keep their precision (a diffusion step's time, a token's position): autocast decides by operation.
            mp_policy=MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if mixed else None,
                reduce_dtype=torch.float32 if mixed else None,
                cast_forward_inputs=False,
            ),
            **(settings if self.cpu_offload else {}),
        )
        for method in getattr(module, "entry_points", ()):  # after it: on a module that is not sharded it does nothing
            register_fsdp_forward_method(module, method)

    def masters(self) -> list[Tensor]:
        self.refresh()  # what an evaluation left gathered is no shard
        return super().masters()

    def refresh(self) -> None:
        """Give back what a forward pass left gathered (reshard_after_forward=false): it is of the old shards."""
        for module in self._task.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _data_mesh(self) -> DeviceMesh:
        return self._mesh["copy", "shard"] if self.num_copies > 1 else self._mesh["shard"]

    # ModelParallelStrategy brings checkpoints of its own, which only it can read.
    lightning_module_state_dict = RunState.lightning_module_state_dict
    optimizer_state = RunState.optimizer_state
    save_checkpoint = RunState.save_checkpoint
    load_checkpoint = RunState.load_checkpoint


class HSDP(FSDP):
    """FSDP inside each node, a whole copy on every node: gathering stays on the fast links.

    Args:
        shard_size: ranks that share a copy; null = those of one node.
    """

    def __init__(
        self,
        shard_size: int | None = None,
        tensor_parallel_size: int = 1,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
    ) -> None:
        of_node = max(1, group.ranks_per_node() // tensor_parallel_size)
        super().__init__(shard_size or of_node, tensor_parallel_size, reshard_after_forward, cpu_offload)


def axis_of(parameter: nn.Parameter, stacks: Collection[nn.Parameter], ranks: int) -> Shard | None:
    """The axis along which ranks divide a parameter; None is the first, with padding where they do not divide it.

    For a stack (num_experts, rows, columns) it is the first that they divide: of 8 experts 24 of 32 ranks would hold
    none, and every rank would have room for 32 while they are gathered.
    """
    even = [axis for axis, size in enumerate(local(parameter).shape) if size % ranks == 0]
    return Shard(even[0]) if even and parameter in stacks else None


def tensor_parallel_plan(block: nn.Module, size: int) -> dict[str, str]:
    """How each layer of a block is divided over `size` ranks, by its path.

    `colwise`: by outputs; `rowwise`: by inputs, outputs summed; `sharded_input`: whole, its input divided at axis 1;
    `experts`: each rank holds some of them.

    Raises:
        ValueError: the block has no plan, or its sizes cannot be divided so.
    """
    if not hasattr(block, "tensor_parallel_plan"):
        raise ValueError(
            f"strategy.tensor_parallel_size={size}: {type(block).__name__} has no tensor-parallel plan; "
            "transformers have one, other models take strategy.tensor_parallel_size=1"
        )
    return block.tensor_parallel_plan(size)  # type: ignore[operator]
