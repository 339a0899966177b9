"""`scaledl launch`: prints what a person would have typed, torchrun or sbatch, and runs it once the config is right."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from scaledl import processes, run_directory, train
from scaledl.snapshot import SLURM, keep_code
from scaledl.sweep.grid import trials


@dataclass
class Config:
    """The values of a run, and its text with the links between them."""

    values: DictConfig
    linked: str


def check(
    words: list[str], folders: list[Path], allowed: list[str], nodes: int, ranks_per_node: int, multirun: bool
) -> list[Config]:
    """The configs of a training, or of every trial of a sweep, on so many ranks.

    Raises:
        ConfigError: one is wrong.
        ValueError: model, task, data and strategy do not fit.
    """
    found = []
    with as_on(nodes, ranks_per_node):
        every = [trial.words for trial in trials(words, folders, allowed)] if multirun else [words]
        for own in every:
            config = train.composed(own, folders, allowed)
            found.append(Config(config, OmegaConf.to_yaml(config)))
            train.checked(config)
    return found


def local(ranks: int, command: list[str], dry_run: bool) -> int:
    """Start ranks on this machine; the exit code is rank 0's own, not torchrun's."""
    torchrun = ["--standalone", f"--nproc-per-node={ranks}", "-m", "scaledl", *command]
    print(shlex.join(["torchrun", *torchrun]), flush=True)
    if dry_run:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "exit_code"
        environment = os.environ | {"SCALEDL_EXIT_CODE_FILE": str(code)}
        ended = processes.run([sys.executable, "-m", "torch.distributed.run", *torchrun], environment)
        return int(code.read_text()) if code.is_file() else ended


def slurm(
    configs: list[Config],
    nodes: int,
    ranks_per_node: int,
    options: list[str],
    allowed: list[str],
    multirun: bool,
    dry_run: bool,
) -> int:
    """Keep configs with the code in their run directories, and submit a job, or for a sweep an array of them.

    Raises:
        ValueError: there is a run of that name.
        OSError: there is no Slurm, or it refused.
    """
    run_dirs = [Path(config.values.run_dir).absolute() for config in configs]
    home = run_dirs[0].parent if multirun else run_dirs[0]
    script = SLURM / ("sweep.sbatch" if multirun else "train.sbatch")
    settings = {
        "PYTHON": sys.executable,
        "RANKS_PER_NODE": str(ranks_per_node),
        "SCALEDL_CODE": str(home / "code"),
        "SCALEDL_SLURM": str(home / "code" / "slurm"),
        "LOGS": str(home / "logs"),
    }
    if allowed:
        settings["SCALEDL_ALLOW"] = " ".join(allowed)
    submission = [
        "sbatch",
        "--parsable",
        "--export=ALL",
        f"--nodes={nodes}",
        f"--output={home / 'logs' / ('slurm-%A_%a.out' if multirun else 'slurm-%j.out')}",
        *([f"--array=0-{len(configs) - 1}"] if multirun else []),
        *options,
        str(script),
        "resume",
        str(home),
    ]
    shown = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    print(" \\\n  ".join([*shown, shlex.join(submission)]), flush=True)
    if dry_run:
        print(f"\n# {script}\n{script.read_text()}", end="")
        return 0
    if shutil.which("sbatch") is None:
        raise OSError(
            "there is no sbatch on this machine; submit from a login node of the cluster, or look with --dry-run"
        )
    for run_dir in run_dirs:
        if (run_dir / run_directory.RESOLVED).exists():
            raise ValueError(f"{run_dir} holds a run already; choose another run_id, or scaledl resume {run_dir}")
    if (home / "code").exists():
        raise ValueError(f"{home / 'code'} exists; choose another run_id, or for a sweep another hydra.sweep.dir")
    (home / "logs").mkdir(parents=True, exist_ok=True)
    keep_code(home / "code", allowed)
    for config, run_dir in zip(configs, run_dirs, strict=True):
        run_dir.mkdir(exist_ok=True)
        run_directory.write_config(run_dir, config.linked, config.values)
    asked = subprocess.run(submission, env=os.environ | settings, capture_output=True, text=True, check=False)
    if asked.returncode:
        _take_back(home, run_dirs)
        raise OSError(f"sbatch refused: {asked.stderr.strip()}")
    print(f"job {asked.stdout.strip().partition(';')[0]} runs in {home}")
    return 0


def _take_back(home: Path, run_dirs: list[Path]) -> None:
    """Remove what was kept for a job that is not to be, so that the same command can be given again."""
    shutil.rmtree(home / "code")
    for run_dir in run_dirs:
        run_directory.remove_config(run_dir)
    for folder in dict.fromkeys([home / "logs", *run_dirs, home]):
        with suppress(OSError):  # it holds something else
            folder.rmdir()


@contextmanager
def as_on(nodes: int, ranks_per_node: int) -> Iterator[None]:
    """Rules about ranks see those of the job to come."""
    before = os.environ.copy()
    os.environ |= {"WORLD_SIZE": str(nodes * ranks_per_node), "LOCAL_WORLD_SIZE": str(ranks_per_node)}
    try:
        yield
    finally:
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
