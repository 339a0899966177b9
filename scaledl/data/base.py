"""What every kind of data has in common: the two batch dials, an order without ranks, and a position that is saved."""

from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scaledl.data.sampler import EvalBatches, TrainBatches


class BatchDataset(Protocol):
    """Index-based access, a batch at a time.

    A training set may also have `lengths(indices)` and `weights(indices)` (see `TrainBatches`), and `shuffled = False`
    where its order means something, or `samples_at(positions, seed)`, an order of its own. An evaluation set may have
    `parts`, (name, first sample, weight) of each, to be evaluated each by itself too; its metrics are then their
    weighted means.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: np.ndarray) -> dict[str, Tensor]: ...


class Data(pl.LightningDataModule):
    """A kind of data. A subclass writes `prepare`, `datasets` and, where models ask for them, `facts`.

    Args:
        global_batch_size: samples of one optimiser step, over all ranks.
        micro_batch_size: samples of one forward pass of one rank, at most; the largest number that divides a rank's
            share of the global batch is taken. The number of passes a step follows from it.
        seed: of the order of the training samples.
        num_workers: processes that fetch batches; 0 fetches in the training process.
    """

    def __init__(self, global_batch_size: int, micro_batch_size: int, seed: int = 0, num_workers: int = 0):
        super().__init__()
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.seed, self.num_workers = seed, num_workers
        self.eval_batch_size = micro_batch_size  # so that an evaluation sees the same batches on any number of ranks
        self.limit_val_batches: int | None = None  # of all ranks together
        self.rank, self.world_size = 0, 1  # among the ranks that take different data
        self.samples_seen_before, self.step_before = 0, 0
        self._datasets: dict[str, BatchDataset] | None = None

    def prepare(self) -> None:
        """Bring the data onto this machine. Several processes may call it at once; a second call does no work."""

    def facts(self) -> dict[str, Any]:
        """What models must know of the data, by the names of this class's arguments (num_classes, ...)."""
        return {}

    def datasets(self) -> dict[str, BatchDataset]:
        """Index-based sets by split: `train`, `val` and, where there is one, `test`. Called after `prepare`."""
        raise NotImplementedError(f"{type(self).__name__} must return its datasets by split")

    @property
    def tokens_per_sample(self) -> int:
        """Tokens that a training sample is made of; 0 where there are none."""
        return 0

    def describe(self) -> str:
        """A few words on what the data is, for the table at the start."""
        return type(self).__name__

    def baselines(self) -> dict[str, float]:
        """What a simple method reaches on the validation split, by name, to be read beside the model's result."""
        return {}

    def read_instead(self, text: Path, folder: Path) -> None:
        """Make the text of a file the validation split, with what `save_to` left in `folder`."""
        raise ValueError(f"{type(self).__name__} is no text; evaluate this run without a text file")

    def speed(self) -> str:
        """How fast the data was prepared, in words, where that took long."""
        return ""

    def save_to(self, folder: Path) -> None:
        """Write into the run directory what generate and evaluate need without the data itself (a tokenizer, say)."""

    # -- nothing from here on is for a subclass to write -----------------------------------------------------------

    def split(self, name: str) -> BatchDataset | None:
        if self._datasets is None:
            self._datasets = self.datasets()
        return self._datasets.get(name)

    def splits(self) -> list[tuple[str, BatchDataset]]:
        return [(name, dataset) for name in ("train", "val", "test") if (dataset := self.split(name)) is not None]

    @property
    def accumulation(self) -> int:
        """Micro-batches that one rank runs for one optimiser step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def samples_seen(self) -> int:
        """Training samples consumed up to the last finished optimiser step: the whole state of the data."""
        steps = self.trainer.global_step - self.step_before if self.trainer else 0
        return self.samples_seen_before + steps * self.global_batch_size

    def positions(self, batch_idx: int) -> Tensor:
        """Where in the endless line of training samples those of a micro-batch of this rank stand, (B,) int64."""
        return torch.from_numpy(self._train_batches.positions(batch_idx - self.step_before * self.accumulation))

    def weight_share(self, batch_idx: int) -> float:
        """What a micro-batch's means are multiplied by, so that their average is the mean over the global batch."""
        return self._train_batches.weight_share(batch_idx - self.step_before * self.accumulation)

    def state_dict(self) -> dict[str, Any]:
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples_seen_before = state_dict["samples_seen"]

    def train_dataloader(self) -> DataLoader:
        dataset = self.split("train")
        assert dataset is not None
        self.step_before = self.trainer.global_step if self.trainer else 0
        self._train_batches = TrainBatches(
            len(dataset),
            self.global_batch_size,
            self.micro_batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            start=self.samples_seen_before,
            shuffled=getattr(dataset, "shuffled", True),
            order=getattr(dataset, "samples_at", None),
            lengths=getattr(dataset, "lengths", None),
            weights=getattr(dataset, "weights", None),
        )
        return self._loader(dataset, self._train_batches)

    def val_dataloader(self) -> DataLoader | list:
        return self._eval_loader("val", self.limit_val_batches)

    def test_dataloader(self) -> DataLoader | list:
        return self._eval_loader("test")

    def _eval_loader(self, split: str, limit: int | None = None) -> DataLoader | list:
        dataset = self.split(split)
        if dataset is None:
            return []
        begins = [begin for _, begin, _ in getattr(dataset, "parts", [("", 0, 1.0)])]
        ranks = {"rank": self.rank, "world_size": self.world_size}
        batches = EvalBatches(len(dataset), self.eval_batch_size, **ranks, limit=limit, begins=begins)
        return self._loader(dataset, batches)

    def _loader(self, dataset: BatchDataset, batches: TrainBatches | EvalBatches) -> DataLoader:
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=_as_fetched,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _as_fetched(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Datasets return whole batches already; a named function, so that worker processes can import it."""
    return batch
