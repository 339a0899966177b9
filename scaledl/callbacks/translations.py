"""What a sequence-to-sequence model writes: BLEU, exact matches and examples."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from scaledl import checkpoint
from scaledl.bleu import corpus_bleu
from scaledl.callbacks.metrics import record
from scaledl.callbacks.test import at_best
from scaledl.data.sampler import EvalBatches
from scaledl.distributed import group
from scaledl.tasks.seq2seq import Seq2Seq


class Translations(pl.Callback):
    """Logs `val/bleu` and `val/exact_match` of the first pairs by greedy search, then both of the test split by beams.

    BLEU is `corpus_bleu`, exact match the share of targets that are the reference to the letter. The last translates
    all of the test split (of the validation split where there is none) with the best checkpoint, and writes
    `samples/step_<n>.txt`. Ranks share the sentences.

    Args:
        num_val_pairs: that each validation translates; 0: none.
        beam_size: of the search at the end; its `length_penalty` is that of `Seq2Seq.translate`.
        num_shown: examples in the file.
        batch_size: sentences that a rank translates at once; null: data.micro_batch_size.
    """

    def __init__(
        self,
        num_val_pairs: int = 0,
        beam_size: int = 4,
        length_penalty: float = 0.6,
        num_shown: int = 20,
        batch_size: int | None = None,
    ):
        self.num_val_pairs, self.beam_size, self.length_penalty = num_val_pairs, beam_size, length_penalty
        self.num_shown, self.batch_size = num_shown, batch_size
        self.run_dir = Path()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Seq2Seq) -> None:  # type: ignore[override]
        sentences = trainer.datamodule.split("val")  # type: ignore[attr-defined]
        count = min(self.num_val_pairs, len(sentences))
        if count:
            hypotheses = self._translate(trainer, pl_module, sentences, count, beam_size=1)
            for name, value in measures(hypotheses, sentences.references[:count]).items():
                pl_module.log(f"val/{name}", value, logger=False)  # callbacks/metrics.py logs it

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Seq2Seq) -> None:  # type: ignore[override]
        splits = dict(trainer.datamodule.splits())  # type: ignore[attr-defined]
        split = next((name for name in ("test", "val") if name in splits), None)
        if split is None:
            return
        with at_best(trainer, self.run_dir) as best:
            hypotheses = self._translate(trainer, pl_module, splits[split], len(splits[split]), self.beam_size)
        record(trainer, {f"{split}/{n}": v for n, v in measures(hypotheses, splits[split].references).items()})
        if trainer.is_global_zero:
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            step = trainer.global_step if best is None else checkpoint.step_of(best)
            texts = zip(splits[split].sources, splits[split].references, hypotheses, strict=True)
            shown = [f"source      {s}\nreference   {r}\nhypothesis  {h}\n" for s, r, h in texts][: self.num_shown]
            (folder / f"step_{step:08d}.txt").write_text("\n".join(shown), encoding="utf-8")

    @torch.no_grad()
    def _translate(self, trainer: pl.Trainer, task: Seq2Seq, sentences: Any, count: int, beam_size: int) -> list[str]:
        """Of the first `count` sources, on every rank."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        order = sentences.src_lengths[:count].argsort(kind="stable")  # like lengths together, so that little is padding
        size = self.batch_size or data.eval_batch_size
        batches = EvalBatches(count, size, rank=data.rank, world_size=data.world_size)
        was_training = task.training
        task.eval()
        found: dict[int, str] = {}
        for positions in batches:
            indices = order[positions]
            src_ids: Tensor = sentences.__getitems__(indices)["src_ids"].to(task.device)
            with trainer.precision_plugin.forward_context():
                every, _ = task.translate(
                    src_ids, data.max_len, beam_size=beam_size, length_penalty=self.length_penalty
                )
            found |= {int(i): data.vocabularies[1].decode(ids) for i, ids in zip(indices, every, strict=True)}
        task.train(was_training)
        if group.world_size() > 1:
            shares: list[dict[int, str]] = [{}] * group.world_size()
            dist.all_gather_object(shares, found)
            found = {i: text for share in shares for i, text in share.items()}
        return [found[i] for i in range(count)]


def measures(hypotheses: list[str], references: list[str]) -> dict[str, float]:
    exact = sum(h == r for h, r in zip(hypotheses, references, strict=True))
    return {"bleu": corpus_bleu(hypotheses, references), "exact_match": exact / len(references)}
