"""What a run's state is made of, in names and shapes that no strategy changes, so that any can go on from any.

A strategy says which tensors its optimiser updates on this rank (`masters`: parameters, shards of them, or flat ranges)
and where each lies in the model's parameters (`pieces`). Weights, every state of the optimiser, and averages of the
weights are then pieces of the same kind.
"""

import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scaledl.distributed import gradients, storage
from scaledl.distributed.pieces import Pieces
from scaledl.distributed.saver import Saver

PARTS = ("weights", "optimizer", "ema", "carried")
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def names_of(task: nn.Module) -> dict[nn.Parameter, str]:
    """Each parameter's name in the model as it was written, whatever was wrapped around its modules since."""
    found = {}
    for name, parameter in task.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        found[parameter] = name
    return found


class RunState(Strategy):
    """Adds to one of Lightning's strategies: checkpoints that any strategy reads, clipping and skipping on shards.

    The methods of the first half are for strategies that do not keep parameters as parameters.
    """

    strategy_name = ""
    tensor_parallel_size = 1
    cannot: dict[str, str] = {}  # what a task may need (see tasks/base.py) and this strategy cannot do, with the reason
    average: list[Tensor] | None = None  # of the masters, in fp32, where a callback keeps one

    def masters(self) -> list[Tensor]:
        """The tensors that the optimiser updates on this rank, in an order that does not change."""
        return [parameter for parameter in names_of(self._task) if parameter.requires_grad]

    def names(self) -> list[list[str]]:
        """For each master, the parameters that it holds something of."""
        return [[name] for parameter, name in names_of(self._task).items() if parameter.requires_grad]

    def pieces(self, tensors: list[Tensor | None]) -> dict[str, Pieces]:
        """Where tensors that are laid out as the masters lie, by the parameter's name. None: nothing there."""
        found = zip(self.names(), tensors, strict=True)
        return {name: Pieces.of(tensor) for (name,), tensor in found if tensor is not None}

    def piece_of_frozen(self, parameter: nn.Parameter) -> Pieces:
        """What this rank holds of a parameter that is not trained, and so is no master."""
        return Pieces.of(parameter)

    def whole(self, parameter: Tensor) -> Tensor:
        """All of a parameter, on every rank; all ranks ask together."""
        parameter = parameter.detach()
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter

    def refresh(self) -> None:
        """Bring what forward passes read up to date after the masters were changed from outside."""

    def create_optimizer_state(self, optimizer: Optimizer) -> None:
        """Make the optimiser allocate its state, whose values a checkpoint then replaces."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients_before = [parameter.grad for parameter in parameters]  # ZeRO's offload has its buffers there
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter, gradient in zip(parameters, gradients_before, strict=True):
            parameter.grad = gradient

    def lr_of(self) -> dict[str, float]:
        """The learning rate of each parameter at this step."""
        names = names_of(self._task)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}

    def set_lr(self, of: dict[str, float]) -> None:
        names = names_of(self._task)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = of[names[group["params"][0]]]

    def finish_gradients(self, optimizer: Optimizer, max_norm: float | None) -> None:
        """Clip to max_norm, and leave the step out if the norm is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = [parameter.grad for parameter in parameters]
        norm = gradients.global_norm(found)
        bad = ~norm.isfinite()
        if max_norm:
            gradients.clip(found, norm, max_norm)
        gradients.skip_if(bad, optimizer, parameters)
        self._gradient_norm, self._bad = norm, bad

    def step_report(self) -> tuple[Tensor, Tensor]:
        """Of the last step, on the device: the norm of its gradient before clipping, and whether it was left out."""
        return self._gradient_norm, self._bad

    # -- the same for every strategy -------------------------------------------------------------------------------

    @property
    def _task(self) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def saver(self) -> Saver:
        if not hasattr(self, "_saver"):
            self._saver = Saver()
        return self._saver

    def state_tensors(self, parts: tuple[str, ...] = PARTS) -> dict[str, Pieces]:
        """All tensors of the run's state that this rank holds, by name; `parts` chooses from them."""
        found: dict[str, Pieces] = {}
        if "weights" in parts:
            weights = self.pieces(list(self.masters())) | self._fixed()
            found |= {f"weights/{name}": pieces for name, pieces in weights.items()}
        if "optimizer" in parts:
            for index, optimizer in enumerate(self._state_optimizers()):
                found |= {
                    f"optimizer.{index}/{key}": pieces for key, pieces in self._optimizer_pieces(optimizer).items()
                }
        if "ema" in parts and self.average is not None:
            weights = self.pieces(list(self.average)) | self._fixed()
            found |= {f"ema/{name}": pieces for name, pieces in weights.items()}
        if "carried" in parts:
            found |= {
                f"carried/{name}": _over_samples(held, self._task.trainer.datamodule.global_batch_size)
                for name, held in self._task.carried().items()
            }
        return found

    def load_tensors(self, folder: Path, parts: tuple[str, ...] = PARTS) -> None:
        """Fill this rank's share of the state from a checkpoint of any strategy and number of ranks, in place."""
        if "optimizer" in parts:
            for optimizer in self._state_optimizers():
                if not optimizer.state:
                    self.create_optimizer_state(optimizer)
        begins_average = self.average is not None and not _holds_average(folder)
        wanted, saved = (
            self.state_tensors(tuple(p for p in parts if p != "ema" or not begins_average)),
            storage.sizes(folder),
        )
        # What an optimiser never wrote (no good step yet, a parameter without gradients) is as at its beginning: zero.
        begins = [name for name in wanted if name.startswith(("optimizer.", "carried/")) and name not in saved]
        with torch.no_grad():
            for name in begins:
                for _, part in wanted.pop(name).parts:
                    part.zero_()
            storage.load(folder, wanted)
        self.refresh()
        if begins_average:
            self.start_average()

    def start_average(self) -> None:
        self.average = [master.detach().float().clone() for master in self.masters()]

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchange weights and average."""
        assert self.average is not None
        for master, average in zip(self.masters(), self.average, strict=True):
            here, there = gradients.local(master), gradients.local(average)
            weights = here.clone()
            here.copy_(there)
            there.copy_(weights)
        self.refresh()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the averaged weights in the model, where an average is kept."""
        if self.average is None:
            yield
            return
        self.swap_average()
        try:
            yield
        finally:
            self.swap_average()

    def load_average(self, folder: Path) -> None:
        """Put a checkpoint's averaged weights, if it has any, else its weights, into the model."""
        averaged = _holds_average(folder)
        tensors = self.state_tensors(("weights",))
        with torch.no_grad():
            renamed = {name.replace("weights/", "ema/", 1) if averaged else name: p for name, p in tensors.items()}
            storage.load(folder, renamed)
        self.refresh()

    def load_matching(self, folder: Path, lora_scale: float) -> tuple[int, int]:
        """Put a checkpoint's weights of equal name and size into the model; how many of how many tensors they are.

        A frozen copy of the model, called `reference`, gets the same. Adapters are not copied but merged.
        """
        kind, saved = "ema/" if _holds_average(folder) else "weights/", storage.sizes(folder)
        tensors = self.state_tensors(("weights",))
        filled = 0
        with torch.no_grad():
            for copies in (False, True):
                ours = {
                    name.replace("weights/reference.", "weights/model.").replace("weights/", kind, 1): pieces
                    for name, pieces in tensors.items()
                    if name.startswith("weights/reference.") == copies
                }
                found = {
                    name: pieces
                    for name, pieces in ours.items()
                    if saved.get(name) == pieces.size and not name.endswith((".lora_a", ".lora_b"))
                }
                storage.load(folder, found)
                _add_products(folder, found, saved, lora_scale)
                filled += len(found)
        self.refresh()
        return filled, len(tensors)

    def _state_optimizers(self) -> list[Optimizer]:
        return self.optimizers

    def _fixed(self) -> dict[str, Pieces]:
        """What belongs to the model and is not trained: frozen parameters and persistent buffers."""
        frozen = {name: self.piece_of_frozen(p) for p, name in names_of(self._task).items() if not p.requires_grad}
        trained = set(names_of(self._task).values())
        for name, value in self._task.state_dict().items():
            if name not in trained and name not in frozen and isinstance(value, Tensor):
                frozen[name] = Pieces.of(value)
        return frozen

    def _optimizer_pieces(self, optimizer: Optimizer) -> dict[str, Pieces]:
        """`<state>/<parameter>` -> pieces; a state of another shape than its master (a step counter) is whole."""
        masters, names = self.masters(), self.names()
        states = [optimizer.state.get(master, {}) for master in masters]
        found: dict[str, Pieces] = {}
        for key in sorted({key for state in states for key, value in state.items() if isinstance(value, Tensor)}):
            like_master: list[Tensor | None] = []
            for master, state, of in zip(masters, states, names, strict=True):
                value = state.get(key)
                same = value is not None and value.shape == master.shape
                like_master.append(value if same else None)
                if value is not None and not same:
                    found |= {f"{key}/{name}": Pieces.of(value) for name in of}
            found |= {f"{key}/{name}": pieces for name, pieces in self.pieces(like_master).items()}
        return found

    # -- Lightning's side ------------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        for optimizer in self._state_optimizers() if self.optimizers else ():
            if hasattr(optimizer, "owners"):  # it computes with whole matrices, wherever their parts are
                optimizer.owners.strategy = self

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        return False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return {}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """`load_checkpoint` has filled the model already."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Start a save; `storage_options` is what rank 0 does when the checkpoint is visible."""
        then: Callable[[], None] | None = storage_options
        plain = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        plain["lr"] = self.lr_of()
        self.saver.save(Path(filepath), self.state_tensors(), plain, then)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        plain = storage.load_plain(Path(checkpoint_path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
            self.load_tensors(Path(checkpoint_path))
        if "lr" not in plain:  # weights alone, imported or merged: the training begins with them
            return plain | {"lr_schedulers": []}
        self.set_lr(plain.pop("lr"))
        for config, state in zip(self.lr_scheduler_configs, plain["lr_schedulers"], strict=True):
            _fit_to_groups(state, config.scheduler)
        return plain

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # after a failure the other ranks may be gone, and the save with them
            self.saver.wait()
        task = self.lightning_module
        device = next((p.device for p in task.parameters()), None) if task is not None else None
        super().teardown()
        if task is not None and device is not None and device.type == "cuda":
            # Lightning has brought the model to the host; what follows in on_fit_end (the test split, pictures) asks it
            # where the data go.
            task.to(device)


def _over_samples(held: list[tuple[int, Tensor]], samples: int) -> Pieces:
    """Tensors (depth, n, dim) as parts of one over all samples of the global batch."""
    depth, _, dim = held[0][1].shape
    return Pieces(torch.Size((depth, samples, dim)), held[0][1].dtype, [((0, at, 0), tensor) for at, tensor in held])


def _add_products(folder: Path, weights: dict[str, Pieces], saved: Collection[str], scale: float) -> None:
    """Merge a checkpoint's adapters (layers/lora.py) into the pieces of their layers' weights."""
    for name, pieces in weights.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_a" in saved:
            found = storage.load_whole(folder, f"{layer}.lora_")
            a, b = found[f"{layer}.lora_a"].float(), found[f"{layer}.lora_b"].float()
            for (row, column), part in pieces.parts:
                rows, columns = part.shape
                product = b[row : row + rows] @ a[:, column : column + columns]
                part.copy_(part.float() + scale * product.to(part.device))


def _holds_average(folder: Path) -> bool:
    return any(name.startswith("ema/") for name in storage.sizes(folder))


def _fit_to_groups(state: dict[str, Any], scheduler: Any) -> None:
    """A schedule's saved lists, one entry a parameter group, become those of this run, whose groups may be others."""
    groups = scheduler.optimizer.param_groups
    for key, values in (
        ("base_lrs", [group["initial_lr"] for group in groups]),
        ("_last_lr", [group["lr"] for group in groups]),
        ("lr_lambdas", [None] * len(groups)),
    ):
        if key in state:
            state[key] = values
