"""Is `scaledl plan` right? Its memory beside what runs on this machine take; its speed beside what others published.

    python scripts/plan_check.py here [NAME ...]
    python scripts/plan_check.py published

`here` trains each configuration in fresh processes and reads the most memory that a process had (VmHWM) less what it
had before (VmRSS), after a smaller model of the same kind has trained in it, so that libraries are there. glibc is told
to give memory back at once, or gaps in its heap would count. Memory is what it is on a busy machine, too.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TEXT = [
    "experiment=llm/gpt_shakespeare",
    "model=gpt",
    "data.vocab_size=8192",
    "data.seq_len=256",
    "data.global_batch_size=8",
]
SMALL = ["model.dim=64", "model.depth=1", "model.num_heads=2", "data.vocab_size=512", "data.seq_len=32"]
GPT_34M = ["model.dim=512", "model.depth=9", "model.num_heads=8"]
GPT_16M = ["model.dim=384", "model.depth=6", "model.num_heads=6"]

# name: ranks, settings, what makes them small
HERE: dict[str, tuple[int, list[str], list[str]]] = {
    "GPT 14M, AdamW": (1, [*TEXT, *GPT_16M, "data.global_batch_size=2"], SMALL),
    "GPT 33M, 4 passes a step": (1, [*TEXT, *GPT_34M, "data.micro_batch_size=2"], SMALL),
    "GPT 14M, many activations": (1, [*TEXT, *GPT_16M], SMALL),
    "the same, full checkpointing": (
        1,
        [*TEXT, *GPT_16M, "activation_checkpointing=full"],
        SMALL,
    ),
    "GPT 14M, bf16-mixed": (1, [*TEXT, *GPT_16M, "precision=bf16-mixed"], SMALL),
    "ResNet-18, SGD": (
        1,
        ["experiment=resnet/digits", "model=resnet18", "optimizer=sgd", "data.global_batch_size=128"],
        ["data.global_batch_size=2"],
    ),
    "GPT 33M, DDP on 2 ranks": (2, [*TEXT, *GPT_34M, "strategy=ddp"], SMALL),
    "GPT 33M, FSDP on 2 ranks": (2, [*TEXT, *GPT_34M, "strategy=fsdp"], SMALL),
    "GPT 33M, ZeRO 2 on 2 ranks": (2, [*TEXT, *GPT_34M, "strategy=deepspeed_2"], SMALL),
}
STEPS = 2  # the second has all that a step ever has


def here(names: list[str]) -> list[dict[str, Any]]:
    found = []
    for name in names or HERE:
        ranks, words, small = HERE[name]
        predicted = _predicted(words, ranks)
        measured = _measured(words, small, ranks)
        part = {key: round(value / 2**20) for key, value in predicted.items()}
        found.append({"configuration": name, **part, "measured": round(measured / 2**20)})
        found[-1]["error"] = f"{predicted['total'] / measured - 1:+.1%}"
        print(json.dumps(found[-1]), flush=True)
    return found


def _predicted(words: list[str], ranks: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "plan.json"
        strategy = [] if any(word.startswith("strategy=") for word in words) else ["strategy=single"]
        command = [sys.executable, "-m", "scaledl", "plan", *words, *strategy, "--gpus", str(ranks), "--gpu", "cpu"]
        subprocess.run([*command, "--json", str(output)], check=True, stdout=subprocess.DEVNULL)
        return json.loads(output.read_text())["strategies"][0]["memory"]


def _measured(words: list[str], small: list[str], ranks: int) -> float:
    """The most of any rank."""
    quiet = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, __file__, "train", str(result), json.dumps(words), json.dumps(small)]
        subprocess.run(command, check=True, env=os.environ | quiet, stdout=subprocess.DEVNULL)
        return max(float(path.read_text()) for path in Path(scratch).glob("result.*"))


def train(result: Path, words: list[str], small: list[str]) -> None:
    """A rank of one configuration."""
    from scaledl.distributed import group

    _fit([*words, *small, f"data.global_batch_size={2 * group.world_size()}"])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    _fit(words)
    result.with_suffix(f".{group.rank()}").write_text(str(_status("VmHWM") - before))


def _fit(words: list[str]) -> None:
    from scaledl import build
    from scaledl.config.folders import CONF
    from scaledl.distributed import group
    from scaledl.train import checked, composed, quiet

    quiet()
    length = [f"trainer.max_steps={STEPS}", "trainer.max_epochs=-1", "run_id=check", "runs_dir=/tmp/none"]
    config = composed([*words, *length], [CONF], [])
    data, task, strategy, _ = checked(config)
    if group.world_size() > 1:
        group.join()
    trainer = build.trainer(config, Path(config.run_dir), data, strategy, instead=[])
    trainer.fit(task, datamodule=data)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main() -> None:
    verb, *rest = sys.argv[1:]
    if verb == "train":
        train(Path(rest[0]), json.loads(rest[1]), json.loads(rest[2]))
        return
    rows = here(rest) if verb == "here" else published()
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
