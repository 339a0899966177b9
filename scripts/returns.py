#!/usr/bin/env python3
"""How policies learn, over seeds: the mean return of an evaluation against steps in the environment, with a 95 % band.

  .venv/bin/python -m scripts.returns
  .venv/bin/python -m scripts.returns rl/cartpole_ppo rl/cartpole_a2c --seeds 5 --override data.env=Acrobot-v1

Each experiment and seed is a `scaledl train` of its own in runs/returns/; what is completed there is not repeated. The
band is the confidence interval of the mean over seeds (Student's t): so many seeds, so wide. It draws returns.png and
writes table.md: the last evaluation, the best one, and what the best checkpoint reaches in the test's episodes.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.stats import t as student

from scaledl import atomic
from scripts.compare import Run, trained, with_interval

EXPERIMENTS = ["rl/cartpole_ppo", "rl/cartpole_dqn", "rl/cartpole_a2c", "rl/cartpole_reinforce"]


def curve(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(steps in the environment, mean return) of each evaluation of a run."""
    known = [(line["step"], line["train/env_steps"]) for line in run.log if "train/env_steps" in line]
    found = {line["step"]: line["val/return"] for line in run.log if "val/return" in line}
    steps = np.interp(list(found), *zip(*known, strict=True))
    return steps, np.array(list(found.values()))


def band(curves: list[tuple[np.ndarray, np.ndarray]], points: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, mean, half the width of its 95 % confidence interval) of several curves, where all of them are known."""
    steps = np.linspace(max(s[0] for s, _ in curves), min(s[-1] for s, _ in curves), points)
    values = np.stack([np.interp(steps, *one) for one in curves])  # (seeds, points)
    if len(curves) == 1:
        return steps, values[0], np.zeros(points)
    half = student.ppf(0.975, len(curves) - 1) * values.std(0, ddof=1) / len(curves) ** 0.5
    return steps, values.mean(0), half


def draw(runs: dict[str, list[Run]], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, of_seeds in runs.items():
        steps, mean, half = band([curve(run) for run in of_seeds])
        (line,) = axes.plot(steps, mean, label=name, linewidth=1.4)
        axes.fill_between(steps, mean - half, mean + half, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="steps in the environment", ylabel="val/return")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def row(name: str, of_seeds: list[Run]) -> list[str]:
    last = [curve(run)[1][-1] for run in of_seeds]
    best = [run.summary["best"]["value"] for run in of_seeds]
    steps = curve(of_seeds[0])[0][-1]
    return [name, f"{steps:,.0f}", *map(with_interval, (last, best, [run.value("test/return") for run in of_seeds]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="of every training")
    parser.add_argument("--out", type=Path, default=Path("runs/returns"))
    arguments = parser.parse_args()
    out, console = arguments.out.resolve(), Console(soft_wrap=True, highlight=False)
    runs: dict[str, list[Run]] = {}
    for name in arguments.experiments:
        for seed in range(arguments.seeds):
            words = [f"experiment={name}", f"seed={seed}", *arguments.override]
            run = trained(words, out / name / f"seed_{seed}")
            runs.setdefault(name, []).append(run)
            console.print(f"{name}, seed {seed}: best {run.summary['best']['value']:.1f}")
    lines = [["experiment", "steps", "last val/return", "best val/return", "test/return"], ["---"] * 5]
    lines += [row(name, of_seeds) for name, of_seeds in runs.items()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    atomic.write_text(out / "table.md", table + "\n")
    title = " ".join([f"{arguments.seeds} seeds: mean and its 95 % confidence interval", *arguments.override])
    draw(runs, title, out / "returns.png")
    console.print(table, f"{out / 'returns.png'}, {out / 'table.md'}", sep="\n")


if __name__ == "__main__":
    main()
