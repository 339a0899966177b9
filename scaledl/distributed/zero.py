"""DeepSpeed's ZeRO: optimiser states (1), gradients (2) and parameters (3) in shards (Rajbhandari et al. 2020)."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from scaledl.distributed import group
from scaledl.distributed.pieces import Pieces
from scaledl.distributed.state import RunState, names_of


class DeepSpeed(RunState, DeepSpeedStrategy):
    """ZeRO of one stage, on GPUs with NCCL and, which Lightning's own refuses, on the host with gloo.

    Args:
        stage: 1 divides optimiser states, 2 gradients too, 3 parameters too.
        offload: keep optimiser states (and, at stage 3, parameters) in the host's memory.
        persistence_threshold: at stage 3, parameters of fewer elements stay whole on every rank.

    Raises:
        ValueError: the stage is none of these.
    """

    cannot = {
        "second_order_gradients": "ZeRO reduces and frees gradients while the backward pass runs",
        "several_optimizers": "DeepSpeed drives one optimiser",
        "whole_matrices": "ZeRO hands its optimiser flat pieces of parameters",
    }

    def __init__(self, stage: int = 2, offload: bool = False, persistence_threshold: int = 100_000) -> None:
        if stage not in (1, 2, 3):
            raise ValueError(f"strategy.stage={stage}: ZeRO has the stages 1, 2 and 3; for none take strategy=ddp")
        import deepspeed

        # On the host DeepSpeed would compile an operator of its own for about a minute; gloo needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": torch.cuda.is_available()}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = persistence_threshold
        if offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
            if stage == 3:
                zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        super().__init__(
            config={
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the host, and compiles nothing
                "train_micro_batch_size_per_gpu": 1,  # read by DeepSpeed's own throughput log only
            },
            logging_level=logging.ERROR,
        )
        self.stage = stage
        self.strategy_name = f"deepspeed_{stage}" + "_offload" * offload

    # -- what Lightning's strategy lacks ---------------------------------------------------------------------------

    def setup_environment(self) -> None:
        # DeepSpeedStrategy's own refuses every accelerator but CUDA.
        ParallelStrategy.setup_environment(self)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        group.join()
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def model_sharded_context(self) -> AbstractContextManager:  # type: ignore[override]
        return nullcontext()  # `shard` divides block by block what is already initialised

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        import deepspeed

        # Without Lightning's args=Namespace(device_rank=None), which DeepSpeed does not understand on the host.
        engine, zero, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        if self.stage == 3:
            _gather_what_forward_reads(model.model)  # type: ignore[arg-type]
        return engine, zero

    def backward(self, closure_loss: Tensor, optimizer: Any, *arguments: Any, **named: Any) -> Tensor:
        # Lightning divides the loss by the number of accumulated micro-batches; DeepSpeed would once more.
        return super().backward(closure_loss, optimizer, *arguments, scale_wrt_gas=False, **named)

    def shard(self, module: nn.Module) -> None:
        """At stage 3, leave each rank its share of the module's parameters."""
        if self.stage == 3:
            import deepspeed

            self._init_config_if_needed()
            for parameter in module.parameters():  # which Init, given a module, leaves as they are
                parameter.data = parameter.data.to(self._dtype())
            deepspeed.zero.Init(module=module, config_dict_or_path=self.config, dtype=self._dtype())

    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.precision_plugin.precision == "32-true" else torch.bfloat16

    # -- where ZeRO keeps what ------------------------------------------------------------------------------------

    @property
    def _zero(self) -> Any:
        return self.optimizers[0]

    def masters(self) -> list[Tensor]:
        zero = self._zero
        return list(zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups)

    def names(self) -> list[list[str]]:
        return [[name for name, _, _, _ in held] for held in self._held()]

    def pieces(self, tensors: list[Tensor | None]) -> dict[str, Pieces]:
        found = {}
        for held, flat in zip(self._held(), tensors, strict=True):
            if flat is not None:
                for name, size, start, (begin, count) in held:
                    found[name] = Pieces.of_range(size, start, flat.detach().narrow(0, begin, count))
        return found

    def _held(self) -> list[list[tuple[str, torch.Size, int, tuple[int, int]]]]:
        """For each master: (parameter, size, where in it this rank's range starts, (begin, count) in the master)."""
        zero, names, found = self._zero, names_of(self._task), []
        for index, group_ in enumerate(zero.fp16_groups if self.stage == 3 else zero.bit16_groups):
            held = []
            for parameter in group_:
                if self.stage == 3:
                    _, begin, count = zero.grad_position[zero.get_param_id(parameter)]
                    start = self.global_rank * count
                    count = max(0, min(count, parameter.ds_numel - start))  # the last range may end in padding
                    size = parameter.ds_shape
                else:
                    mapping = getattr(parameter, "_hp_mapping", None)
                    if mapping is None:
                        continue
                    begin, count = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
                    start, size = mapping.lp_fragment_address.start, parameter.shape
                if count:
                    held.append((names[parameter], size, start, (begin, count)))
            found.append(held)
            assert index < len(self.masters())
        return found

    def piece_of_frozen(self, parameter: Any) -> Pieces:
        if self.stage != 3:
            return Pieces.of(parameter)
        share = parameter.ds_tensor  # flat, and of equal size on all ranks: the last ones' may end in padding
        start = min(self.global_rank * share.numel(), parameter.ds_numel)
        count = min(share.numel(), parameter.ds_numel - start)
        return Pieces.of_range(parameter.ds_shape, start, share.narrow(0, 0, count))

    def whole(self, parameter: Tensor) -> Tensor:
        if self.stage != 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter):
            return parameter.detach().clone()

    def refresh(self) -> None:
        zero = self._zero
        if self.stage != 3:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()  # what is gathered now is old
        for index, flat in enumerate(zero.fp16_partitioned_groups_flat):
            flat.data.copy_(zero.fp32_partitioned_groups_flat[index].data)
            zero._unflatten_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _state_optimizers(self) -> list[Optimizer]:
        return [self._zero.optimizer]

    def create_optimizer_state(self, optimizer: Optimizer) -> None:
        whole = [group_["params"] for group_ in optimizer.param_groups]
        if self.stage == 3:  # between steps DeepSpeed's optimiser has no parameters
            for group_ in optimizer.param_groups:
                group_["params"] = []
            for index, flat in enumerate(self.masters()):
                optimizer.param_groups[self._zero.sub_group_to_group_id[index]]["params"].append(flat)
        super().create_optimizer_state(optimizer)
        for group_, parameters in zip(optimizer.param_groups, whole, strict=True):
            group_["params"] = parameters

    def _groups(self) -> list[tuple[dict[str, Any], list[str]]]:
        """Each parameter group and the names of all its parameters, held here or not."""
        zero, names = self._zero, names_of(self._task)
        groups = self._state_optimizers()[0].param_groups
        if self.stage != 3:
            return [(g, [names[p] for p in ps]) for g, ps in zip(groups, zero.bit16_groups, strict=True)]
        of = zero.sub_group_to_group_id
        return [(groups[of[i]], [names[p] for p in ps]) for i, ps in enumerate(zero.fp16_groups)]

    def lr_of(self) -> dict[str, float]:
        return {name: group_["lr"] for group_, names in self._groups() for name in names}

    def set_lr(self, of: dict[str, float]) -> None:
        for group_, names in self._groups():
            group_["lr"] = of[names[0]]

    def finish_gradients(self, optimizer: Optimizer, max_norm: float | None) -> None:
        """DeepSpeed's step clips, and leaves a step out whose gradient is not finite, itself."""

    def step_report(self) -> tuple[Tensor, Tensor]:
        norm = torch.as_tensor(self._zero._global_grad_norm, dtype=torch.float32, device=self.root_device)
        return norm, torch.tensor(bool(self._zero.overflow), device=self.root_device)

    # DeepSpeedStrategy brings checkpoints of its own, which only it can read, and only on as many ranks.
    save_checkpoint = RunState.save_checkpoint
    load_checkpoint = RunState.load_checkpoint
    load_model_state_dict = RunState.load_model_state_dict


def _gather_what_forward_reads(model: nn.Module) -> None:
    """Let a call of the model past DeepSpeed's engine, as `generate` makes, gather like one that comes through it.

    Else a parameter that another module than its own reads (tied embeddings) would be empty: DeepSpeed notes who reads
    what only while its engine's forward pass runs.
    """
    tables = [module._parameters for module in model.modules() if hasattr(module._parameters, "_in_forward")]

    def mark(running: bool) -> None:
        for table in tables:
            table._in_forward = running

    inside: list[bool] = []

    def before(*_: Any) -> None:
        inside.append(bool(tables) and tables[0]._in_forward)
        mark(True)

    def after(*_: Any) -> None:
        mark(inside.pop())

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after, always_call=True)
