"""Random search, TPE and the Gaussian process on two functions with known minima, as a sweep runs them.

python scripts/samplers.py [--trials 60] [--seeds 10] [--samplers random tpe gp]

Each sampler is that of conf/sweep, its points come through the search that a sweep's workers share, on a database;
only the training is a formula. Prints a table of the regret, the best value found minus the minimum, over seeds.
"""

import argparse
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna

from scaledl import build
from scaledl.config.folders import CONF
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.settings import read
from scaledl.sweep.space import space_of

Point = dict[str, float]

# Hartmann's constants: Dixon and Szego 1978.
A = [(10, 3, 17, 3.5, 1.7, 8), (0.05, 10, 17, 0.1, 8, 14), (3, 3.5, 1.7, 10, 17, 8), (17, 8, 0.05, 10, 0.1, 14)]
P = [
    (1312, 1696, 5569, 124, 8283, 5886),
    (2329, 4135, 8307, 3736, 1004, 9991),
    (2348, 1451, 3522, 2883, 3047, 6650),
    (4047, 8828, 8732, 5743, 1091, 381),
]
ALPHA = (1.0, 1.2, 3.0, 3.2)


def branin(point: Point) -> float:
    x, y = point["x0"], point["x1"]
    valley = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann(point: Point) -> float:
    x = [point[f"x{axis}"] for axis in range(6)]
    return -sum(
        alpha * math.exp(-sum(a * (v - p / 1e4) ** 2 for a, v, p in zip(row, x, peak, strict=True)))
        for alpha, row, peak in zip(ALPHA, A, P, strict=True)
    )


FUNCTIONS: dict[str, tuple[Callable[[Point], float], list[str], float]] = {
    "Branin": (branin, ["x0=interval(-5,10)", "x1=interval(0,15)"], 0.397887),
    "Hartmann-6": (hartmann, [f"x{axis}=interval(0,1)" for axis in range(6)], -3.32237),
}


def regret(sampler: str, name: str, seed: int, trials: int) -> float:
    """Of one search."""
    function, words, minimum = FUNCTIONS[name]
    settings = read([f"sweep={sampler}", f"hydra.sweeper.sampler.seed={seed}"], [CONF], []).settings
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'study.db'}"
        study = open_study(url, name, build.instantiate(settings.sampler), optuna.pruners.NopPruner(), ["minimize"])
        search = Search(study, space_of(words)[0], trials)
        while (attempt := search.ask()) is not None:
            search.complete(attempt, [function(attempt.trial.params)])
        assert search.over()
        return study.best_value - minimum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe", "gp"])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    peak = {f"x{axis}": x for axis, x in enumerate((0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573))}
    assert abs(branin({"x0": math.pi, "x1": 2.275}) - FUNCTIONS["Branin"][2]) < 1e-5
    assert abs(hartmann(peak) - FUNCTIONS["Hartmann-6"][2]) < 1e-4
    print(f"Regret after {arguments.trials} trials, {arguments.seeds} seeds: median (quartiles).\n")
    print("| function | sampler | median regret | quartiles | better than random | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in FUNCTIONS:
        first: list[float] = []
        for sampler in arguments.samplers:
            began = time.monotonic()
            found = [regret(sampler, name, seed, arguments.trials) for seed in range(arguments.seeds)]
            first = first or found
            low, middle, high = statistics.quantiles(found, n=4, method="inclusive")
            wins = sum(own < other for own, other in zip(found, first, strict=True))
            beaten = f"{wins} of {arguments.seeds}" if found is not first else ""
            seconds = time.monotonic() - began
            print(
                f"| {name} | {sampler} | {middle:.3g} | {low:.3g} to {high:.3g} | {beaten} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
