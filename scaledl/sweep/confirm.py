"""The winner against the default with other seeds: a search flatters its best, fresh seeds do not."""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig
from scipy import stats

from scaledl import atomic, run_directory
from scaledl.sweep.launchers import Launcher
from scaledl.sweep.outcome import outcome_of
from scaledl.sweep.results import Results
from scaledl.sweep.space import words_of

NAME = "winner.json"
LEVEL = 0.95


@dataclass
class Comparison:
    """Values by seed; `better` is by how much the winner is, on average, and the interval around it."""

    metric: str
    seeds: list[int]
    winner: list[float]
    default: list[float]
    better: float
    low: float
    high: float

    def words(self) -> str:
        means = f"{statistics.mean(self.winner):.4g} against {statistics.mean(self.default):.4g}"
        verdict = "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"
        return (
            f"winner against default, {len(self.seeds)} other seeds: {self.metric} {means}; "
            f"better by {self.better:.3g} ({LEVEL:.0%} interval {self.low:.3g} to {self.high:.3g}): {verdict}"
        )


def confirm(
    results: Results, folder: Path, launcher: Launcher, options: list[str], config: DictConfig, count: int
) -> int:
    """Train winner and default with `count` seeds that the search has not used; 1 if a run failed."""
    best = results.completed()[0]
    winner = words_of(best.params)
    seeds = [int(config.seed) + 1 + number for number in range(count)]
    metric = next(iter(results.objectives))
    values: dict[str, list[float]] = {"winner": [], "default": []}
    for seed in seeds:
        for name, own in (("winner", winner), ("default", [])):
            of = f"trial_{best.trial:04d}" if own else name  # a sweep that goes on may have another winner
            run_dir = folder / "winner" / f"{of}-seed-{seed}"
            run_dir.mkdir(parents=True, exist_ok=True)
            summary = run_directory.read_summary(run_dir)
            if summary is None or summary["status"] != "completed":
                print(f"{name}, seed {seed}", flush=True)
                named = [f"seed={seed}", f"run_id={folder.name}-{run_dir.name}", f"run_dir={run_dir}"]
                _run(launcher, ["train", *options, *results.words, *own, *named], run_dir)
            outcome = outcome_of(run_dir, [metric])
            if outcome.values is None:
                print(f"{name}, seed {seed}: {outcome.message}", flush=True)
                return 1
            values[name] += outcome.values
    compared = compare(metric, results.objectives[metric], seeds, values["winner"], values["default"])
    atomic.write_text(folder / NAME, json.dumps(asdict(compared), indent=1) + "\n")
    print(compared.words(), flush=True)
    return 0


def _run(launcher: Launcher, words: list[str], run_dir: Path) -> None:
    started = launcher.start(words, run_dir, 0, {})
    try:
        while started.wait(1.0) is None:
            continue
    except BaseException:
        started.stop()
        raise


def compare(metric: str, mode: str, seeds: list[int], winner: list[float], default: list[float]) -> Comparison:
    """Student's interval of the paired differences: a seed gives both runs the same order of data."""
    sign = 1 if mode == "max" else -1
    differences = [sign * (a - b) for a, b in zip(winner, default, strict=True)]
    mean = statistics.mean(differences)
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(differences) - 1)) * spread
    return Comparison(metric, seeds, winner, default, mean, mean - half, mean + half)


def read(folder: Path) -> Comparison | None:
    path = folder / NAME
    return Comparison(**json.loads(path.read_text())) if path.is_file() else None
