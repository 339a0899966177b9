"""A fingerprint of every global batch in the log: equal in runs that saw the same samples, on any number of ranks."""

import zlib
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from scaledl.callbacks.metrics import Metrics


class BatchHash(pl.Callback):
    """Logs `data/hash` at every step: the sum over samples of a checksum of what the model is given and its position.

    It reads each batch on the host, so it is for tests and for finding out where two runs part.
    """

    def __init__(self) -> None:
        self._sum = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        positions = trainer.datamodule.positions(batch_idx).tolist()  # type: ignore[attr-defined]
        rows = zip(positions, *(tensor.cpu().contiguous() for tensor in batch.values()), strict=True)
        for position, *parts in rows:
            value = position & 0xFFFFFFFF
            for part in parts:
                value = zlib.crc32(part.view(-1).view(torch.uint8).numpy(), value)
            self._sum += value

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        total = torch.tensor(self._sum)
        self._sum = 0
        if dist.is_initialized():
            dist.all_reduce(total)
        total //= trainer.strategy.tensor_parallel_size  # type: ignore[attr-defined]  # ranks that had the same samples
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Metrics):
                callback.record(trainer, {"data/hash": int(total) % 2**32})
