"""Workers are killed as machines kill them; the sweep has exactly its trials, none of them twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from scaledl.sweep.launchers import Local, Processes
from scaledl.sweep.results import Results, collect
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.worker import Worker

N_TRIALS = 24
START = [sys.executable, str(Path(__file__).parent / "worker.py")]


class Workers:
    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url
        self.started: list[subprocess.Popen] = []

    def start(self, n_trials: int = N_TRIALS, seconds: float = 0.1) -> subprocess.Popen:
        command = [*START, str(self.folder), self.url, str(n_trials), str(seconds)]
        self.started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return self.started[-1]

    def ended(self) -> int:
        return len(list(self.folder.glob("trial_*/ended")))

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def results(self) -> Results:
        from scaledl.sweep.storage import connect

        study = optuna.load_study(study_name="s", storage=connect(self.url))
        return collect(study, "test", "none", {"val/loss": "min"}, [], {})


@pytest.fixture
def workers(tmp_path: Path, database: str) -> Iterator[Workers]:
    found = Workers(tmp_path / "sweep", database)
    yield found
    for each in found.started:
        each.kill()
        each.communicate()


def read(path: Path) -> list[str]:
    return path.read_text().splitlines()


def check(workers: Workers, n_trials: int = N_TRIALS) -> None:
    """Every place is filled, by one point that no other has, trained to its end once."""
    folders = sorted(workers.folder.glob("trial_*"))
    assert [folder.name for folder in folders] == [f"trial_{place:04d}" for place in range(n_trials)]
    ended = [read(folder / "ended") for folder in folders]
    assert all(len(points) == 1 for points in ended)
    assert len({points[0] for points in ended}) == n_trials
    assert all(set(read(folder / "begun")) == set(read(folder / "ended")) for folder in folders)
    results = workers.results()
    assert [each.status for each in results.trials] == ["completed"] * n_trials
    assert [each.trial for each in results.trials] == list(range(n_trials))
    best = min(abs(float(points[0])) for points in ended)
    assert results.completed()[0].values == pytest.approx([best**2])


def test_killed_workers_and_a_killed_sweep_lose_and_repeat_nothing(workers: Workers) -> None:
    first, second = workers.start(), workers.start()
    workers.until(lambda: workers.ended() >= 4)
    first.send_signal(signal.SIGKILL)
    first.wait()
    reached = workers.ended()
    workers.until(lambda: workers.ended() >= reached + 4)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert workers.ended() < N_TRIALS

    last = workers.start()
    said = last.communicate(timeout=120)[0]
    assert last.returncode == 0, said
    check(workers)
    begun = [len(read(folder / "begun")) for folder in sorted(workers.folder.glob("trial_*"))]
    assert sum(begun) <= N_TRIALS + 2  # the two whose workers were killed began again

    again = workers.start()
    assert again.wait(60) == 0
    check(workers)


def test_workers_that_race_for_the_last_places_take_each_once(workers: Workers) -> None:
    racing = [workers.start(n_trials=9, seconds=0.02) for _ in range(4)]
    for each in racing:
        said = each.communicate(timeout=120)[0]
        assert each.returncode == 0, said
    check(workers, 9)
    more = workers.start(n_trials=12, seconds=0.02)
    assert more.wait(60) == 0
    check(workers, 12)


def test_a_worker_that_is_told_to_stop_gives_its_trial_back(workers: Workers) -> None:
    stopped = workers.start(n_trials=3, seconds=3)
    workers.until(lambda: (workers.folder / "trial_0000" / "begun").exists())
    stopped.terminate()
    assert stopped.wait(30) == 128 + signal.SIGTERM
    assert workers.results().trials[0].status == "waiting"
    assert workers.ended() == 0
    last = workers.start(n_trials=3, seconds=0.1)
    assert last.wait(60) == 0
    check(workers, 3)


PREEMPTED_ONCE = """
import json, os, sys
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
begun = words["run_dir"] + "/begun"
status = "completed" if os.path.exists(begun) else "preempted"
open(begun, "a").write("x")
best = {"metric": "val/loss", "value": 0.5, "step": 1}
with open(words["run_dir"] + "/summary.json", "w") as file:
    json.dump({"status": status, "best": best, "metrics": {}}, file)
"""


def test_a_preempted_trial_is_no_failure(tmp_path: Path) -> None:
    class Preempting(Local):
        def __init__(self) -> None:
            pass

        def start(self, words, folder, slot, environment):
            return Processes([sys.executable, "-S", "-c", PREEMPTED_ONCE, *words], environment, folder)

    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = open_study(url, "s", optuna.samplers.RandomSampler(0), optuna.pruners.NopPruner(), ["minimize"])
    search = Search(study, {"x": FloatDistribution(-1, 1)}, 2)
    said: list[str] = []
    worker = Worker(search, Preempting(), 0, tmp_path, ["train"], ["val/loss"], url, 1, 1.0, say=said.append)
    assert worker.run() == 0, said
    assert [trial.state.name for trial in search.places()] == ["COMPLETE", "COMPLETE"]
    assert not any("failed" in line for line in said)
