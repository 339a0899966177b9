"""Fine-tuning: a run begins with the weights of another."""

from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console

from scaledl import checkpoint, run_directory


class InitFrom(pl.Callback):
    """Fills what has an equal name and shape from the best checkpoint of `run_dir`, averaged weights if it has them.

    Adapters of that run (LoRA) are merged into its weights; those of this run begin anew.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint.
    """

    def __init__(self, source: str):
        self.source = source
        self.checkpoint = checkpoint.choose(Path(source).expanduser(), "best")
        lora = run_directory.load_config(Path(source).expanduser()).get("lora")
        self.lora_scale = lora.alpha / lora.rank if lora else 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        filled, total = trainer.strategy.load_matching(self.checkpoint, self.lora_scale)  # type: ignore[attr-defined]
        if not filled:
            raise ValueError(
                f"init_from={self.source} has no tensor whose name and shape this model has; take a run of the same "
                "kind of model"
            )
        if trainer.is_global_zero:
            Console().print(f"{filled} of {total} tensors begin as in {self.checkpoint}")
