#!/usr/bin/env python3
"""Whether a run that is killed at any moment goes on as if nothing had happened, with nothing but `scaledl resume`.

  .venv/bin/python scripts/kill.py --kills 20
  .venv/bin/python scripts/kill.py --kills 6 --strategies fsdp deepspeed_3 --seed 1

Each strategy trains a tiny GPT twice: once without a break, and once with SIGKILL on the way, to all processes or to
one rank: at a random moment, while a save is under way, just after it went on, after the last step, or as the last
checkpoint appears. After each kill every checkpoint that can be seen must be whole, and the last of them recent. At the
end every step must be in the log exactly once, with the losses and batches of the run without a break, bit for bit, and
those of one process up to --tolerance; and the summary must say the same. Exits with 1 if anything differs.
"""

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaledl import checkpoint
from scaledl.distributed import storage
from scaledl.loggers import jsonl
from scaledl.run_directory import RESOLVED, read_summary

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 60, 3
SPARE = 4 * EVERY  # steps after the last kill, so that no run is complete before it
LIMIT = 400  # seconds of any wait
RUN = [  # long saves and short steps, so that a good part of the time is a save's
    "experiment=llm/gpt_shakespeare",
    "model.dim=96",
    "model.depth=3",
    "model.num_heads=2",
    "model.hidden_dim=384",
    "data.seq_len=32",
    "optimizer.lr=1e-3",  # at which rounding grows little in so many steps
    "~callbacks.samples",
    "callbacks.hash._target_=scaledl.callbacks.batch_hash.BatchHash",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=20",
    "trainer.limit_val_batches=2",
    f"checkpoint.every_n_steps={EVERY}",
]
LAYOUTS = {  # ranks, and their words
    "single": (1, ["strategy=single"]),
    "ddp": (2, ["strategy=ddp"]),
    "fsdp": (2, ["strategy=fsdp"]),
    "deepspeed_2": (2, ["strategy=deepspeed_2"]),
    "deepspeed_3": (2, ["strategy=deepspeed_3", "strategy.persistence_threshold=0"]),
}
Log = list[dict[str, Any]]


@dataclass(frozen=True)
class Kill:
    """When and whom to kill.

    Args:
        when: any: after a random number of steps; save: while one is under way; start: just after the run went on;
            end: after the last step; best: as soon as the last checkpoint, which is the best, can be seen.
        whom: all | one: all processes, or one rank.
    """

    when: str
    whom: str


PLAN = [Kill("any", "all"), Kill("save", "all"), Kill("any", "one"), Kill("start", "all"), Kill("save", "one")]


@dataclass
class Result:
    """What the kills of one strategy came to."""

    strategy: str
    kills: int = 0
    in_save: int = 0
    save_share: float = 0.0  # of the time from the first step to the last
    equal_steps: int = 0
    single_gap: float | None = None  # largest relative difference of the loss from one process's
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Job:
    """A command in a session of its own; `mark` is in the environment of all its processes, orphans too."""

    def __init__(self, ranks: int, words: list[str], folder: Path, environment: dict[str, str]):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "scaledl", *words]
        self.ranks, self.mark, self.output = ranks, f"KILLED_AS={uuid.uuid4().hex}", folder / "output.txt"
        with open(self.output, "wb") as output:
            self.launcher = subprocess.Popen(
                command,
                cwd=folder,
                env=environment | dict([self.mark.split("=")]),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self, rank: int | None = None) -> list[int]:
        """Of all its processes, or of one rank's."""
        wanted = {self.mark.encode()} | ({f"RANK={rank}".encode()} if rank is not None else set())
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted <= set(environ.read_bytes().split(b"\0")):
                    found.append(int(environ.parent.name))
            except OSError:  # it has ended, or belongs to another user
                continue
        return found

    def running(self) -> bool:
        return self.launcher.poll() is None

    def kill(self) -> None:
        """All processes, and those that they start in the meantime."""
        until = time.monotonic() + LIMIT
        while found := self.pids():
            _kill(found)
            if time.monotonic() > until:
                raise TimeoutError(f"processes {found} outlive SIGKILL")
        self.launcher.wait(LIMIT)

    def said(self) -> str:
        return self.output.read_text(errors="replace")


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class TooLateError(Exception):
    """The job ended before it could be killed."""


class Hunt:
    """One strategy: its run without a break, and its run with kills."""

    def __init__(self, strategy: str, folder: Path, rng: random.Random, say: Callable[[str], None] = print):
        self.folder, self.rng, self.say = folder / strategy, rng, say
        self.folder.mkdir(parents=True)
        self.ranks, self.words = LAYOUTS[strategy]
        self.environment = environment(folder / "cache")
        self.result = Result(strategy)
        self.step_seconds = self.save_seconds = 0.0

    def straight(self) -> Log:
        """The run without a break; learns from it how long a step and a save take.

        Raises:
            RuntimeError: it failed.
        """
        run_dir, began = self.folder / "straight", time.monotonic()
        looks: list[bool] = []
        first = last = began
        with self._job(self._train(run_dir)) as job:
            while job.running():
                if last_step(run_dir):
                    looks.append(bool(halves(run_dir)))
                    first, last = (time.monotonic() if len(looks) == 1 else first), time.monotonic()
                if time.monotonic() > began + LIMIT:
                    raise TimeoutError(f"{run_dir.parent.name} is not complete after {LIMIT} s\n{job.said()[-2000:]}")
                time.sleep(0.005)
            if job.launcher.returncode:
                raise RuntimeError(f"{run_dir.parent.name} failed\n{job.said()[-3000:]}")
        saving = len(looks) - 1 - looks[::-1].index(True) if any(looks) else 0  # looks until the last save's end
        share = sum(looks) / max(1, saving)
        seconds = (last - first) * saving / max(1, len(looks))
        self.step_seconds, self.save_seconds = seconds / STEPS, share * seconds * EVERY / STEPS
        self.result.save_share = share
        return jsonl.read(run_dir / "metrics.jsonl")

    def killed(self, kills: list[Kill]) -> Path:
        """The run with kills, complete."""
        run_dir = self.folder / "killed"
        window, expected = (STEPS - SPARE) / len(kills), 0
        for number, kill in enumerate(kills):
            target = (
                max(int(window * (number + self.rng.random())), last_step(run_dir)) + 1
            )  # which a rewound log lacks
            target = STEPS if kill.when in ("end", "best") else target
            with self._job(self._again(run_dir)) as job:
                try:
                    in_save = self._hit(job, kill, run_dir, target)
                except TooLateError:
                    self._problem(f"kill {number + 1}: the job ended before\n{job.said()[-2000:]}")
                    continue
                self._went_on_from(job, expected, surely=kill.when != "start")
            expected = self._after(number, kill, run_dir, in_save)
        with self._job(self._again(run_dir)) as job:
            if not wait_for(lambda: not job.running()) or job.launcher.returncode:
                self._problem(f"the run does not go on to its end\n{job.said()[-3000:]}")
            self._went_on_from(job, expected, surely=True)
        return run_dir

    def compare(self, run_dir: Path, straight: Log, single: Log | None, tolerance: float) -> None:
        log = jsonl.read(run_dir / "metrics.jsonl")
        for name in sorted({name for line in straight + log for name in line if name != "step"}):
            if name.startswith("perf/"):
                continue
            expected, found = series(straight, name), series(log, name)
            if found != expected:
                odd = next((pair for pair in zip(expected, found, strict=False) if pair[0] != pair[1]), None)
                counts = f"{len(found)} lines of {len(expected)}"
                self._problem(f"{name} differs: (step, value) without a break and with: {odd or counts}")
        steps = [step for step, _ in series(log, "train/loss")]
        if steps != list(range(1, STEPS + 1)) or [step for step, _ in series(log, "data/hash")] != steps:
            self._problem(f"the log has the steps {steps}")
        self.result.equal_steps = len(set(series(straight, "train/loss")) & set(series(log, "train/loss")))
        if single is not None:
            losses = zip(series(single, "train/loss"), series(log, "train/loss"), strict=False)
            self.result.single_gap = max(abs(a - b) / abs(a) for (_, a), (_, b) in losses)
            if not self.result.single_gap <= tolerance:
                self._problem(f"the loss is {self.result.single_gap:.1e} from one process's")
            if series(single, "data/hash") != series(log, "data/hash"):
                self._problem("the batches are not one process's")
        for key in ("status", "steps", "samples_seen", "best", "val/loss", "train/loss"):
            summaries = (read_summary(where) or {"metrics": {}} for where in (self.folder / "straight", run_dir))
            expected, found = ((summary | summary["metrics"]).get(key) for summary in summaries)
            if found != expected:
                self._problem(f"the summary's {key} is {found}, without a break {expected}")
        saved = [path.name for path in (run_dir / "checkpoints").iterdir()]
        left = [name for name in saved if not re.fullmatch(r"step_\d+|best\.json", name)]
        left += [path.name for path in run_dir.glob(".*")]
        if left:
            self._problem(f"left behind: {', '.join(left)}")
        self._whole(run_dir)

    def _hit(self, job: Job, kill: Kill, run_dir: Path, target: int) -> bool:
        """Kill at the moment that was asked for; returns whether a save was under way.

        Raises:
            TooLateError: the job ended before.
        """
        rng, before = self.rng, opened(run_dir)
        if kill.when == "start":
            until(lambda: opened(run_dir) != before, job)
        else:
            until(lambda: last_step(run_dir) >= target, job)
        rank = rng.randrange(job.ranks) if kill.whom == "one" and job.ranks > 1 else None
        pids = job.pids(rank)
        if kill.when == "best":
            until(checkpoint.folder_of(run_dir, STEPS).exists, job)
        longest = {"any": EVERY * self.step_seconds, "start": 1.5, "end": self.save_seconds}
        time.sleep(rng.uniform(0, longest.get(kill.when, 0)))
        while kill.when == "save":
            until(lambda: not halves(run_dir), job)
            until(lambda: halves(run_dir), job)
            time.sleep(rng.uniform(0, self.save_seconds))
            if halves(run_dir):
                break
        if not job.running():
            raise TooLateError
        _kill(pids)
        in_save = bool(halves(run_dir))
        if rank is not None and not wait_for(lambda: not job.running() and not job.pids()):
            self._problem(f"the other rank goes on {LIMIT} s after rank {rank} was killed")
        job.kill()
        return in_save

    def _after(self, number: int, kill: Kill, run_dir: Path, in_save: bool) -> int:
        """Look at what a kill left; returns the step to go on from."""
        self.result.kills += 1
        self.result.in_save += in_save
        self._whole(run_dir)
        latest = max(map(checkpoint.step_of, checkpoint.all_of(run_dir)), default=0)
        step = last_step(run_dir)
        if step - latest >= 3 * EVERY:  # a save waits for the one before it
            self._problem(f"killed at step {step}, and the last checkpoint is of step {latest}")
        whom = {"all": "all processes", "one": "one rank"}[kill.whom] if self.ranks > 1 else "the process"
        place = "in a save" if in_save else "between saves"
        left = ", its half is left" if halves(run_dir) else ""
        self.say(
            f"{self.result.strategy:12} kill {number + 1} ({kill.when:5}) of {whom:13} at step {step:2}, {place}{left};"
            f" goes on from step {latest}"
        )
        return latest

    def _whole(self, run_dir: Path) -> None:
        for saved in checkpoint.all_of(run_dir):
            if problem := storage.problem_of(saved):
                self._problem(f"{saved.name} can be seen and is not whole: {problem}")

    def _went_on_from(self, job: Job, step: int, surely: bool) -> None:
        """What the start table said, if the job was killed after it."""
        found = re.search(r"goes on from\W+step (\d+)", job.said())
        began = STEPS if "completed before" in job.said() else int(found[1]) if found else 0
        if (surely or began) and began != step:
            self._problem(f"went on from step {began}; the last checkpoint was of step {step}\n{job.said()[-2000:]}")

    def _train(self, run_dir: Path) -> list[str]:
        return ["train", *RUN, *self.words, f"run_dir={run_dir}"]

    def _again(self, run_dir: Path) -> list[str]:
        return ["resume", str(run_dir)] if checkpoint.all_of(run_dir) else self._train(run_dir)

    @contextmanager
    def _job(self, words: list[str]) -> Iterator[Job]:
        job = Job(self.ranks, words, self.folder, self.environment)
        try:
            yield job
        finally:
            job.kill()

    def _problem(self, text: str) -> None:
        self.result.problems.append(text)
        self.say(f"{self.result.strategy:12} PROBLEM: {text}")


def wait_for(happened: Callable[[], Any], job: Job | None = None) -> bool:
    """Whether it happened within LIMIT, and before the job ended."""
    end = time.monotonic() + LIMIT
    while not happened():
        if time.monotonic() > end or (job is not None and not job.running()):
            return False
        time.sleep(0.002)
    return True


def until(happened: Callable[[], Any], job: Job) -> None:
    if not wait_for(happened, job):
        raise TooLateError


def halves(run_dir: Path) -> list[Path]:
    return list((run_dir / "checkpoints").glob(".step_*.tmp"))


def opened(run_dir: Path) -> int:
    """Changes when a job opens the run."""
    path = run_dir / RESOLVED
    return path.stat().st_mtime_ns if path.exists() else 0


def last_step(run_dir: Path) -> int:
    return max((line["step"] for line in jsonl.read(run_dir / "metrics.jsonl")), default=0)


def series(log: Log, name: str) -> list[tuple[int, Any]]:
    return [(line["step"], line[name]) for line in log if name in line]


def environment(cache: Path) -> dict[str, str]:
    """Ours, without what would make the runs differ or leave this machine."""
    chosen = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SCALEDL", "WANDB"))}
    path = os.pathsep.join(filter(None, [str(ROOT), chosen.get("PYTHONPATH", "")]))
    return chosen | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "SCALEDL_CACHE": str(cache), "COLUMNS": "120"}


def hunt(
    strategy: str, kills: list[Kill], folder: Path, seed: int, single: Log | None = None, tolerance: float = 1e-5
) -> tuple[Result, Log]:
    """The result of a strategy, and the log of its run without a break."""
    began = time.monotonic()
    hunted = Hunt(strategy, folder, random.Random(f"{seed} {strategy}"))
    straight = hunted.straight()
    hunted.compare(hunted.killed(kills), straight, single, tolerance)
    hunted.result.seconds = time.monotonic() - began
    return hunted.result, straight


def plan(kills: int, strategies: list[str]) -> dict[str, list[Kill]]:
    """The kills shared out; where a strategy has four or more, its last is at its end."""
    shares = {name: kills // len(strategies) + (i < kills % len(strategies)) for i, name in enumerate(strategies)}
    cycle, planned = itertools.cycle(PLAN), {}
    for index, (name, share) in enumerate(shares.items()):
        last = [Kill(("best", "end")[index % 2], "all")] if share > 3 else []
        first = sorted(itertools.islice(cycle, share - len(last)), key=lambda kill: kill.when == "start")
        planned[name] = [*first, *last]
    return planned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of all strategies together")
    parser.add_argument("--strategies", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS), metavar="STRATEGY")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    arguments = parser.parse_args()
    began, results, single = time.monotonic(), [], None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "single" not in arguments.strategies:
            single = Hunt("single", folder, random.Random()).straight()
        for strategy, kills in plan(arguments.kills, arguments.strategies).items():
            result, straight = hunt(strategy, kills, folder, arguments.seed, single, arguments.tolerance)
            single = straight if strategy == "single" else single
            results.append(result)
            shutil.rmtree(folder / strategy)

    table = Table(title=f"Runs of {STEPS} steps, a save every {EVERY}", title_justify="left")
    columns = [
        "strategy",
        "kills",
        "in a save",
        "saves' share of the time",
        "equal losses",
        "from one process",
        "seconds",
    ]
    for column in [*columns, "problems"]:
        table.add_column(column, overflow="fold")
    for r in results:
        from_one = "" if r.single_gap is None else f"{r.single_gap:.1e}"
        numbers = [r.kills, r.in_save, f"{r.save_share:.0%}", f"{r.equal_steps}/{STEPS}", from_one, f"{r.seconds:.0f}"]
        table.add_row(r.strategy, *map(str, numbers), str(len(r.problems)))
    Console(width=120).print(table)
    kills, in_save = sum(r.kills for r in results), sum(r.in_save for r in results)
    print(f"{kills} kills, {in_save} of them in a save, in {(time.monotonic() - began) / 60:.1f} min")
    for result in results:
        for problem in result.problems:
            print(f"{result.strategy}: {problem}")
    sys.exit(any(r.problems for r in results))


if __name__ == "__main__":
    main()
