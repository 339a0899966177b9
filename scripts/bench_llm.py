#!/usr/bin/env python3
"""How fast a GPT-2 trains by ScaleDL, and by what one would take instead: the same model, weights, batches and losses.

  .venv/bin/python scripts/bench_llm.py --size 10m --rounds 5
  .venv/bin/python scripts/bench_llm.py --size 124m --rounds 3 --json bench.json
  .venv/bin/python scripts/bench_llm.py --size 1m --peers scaledl,bare

Each program has a process of its own; they take turns on one machine, `--rounds` times, in an order that rotates.
  scaledl       the command `scaledl train` with its default callbacks (they log, count, watch), no evaluation, no
                checkpoint before the end
  bare          bench_peers/bare_loop.py: plain PyTorch after nanoGPT's recipe
  litgpt        bench_peers/litgpt_loop.py: its GPT class in its own `litgpt.pretrain.fit`
  transformers  bench_peers/transformers_trainer.py: GPT2LMHeadModel in its Trainer
Each of these files says at its top what is its program's default and what is not. A program that is not installed is
left out, and said so.

The same for all: initial weights (drawn once by ScaleDL, copied by name); windows of Python's documentation in bytes,
as ScaleDL's data pipeline orders them (written once to a file; `scaledl train` reads its own); AdamW at a constant rate
with decay on matrices only; clipping at norm 1; precision; no dropout; a line of log every 10 steps; --compile as each
offers it. Ids are bytes, but embedding and logits have the size's whole vocabulary, so the work is that of a text in so
many tokens.

Measured by one rule, in bench_peers/clock.py, which hears PyTorch's optimisers and so sees all programs alike:
  tokens/s      tokens of the steps after `skip`, by the wall clock from the end of the optimiser's step `skip` to the
                end of its last one: data, logging and all that a loop does between are in it. Median (least - most)
                of the rounds.
  CPU           processor time of such a step, by all threads: what other users of a machine change least.
  peak memory   at the end of the last step: resident on the host, or PyTorch's on the GPU. Median of the rounds.
  start-up      from the start of the process to the end of the first step, less the time of a measured step: imports,
                config, weights, compilation. ScaleDL draws its weights and finds its data in it; the others load files.
  loss          of the last step.
  MFU           on a GPU whose peak is known: tokens/s x (6 N + 12 L D T) / peak, with N all parameters but the
                position embedding, L the depth, D the width, T the length (Chowdhery et al. 2022, appendix B).

Losses of every step must be ScaleDL's, to 1e-4 in the first step and 2e-3 in all (bf16: 5e-3 and 5e-2), for the
programs sum in different orders. If they are not, no ratio is printed and the exit code is 1.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PEERS_FOLDER = ROOT / "scripts" / "bench_peers"
PROGRAMS = {"bare": "bare_loop.py", "litgpt": "litgpt_loop.py", "transformers": "transformers_trainer.py"}
NEEDS = {"litgpt": ("litgpt",), "transformers": ("transformers", "accelerate")}
INSTALL = {
    "litgpt": "pip install --no-deps litgpt==0.5.13",
    "transformers": "pip install transformers accelerate==1.15.0",
}
# dim, depth, heads, vocabulary; length and batch on a CPU; length and batch on a GPU
SIZES = {
    "1m": (128, 4, 4, 512, (64, 12), (64, 12)),  # 0.87 M parameters
    "10m": (320, 6, 5, 8192, (256, 8), (256, 64)),  # 10.1 M
    "124m": (
        768,
        12,
        12,
        50304,
        (256, 2),
        (1024, 16),
    ),  # GPT-2's, whose 50,257 tokens are filled up to a multiple of 64
    "1b": (2048, 20, 16, 50304, (256, 1), (2048, 4)),  # 1.1 G
}
TOLERANCE = {"32-true": (1e-4, 2e-3), "bf16-mixed": (5e-3, 5e-2)}  # of the first step, of all
PEAKS = {"H100": 989e12, "H200": 989e12}  # bf16 without sparsity, FLOP/s


def scaledl_words(job: dict[str, Any], folder: Path) -> list[str]:
    """The same training in ScaleDL's words."""
    return [
        "experiment=llm/gpt_shakespeare",
        "~callbacks.samples",
        "data/tokenizer=byte",
        "data.stride=null",
        f"data.vocab_size={job['vocab_size']}",
        f"data.seq_len={job['seq_len']}",
        f"data.global_batch_size={job['batch']}",
        "model=gpt2",
        f"model.vocab_size={job['vocab_size']}",
        f"model.max_seq_len={job['seq_len']}",
        f"model.dim={job['dim']}",
        f"model.depth={job['depth']}",
        f"model.num_heads={job['num_heads']}",
        "scheduler=constant",
        "scheduler.warmup_steps=0",
        f"optimizer.lr={job['lr']}",
        f"optimizer.betas={json.dumps(job['betas'])}",
        f"optimizer.weight_decay={job['weight_decay']}",
        f"trainer.gradient_clip_val={job['max_norm']}",
        f"trainer.max_steps={job['steps']}",
        f"trainer.log_every_n_steps={job['log_every']}",
        "trainer.limit_val_batches=0",
        f"checkpoint.every_n_steps={job['steps'] + 1}",
        f"precision={job['precision']}",
        f"compile={str(job['compile']).lower()}",
        f"runs_dir={folder / 'runs'}",
    ]


def command_of(name: str, job: dict[str, Any], folder: Path, out: Path) -> list[str]:
    if name != "scaledl":
        return [sys.executable, str(PEERS_FOLDER / PROGRAMS[name]), str(folder / "job.json"), str(out)]
    clock = "callbacks.clock"
    measured = [
        f"{clock}._target_=scaledl_clock.ScaleDLClock",
        f"{clock}.job={folder / 'job.json'}",
        f"{clock}.out={out}",
    ]
    words = [*scaledl_words(job, folder), *measured, f"run_id={out.stem}"]
    return [sys.executable, "-m", "scaledl", "train", "--allow", "scaledl_clock", *words]


def run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    """
    Raises:
        SystemExit: the program failed.
    """
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench_llm: {' '.join(command)} ended with {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")


def measured(name: str, job: dict[str, Any], environment: dict[str, str], folder: Path, turn: int) -> dict[str, Any]:
    """One training in a process of its own."""
    out = folder / f"{name}-{turn}.json"
    started = time.time()
    run(command_of(name, job, folder, out), environment, folder)
    found = json.loads(out.read_text())
    shutil.rmtree(folder / "runs", ignore_errors=True)  # its last checkpoint may be large
    steps = job["steps"] - job["skip"]
    found["cpu_seconds_per_step"] = found["cpu_seconds"] / steps
    found["tokens_per_second"] = steps * job["batch"] * job["seq_len"] / found["seconds"]
    found["startup_seconds"] = found["first_step_at"] - started - found["seconds"] / steps
    return found


def unequal(losses: dict[str, list[float]], precision: str) -> list[str]:
    """Where a program's losses are not those of the first one."""
    at_first, at_any = TOLERANCE[precision]
    reference, *others = losses
    found = []
    for name in others:
        gaps = [abs(a - b) for a, b in zip(losses[reference], losses[name], strict=True)]
        if not (gaps[0] <= at_first and all(gap <= at_any for gap in gaps)):  # so a NaN is not equal either
            found.append(
                f"{name}: loss {losses[name][0]:.5f} to {losses[name][-1]:.5f}, {reference}: "
                f"{losses[reference][0]:.5f} to {losses[reference][-1]:.5f}; largest gap {max(gaps):.1e}"
            )
    return found


def mfu(tokens_per_second: float, job: dict[str, Any], device: str | None) -> float | None:
    peak = next((peak for name, peak in PEAKS.items() if device and name in device), None)
    if peak is None:
        return None
    dim, depth = job["dim"], job["depth"]
    parameters = job["vocab_size"] * dim + depth * (12 * dim**2 + 13 * dim) + 2 * dim
    return tokens_per_second * (6 * parameters + 12 * depth * dim * job["seq_len"]) / peak


def summarized(rounds: list[dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    rates = [found["tokens_per_second"] for found in rounds]
    return {
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_rounds": rates,
        "cpu_seconds_per_step": statistics.median(found["cpu_seconds_per_step"] for found in rounds),
        "peak_memory_bytes": int(statistics.median(found["peak_memory_bytes"] for found in rounds)),
        "startup_seconds": statistics.median(found["startup_seconds"] for found in rounds),
        "loss": rounds[0]["losses"][-1],
        "first_loss": rounds[0]["losses"][0],
        "mfu": mfu(statistics.median(rates), job, rounds[0]["device"]),
    }


def table(results: dict[str, dict[str, Any]], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for column in ("", "tokens/s", "of bare", "CPU", "peak", "start-up", "loss", "MFU"):
        shown.add_column(column, justify="left" if not column else "right", no_wrap=True)
    bare = results.get("bare", {}).get("tokens_per_second")
    for name, found in results.items():
        rates, rate = found["tokens_per_second_rounds"], found["tokens_per_second"]
        shown.add_row(
            name,
            f"{rate:,.0f} ({min(rates):,.0f} - {max(rates):,.0f})",
            f"{rate / bare:.3f}" if bare else "-",
            f"{found['cpu_seconds_per_step'] * 1e3:,.0f} ms",
            f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB",
            f"{found['startup_seconds']:.1f} s",
            f"{found['loss']:.4f}",
            f"{found['mfu']:.1%}" if found["mfu"] else "-",
        )
    return shown


def git_commit() -> str | None:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() or None


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def has_gpu(environment: dict[str, str]) -> bool:
    """Asked of a process of its own, because this one must stay small: Linux counts its memory for its children."""
    code = "import torch; raise SystemExit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--precision", choices=TOLERANCE, help="default: bf16-mixed on a GPU, 32-true on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, help="first steps that are not timed; default: a fifth of them")
    parser.add_argument("--seq-len", type=int, help="default: by --size")
    parser.add_argument("--batch", type=int, help="default: by --size")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--peers", default="scaledl,bare,litgpt,transformers", help="which, separated by commas")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    chosen = arguments.peers.split(",")
    if unknown := set(chosen) - {"scaledl", *PROGRAMS}:
        parser.error(f"--peers has {', '.join(sorted(unknown))}; known are scaledl, {', '.join(PROGRAMS)}")
    skip = max(1, arguments.steps // 5) if arguments.skip is None else arguments.skip
    if not 1 <= skip < arguments.steps:
        parser.error(f"--skip {skip} must be at least 1 and less than --steps {arguments.steps}")

    console = Console(width=120, soft_wrap=True)
    skipped = {}
    for name in chosen:
        lacking = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if lacking:
            skipped[name] = f"{' and '.join(lacking)} not installed: {INSTALL[name]}"
            console.print(f"{name} is left out: {skipped[name]}", highlight=False)
    chosen = [name for name in chosen if name not in skipped]
    if not chosen:
        sys.exit("bench_llm: none of the chosen programs is installed")

    path = os.pathsep.join(filter(None, [str(ROOT), str(PEERS_FOLDER), os.environ.get("PYTHONPATH", "")]))
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", **threads}
    environment["CUDA_VISIBLE_DEVICES"] = (
        "" if arguments.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    )
    gpu = arguments.device != "cpu" and has_gpu(environment)
    dim, depth, num_heads, vocab_size, on_cpu, on_gpu = SIZES[arguments.size]
    seq_len, batch = on_gpu if gpu else on_cpu
    job = {
        "size": arguments.size,
        "dim": dim,
        "depth": depth,
        "num_heads": num_heads,
        "vocab_size": vocab_size,
        "seq_len": arguments.seq_len or seq_len,
        "batch": arguments.batch or batch,
        "steps": arguments.steps,
        "skip": skip,
        "lr": arguments.lr,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "max_norm": 1.0,
        "log_every": 10,
        "precision": arguments.precision or ("bf16-mixed" if gpu else "32-true"),
        "compile": arguments.compile,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "job.json").write_text(json.dumps(job))
        run(
            [sys.executable, str(PEERS_FOLDER / "prepare.py"), str(folder / "job.json"), *scaledl_words(job, folder)],
            environment,
            folder,
        )
        for turn in range(arguments.rounds):
            first = turn % len(chosen)
            for name in chosen[first:] + chosen[:first]:
                found = measured(name, job, environment, folder, turn)
                rounds[name].append(found)
                console.print(
                    f"round {turn + 1} {name}: {found['tokens_per_second']:,.0f} tokens/s, "
                    f"loss {found['losses'][-1]:.4f}",
                    highlight=False,
                )

    problems = [
        problem
        for turn in range(arguments.rounds)
        for problem in unequal({name: found[turn]["losses"] for name, found in rounds.items()}, str(job["precision"]))
    ]
    if problems:
        sys.exit("bench_llm: the losses are not equal, so speeds mean nothing\n" + "\n".join(problems))
    results = {name: summarized(found, job) for name, found in rounds.items()}
    device = rounds[chosen[0]][0]["device"]
    hardware = device or f"{processor()}, {arguments.threads} threads"
    title = f"{arguments.size}, {job['batch']} x {job['seq_len']} tokens, {job['precision']}, {hardware}"
    console.print(table(results, title))
    peers = {name: found["tokens_per_second"] for name, found in results.items() if name != "scaledl"}
    if peers and "scaledl" in results:
        fastest = max(peers, key=lambda name: peers[name])
        console.print(
            f"scaledl / fastest peer ({fastest}): {results['scaledl']['tokens_per_second'] / peers[fastest]:.3f}",
            highlight=False,
        )
    if arguments.json:
        packages = {name: version(name) for name in ("torch", "lightning", *chosen) if name not in ("scaledl", "bare")}
        found = {
            **results,
            "skipped": skipped,
            "job": job,
            "hardware": hardware,
            "commit": git_commit(),
            "versions": packages,
        }
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
