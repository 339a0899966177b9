"""The knots of a KAN move on every strategy as they do in one process."""

from pathlib import Path

import pytest

from scripts.parity import LAYOUTS, SINGLE, gap, log_of

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORDS = ["experiment=kan/formula", "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
WORDS += ["callbacks.grid_update.steps=[1,2,4]", "~callbacks.splines", "scheduler.warmup_steps=2"]


@pytest.fixture(scope="module")
def known() -> dict[str, list]:
    return {}


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_3"])
def test_knots_move_alike(name: str, known: dict[str, list], environment: dict[str, str], tmp_path: Path) -> None:
    environment = environment | {"OMP_NUM_THREADS": "1"}
    if not known:
        known["one"] = log_of(WORDS, SINGLE, tmp_path / "one", environment)
    log = log_of(WORDS, LAYOUTS[name], tmp_path / name, environment)
    gaps = {metric: gap(known["one"], log, metric) for metric in ("train/loss", "train/grad_norm", "val/loss")}
    assert all(found.value <= 1e-4 for found in gaps.values()), gaps
