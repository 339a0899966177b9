"""A worker takes one trial after the other, each a launch of its own, until every place of the sweep is filled."""

import json
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from scaledl import run_directory
from scaledl.sweep.launchers import Launcher, Started
from scaledl.sweep.outcome import Outcome, outcome_of
from scaledl.sweep.search import Attempt, Search
from scaledl.sweep.space import words_of
from scaledl.sweep.storage import TRIAL

POLL_SECONDS = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def folder_of(sweep_dir: Path, place: int) -> Path:
    return sweep_dir / f"trial_{place:04d}"


@dataclass
class Worker:
    """
    Args:
        slot: which of this machine's workers it is.
        words: of every trial, `train` and options first.
        objectives: the metrics that the search looks at.
        storage: the URL that a trial needs to report to the study.
        max_failures: in a row, after which it gives up.
        heartbeat: seconds between two signs of life.
        record: what to do when a trial has ended.
    """

    search: Search
    launcher: Launcher
    slot: int
    sweep_dir: Path
    words: list[str]
    objectives: Iterable[str]
    storage: str
    max_failures: int
    heartbeat: float
    record: Callable[[], None] = lambda: None
    say: Callable[[str], None] = print
    received: int = 0

    def run(self) -> int:
        """0 when the sweep is over, 1 after too many failures, or 128 + the signal that stopped it."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        failures = 0
        try:
            while not self.received and failures < self.max_failures:
                attempt = self.search.ask()
                if attempt is not None:
                    outcome = self._train(attempt)
                    if outcome is not None:
                        failures = failures + 1 if outcome.status == "failed" else 0
                        self._tell(attempt, outcome)
                elif self.search.over():
                    return 0
                else:
                    time.sleep(POLL_SECONDS)  # others still train, and may be lost
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received:
            return 128 + self.received
        self.say(f"{failures} trials in a row have failed, so this worker stops (hydra.sweeper.max_failures)")
        return 1

    def _train(self, attempt: Attempt) -> Outcome | None:
        """What became of the trial; None if this worker has given it back or lost it."""
        folder = folder_of(self.sweep_dir, attempt.place)
        folder.mkdir(parents=True, exist_ok=True)
        summary = run_directory.read_summary(folder)
        if attempt.again and summary and summary["status"] in ("completed", "pruned"):  # its worker could not tell
            return outcome_of(folder, self.objectives)
        (folder / run_directory.SUMMARY).unlink(missing_ok=True)  # of an attempt that did not end
        log = folder / "log.txt"
        begins = log.stat().st_size if log.exists() else 0
        own = words_of(attempt.trial.params)
        self.say(f"trial {attempt.place} {'goes on' if attempt.again else 'begins'}: {' '.join(own)}")
        named = [f"run_id={self.sweep_dir.name}-{folder.name}", f"run_dir={folder}"]
        handle = {"storage": self.storage, "study": self.search.study.study_name, "id": attempt.trial._trial_id}
        try:
            started = self.launcher.start([*self.words, *own, *named], folder, self.slot, {TRIAL: json.dumps(handle)})
        except OSError:  # no fault of the trial's
            self.search.give_back(attempt)
            raise
        if not self._follow(attempt, started):
            return None
        outcome = outcome_of(folder, self.objectives, begins)
        if outcome.status == "preempted" or (self.received and outcome.status == "failed"):
            self.search.give_back(attempt)  # the signal has reached the trial, too, and maybe sooner
            return None
        return outcome

    def _follow(self, attempt: Attempt, started: Started) -> bool:
        """Whether the launch has ended by itself."""
        due = 0.0
        try:
            while started.wait(POLL_SECONDS) is None:
                if self.received:
                    self.say(f"trial {attempt.place} is told to stop; the same command goes on with it")
                    started.stop()
                    self.search.give_back(attempt)
                    return False
                if time.monotonic() >= due:
                    due = time.monotonic() + self.heartbeat
                    if not self.search.beat(attempt):
                        self.say(f"trial {attempt.place} was thought lost and given to another worker; stopped here")
                        started.stop()
                        return False
        except BaseException:
            started.stop()
            raise
        return True

    def _tell(self, attempt: Attempt, outcome: Outcome) -> None:
        if outcome.values is not None:
            self.search.complete(attempt, outcome.values)
            numbers = zip(self.objectives, outcome.values, strict=True)
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in numbers)
        elif outcome.status == "pruned":
            self.search.pruned(attempt)
            shown = ""
        else:
            self.search.fail(attempt, outcome.message or "")
            shown = outcome.message or ""
        self.say(f"trial {attempt.place} {outcome.status}{': ' * bool(shown)}{shown}")
        self.record()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
