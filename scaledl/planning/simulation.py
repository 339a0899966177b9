"""One micro-batch of training without memory: which bytes live when, and what each operation costs.

The real objective runs forward and backward on fake tensors, which have a shape and a type and no values, so what is
counted is what PyTorch would allocate: activations, what is kept twice in another precision, gradients on their way.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from scaledl.distributed import parallelize
from scaledl.distributed.fsdp import tensor_parallel_plan
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import blocks_of
from scaledl.layers.lora import is_adapted
from scaledl.optim.groups import groups_of
from scaledl.tasks.base import Task

REST = -1  # what is in no block: embeddings, the last norm, the head, the loss


@dataclass
class Cost:
    """What operations of one kind cost: FLOPs, and bytes read and written, alone or fused with their neighbours."""

    count: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    fused_bytes: float = 0.0


@dataclass
class Simulation:
    """Bytes and FLOPs of one micro-batch on one device.

    Attributes:
        parameters: their number by the block they belong to, REST for none; `trained` is of those that learn.
        peaks: the most bytes of (phase, block) besides weights and gradients, phase 0 forward and 1 backward.
        sharded_peaks: the same where a gradient is given away only when its block's backward pass has ended (FSDP).
        frozen: bytes of models that the task keeps besides its own, and that learn nothing.
        with_gradients: the most bytes of those and of gradients together, which come as activations go.
        saved: bytes kept from the forward to the backward pass.
        exchanged: bytes that tensor-parallel ranks sum in a forward and a backward pass.
        costs: by (kind of operation, bytes of an element): `matrix`, `attention`, `other`.
    """

    parameters: dict[int, int] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    weights: int = 0
    frozen: int = 0
    buffers: int = 0
    peaks: dict[tuple[int, int], int] = field(default_factory=dict)
    sharded_peaks: dict[tuple[int, int], int] = field(default_factory=dict)
    with_gradients: int = 0
    saved: int = 0
    exchanged: int = 0
    costs: dict[tuple[str, int], Cost] = field(default_factory=dict)

    @property
    def work(self) -> int:
        """The most bytes besides weights, gradients and the optimiser's states."""
        return max(self.peaks.values())


@dataclass
class Masters:
    """Bytes of the weights as they are optimised, of their gradients and of the optimiser's states.

    Attributes:
        trained: the number of parameters that learn.
        frozen: as of `Simulation`.
        step_extra: bytes that a step takes for its time, and step_costs its operations; a fused optimiser has neither.
    """

    weights: int
    trained: int
    gradients: int
    states: int
    frozen: int = 0
    step_extra: int = 0
    step_costs: dict[tuple[str, int], Cost] = field(default_factory=dict)


def simulate(
    task: Task,
    batch: dict[str, Tensor],
    *,
    precision: str = "32-true",
    low_weights: bool = False,
    tensor_parallel_size: int = 1,
    checkpointing: parallelize.Checkpointing = "none",
) -> Simulation:
    """A micro-batch forward and backward.

    Args:
        batch: of the micro-batch's size; only shapes and types matter.
        precision: of the run. bf16-mixed computes under autocast.
        low_weights: the model's parameters are in bf16, whatever the masters are (ZeRO, gathered blocks of FSDP).

    Raises:
        ValueError: the objective needs values.
    """
    found = Simulation()
    in_bf16 = precision == "bf16-true" or low_weights
    try:
        with _without_memory(), _configured(task, partial(_model, task, tensor_parallel_size, in_bf16, found)):
            model = task.model
            found.weights = sum(parameter.nbytes for parameter in model.parameters())
            found.frozen = sum(parameter.nbytes for parameter in task.parameters()) - found.weights
            found.buffers = sum(buffer.nbytes for buffer in task.buffers())
            place = {module: index for index, block in enumerate(blocks_of(model)) for module in block.modules()}
            for module in model.modules():
                block = place.get(module, REST)
                for parameter in module.parameters(recurse=False):
                    found.parameters[block] = found.parameters.get(block, 0) + parameter.numel()
                    if parameter.requires_grad:
                        found.trained[block] = found.trained.get(block, 0) + parameter.numel()
            _wrap(model, checkpointing)
            inputs = {name: _fake(tensor, in_bf16) for name, tensor in batch.items()}
            task.noise = Noise(task.model_builder.seed, torch.zeros(1, dtype=torch.int64))
            with _Recorder(task, found, tensor_parallel_size) as recorder:
                recorder.hold(*inputs.values())
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                    loss = task.objective(inputs)["loss"]
                found.saved = recorder.work
                recorder.begin_backward()
                loss.backward()
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(task).__name__} cannot be planned: its objective needs values, not only shapes ({reason})"
        ) from error
    return found


def simulate_optimizer(task: Task, precision: str = "32-true", tensor_parallel_size: int = 1) -> Masters:
    """The first step of the task's optimiser."""
    step = Simulation()
    make = partial(_model, task, tensor_parallel_size, precision == "bf16-true", Simulation())
    with _without_memory(), _configured(task, make):
        model = task.model
        optimizer = task.make_optimizer(groups_of(task.make_optimizer, model))
        fused = optimizer.defaults.get("fused", False) is None  # tasks/base.py takes the fused one where there is one
        if fused and "foreach" in optimizer.defaults:  # the same states, in fewer operations
            for group in optimizer.param_groups:
                group["foreach"] = True
        _give_gradients(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = sum(parameter.nbytes for parameter in model.parameters())
        found = Masters(
            weights,
            sum(parameter.numel() for parameter in trained),
            sum(parameter.nbytes for parameter in trained),
            states=0,
            frozen=sum(parameter.nbytes for parameter in task.parameters()) - weights,
        )
        with _Recorder(task, step) as recorder:
            optimizer.step()
            found.states = recorder.work
            if not fused:
                found.step_extra, found.step_costs = recorder.most - recorder.work, step.costs
    return found


@contextmanager
def _without_memory() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _configured(task: Task, make: Callable[[], nn.Module]) -> Iterator[None]:
    """With all models that the task sets up, each as `make` makes it; afterwards it has none again."""
    before = dict(task._modules)
    task.built = make  # type: ignore[method-assign]
    try:
        task.configure_model()
        yield
    finally:
        del task.built
        for name in list(task._modules):
            setattr(task, name, before.get(name))
        task.noise = None  # type: ignore[assignment]


def _give_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


def _model(task: Task, tensor_parallel_size: int, in_bf16: bool, found: Simulation) -> nn.Module:
    """The model as one tensor-parallel rank holds it.

    Raises:
        ValueError: it cannot be divided so.
    """
    model = task.model_builder.make().train()
    if task.model_builder.adapt is not None:
        task.model_builder.adapt(model)
    if tensor_parallel_size > 1 and is_adapted(model):
        raise ValueError("lora needs whole matrices, which tensor parallelism divides; strategy=fsdp leaves them whole")
    for module in model.modules() if in_bf16 else ():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                cast = tensor.detach().bfloat16()
                trained = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(cast, tensor.requires_grad) if trained else cast)
    if tensor_parallel_size > 1:
        for block in blocks_of(model) or [model]:
            for path, style in tensor_parallel_plan(block, tensor_parallel_size).items():
                layer = block.get_submodule(path)
                if style in ("colwise", "rowwise", "experts"):
                    _cut(layer, 1 if style == "rowwise" else 0, tensor_parallel_size)
                    layer.register_forward_hook(partial(_exchange, found, style))
    return model


def _exchange(found: Simulation, style: str, layer: nn.Module, arguments: tuple, result: Tensor) -> None:
    """Ranks sum what a layer divided by inputs returns, and the gradient of what one divided by outputs reads.

    Of experts they sum both.
    """
    if style in ("rowwise", "experts"):
        found.exchanged += result.nbytes
    if style in ("colwise", "experts") and torch.is_grad_enabled():
        found.exchanged += sum(each.nbytes for each in arguments if each.is_floating_point())


def _cut(layer: nn.Module, axis: int, size: int) -> None:
    """Leave a linear layer its share of the outputs (axis 0) or the inputs (axis 1), or experts some of them (0)."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if axis < parameter.ndim:
            share = parameter.detach().chunk(size, axis)[0].clone()
            setattr(layer, name, nn.Parameter(share, parameter.requires_grad))


def _fake(tensor: Tensor, in_bf16: bool) -> Tensor:
    dtype = torch.bfloat16 if in_bf16 and tensor.is_floating_point() else tensor.dtype
    return torch.zeros(tensor.shape, dtype=dtype)


def _wrap(model: nn.Module, checkpointing: parallelize.Checkpointing) -> None:
    names = {module: name for name, module in model.named_modules()}
    for block in blocks_of(model):
        parent, _, name = names[block].rpartition(".")
        setattr(model.get_submodule(parent), name, parallelize.checkpointed(block, checkpointing))


class _Recorder(TorchDispatchMode):
    """Follows every storage from the operation that makes it until nothing holds it."""

    def __init__(self, task: Task, found: Simulation, ranks: int = 1) -> None:
        super().__init__()
        self.ranks = ranks
        self.task, self.model, self.found = task, task.model, found
        self.work = self.most = 0  # bytes now, and at most
        self._gradients = 0
        self._place = {p: index for index, block in enumerate(blocks_of(self.model)) for p in block.parameters()}
        self._whole: dict[int, int] = {}  # bytes of gradients that FSDP still holds as a whole, by block
        self._alive: dict[int, tuple[Any, int, str]] = {}  # storage -> (reference, bytes, what it is)
        self._at = (0, REST)
        self._fresh: set[int] = set()  # storages made since the last operation that nothing fuses with
        self._unwritten: set[int] = set()  # made by fused operations, and not needed outside of them so far
        self._hooks: list[Any] = []

    def __enter__(self) -> "_Recorder":
        for index, block in enumerate(blocks_of(self.model)):
            self._hooks.append(block.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True))
            self._hooks.append(block.register_forward_hook(partial(self._leave, index)))
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._is_gradient))
        for tensor in [*self.task.parameters(), *self.task.buffers()]:  # theirs are counted apart
            self._alive[tensor.untyped_storage()._cdata] = (None, 0, "weight")
            if tensor.grad is not None:
                self._alive[tensor.grad.untyped_storage()._cdata] = (None, 0, "gradient")
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        self._count(func, args, kwargs or {}, result, read, made)
        self.hold(*made)
        return result

    def hold(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._alive:
                self._alive[key] = (weakref.ref(storage, partial(self._gone, key)), size, "work")
                self.work += size
        self._note()

    def begin_backward(self) -> None:
        self._at = (1, REST)

    def _gone(self, key: int, _: Any) -> None:
        _, size, kind = self._alive.pop(key)
        self._fresh.discard(key)  # another storage may get its address
        self._unwritten.discard(key)
        if kind == "work":
            self.work -= size

    def _note(self) -> None:
        self.most = max(self.most, self.work)
        peaks = self.found.peaks
        peaks[self._at] = max(peaks.get(self._at, 0), self.work)
        whole = self._whole.get(self._at[1], 0) + (self._whole.get(REST, 0) if self._at[1] != REST else 0)
        sharded = self.found.sharded_peaks
        sharded[self._at] = max(sharded.get(self._at, 0), self.work + whole)
        self.found.with_gradients = max(self.found.with_gradients, self.work + self._gradients)

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        reference, size, kind = self._alive.get(key, (None, 0, "gradient"))
        if kind == "work":
            self._alive[key] = (reference, size, "gradient")
            self.work -= size
            self._gradients += size
        block = self._place.get(parameter, REST)
        self._whole[block] = self._whole.get(block, 0) + parameter.nbytes

    def _enter(self, index: int, block: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        if self._at[0] == 0:
            self._at = (0, index)
            self._at_backward(tree_leaves((arguments, named)), (1, REST if index == 0 else index - 1))

    def _leave(self, index: int, block: nn.Module, arguments: tuple, result: Any) -> None:
        if self._at[0] == 0:
            self._at = (0, REST)
            self._at_backward(tree_leaves(result), (1, index))

    def _at_backward(self, tensors: list[Any], place: tuple[int, int]) -> None:
        """The backward pass is at `place` once the gradient of these is known."""

        def arrive(gradient: Tensor) -> None:
            self._at = place

        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(arrive)
                return

    def _count(self, func: Any, args: tuple, named: Any, result: Any, read: list[Tensor], made: list[Tensor]) -> None:
        if func.is_view or not made or func._schema.name in _FREE:
            return
        kind, flops = _flops_of(func, args, named, result)
        if func.namespace == "scaledl":  # experts: of all rows, a rank computes those of its own
            flops /= self.ranks
        size = min((each.element_size() for each in made if each.is_floating_point()), default=8)
        cost = self.found.costs.setdefault((kind, size), Cost())
        cost.count += 1
        cost.flops += flops
        cost.bytes += sum(each.nbytes for each in [*read, *made])
        keys = {each.untyped_storage()._cdata: each.nbytes for each in read}
        from_outside = {key: size for key, size in keys.items() if kind != "other" or key not in self._fresh}
        cost.fused_bytes += sum(from_outside.values())
        late = self._unwritten & from_outside.keys()  # fused operations have to write what is read later
        cost.fused_bytes += sum(keys[key] for key in late)
        self._unwritten -= late
        out = {each.untyped_storage()._cdata: each.nbytes for each in made}
        if kind == "other":
            self._fresh |= out.keys()
            self._unwritten |= out.keys()
        else:
            self._fresh, self._unwritten = set(), self._unwritten - out.keys()
            cost.fused_bytes += sum(out.values())


_FREE = (
    "aten::empty",
    "aten::empty_strided",
    "aten::detach",
    "aten::new_empty",
    "aten::empty_like",
    "aten::_unsafe_view",
)


def _flops_of(func: Any, args: tuple, named: dict[str, Any], result: Any) -> tuple[str, float]:
    """The kind of an operation and its FLOPs as a GPU computes them: causal attention only half of the pairs."""
    name = func._schema.name
    if "scaled_dot_product_flash_attention_for_cpu" in name:
        backward = name.endswith("backward")
        q, k = (args[1], args[2]) if backward else (args[0], args[1])
        batch, heads, length, dim = q.shape
        causal = any(each is True for each in args) or named.get("is_causal", False)
        pairs = batch * heads * length * k.shape[2] * (0.5 if causal else 1.0)
        return "attention", (5 if backward else 2) * 2.0 * pairs * dim  # the backward pass computes scores again
    packet = func._overloadpacket
    if packet in flop_registry:
        return "matrix", float(flop_registry[packet](*args, **named, out_val=result))
    return "other", 0.0
