"""Rank 0 hears from the sweep's study that a trial falls behind; all ranks of it end together."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from scaledl.sweep.search import open_study
from scaledl.sweep.storage import TRIAL
from tests.conftest import summary_of
from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_trial_of_two_ranks_is_pruned_on_both(environment: dict[str, str], tmp_path: Path, strategy: str) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = open_study(url, "s", optuna.samplers.RandomSampler(0), optuna.pruners.NopPruner(), ["minimize"])
    space = {"x": FloatDistribution(0, 1)}
    for x in (0.1, 0.2, 0.3, 0.4, 0.5):
        study.add_trial(
            create_trial(value=0.0, params={"x": x}, distributions=space, intermediate_values={1: 0.0, 2: 0.0})
        )
    trial = study.ask(space)
    told = {"storage": url, "study": "s", "id": trial._trial_id}
    launch(
        2,
        "train",
        "experiment=mlp/circles",
        f"strategy={strategy}",
        "trainer.max_steps=8",
        "trainer.val_check_interval=2",
        "run_dir=run",
        "callbacks.pruning._target_=scaledl.callbacks.pruning.Pruning",
        "callbacks.pruning.monitor=val/loss",
        "callbacks.pruning.pruner._target_=optuna.pruners.MedianPruner",
        "callbacks.pruning.pruner.n_warmup_steps=2",
        folder=tmp_path,
        environment=environment | {TRIAL: json.dumps(told)},
    )
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["steps"], summary["world_size"]) == ("pruned", 4, 2)
    reported = study.trials[-1].intermediate_values
    assert list(reported) == [1, 2]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line["val/loss"] for line in logged if "val/loss" in line}
    assert reported == pytest.approx({1: seen[2], 2: seen[4]})
