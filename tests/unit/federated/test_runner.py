"""A federated run is what it says: central where it must be, whole after a stop, the same under masks."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from scaledl import checkpoint
from scaledl.config.folders import CONF
from scaledl.config.validate import ConfigError
from scaledl.data.augment import RandomCrop
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.federated.aggregate import Plain
from scaledl.federated.check import check_task
from scaledl.federated.fedavg import FedAvg
from scaledl.federated.partition import IID
from scaledl.federated.privacy import ClientPrivacy
from scaledl.layers.moe import MixtureOfExperts
from scaledl.loggers import jsonl
from scaledl.models.cnn import CNN
from scaledl.tasks.base import Task
from scaledl.tasks.byol import BYOL
from scaledl.tasks.classification import Classification
from scaledl.tasks.contrastive import SimCLR
from scaledl.tasks.energy import Energy
from scaledl.tasks.gan import Adversarial
from scaledl.train import composed, train

SMALL = ["model.hidden_dims=[8]", "federation.num_clients=4", "federation.local_epochs=1"]
SMALL += ["data.global_batch_size=100", "trainer.max_steps=2"]

Run = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def of(name: str, *words: str, experiment: str = "federated/digits_iid") -> dict[str, torch.Tensor]:
        train([f"experiment={experiment}", *words, f"run_dir={tmp_path / name}"], [CONF], [])
        return checkpoint.load_model_weights(checkpoint.latest(tmp_path / name))

    return of


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_full_batch_step_of_all_clients_is_a_central_step(run: Run) -> None:
    """Two steps, for which central training takes the mean gradient over all samples, and clients that over theirs."""
    words = ["model.hidden_dims=[8]", "data.global_batch_size=1293", "data.micro_batch_size=1293", "optimizer.lr=0.5"]
    words += ["trainer.gradient_clip_val=null", "trainer.max_steps=2"]
    federated = run("federated", *words, "federation/partition=shards", "federation.local_epochs=1")
    central = run("central", *words, "~federation", "callbacks=default")
    gap = max(float((federated[name] - central[name]).abs().max()) for name in central)
    assert gap < 3e-7
    start = run("start", *words, "~federation", "optimizer.lr=0")
    assert max(float((start[name] - central[name]).abs().max()) for name in central) > 1e-2


def test_it_ends_early_and_stays_ended(run: Run, tmp_path: Path) -> None:
    early = [f"callbacks.early_stopping.{setting}" for setting in ("patience=1", "min_delta=100")]
    words = [*SMALL, "callbacks=early_stopping", *early, "trainer.val_check_interval=1", "trainer.max_steps=6"]
    weights = run("early", *words)
    assert [line["step"] for line in _log(tmp_path / "early") if "train/loss" in line] == [1, 2]
    assert_equal(run("early", *words), weights)
    assert [line["step"] for line in _log(tmp_path / "early") if "train/loss" in line] == [1, 2]


def test_a_trial_that_falls_behind_is_pruned(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="s")
    study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values={1: 5.0, 2: 0.0}))
    told = {"storage": url, "study": "s", "id": study.ask()._trial_id}
    monkeypatch.setenv("SCALEDL_TRIAL", json.dumps(told))
    pruner = "{_target_:optuna.pruners.MedianPruner,n_startup_trials:1}"
    pruning = f"{{_target_:scaledl.callbacks.pruning.Pruning,monitor:val/loss,pruner:{pruner}}}"
    run("a", *SMALL, f"callbacks.pruning={pruning}", "trainer.val_check_interval=2", "trainer.max_steps=8")
    assert [line["step"] for line in _log(tmp_path / "a") if "train/loss" in line] == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("pruned", 4)
    assert list(study.trials[1].intermediate_values) == [1, 2]


def test_a_stopped_run_goes_on_bit_for_bit(run: Run, tmp_path: Path) -> None:
    words = [*SMALL, "federation.fraction=0.5", "scheduler=linear", "scheduler.max_steps=5"]
    straight = run("straight", *words, "trainer.max_steps=4")
    run("stopped", *words)
    assert_equal(run("stopped", *words, "trainer.max_steps=4"), straight)
    one, other = (
        [{k: v for k, v in line.items() if not k.startswith(("perf/", "test/"))} for line in _log(tmp_path / name)]
        for name in ("straight", "stopped")
    )
    assert [line["step"] for line in one if "train/loss" in line] == [1, 2, 3, 4]
    assert [line for line in one if "train/loss" in line] == [line for line in other if "train/loss" in line]


def test_masks_change_no_bit_also_where_clients_are_lost(run: Run, tmp_path: Path) -> None:
    words = [*SMALL, "federation.num_clients=6", "federation.dropout=0.25", "trainer.max_steps=3", "seed=3"]
    plain = run("plain", *words)
    assert_equal(run("masked", *words, "federation/aggregation=masked"), plain)
    assert sum(line.get("lost", 0) for line in _log(tmp_path / "masked")) > 0
    assert not any(line.get("train/skipped") for line in _log(tmp_path / "masked"))


def test_a_round_without_enough_clients_leaves_the_weights(run: Run, tmp_path: Path) -> None:
    words = [*SMALL, "federation/aggregation=masked", "trainer.max_steps=1", "federation.dropout=0.95"]
    skipped = run("skipped", *words)
    (line,) = [line for line in _log(tmp_path / "skipped") if "clients" in line]
    assert line["train/skipped"] == 1
    assert_equal(skipped, run("plain", *SMALL, "optimizer.lr=0", "trainer.max_steps=1"))


def test_proximal_clients_stay_closer_to_the_server(run: Run) -> None:
    start = run("start", *SMALL, "optimizer.lr=0", "trainer.max_steps=1")

    def moved(name: str, mu: float) -> float:
        after = run(name, *SMALL, f"federation.proximal={mu}", "trainer.max_steps=1", "federation.local_epochs=5")
        return sum(float((after[key] - start[key]).square().sum()) for key in start) ** 0.5

    assert moved("strong", 5.0) < 0.5 * moved("none", 0.0)


def test_private_updates_are_clipped_and_their_price_is_logged(run: Run, tmp_path: Path) -> None:
    words = [*SMALL, "federation/privacy=gaussian", "federation.privacy.clip=1e-3", "optimizer.lr=0.1"]
    run("private", *words, "federation.privacy.noise_multiplier=0", "trainer.max_steps=1")
    (line,) = [line for line in _log(tmp_path / "private") if "train/clipped" in line]
    assert line["train/clipped"] == 1
    assert 0 < line["train/grad_norm"] <= 1e-3
    run("noisy", *words, "federation.privacy.noise_multiplier=2", "trainer.max_steps=1")
    (line,) = [line for line in _log(tmp_path / "noisy") if "train/clipped" in line]
    assert line["privacy/epsilon"] == pytest.approx(1.5, abs=0.5)
    num_weights = 64 * 8 + 8 + 8 * 10 + 10
    assert line["train/grad_norm"] == pytest.approx(2e-3 / 4 * num_weights**0.5, rel=0.1)


def test_the_attack_reads_the_update_and_not_the_masked_message(run: Run, tmp_path: Path) -> None:
    run("read", *SMALL, "trainer.max_steps=1", "federation.attack=true")
    run("masked", *SMALL, "trainer.max_steps=1", "federation.attack=true", "federation/aggregation=masked")
    read, masked = (_log(tmp_path / name)[0] for name in ("read", "masked"))
    assert read["attack/from the message"] < 1e-4
    assert masked["attack/from the update"] < 1e-4
    assert masked["attack/from the message"] > 1
    assert (tmp_path / "masked" / "plots" / "attack.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=fsdp"], "strategy=fsdp cannot serve federated training, which needs the whole model on each rank"),
        (["strategy=deepspeed_2"], "strategy=deepspeed cannot serve federated training"),
        (["precision=bf16-true"], "precision=bf16-true loses updates"),
        (["trainer.max_steps=-1", "trainer.max_epochs=1"], "a federated run counts rounds"),
        (["federation.num_client=3"], "FedAvg has no setting 'num_client'; did you mean 'num_clients'?"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_built(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(["experiment=federated/digits_iid", *words], [CONF], [])
    assert message in str(caught.value)


def test_a_task_that_clients_cannot_train_is_refused() -> None:
    def refused(task: Task, match: str, privacy: ClientPrivacy | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            check_task(task, [], FedAvg(IID(), Plain(), 2, privacy=privacy))  # type: ignore[arg-type]

    def task(kind: type[Task] = Classification, norm: str = "none", **settings: Any) -> Task:
        return kind(ModelBuilder(partial(CNN, 1, 8, [[8, 3, 1, 2]], [], 4, norm=norm)), torch.optim.AdamW, **settings)

    crop = {"crop": RandomCrop(1)}
    refused(task(Adversarial, update="alternating"), "cannot serve Adversarial: a client has one optimizer")
    refused(task(SimCLR, augment=crop), "cannot serve SimCLR: it compares all samples of a global batch")
    refused(task(BYOL, augment=crop), "cannot serve BYOL: its target is an average over steps")
    refused(task(Energy, value_range=[0, 1]), "cannot serve Energy, which carries a state")
    refused(task(num_classes=4, norm="sync_batch"), "which lets clients see each other: take norm=group")
    experts = ModelBuilder(partial(MixtureOfExperts, 4, 2, 1))
    refused(Classification(experts, torch.optim.AdamW, num_classes=4), "cannot serve experts.*num_experts=null")
    private = ClientPrivacy(1.0, 1.0, 1e-3)
    refused(task(num_classes=4, norm="batch"), "running statistics: take norm=group", private)
    check_task(task(num_classes=4, norm="batch"), [], FedAvg(IID(), Plain(), 2))  # type: ignore[arg-type]


def _log(run_dir: Path) -> list[dict]:
    return jsonl.read(run_dir / "metrics.jsonl")
