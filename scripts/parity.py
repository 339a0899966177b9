#!/usr/bin/env python3
"""Whether every strategy trains what one process trains: the first losses of each family, by the real command line.

  .venv/bin/python scripts/parity.py --families all --markdown docs/families.md
  .venv/bin/python scripts/parity.py --experiments mlp/circles cnn/digits --strategies ddp fsdp --steps 50
  .venv/bin/python scripts/parity.py --families llm --override data.micro_batch_size=3 --markdown parity.md

Each experiment runs its first steps, once with strategy=single and once for each row of the table, from one seed and
with one global batch. What depends on ranks is left out: dropout and its like are 0, and batch norm takes its
statistics from all ranks (sync_batch). A cell is the largest relative difference of train/loss over the steps (and of
train/grad_norm), or "no" and why the run was refused before it started.
Exits with 1 if a run ends early, if a difference of the loss is above the tolerance, or if that of the gradient's norm,
whose scale Adam hides from the loss, is above ten times as much.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from scaledl import atomic, build
from scaledl.config.folders import CONF
from scaledl.experiments import all_experiments
from scaledl.loggers import jsonl
from scaledl.train import composed, quiet

ROOT = Path(__file__).parents[1]
CHOSEN = {
    "perceptron": "perceptron/digits",
    "llm": "llm/gpt_shakespeare",
}  # instead of a family's first; a batch of perceptron/blobs is one point
HEADING = "## Which family runs on which strategy\n"
TIMEOUT = 1800  # seconds of one run
RANDOM = ("dropout", "stochastic_depth")  # settings whose noise is drawn for each rank


@dataclass(frozen=True)
class Layout:
    """Ranks, and what to write behind `scaledl train` for them to share the work."""

    ranks: int
    words: tuple[str, ...]


SINGLE = Layout(1, ("strategy=single",))
LAYOUTS = {
    "ddp": Layout(2, ("strategy=ddp",)),
    "fsdp": Layout(2, ("strategy=fsdp",)),
    "hsdp": Layout(4, ("strategy=hsdp", "strategy.shard_size=2")),
    "deepspeed_1": Layout(2, ("strategy=deepspeed_1",)),
    "deepspeed_2": Layout(2, ("strategy=deepspeed_2",)),
    "deepspeed_3": Layout(2, ("strategy=deepspeed_3", "strategy.persistence_threshold=0")),
    "deepspeed_3_offload": Layout(2, ("strategy=deepspeed_3_offload", "strategy.persistence_threshold=0")),
    "tp": Layout(2, ("strategy=tp",)),
    "fsdp+tp": Layout(4, ("strategy=tp",)),
}
REFUSALS = (  # what no run of this layout can do, said before it starts; any other error is a failure
    r"\w+ has no tensor-parallel plan",
    r"\d+ tensor-parallel ranks cannot share [\w=]+",
    r"global_batch_size=\d+ cannot be shared by \d+ ranks",
    r"cannot serve [\w ]+, which needs [\w ]+",
)


class RefusedError(Exception):
    """The run was refused before it started, for a reason of its kind."""


class FailedError(Exception):
    """The run ended early, or left out a step."""


@dataclass
class Gap:
    """The largest relative difference between two runs, and the first step at which it was reached."""

    value: float
    step: int

    def __str__(self) -> str:
        return f"{self.value:.1e}" if self.value else "0"


def log_of(words: list[str], layout: Layout, run_dir: Path, env: dict[str, str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run by the command line.

    Raises:
        RefusedError: there can be no such run.
        FailedError: it ended with an error.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={layout.ranks}"]
    command = [sys.executable, *(torchrun if layout.ranks > 1 else []), "-m", "scaledl", "train", *words, *layout.words]
    command += ["trainer.limit_val_batches=4", f"run_dir={run_dir}"]
    code, errors = _run(command, env)
    log = jsonl.read(run_dir / "metrics.jsonl")
    if code == 0:
        return log
    reason = next((found for pattern in REFUSALS if (found := re.search(pattern, errors))), None)
    if reason and not run_dir.exists():
        raise RefusedError(reason[0])
    own = re.split(r"^.*torch/distributed/elastic/multiprocessing/api.py", errors, maxsplit=1, flags=re.MULTILINE)[0]
    raise FailedError(f"exit code {code}\n" + "\n".join((own.strip() or errors).splitlines()[-15:]))


def _run(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            errors = process.communicate(timeout=TIMEOUT)[1]
        except subprocess.TimeoutExpired:
            process.terminate()
            errors = f"{process.communicate()[1]}\nended after {TIMEOUT} s"
        except BaseException:
            process.terminate()  # torchrun ends its ranks
            raise
    return process.returncode, errors


def environment() -> dict[str, str]:
    """Ours, without what would make the runs differ or leave this machine."""
    chosen = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SCALEDL_RUN", "WANDB"))}
    path = os.pathsep.join(filter(None, [str(ROOT), chosen.get("PYTHONPATH", "")]))
    return chosen | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": path}


def gap(reference: list[dict[str, Any]], log: list[dict[str, Any]], name: str) -> Gap:
    """Raises FailedError: a step is missing, or a value is not finite."""
    one, other = ({line["step"]: line[name] for line in lines if name in line} for lines in (reference, log))
    if not one or one.keys() != other.keys():
        raise FailedError(f"{name} is at the steps {list(other)}, with one process at {list(one)}")
    if None in (*one.values(), *other.values()):
        raise FailedError(f"{name} is not finite")
    gaps = [Gap(abs(one[step] - other[step]) / max(abs(one[step]), 1e-30), step) for step in one]
    return max(gaps, key=lambda found: found.value)


def first_steps(experiment: str, steps: int, overrides: list[str]) -> tuple[list[str], list[str]]:
    """(the words that train the first steps of an experiment, what they change in it)."""
    words = [f"experiment={experiment}", *overrides]
    config = composed(words, [CONF], [])
    data = build.data(config)  # once, so that the runs find it in the cache
    build.settle_steps(config, len(data.split("train")))
    fixed = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.log_every_n_steps=1"]
    if config.scheduler and "max_steps" in config.scheduler:
        fixed.append(f"scheduler.max_steps={config.scheduler.max_steps}")
    changed = dict(of_ranks(config))
    fixed += [f"{path}={instead}" for path, (_, instead) in changed.items()]
    notes = [f"{experiment}: {path} is {instead} here, not {value}" for path, (value, instead) in changed.items()]
    notes += [f"{experiment}: by `--override {' '.join(overrides)}`"] if overrides else []
    return words + fixed, notes


def of_ranks(config: DictConfig) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What makes a run depend on its ranks: by its path, (its value, one that does not)."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            here = f"{path}.{key}" if path else str(key)
            if isinstance(value, dict | list):
                yield from walk(value, here)
            elif value and key != "label_dropout" and any(word in str(key) for word in RANDOM):
                yield here, (value, 0.0)
            elif (key, value) == ("norm", "batch"):
                yield here, (value, "sync_batch")

    return walk({"model": OmegaConf.to_container(config.model), "task": OmegaConf.to_container(config.task)}, "")


@dataclass
class Cell:
    """What the table says of an experiment under a strategy."""

    text: str
    more: str = ""
    failed: bool = False
    seconds: float = 0.0


def cells_of(
    experiment: str, words: list[str], layouts: dict[str, Layout], folder: Path, tolerance: float
) -> Iterator[tuple[str, Cell]]:
    """A cell for each layout, in their order."""
    try:
        reference = log_of(words, SINGLE, folder / experiment / "single", environment())
    except FailedError as error:
        yield from ((label, Cell("FAILED", f"strategy=single: {error}", failed=True)) for label in layouts)
        return

    def cell(label: str) -> Cell:
        began = time.monotonic()
        try:
            log = log_of(words, layouts[label], folder / experiment / label, environment())
            loss, norm = (gap(reference, log, name) for name in ("train/loss", "train/grad_norm"))
        except RefusedError as error:
            return Cell(f"no: {error}", seconds=time.monotonic() - began)
        except FailedError as error:
            return Cell("FAILED", f"{error}\n", True, time.monotonic() - began)
        failed = not (loss.value <= tolerance and norm.value <= 10 * tolerance)
        where = f"largest at step {loss.step} ({norm.step})"
        return Cell(f"{'FAILED ' * failed}{loss} ({norm})", where, failed, time.monotonic() - began)

    for label in layouts:
        yield label, cell(label)


def chosen_experiments(families: list[str], experiments: list[str]) -> list[str]:
    if experiments:
        return experiments
    of_family: dict[str, str] = {}
    for name in sorted(experiment.name for experiment in all_experiments([CONF])):
        of_family.setdefault(name.partition("/")[0], name)
    of_family |= {family: name for family, name in CHOSEN.items() if family in of_family}
    unknown = set(families) - {"all", *of_family}
    if unknown:
        sys.exit(f"parity: there is no family {', '.join(unknown)}; there are: {', '.join(of_family)}")
    return [name for family, name in of_family.items() if "all" in families or family in families]


def _commit() -> str:
    """Of this checkout, whose code the runs import whatever is installed beside."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def with_row(document: str, title: str, layouts: list[str], row: list[str], notes: list[str]) -> str:
    """The document with an experiment's row and notes in its last section, in place of older ones."""
    head = ["experiment", *layouts, "commit"]
    before, _, section = document.partition(HEADING)
    lines = section.splitlines()
    table = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("|")]
    rows = {cells[0]: cells for cells in table[2:] if table[0] == head} | {row[0]: [*row, _commit()]}
    others = [line for line in lines if line.startswith("- ") and line[2:].split(":")[0] in rows.keys() - {row[0]}]
    written = [
        f"{HEADING}{title}.",
        "Each row by `scripts/parity.py --experiments EXPERIMENT --markdown FILE` with these columns and steps,",
        f"on {os.cpu_count()} CPU cores, {torch.cuda.device_count()} GPUs, PyTorch {torch.__version__}.",
        "A cell without a number says why the run is refused before it starts.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *(rows[name] for name in sorted(rows)))),
        "",
        *sorted([*others, *(f"- {note}" for note in notes)]),
    ]
    return before + "\n".join(written) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["all"], help="one experiment of each (default: all)")
    parser.add_argument("--experiments", nargs="+", default=[], help="these instead")
    parser.add_argument("--strategies", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS), metavar="STRATEGY")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--override", nargs="+", default=[], metavar="KEY=VALUE", help="of every experiment")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put each row into this file's last section")
    arguments = parser.parse_args()
    quiet()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no rank is left behind
    experiments = chosen_experiments(arguments.families, arguments.experiments)
    layouts = {f"{name} x{LAYOUTS[name].ranks}": LAYOUTS[name] for name in arguments.strategies}
    console, began = Console(soft_wrap=True, highlight=False), time.monotonic()
    cells: dict[tuple[str, str], Cell] = {}
    total, notes = len(experiments) * len(layouts), []
    title = f"{arguments.steps} steps: largest relative difference of train/loss (of train/grad_norm) from one process"
    with tempfile.TemporaryDirectory() as folder:
        for experiment in experiments:
            words, changed = first_steps(experiment, arguments.steps, arguments.override)
            notes += changed
            found = cells_of(experiment, words, layouts, Path(folder), arguments.tolerance)
            for label, cell in found:
                cells[experiment, label] = cell
                where = f"cell {len(cells)} of {total}: {experiment}, {label}"
                console.print(f"{where}: {cell.text} {cell.more} [{cell.seconds:.0f} s]", markup=False)
            if arguments.markdown:
                before = arguments.markdown.read_text(encoding="utf-8") if arguments.markdown.exists() else ""
                row = [experiment, *(cells[experiment, label].text for label in layouts)]
                page = with_row(before, title, list(layouts), row, changed)
                atomic.write_text(arguments.markdown, page)

    notes.append(f"{total} cells in {(time.monotonic() - began) / 60:.1f} min; tolerance {arguments.tolerance:g}")
    table = [[experiment, *(cells[experiment, label].text for label in layouts)] for experiment in experiments]
    drawn = Table("experiment", *layouts, title=title, title_justify="left")
    for row in table:
        drawn.add_row(*row)
    console.print(drawn, *notes, sep="\n")
    sys.exit(any(cell.failed for cell in cells.values()))


if __name__ == "__main__":
    main()
