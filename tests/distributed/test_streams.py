"""The state that a recurrent network carries from batch to batch goes with the run to other ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import metrics_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FOLDER = Path("runs/recurrent/lstm_text")
RUN = [
    "experiment=recurrent/lstm_text",
    "model.dim=16",
    "data.seq_len=8",
    "data.global_batch_size=8",
    "data.micro_batch_size=2",
    "data.path=text.txt",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=1e-3",
    "scheduler.max_steps=16",
    "~callbacks.samples",
]
LEGS = [(5, 2, "fsdp"), (9, 4, "ddp"), (13, 1, "single"), (16, 2, "deepspeed_2")]
LAST = LEGS[-1][0]


def test_streams_go_on_over_four_layouts(scaledl: Callable, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 20)
    scaledl("train", *RUN, f"trainer.max_steps={LAST}", "run_id=straight")
    for index, (steps, ranks, strategy) in enumerate(LEGS):
        begin = ["resume", str(FOLDER / "changing")] if index else ["train", *RUN, "run_id=changing"]
        leg = [*begin, f"strategy={strategy}", f"trainer.max_steps={steps}"]
        _ = scaledl(*leg) if ranks == 1 else launch(ranks, *leg, folder=tmp_path, environment=environment)
    straight, changing = (
        {line["step"]: line["train/loss"] for line in metrics_of(tmp_path / FOLDER / name) if "train/loss" in line}
        for name in ("straight", "changing")
    )
    assert list(straight) == list(range(1, LAST + 1))
    assert changing == pytest.approx(straight, rel=1e-6)
