"""The trials of a sweep, shared by all its workers through one study: who takes which, what became of it.

A *place* is one of the n_trials, and the number of its directory. It is filled by an attempt, a trial of Optuna's
study, and where the worker of that is lost, by another one with the same parameters, which follows it. Only the
change of a trial's state and the order of the trials' numbers decide between workers, because the database lets one of
them make the first, and the second is the same for all. So a worker may be killed between any two of these lines.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study, create_study, load_study
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from scaledl.sweep.signs_of_life import Watch, this_worker
from scaledl.sweep.space import Space
from scaledl.sweep.storage import connect, patiently

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class Attempt:
    """A trial that this worker has taken."""

    trial: Trial
    place: int
    again: bool  # another worker began it
    heartbeats: int = 0


def open_study(url: str, name: str, sampler: BaseSampler, pruner: BasePruner, directions: Sequence[str]) -> Study:
    """The study called so, made where there is none.

    Only the one who makes it keeps the sampler's seed: another worker, or a later call, would draw the same points.

    Raises:
        OSError: the database cannot be reached.
    """
    opened = connect(url)

    def open_or_make() -> tuple[Study, bool]:
        try:
            study = create_study(
                storage=opened, study_name=name, sampler=sampler, pruner=pruner, directions=list(directions)
            )
        except DuplicatedStudyError:
            return load_study(study_name=name, storage=opened, sampler=sampler, pruner=pruner), False
        return study, True

    study, made = patiently(open_or_make)
    if not made:
        sampler.reseed_rng()
    return study


class Search:
    """
    Args:
        n_trials: places in all.
        max_retries: attempts at a place after the first, where workers are lost.
        patience: seconds without a sign of life, after which a worker on another machine is lost.
        say: where to tell of what happens to others' trials.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        n_trials: int,
        max_retries: int = 2,
        patience: float = 60,
        say: Callable[[str], None] = print,
    ):
        self.study, self.space, self.n_trials, self.max_retries, self.say = study, space, n_trials, max_retries, say
        self._watch = Watch(patience)
        self._exhausted = False  # a sampler that tries every combination has tried them

    def trials(self) -> list[FrozenTrial]:
        """All attempts, each at the index that is its number."""
        return patiently(lambda: self.study.get_trials(deepcopy=False))

    def places(self) -> list[FrozenTrial]:
        """The latest attempt at each place."""
        return latest(self.trials())

    def over(self) -> bool:
        places = self.places()[: self.n_trials]
        taken = self._exhausted or len(places) == self.n_trials
        return taken and all(trial.state in FINISHED for trial in places)

    def ask(self) -> Attempt | None:
        """A trial for this worker; None if every place is taken."""
        self.release_lost()
        every = self.trials()
        taken = self._exhausted or len(latest(every)) >= self.n_trials
        if taken and not any(trial.state == TrialState.WAITING for trial in every):
            return None
        asking = f"asking {this_worker()}"
        patiently(lambda: self.study.set_user_attr(asking, True))
        trial = patiently(lambda: self.study.ask(self.space))
        try:
            return patiently(lambda: self._claim(trial))
        except UpdateFinishedTrialError:  # it was thought lost, and given back
            return None
        finally:
            patiently(lambda: self.study.set_user_attr(asking, False))

    def _claim(self, trial: Trial) -> Attempt | None:
        followed = trial.user_attrs.get("follows")
        if followed is not None:
            self._end(followed, TrialState.FAIL)  # unless that was done when this one was queued
        every = self.trials()
        place = _place(every, every[trial.number])
        # Another worker asked for the last place at the same moment, or queued the same trial again.
        if place >= self.n_trials or (followed is not None and _superseded(every, trial.number, followed)):
            self._drop(trial)
            return None
        trial.set_user_attr("place", place)
        trial.set_user_attr("worker", this_worker())
        return Attempt(trial, place, again=followed is not None)

    def _drop(self, trial: Trial) -> None:
        """Of a trial that fills no place nothing shall be seen."""
        trial.set_user_attr("surplus", True)
        self._end(trial.number, TrialState.FAIL)

    def beat(self, attempt: Attempt) -> bool:
        """Show that this worker lives; False if the trial was thought lost and is another's now."""
        attempt.heartbeats += 1
        try:
            patiently(lambda: attempt.trial.set_user_attr("heartbeat", attempt.heartbeats))
        except UpdateFinishedTrialError:
            return False
        return True

    def complete(self, attempt: Attempt, values: Sequence[float]) -> None:
        assert all(math.isfinite(value) for value in values)
        self._end(attempt.trial.number, TrialState.COMPLETE, values)

    def pruned(self, attempt: Attempt) -> None:
        self._end(attempt.trial.number, TrialState.PRUNED)

    def fail(self, attempt: Attempt, message: str) -> None:
        try:
            patiently(lambda: attempt.trial.set_user_attr("error", message))
        except UpdateFinishedTrialError:
            return
        self._end(attempt.trial.number, TrialState.FAIL)

    def give_back(self, attempt: Attempt) -> None:
        """Let another worker, or a later call, go on with it."""
        trial = next(each for each in self.trials() if each.number == attempt.trial.number)
        self._again(trial, trial.user_attrs.get("lost", 0))

    def release_lost(self) -> None:
        """Queue the trials of lost workers again; one that has lost too many has failed."""
        told = patiently(lambda: self.study.user_attrs)
        askers = [key.removeprefix("asking ") for key, value in told.items() if key.startswith("asking ") and value]
        every = self.trials()
        for trial in every:
            if trial.state != TrialState.RUNNING or not self._watch.lost(trial.number, trial.user_attrs, askers):
                continue
            surplus = _place(every, trial) >= self.n_trials or trial.user_attrs.get("surplus")
            if surplus:  # lost before it could be dropped
                self._drop(Trial(self.study, trial._trial_id))
                continue
            lost = trial.user_attrs.get("lost", 0) + 1
            if lost <= self.max_retries:
                if self._again(trial, lost):
                    self.say(f"the worker of a trial is gone; it is queued again ({lost} of {self.max_retries} times)")
                continue
            dead = Attempt(Trial(self.study, trial._trial_id), -1, again=True)
            self.fail(dead, f"its worker was lost {lost} times: killed, out of memory, or a machine that went away")

    def _again(self, trial: FrozenTrial, lost: int) -> bool:
        """Whether it was this worker that queued the trial again: first the new attempt, then the old one's end."""
        every = self.trials()
        if _follower(every, trial.number) is None:
            again = create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"place": _place(every, trial), "lost": lost, "follows": trial.number},
                system_attrs=trial.system_attrs,
                intermediate_values=trial.intermediate_values,
            )
            patiently(lambda: self.study.add_trial(again))
        return self._end(trial.number, TrialState.FAIL)

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Whether it was this worker that ended the trial."""
        try:
            patiently(lambda: self.study.tell(number, values, state=state))
        except (UpdateFinishedTrialError, ValueError):  # Optuna has both words for a trial that has ended
            return False
        except RuntimeError as error:  # the trial has ended, and with it the sampler's list
            if "Study.stop" not in str(error):
                raise
            self._exhausted = True
        return True


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    found: dict[int, FrozenTrial] = {}
    firsts = 0
    for trial in trials:
        attributes: dict[str, Any] = trial.user_attrs
        if attributes.get("surplus"):
            continue
        found[attributes.get("place", firsts)] = trial
        firsts += "follows" not in attributes
    return [found[place] for place in sorted(found)]


def _place(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    """What it has been given; of one that its worker has not named its own yet, what it would be given."""
    return trial.user_attrs.get("place", firsts_before(trials, trial.number))


def _superseded(trials: Sequence[FrozenTrial], number: int, followed: int) -> bool:
    """Whether the trial that an attempt follows has ended by itself, or is gone on with by an earlier attempt."""
    before = trials[followed]
    ended = before.state in (TrialState.COMPLETE, TrialState.PRUNED) or "error" in before.user_attrs
    return ended or _follower(trials, followed) != number


def _follower(trials: Sequence[FrozenTrial], followed: int) -> int | None:
    """The number of the attempt that goes on with a trial: the first, where two workers have queued one."""
    return next((trial.number for trial in trials if trial.user_attrs.get("follows") == followed), None)


def firsts_before(trials: Sequence[FrozenTrial], number: int) -> int:
    return sum(
        trial.number < number and "follows" not in trial.user_attrs and not trial.user_attrs.get("surplus")
        for trial in trials
    )
