#!/usr/bin/env python3
"""Variants of one experiment side by side, over seeds: one plot and one table.

  .venv/bin/python scripts/compare.py optimizers
  .venv/bin/python scripts/compare.py regularizers --seeds 5
  .venv/bin/python scripts/compare.py width --variant "wide: model.hidden_dims=[512]" --variant "plain:"
  .venv/bin/python scripts/compare.py muon --experiment llm/gpt_shakespeare --override data.path=input.txt \
      --metric loss --variant "AdamW: optimizer=adamw" --variant "Muon: optimizer=muon" --search --trials 12

Each variant and seed is a `scaledl train` of its own in runs/compare/<name>/; what is completed there, with the
same words, is not repeated.
With --search each variant is first tuned by a sweep of its own, with as many trials and a seed that is not compared.
The table says the mean over seeds and, as ±, half the width of its 95 % confidence interval (Student's t), after how
many steps a variant's mean val/loss was as low as the first's at the end, and the milliseconds of a step.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from scaledl import atomic, run_directory
from scaledl.loggers import jsonl
from scaledl.sweep import results
from scaledl.sweep.space import words_of

ROOT = Path(__file__).parents[1]
PLAIN = "model.dropout=0 task.label_smoothing=0 optimizer.weight_decay=0"
# Learning rates: of each, the one with the least val/loss at seed 100 among four a factor of about 3 apart.
OPTIMIZERS = {
    "SGD": "optimizer=sgd optimizer.momentum=0 optimizer.lr=1",
    "momentum": "optimizer=sgd optimizer.lr=0.3",
    "Nesterov": "optimizer=sgd optimizer.nesterov=true optimizer.lr=0.3",
    "RMSProp": "optimizer=rmsprop optimizer.lr=1e-2",
    "Adam": "optimizer=adam optimizer.lr=3e-2",
    "AdamW": "optimizer=adamw optimizer.lr=1e-2",
    "Adafactor": "optimizer=adafactor optimizer.lr=0.1",
    "Lion": "optimizer=lion optimizer.lr=3e-3",
    "Muon": "optimizer=muon optimizer.lr=1e-2",
}
REGULARIZERS = {
    "none": PLAIN,
    "L1": f"{PLAIN} callbacks.l1._target_=scaledl.callbacks.l1.L1 callbacks.l1.strength=1e-2",
    "L2": f"{PLAIN} optimizer.weight_decay=1",
    "dropout": f"{PLAIN} model.dropout=0.4",
    "label smoothing": f"{PLAIN} task.label_smoothing=0.1",
    "mixup": f"{PLAIN} task.mixup=0.4",
    "batch norm": f"{PLAIN} model.norm=batch",
    "layer norm": f"{PLAIN} model.norm=layer",
    "all but norms": "model.dropout=0.4 task.label_smoothing=0.1 optimizer.weight_decay=0.1",
}
SEARCHED = 100  # the seed of searches
EXERCISES = {"optimizers": OPTIMIZERS, "regularizers": REGULARIZERS}


@dataclass
class Run:
    """What one training came to."""

    log: list[dict[str, Any]]
    summary: dict[str, Any]

    def value(self, name: str) -> float:
        return self.summary["metrics"][name]


def trained(words: list[str], run_dir: Path) -> Run:
    """Train, or read what is there: `run_dir` gets a hash of the words, so that others are trained beside it.

    Raises:
        SystemExit: the training failed.
    """
    run_dir = run_dir.with_name(f"{run_dir.name}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}")
    summary = run_directory.read_summary(run_dir)
    if summary is None or summary["status"] != "completed":
        _scaledl(["train", *words, f"run_dir={run_dir}"])
        summary = run_directory.read_summary(run_dir)
        assert summary is not None
    return Run(jsonl.read(run_dir / "metrics.jsonl"), summary)


def tuned(words: list[str], folder: Path, trials: int) -> list[str]:
    """The words that a sweep of so many trials found best; one that is there goes on.

    Raises:
        SystemExit: it failed.
    """
    sweep = [f"hydra.sweep.dir={folder}", f"hydra.sweeper.n_trials={trials}", f"seed={SEARCHED}"]
    _scaledl(["train", "-m", "sweep=tpe", *sweep, *words])
    return words_of(results.read(folder).completed()[0].params)


def _scaledl(words: list[str]) -> None:
    command = [sys.executable, "-m", "scaledl", *words]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare: {' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")


def curve(of_seeds: list[Run], metric: str) -> dict[int, list[float]]:
    """Of each step at which all seeds logged it, the values of all."""
    curves = [{line["step"]: line[metric] for line in run.log if line.get(metric) is not None} for run in of_seeds]
    return {step: [each[step] for each in curves] for step in sorted(set.intersection(*map(set, curves)))}


def steps_until(of_seeds: list[Run], metric: str, value: float) -> str:
    """The first step at which the mean over seeds is no more than the value."""
    return next((str(step) for step, values in curve(of_seeds, metric).items() if fmean(values) <= value), "never")


def with_interval(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.4f} ± {half:.4f}"


def draw(runs: dict[str, list[Run]], metrics: list[str], title: str, path: Path) -> None:
    """Means over seeds, from the least to the largest as a band."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(metrics), 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for place, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(1, len(metrics), place)
        for index, (name, of_seeds) in enumerate(runs.items()):
            points = curve(of_seeds, metric)  # none of a metric of the test alone
            steps, values = list(points), list(points.values())
            color = colormaps["tab10"](index % 10)
            axes.plot(steps, [fmean(v) for v in values], label=name, color=color, linewidth=1.2)
            axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15)
        if metric.endswith("loss"):
            axes.set_yscale("log")
        axes.set(xlabel="step", title=metric)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"{' or '.join(EXERCISES)}, or a name of your own with --variant")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME: WORDS", help="of a comparison of yours"
    )
    parser.add_argument("--experiment", default="mlp/digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--metric", default="acc", help="the one to judge by (of test, else val)")
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="of every training")
    parser.add_argument(
        "--search", nargs="*", metavar="KEY=VALUES", help="tune each variant first; words of docs/sweeps.md or none"
    )
    parser.add_argument("--trials", type=int, default=12, help="of each variant's search")
    parser.add_argument("--out", type=Path, help="default: runs/compare/<name>")
    arguments = parser.parse_args()
    given = dict(tuple(map(str.strip, variant.split(":", 1))) for variant in arguments.variant)
    variants = dict(given or EXERCISES.get(arguments.name, {}))
    if not variants:
        parser.error(f"{arguments.name} is no exercise of ours ({', '.join(EXERCISES)}): give --variant 'NAME: WORDS'")
    out = (arguments.out or Path("runs/compare") / arguments.name).resolve()
    console = Console(soft_wrap=True, highlight=False)
    runs: dict[str, list[Run]] = {}
    for name in variants:
        every, folder = [f"experiment={arguments.experiment}", *arguments.override], out / name.replace(" ", "_")
        if arguments.search is not None:
            found = tuned([*every, *variants[name].split(), *arguments.search], folder / "search", arguments.trials)
            variants[name] = f"{variants[name]} {' '.join(found)}"
            console.print(f"{name}: the best of {arguments.trials} trials is {variants[name]}")
        for seed in range(arguments.seeds):
            run = trained([*every, *variants[name].split(), f"seed={seed}"], folder / f"seed_{seed}")
            runs.setdefault(name, []).append(run)
            last = ", ".join(
                f"{key} {value:.4f}" for key, value in run.summary["metrics"].items() if key.endswith("loss")
            )
            console.print(f"{name}, seed {seed}: {last}")
    known = next(iter(runs.values()))[0].summary["metrics"]
    judged = next(
        (f"{split}/{arguments.metric}" for split in ("test", "val") if f"{split}/{arguments.metric}" in known), None
    )
    if judged is None:
        sys.exit(f"compare: there is no {arguments.metric} among {', '.join(known)}; give another --metric")
    columns = list(dict.fromkeys([judged, "val/loss", "train/loss"]))
    first = next(iter(runs.values()))
    goal = fmean(run.value("val/loss") for run in first)
    rows = [
        [
            name,
            *(with_interval([run.value(c) for run in of]) for c in columns),
            steps_until(of, "val/loss", goal),
            f"{1000 * fmean(run.summary['train_seconds'] / run.summary['steps'] for run in of):.1f}",
            variants[name],
        ]
        for name, of in runs.items()
    ]
    heads = [*columns, f"steps to val/loss {goal:.4f}", "ms a step", "words"]
    title = f"{arguments.experiment}, {arguments.seeds} seeds"
    table = Table("variant", *heads, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [["variant", *heads], ["---"] * (len(heads) + 1), *rows]
    atomic.write_text(out / "table.md", "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    draw(runs, ["train/loss", f"val/{arguments.metric}"], title, out / "compare.png")
    console.print(f"{out / 'compare.png'}, {out / 'table.md'}")


if __name__ == "__main__":
    main()
