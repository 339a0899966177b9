"""Rounds of federated training around any task: choose clients, train each alone, add up, average, evaluate, save."""

import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scaledl import checkpoint
from scaledl.callbacks.bad_steps import BadSteps
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.early_stopping import EarlyStopping
from scaledl.callbacks.init_from import InitFrom
from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.predictions import save
from scaledl.callbacks.preemption import Preempted, Preemption
from scaledl.callbacks.progress import Progress
from scaledl.callbacks.test import BestOnTest
from scaledl.callbacks.throughput import Throughput
from scaledl.callbacks.watchdog import HangWatchdog
from scaledl.data.base import Data
from scaledl.data.sampler import permute
from scaledl.distributed import group, storage
from scaledl.distributed.noise import Noise
from scaledl.distributed.state import names_of
from scaledl.federated.attack import draw, first_linear, read_input
from scaledl.federated.fedavg import FedAvg
from scaledl.federated.partition import dealt
from scaledl.federated.picture import clients_figure
from scaledl.federated.privacy import epsilon
from scaledl.tasks.base import Task

_OF_STEPS = (BadSteps, Metrics, Progress, Throughput, BestOnTest)  # default callbacks whose work the runner does itself
_SERVED = (Checkpoint, EarlyStopping, InitFrom, HangWatchdog, Preemption)
_TRAINING, _ATTACK = 4, 5  # keep a client's draws apart from those of fedavg.py


class Runner:
    """A federated run in place of Lightning's fit; client k of a round is trained by rank k modulo the ranks.

    What a client does depends on (seed, round, client) and updates are added as integers, so weights are equal bit for
    bit on any number of ranks. A checkpoint is the server's weights, and its step is the round.

    Raises:
        ValueError: the partition does not fit the data.
    """

    def __init__(self, trainer: pl.Trainer, task: Task, data: Data, federation: FedAvg, run_dir: Path):
        train_set = data.split("train")
        assert train_set is not None
        self.trainer, self.task, self.data, self.federation, self.run_dir = trainer, task, data, federation, run_dir
        self.strategy: Any = trainer.strategy
        self.train_set, self.seed = train_set, task.model_builder.seed
        self.checkpoint: Checkpoint = self._callback(Checkpoint)
        self.checkpoint.best = checkpoint.best_of(run_dir)
        self.watchdog: HangWatchdog | None = self._callback(HangWatchdog)
        self.early_stopping: EarlyStopping | None = self._callback(EarlyStopping)
        # A sweep's (callbacks/pruning.py), whose class would bring Optuna into every training.
        self.pruning: Any = next((c for c in trainer.callbacks if hasattr(c, "outcome")), None)  # type: ignore[attr-defined]
        self.labels, self.clients = dealt(train_set, federation.partition, federation.num_clients, self.seed)
        self.round, self.rounds = 0, trainer.max_steps
        self.last: dict[str, float] = {}
        self.samples_seen, self.train_seconds = 0, 0.0
        ignored = [
            type(callback).__name__
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if not isinstance(callback, (*_OF_STEPS, *_SERVED)) and callback is not self.pruning
        ]
        if ignored and group.rank() == 0:
            warnings.warn(f"a federated run leaves out the callbacks {', '.join(ignored)}", stacklevel=2)

    def fit(self, resumed_from: Path | None) -> None:
        """All rounds that are left, then the best checkpoint on the test split.

        Raises:
            Preempted: a signal stopped the run, which has saved.
        """
        self._set_up(resumed_from)
        watchdog, preemption = self.watchdog, self._callback(Preemption)
        for callback in (self._callback(InitFrom), watchdog):
            if callback is not None:
                callback.on_fit_start(self.trainer, self.task)
        if preemption is not None:
            preemption.on_train_start(self.trainer, self.task)
        try:
            if resumed_from is None:
                self._show_start()
            while self.round < self.rounds and not self._ended():
                self._one_round(preemption)
            self.strategy.saver.wait()
            self._test()
        except BaseException as error:
            for callback in (watchdog, preemption):
                if callback is not None:
                    callback.on_exception(self.trainer, self.task, error)
            for logger in self.trainer.loggers:
                logger.finalize("failed")
            raise
        if preemption is not None:
            preemption.on_train_end(self.trainer, self.task)
        if watchdog is not None:
            watchdog.teardown(self.trainer, self.task, "fit")
        for logger in self.trainer.loggers:
            logger.finalize("success")

    def facts(self) -> dict[str, Any]:
        """What a federated run has to say in its summary."""
        return {
            "steps": self.round,
            "samples_seen": self.samples_seen,
            "tokens_seen": self.samples_seen * self.data.tokens_per_sample or None,
            "train_seconds": self.train_seconds,
            "throughput": {
                "samples_per_second": self.samples_seen / max(self.train_seconds, 1e-9),
                "tokens_per_second": self.samples_seen * self.data.tokens_per_sample / max(self.train_seconds, 1e-9)
                or None,
            },
            "metrics": self.last,
        }

    # -- the server ------------------------------------------------------------------------------------------------

    def _set_up(self, resumed_from: Path | None) -> None:
        self.data.rank, self.data.world_size = group.rank(), group.world_size()  # who evaluates which batches
        self.task.trainer = self.trainer
        self.strategy.connect(self.task)
        self.trainer._data_connector.attach_datamodule(self.task, self.data)  # type: ignore[attr-defined]
        self.strategy.setup_environment()
        self.task.configure_model()
        self.task.to(self.strategy.root_device)
        if resumed_from is not None:
            plain = storage.load_plain(resumed_from)
            self.strategy.load_tensors(resumed_from, ("weights",))
            self.round = checkpoint.step_of(resumed_from)
            self.last, self.samples_seen = plain["last"], plain["samples_seen"]
            self.train_seconds = plain["train_seconds"]
            if self.early_stopping and "early_stopping" in plain:
                self.early_stopping.load_state_dict(plain["early_stopping"])
        self.state = {name: t for name, t in self.task.state_dict().items() if isinstance(t, Tensor)}  # as it trains
        learned = {name for parameter, name in names_of(self.task).items() if parameter.requires_grad}
        # With privacy, noise goes on what clients train and nowhere else: other buffers stay as they began.
        self.sent = [
            name
            for name, t in self.state.items()
            if t.is_floating_point() and (name in learned or self.federation.privacy is None)
        ]
        self.dim = sum(self.state[name].numel() for name in self.sent)
        self.task.on_fit_start()
        self._optimizer, self._schedule = self._make_optimizer()
        self._advance(self.round)

    def _one_round(self, preemption: Preemption | None) -> None:
        began = time.perf_counter()
        federation, number = self.federation, self.round
        chosen = federation.chosen(self.seed, number)
        lost = federation.lost(self.seed, number, chosen)
        arrived = [client for client in chosen if client not in lost]
        weights = federation.weights([len(indices) for indices in self.clients], chosen)
        start = {name: tensor.clone() for name, tensor in self.state.items()}
        federation.aggregation.begin(chosen, self.dim, self.seed, number)
        reports: dict[int, dict[str, float]] = {}
        for client in arrived[group.rank() :: group.world_size()]:
            update, reports[client] = self._train_client(client, start)
            if federation.privacy is not None:
                update, clipped = federation.privacy.clipped(update)
                reports[client]["clipped"] = float(clipped)
            message = federation.aggregation.send(client, update * weights[client])
            reports[client]["upload_mb"] = federation.aggregation.size_of(message) / 2**20
            federation.aggregation.receive(message)
            self._load(start)
        reports, heard = self._gathered(reports, preemption)
        total = federation.aggregation.finish(arrived)
        self.round = number + 1
        measured = {f"train/{name}": value for name, value in mean_of(reports).items()}
        measured |= {"lr": self._optimizer.param_groups[0]["lr"], "clients": len(arrived), "lost": len(lost)}
        if total is None:  # too few to take the masks out: the weights stay
            measured["train/skipped"] = 1.0
        else:
            measured["train/skipped"] = 0.0
            measured["train/grad_norm"] = self._apply(start, total, sum(weights[client] for client in arrived), number)
        self._advance(1)
        if federation.privacy is not None:
            privacy = federation.privacy
            measured["privacy/epsilon"] = epsilon(
                self.round, federation.fraction, privacy.noise_multiplier, privacy.delta
            )
        self.samples_seen += int(sum(report["samples"] for report in reports.values()))
        measured["samples_seen"] = self.samples_seen
        self.train_seconds += time.perf_counter() - began
        measured["perf/seconds_per_round"] = time.perf_counter() - began
        self._finish_round(measured, heard)

    def _apply(self, start: dict[str, Tensor], total: Tensor, weight: float, number: int) -> float:
        """Move the server's weights by the mean update; the norm of that is returned (the pseudo-gradient of Reddi et
        al. 2021)."""
        if self.federation.privacy is None:
            mean = total / weight if weight else total
        else:  # the shares were 1 / (fraction num_clients) each, whoever came
            noise = self.federation.privacy.noise(self.dim, self.seed, number)
            mean = total + noise / (self.federation.fraction * self.federation.num_clients)
        with torch.no_grad():
            moved = self._unpacked(mean)
            for name, tensor in self.state.items():
                if name in moved:
                    tensor.copy_(start[name].double() + moved[name].to(tensor.device))
        return float(torch.linalg.vector_norm(mean))

    def _finish_round(self, measured: dict[str, float], heard: int) -> None:
        due = self.round % self.checkpoint.every_n_steps == 0 or self.round == self.rounds
        every = int(self.trainer.val_check_interval)
        if self.round % every == 0 or self.round == self.rounds:
            found = self._evaluate("val")
            measured |= found
            due |= bool(found) and self.checkpoint.judge(found, self.round)
            if found and self.early_stopping:
                self.early_stopping.judge(found, self.round)
                measured["early_stopping/waited"] = float(self.early_stopping.waited)
                if self.early_stopping.reason and group.rank() == 0:
                    reason = self.early_stopping.reason
                    warnings.warn(f"round {self.round}: training ends, for {reason}", stacklevel=2)
            if found and self.pruning:
                self.pruning.judge(found, -(-self.round // every), self.round, self.rounds)
            due |= self._ended()
        self._record(measured)
        if due or heard:
            self._save()
        if self.watchdog is not None:
            self.watchdog.on_save_checkpoint(self.trainer, self.task, {})
        if heard:
            self.strategy.saver.wait()
            raise Preempted(heard)

    def _ended(self) -> bool:
        """Before its last round."""
        stopped = self.early_stopping is not None and self.early_stopping.reason is not None
        return stopped or (self.pruning is not None and self.pruning.outcome is not None)

    def _evaluate(self, split: str) -> dict[str, float]:
        loader = self.data.val_dataloader() if split == "val" else self.data.test_dataloader()
        return self.task.evaluate(split, loader) if self.data.split(split) is not None else {}

    def _test(self) -> None:
        best = group.agreed(lambda: checkpoint.best(self.run_dir))
        if self.data.split("test") is not None:
            if best is not None:
                self.strategy.load_average(best)
            self._record(self._evaluate("test"))

    def _save(self) -> None:
        plain: dict[str, Any] = {"last": self.last, "samples_seen": self.samples_seen}
        plain["train_seconds"] = self.train_seconds
        if self.early_stopping:
            plain["early_stopping"] = self.early_stopping.state_dict()
        then = partial(self.checkpoint.tidy, self.checkpoint.best)
        folder = checkpoint.folder_of(self.run_dir, self.round)
        self.strategy.saver.save(folder, self.strategy.state_tensors(("weights",)), plain, then)

    def _record(self, values: dict[str, float]) -> None:
        self.last |= values
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.round)

    def _gathered(
        self, reports: dict[int, dict[str, float]], preemption: Preemption | None
    ) -> tuple[dict[int, dict[str, float]], int]:
        """Every client's report, in the order of clients, and the signal that any rank has received."""
        mine = (reports, preemption.received if preemption is not None else 0)
        ranks: list[Any] = [mine]
        if dist.is_initialized():
            others = dist.barrier(async_op=True)
            while not others.is_completed():  # who has more clients, or larger ones
                if self.watchdog is not None:
                    self.watchdog.on_train_batch_end(self.trainer, self.task, None, None, 0)
                time.sleep(0.005)
            others.wait()
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, mine)
        together = {client: report for found, _ in ranks for client, report in found.items()}
        return dict(sorted(together.items())), max(signal for _, signal in ranks)

    def _show_start(self) -> None:
        """Draw who holds what, and what the server can read."""
        if self.federation.partition.needs_labels and group.rank() == 0:
            save(clients_figure(self.labels, self.clients), self.run_dir, "clients.png")
        if self.federation.attack:
            errors = self._attack()
            self._record({f"attack/{name}": value for name, value in errors.items()})

    # -- a client --------------------------------------------------------------------------------------------------

    def _train_client(self, client: int, start: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Train on a client's samples from the server's weights: its update (D,) float64, and means over its steps."""
        federation, indices = self.federation, self.clients[client]
        key = int(np.random.SeedSequence([self.seed, _TRAINING, self.round, client]).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(key >> 1)  # of dropout
        if self.task.device.type == "cuda":
            torch.cuda.manual_seed(key >> 1)
        optimizer, _ = self._make_optimizer()
        for made, server in zip(optimizer.param_groups, self._optimizer.param_groups, strict=True):
            made["lr"] = server["lr"]
        self.task.train()
        sums: dict[str, Tensor] = {}  # on the device, read once
        position, size = key >> 2, self.data.global_batch_size
        for epoch in range(federation.local_epochs):
            order = indices[permute(np.arange(len(indices)), len(indices), key >> 2, epoch)]
            for first in range(0, len(order), size):
                batch = self.train_set.__getitems__(order[first : first + size])
                count = len(order[first : first + size])
                metrics = self._step(batch, position, count, optimizer, start)
                sums = {name: sums.get(name, 0) + count * value.detach() for name, value in metrics.items()}
                position += count
        update = self._packed(self.state) - self._packed(start)
        samples = len(indices) * federation.local_epochs
        return update, {name: float(total) / samples for name, total in sums.items()} | {"samples": float(samples)}

    def _step(
        self,
        batch: dict[str, Tensor],
        position: int,
        count: int,
        optimizer: torch.optim.Optimizer,
        start: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        if self.watchdog is not None:
            self.watchdog.on_train_batch_start(self.trainer, self.task, None, 0)
        precision = self.trainer.precision_plugin
        batch = self.strategy.batch_to_device(precision.convert_input(batch))
        self.task.noise = Noise(self.seed, torch.arange(position, position + count, device=self.task.device))
        with precision.train_step_context():
            metrics = self.task.objective(batch)
        metrics["loss"].backward()
        if self.federation.proximal:
            for parameter, name in names_of(self.task).items():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - start[name], alpha=self.federation.proximal)
        self.strategy.finish_gradients(optimizer, self.trainer.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()
        return metrics

    def _attack(self) -> dict[str, float]:
        """One client sends the gradient of one sample; how well its pixels are read, from it as it is and as sent."""
        client = self.federation.chosen(self.seed, 0)[0] if self.federation.privacy is None else 0
        batch = self.train_set.__getitems__(self.clients[client][:1])
        self.task.train()
        self.task.noise = Noise(self.seed, torch.zeros(1, dtype=torch.int64, device=self.task.device))
        self.task.objective(self.strategy.batch_to_device(batch))["loss"].backward()
        gradients = {name: p.grad for p, name in names_of(self.task).items() if p.grad is not None}
        update = -self._packed({name: gradients.get(name, torch.zeros_like(t)) for name, t in self.state.items()})
        self.task.zero_grad()
        aggregation = self.federation.aggregation
        aggregation.begin(list(range(self.federation.num_clients)), self.dim, self.seed, -1)  # with masks of its own
        seen = aggregation.seen(aggregation.send(client, update))
        layer = f"model.{first_linear(self.task.model)}"
        reads = {}
        for name, vector in {"from the update": update, "from the message": seen}.items():
            found = self._unpacked(vector)
            reads[name] = read_input(found[f"{layer}.weight"], found[f"{layer}.bias"]).view_as(batch["x"][0])
        return draw(batch["x"][0].double(), reads, self.run_dir) if group.rank() == 0 else {}

    # -- weights as one vector -------------------------------------------------------------------------------------

    def _packed(self, state: dict[str, Tensor]) -> Tensor:
        """What clients send, (D,) float64 on the host."""
        return torch.cat([state[name].detach().double().flatten().cpu() for name in self.sent])

    def _unpacked(self, vector: Tensor) -> dict[str, Tensor]:
        found, at = {}, 0
        for name in self.sent:
            tensor = self.state[name]
            found[name] = vector[at : at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()
        return found

    @torch.no_grad()
    def _load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    def _make_optimizer(self) -> tuple[torch.optim.Optimizer, Any]:
        made = self.task.configure_optimizers()
        return made["optimizer"], made.get("lr_scheduler", {}).get("scheduler")

    def _advance(self, rounds: int) -> None:
        """Move the schedule of the learning rate on."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*lr_scheduler.step.*before.*optimizer.step.*")
            for _ in range(rounds if self._schedule is not None else 0):
                self._schedule.step()

    def _callback(self, kind: type) -> Any:
        return next((c for c in self.trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def mean_of(reports: dict[int, dict[str, float]]) -> dict[str, float]:
    """Means by name over reports, weighted by their `samples`, in the order they have."""
    total = sum(report["samples"] for report in reports.values())
    names = [name for name in next(iter(reports.values()), {}) if name != "samples"]
    return {name: sum(r[name] * r["samples"] for r in reports.values()) / total for name in names}
