"""What a language model writes when it is trained."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from scaledl.data.tokenizer import first_ids
from scaledl.tasks.language_modeling import LanguageModeling


class TextSamples(pl.Callback):
    """Writes `samples/step_<n>.txt` into the run directory.

    Args:
        prompt: what the text begins with; null: a new line.
        max_new_tokens: how much is written.
    """

    def __init__(
        self, prompt: str | None = None, max_new_tokens: int = 400, temperature: float = 0.8, top_k: int | None = None
    ):
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.temperature, self.top_k = temperature, top_k
        self.run_dir = Path()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        first_ids(trainer.datamodule.tokenizer, self.prompt)  # type: ignore[attr-defined]  # a prompt that does not fit fails now

    def on_train_end(self, trainer: pl.Trainer, pl_module: LanguageModeling) -> None:  # type: ignore[override]
        with trainer.strategy.averaged():  # type: ignore[attr-defined]
            text = self._write(trainer.datamodule.tokenizer, pl_module)  # type: ignore[attr-defined]  # by all ranks together
        if not trainer.is_global_zero:
            return
        folder = self.run_dir / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step_{trainer.global_step:08d}.txt").write_text(text, encoding="utf-8")
        Console().print(Panel(Text(text), title="written by the model", title_align="left"))

    def _write(self, tokenizer: Any, task: LanguageModeling) -> str:
        ids = first_ids(tokenizer, self.prompt)
        new = task.generate(ids, self.max_new_tokens, temperature=self.temperature, top_k=self.top_k)
        return tokenizer.decode([*ids, *new])
