#!/usr/bin/env python
"""How much a step takes while a checkpoint is written, against a step while none is.

    .venv/bin/python scripts/bench_save.py --steps 60 --every 20

Trains a GPT of about 100 M parameters by the same code as `scaledl train`, saving every so many steps, and times each
step with all that belongs to it, the copying of the state to the host among it. The first save is left out of the
figures. Words after `--` go to the training command.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from scaledl import build, train
from scaledl.config.folders import config_folders

WORDS = (
    "experiment=llm/gpt_shakespeare",
    "model=gpt2",
    "model.depth=9",  # 103 M parameters
    "data.seq_len=256",
    "data.global_batch_size=1",
    "~callbacks.samples",
    "checkpoint.keep_last=1",
    "trainer.limit_val_batches=0",
)


class Clock(pl.Callback):
    """Seconds of each step, and whether a checkpoint was under way in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.saving: list[bool] = []
        self._since, self._was_saving = 0.0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        saving = trainer.strategy.saver.busy  # type: ignore[attr-defined]
        self.seconds.append(now - self._since)
        self.saving.append(saving or self._was_saving)
        self._since, self._was_saving = now, saving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps between two saves")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()

    clock, original = Clock(), build.trainer

    def with_clock(*given: Any) -> pl.Trainer:
        trainer = original(*given)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        return trainer

    build.trainer = with_clock
    with tempfile.TemporaryDirectory() as folder:
        words = [*WORDS, f"runs_dir={folder}", f"trainer.max_steps={arguments.steps}", *arguments.words]
        words.append(f"checkpoint.every_n_steps={arguments.every}")
        train.train(words, config_folders([]), [])
        state = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))

    first = arguments.every + 1  # after the first save
    timed = list(zip(clock.seconds, clock.saving, strict=True))[first:-1]  # the last step waits for its save
    usual = [seconds for seconds, saving in timed if not saving]
    while_saving = [seconds for seconds, saving in timed if saving]
    if not usual or not while_saving:
        sys.exit("bench_save: no step of both kinds; take more --steps, or a larger --every")
    middle, average = statistics.median(while_saving), statistics.mean(while_saving)
    print(f"a checkpoint:       {state / 1e9:.2f} GB")
    print(f"usual step:         median {statistics.median(usual):.3f} s of {len(usual)}")
    print(f"while one is saved: median {middle:.3f} s, mean {average:.3f} s of {len(while_saving)}")
    print(f"the longest:        {max(while_saving):.3f} s, and {max(usual):.3f} s of the usual ones")
    print(
        f"ratio:              {middle / statistics.median(usual):.3f}, of means {average / statistics.mean(usual):.3f}"
    )


if __name__ == "__main__":
    main()
