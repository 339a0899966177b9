"""Searches as a person starts, kills and goes on with them. Kills of many workers are in tests/unit/sweep/."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scaledl.sweep.report import write_report
from scaledl.sweep.results import read
from tests.conftest import COMMAND, ROOT, summary_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DIGITS = [
    "experiment=mlp/digits",
    "~callbacks.predictions",
    "~callbacks.curves",
    "~callbacks.gradient_map",
    "trainer.max_steps=40",
    "trainer.val_check_interval=10",
]
SWEEP = ["train", "-m", *DIGITS, "hydra.sweep.dir=sweep"]


def test_a_wrong_space_is_refused_before_the_first_trial(scaledl, tmp_path: Path) -> None:
    done = scaledl(*SWEEP, "sweep=tpe_asha", "optimizer.lrr=interval(0.1,0.2)", code=2)
    assert "optimizer.lrr: AdamW has no setting 'lrr'; did you mean 'lr'?" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_killed_sweep_goes_on_and_its_best_config_trains(scaledl, environment, tmp_path: Path) -> None:
    words = [*SWEEP, "sweep=tpe_asha", "hydra.sweeper.n_trials=5", "hydra.launcher.n_jobs=2"]
    first = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("sweep/trial_*/summary.json")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)  # the other worker and the trials hear of it from the kernel
    first.wait()
    scaledl(*words)
    folder = tmp_path / "sweep"
    assert sorted(path.name for path in folder.glob("trial_*")) == [f"trial_{place:04d}" for place in range(5)]
    found = read(folder)
    assert len(found.trials) == 5
    for each in found.trials:
        assert each.status in ("completed", "pruned")
        summary = summary_of(folder / f"trial_{each.trial:04d}")
        assert summary["status"] == each.status
        assert summary["steps"] == 40 if each.status == "completed" else summary["steps"] < 40
    best = found.completed()[0]
    assert best.values == [min(each.values[0] for each in found.completed())]

    own = yaml.safe_load((folder / "experiment" / "mlp" / "best.yaml").read_text())
    assert own["optimizer"]["lr"] == best.params["optimizer.lr"]
    scaledl("train", "--config-dir", "sweep", "experiment=mlp/best", "run_dir=again")
    assert summary_of(tmp_path / "again")["best"]["value"] == pytest.approx(best.values[0])

    page = write_report(folder).read_text()
    assert "Best configs" in page
    assert "http" not in page.replace("http-equiv", "")
    said = scaledl(*words, "model.dropout=0.1", code=2).stderr
    assert "holds another sweep" in said


@pytest.mark.parametrize(
    ("words", "validations"),
    [
        (["sweep=tpe_median", "hydra.sweeper.pruner.n_startup_trials=1"], 2),
        # Two brackets, and a study of whose trials both fall into the first.
        (["sweep=tpe_hyperband", "hydra.sweeper.pruner.max_resource=4", "hydra.sweeper.study_name=s"], 1),
    ],
    ids=["median", "hyperband"],
)
def test_a_trial_that_falls_behind_is_ended(words: list[str], validations: int, scaledl, tmp_path: Path) -> None:
    in_turn = "hydra.sweeper.sampler={_target_:scaledl.sweep.every.Every}"
    scaledl(*SWEEP, *words, in_turn, "optimizer.lr=0.01,1e-9", "optimizer.weight_decay=0.0")
    good, bad = read(tmp_path / "sweep").trials
    assert (good.status, len(good.validations)) == ("completed", 4)
    assert (bad.status, len(bad.validations)) == ("pruned", validations)
    assert summary_of(tmp_path / "sweep" / "trial_0001")["steps"] == 10 * validations


def test_a_trial_of_two_ranks_that_crashes_is_one_failed_trial(scaledl, tmp_path: Path) -> None:
    said = scaledl(
        *SWEEP,
        "sweep=every",
        "strategy=ddp",
        "hydra.launcher.ranks=2",
        "hydra.sweeper.pruner={_target_:optuna.pruners.NopPruner}",
        "optimizer.lr=0.01,-1",
    ).stdout
    found = {each.params["optimizer.lr"]: each for each in read(tmp_path / "sweep").trials}
    assert {lr: each.status for lr, each in found.items()} == {"0.01": "completed", "-1": "failed"}
    assert "Invalid learning rate: -1" in found["-1"].error
    assert "Invalid learning rate: -1" in said
    good = tmp_path / "sweep" / f"trial_{found['0.01'].trial:04d}"
    assert summary_of(good)["world_size"] == 2
    assert list(found["0.01"].validations) == ["1", "2", "3", "4"]


def test_two_workers_share_a_study_on_a_server(scaledl, environment, tmp_path: Path, postgres: str) -> None:
    environment["SCALEDL_SWEEP_STORAGE"] = postgres
    words = [*SWEEP, "sweep=random", "hydra.sweeper.n_trials=3", "hydra.launcher.n_jobs=2"]
    said = scaledl(*words).stdout
    assert [each.status for each in read(tmp_path / "sweep").trials] == ["completed"] * 3
    assert not (tmp_path / "sweep" / "study.db").exists()
    more = scaledl(*words, "hydra.sweeper.n_trials=4").stdout
    assert "3 of 4 trials are finished" in more
    assert [each.status for each in read(tmp_path / "sweep").trials] == ["completed"] * 4
    password = postgres.partition("@")[0].rpartition(":")[2]
    assert password not in said + more
    written = [path for path in (tmp_path / "sweep").rglob("*") if path.is_file()]
    assert not [path for path in written if password.encode() in path.read_bytes()]


def test_the_documented_command_trains_every_combination_once(scaledl, tmp_path: Path) -> None:
    line = next(line for line in (ROOT / "docs" / "sweeps.md").read_text().splitlines() if "-m sweep=every" in line)
    words = [*shlex.split(line)[1:], *DIGITS[1:], "hydra.sweep.dir=sweep"]
    for _ in range(2):  # and again, when all are trained
        scaledl(*words)
        trials = read(tmp_path / "sweep").trials
        points = [(each.params["optimizer.lr"], each.params["model.hidden_dims"]) for each in trials]
        assert sorted(points) == [("0.003", "[256]"), ("0.003", "[64]"), ("0.01", "[256]"), ("0.01", "[64]")]
        assert [each.status for each in trials] == ["completed"] * 4
    assert len(list((tmp_path / "sweep").glob("trial_*"))) == 4


def test_an_agent_of_weights_and_biases_runs_our_program(environment, tmp_path: Path) -> None:
    agent = f"""
import sys, yaml
from wandb.wandb_agent import Agent
config = yaml.safe_load(open({str(ROOT / "examples" / "wandb_sweep.yaml")!r}))
values = {{name: each.get("values", [each.get("min")])[0] for name, each in config["parameters"].items()}}
agent = Agent(api=None, queue=None, sweep_id="s")
agent._sweep_command = [*config["command"], "trainer.max_steps=20", "run_id=a"]
agent._command_run(
    {{"run_id": "named1", "program": config["program"], "args": {{n: {{"value": v}} for n, v in values.items()}}}}
)
sys.exit(agent._run_processes["named1"].wait())
"""
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "scaledl").write_text(f"#!{sys.executable}\nfrom scaledl.cli import main\nmain()\n")
    (scripts / "scaledl").chmod(0o755)
    own = {"PATH": f"{scripts}{os.pathsep}{environment['PATH']}", "WANDB_MODE": "offline", "WANDB_SWEEP_ID": "s"}
    done = subprocess.run(
        [sys.executable, "-c", agent],
        cwd=tmp_path,
        env=environment | own,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run_dir = tmp_path / "runs/mlp/digits/a"
    summary = summary_of(run_dir)
    assert summary["status"] == "completed"
    assert summary["best"]["metric"] == "val/acc"
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["optimizer"]["lr"] == 0.0001
    assert list(run_dir.glob("wandb/offline-run-*-named1/run-named1.wandb"))
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 20
