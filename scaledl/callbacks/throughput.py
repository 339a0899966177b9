"""Samples and tokens a second of training alone, and how much of the devices they use: evaluation, saving and the
first steps are left out."""

import time
from typing import Any

import lightning.pytorch as pl
import torch

from scaledl.flops import flops_of_sample, usual_sample, utilization
from scaledl.hardware import device_called


class Throughput(pl.Callback):
    """Counts from the end of step `skip_steps` on, because the first steps pay for allocation and compilation.

    Args:
        peak_tflops: TFLOP/s of one device in this precision, for model FLOPs utilisation; null: those of the GPU, if it
            is a known one (scaledl/hardware.py).
    """

    def __init__(self, skip_steps: int = 5, peak_tflops: float | None = None):
        self.skip_steps, self.peak_tflops = skip_steps, peak_tflops
        self.flops_per_sample: int | None = None
        self._peak: float | None = None  # of all devices
        self.train_seconds = 0.0
        self._steps, self._measured_steps, self._measured_seconds = 0, 0, 0.0
        self._since = 0.0
        self._per_step = {"samples": 0, "tokens": 0}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Before there are weights: the operations of a sample are counted on tensors without memory."""
        peak = None if self.peak_tflops is None else self.peak_tflops * 1e12
        if peak is None and torch.cuda.is_available() and (known := device_called(torch.cuda.get_device_name())):
            peak = known.peak(str(trainer.precision), tf32=torch.get_float32_matmul_precision() != "highest")
        if stage == "fit" and peak is not None:
            train_set = trainer.datamodule.split("train")  # type: ignore[attr-defined]
            self.flops_per_sample = flops_of_sample(pl_module, usual_sample(train_set))
            self._peak = peak * trainer.world_size

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        tokens = getattr(data, "tokens_per_sample", 0)
        self._per_step = {"samples": data.global_batch_size, "tokens": data.global_batch_size * tokens}
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._steps += 1
        if self._steps > self.skip_steps:
            self._measured_steps += 1
            self._measured_seconds += now - self._since
        self._since = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out what happened since the last step."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds = state_dict["train_seconds"]

    @property
    def rates(self) -> dict[str, float]:
        """`samples_per_second` and, where samples are made of tokens, `tokens_per_second`, over all ranks."""
        if not self._measured_seconds:
            return {}
        steps_per_second = self._measured_steps / self._measured_seconds
        return {f"{unit}_per_second": count * steps_per_second for unit, count in self._per_step.items() if count}

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, from 0 to 1; None where the device's peak is unknown."""
        return utilization(self.flops_per_sample, self.rates.get("samples_per_second"), self._peak)
