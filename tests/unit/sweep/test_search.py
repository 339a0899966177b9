"""Places and attempts, without processes."""

import time

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from scaledl.config.validate import ConfigError
from scaledl.sweep import signs_of_life
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.signs_of_life import Watch, this_worker
from scaledl.sweep.space import parse
from scaledl.sweep.storage import connect, url_of, without_secrets

SPACE = {"x": FloatDistribution(0, 1)}


def opened(url: str, n_trials: int = 3, **arguments) -> Search:
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = open_study(url, "s", sampler, optuna.pruners.NopPruner(), ["minimize"])
    return Search(study, SPACE, n_trials, say=lambda message: None, **arguments)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_a_failed_trial_fills_its_place(url: str) -> None:
    search = opened(url)
    for place in range(3):
        attempt = search.ask()
        assert attempt is not None
        assert attempt.place == place
        search.fail(attempt, "no memory") if place == 1 else search.complete(attempt, [0.5])
    assert search.ask() is None
    assert search.over()
    assert [trial.state for trial in search.places()] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert search.places()[1].user_attrs["error"] == "no memory"


def test_a_second_call_with_the_same_seed_draws_other_points(url: str) -> None:
    first = opened(url)
    points = []
    for search in (first, opened(url)):
        attempt = search.ask()
        points.append(attempt.trial.params["x"])
        search.complete(attempt, [0.5])
    assert points[0] != points[1]


def test_a_trial_of_a_dead_worker_is_tried_again_with_what_it_reported(url: str, monkeypatch) -> None:
    search = opened(url, max_retries=1)
    seen = []
    for attempt_number in range(3):
        attempt = search.ask()
        assert attempt is not None
        if attempt_number == 2:
            assert attempt.place == 1  # the first place has lost too many workers
            break
        assert attempt.place == 0
        assert attempt.again == (attempt_number == 1)
        seen.append(attempt.trial.params)
        attempt.trial.report(0.25, 1)
        machine, pid, _ = this_worker().rsplit(" ", 2)
        attempt.trial.set_user_attr("worker", f"{machine} {pid} 1")  # the process number is another's now
    assert seen[0] == seen[1]
    lost = search.places()[0]
    assert lost.state == TrialState.FAIL
    assert "lost 2 times" in lost.user_attrs["error"]
    assert lost.intermediate_values == {1: 0.25}


def test_a_worker_whose_trial_was_given_away_hears_it(url: str) -> None:
    search = opened(url)
    attempt = search.ask()
    assert search.beat(attempt)
    search.give_back(attempt)
    assert not search.beat(attempt)
    search.complete(attempt, [0.1])  # too late
    again = search.ask()
    assert (again.place, again.again) == (0, True)
    assert search.places()[0].state == TrialState.RUNNING


def test_another_machines_worker_is_lost_when_its_heart_stops(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(signs_of_life.time, "monotonic", lambda: clock[0])
    watch = Watch(patience=60)

    def lost(beat: int, seconds: float) -> bool:
        clock[0] += seconds
        return watch.lost(0, {"worker": "elsewhere 1 1", "heartbeat": beat}, [])

    assert [lost(beat, 25) for beat in (1, 2, 3, 3, 3, 3)] == [False] * 5 + [True]
    # The database was away for all: nobody could beat, and this process could not look.
    assert [lost(beat, seconds) for beat, seconds in ((4, 25), (4, 300), (4, 25), (4, 25))] == [False] * 4
    assert lost(4, 25)


def test_a_living_worker_of_this_machine_is_never_lost(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(signs_of_life.time, "monotonic", lambda: clock[0])
    watch = Watch(patience=60)
    for _ in range(20):
        clock[0] += 25
        assert not watch.lost(0, {"worker": this_worker(), "heartbeat": 1}, [])


def test_a_trial_whose_worker_died_before_it_named_itself_is_lost_soon(monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(signs_of_life.time, "monotonic", lambda: clock[0])
    machine, pid, _ = this_worker().rsplit(" ", 2)
    dead, living, elsewhere = f"{machine} {pid} 1", this_worker(), "elsewhere 1 1"
    for askers, lost in (([], True), ([dead], True), ([dead, living], False), ([elsewhere], False)):
        watch = Watch(patience=60)
        assert not watch.lost(0, {}, askers)
        clock[0] += 3
        assert watch.lost(0, {}, askers) == lost
        for _ in range(25):
            clock[0] += 25
            found = watch.lost(0, {}, askers)
        assert found


def test_a_worker_killed_while_it_asks_costs_no_place(url: str) -> None:
    search = opened(url, n_trials=1)
    machine, pid, _ = this_worker().rsplit(" ", 2)
    search.study.set_user_attr(f"asking {machine} {pid} 1", True)
    search.study.ask(SPACE)  # and no more
    began = time.monotonic()
    while (attempt := search.ask()) is None:
        assert time.monotonic() - began < 30
        time.sleep(0.2)
    assert (attempt.place, attempt.again) == (0, True)


def died(attempt) -> None:
    machine, pid, _ = this_worker().rsplit(" ", 2)
    attempt.trial.set_user_attr("worker", f"{machine} {pid} 1")


def test_a_worker_killed_before_it_dropped_a_trial_too_many_adds_none(url: str) -> None:
    search = opened(url, n_trials=1)
    search.complete(search.ask(), [0.5])
    search.study.ask(SPACE)  # two asked for the last place; this one was killed before it saw that
    assert search.ask() is None
    time.sleep(2.1)  # no living worker asks
    assert search.ask() is None
    assert [trial.state for trial in search.trials()] == [TrialState.COMPLETE, TrialState.FAIL]
    assert len(search.places()) == 1
    assert search.over()


@pytest.mark.parametrize("line", ["add_trial", "tell"])
def test_a_worker_killed_while_it_queues_a_trial_again_loses_and_doubles_nothing(
    url: str, monkeypatch, line: str
) -> None:
    search = opened(url, n_trials=1)
    died(search.ask())
    with monkeypatch.context() as killed:
        killed.setattr(search.study, line, lambda *arguments, **named: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search.release_lost()
    attempt = search.ask()
    assert (attempt.place, attempt.again) == (0, True)
    search.complete(attempt, [0.5])
    assert search.ask() is None
    assert search.over()
    assert [trial.state for trial in search.trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_two_that_queue_the_same_trial_again_give_it_to_one(url: str, monkeypatch) -> None:
    search, other = opened(url, n_trials=1), opened(url, n_trials=1)
    died(search.ask())
    before = other.trials()
    search.release_lost()
    with monkeypatch.context() as slow:
        slow.setattr(other, "trials", lambda: before)  # it has read them before the first one wrote
        other.release_lost()
    attempt = search.ask()
    assert attempt is not None
    assert other.ask() is None
    search.complete(attempt, [0.5])
    assert search.over()
    assert [trial.state for trial in search.trials()].count(TrialState.COMPLETE) == 1


def test_a_trial_that_ended_after_all_is_not_trained_again(url: str) -> None:
    search = opened(url, n_trials=1)
    attempt = search.ask()
    search.complete(attempt, [0.5])
    late = search.trials()[0]
    search._again(late, 1)  # it was thought lost when it had just ended
    assert search.ask() is None
    assert search.over()
    assert search.places()[0].values == [0.5]


def test_passwords_are_not_shown(tmp_path, monkeypatch) -> None:
    url = url_of("postgresql://me:secret@host/name?password=secret", tmp_path)
    assert url.startswith("postgresql+psycopg://me:secret@host/name")
    assert without_secrets(url) == "postgresql+psycopg://me:***@host/name"
    with pytest.raises(ValueError, match="is no URL of a database") as error:
        url_of("me:secret@host", tmp_path)
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match="is no URL of a database") as error:
        url_of("postgresql://host:secret/name", tmp_path)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None
    with pytest.raises(ConfigError) as wrong:
        parse("hydra.sweeper.storage=postgresql://me:[secret@host/name")
    assert "secret" not in str(wrong.value)
    assert wrong.value.__cause__ is None
    monkeypatch.setenv("SCALEDL_SWEEP_STORAGE", "postgresql://host/other")
    assert url_of(None, tmp_path) == "postgresql+psycopg://host/other"
    monkeypatch.delenv("SCALEDL_SWEEP_STORAGE")
    assert url_of(None, tmp_path) == f"sqlite:///{tmp_path / 'study.db'}"


def test_a_database_that_cannot_be_reached_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(OSError, match="cannot be reached") as error:
        connect("postgresql+psycopg://me:secret@127.0.0.1:1/name")
    assert "secret" not in str(error.value)
    assert "me:***@127.0.0.1:1" in str(error.value)
