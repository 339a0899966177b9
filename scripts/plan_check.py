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
# model, dim, depth, heads of MosaicML's MPT: GPT-2's shape, a vocabulary of 50,368, no biases, tied embeddings
MPT = {"1B": (2048, 24, 16), "3B": (2560, 32, 20), "7B": (4096, 32, 32), "13B": (5120, 40, 40), "30B": (7168, 48, 64)}
MPT |= {"125M": (768, 12, 12), "70B": (8192, 80, 64)}
FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"
TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
FMS = "fms-fsdp, README.md"
# what, GPU, GPUs, strategy, tokens of a sequence, micro-batch, passes, checkpointing, compiled, tokens/s/GPU, source.
# Torchtitan's H100 have 96 GB of HBM2e at 2.4 TB/s.
PUBLISHED: list[tuple[str, str, int, str, int, int, int, str, bool, int, str]] = [
    ("Llama 3.1 8B", "h100_hbm2e", 8, "fsdp", 8192, 2, 1, "selective", False, 5762, TITAN),
    ("Llama 3.1 8B", "h100_hbm2e", 8, "fsdp", 8192, 2, 1, "selective", True, 6667, TITAN),
    ("Llama 3.1 8B", "h100_hbm2e", 128, "fsdp", 8192, 2, 1, "selective", False, 5605, TITAN),
    ("Llama 3.1 8B", "h100_hbm2e", 128, "fsdp", 8192, 2, 1, "selective", True, 6514, TITAN),
    ("MPT 1B", "h100", 8, "fsdp", 2048, 14, 1, "none", False, 45455, FOUNDRY),
    ("MPT 1B", "h100", 64, "fsdp", 2048, 20, 1, "none", False, 44402, FOUNDRY),
    ("MPT 3B", "h100", 8, "fsdp", 4096, 5, 6, "none", False, 20964, FOUNDRY),
    ("MPT 3B", "h100", 64, "fsdp", 2048, 6, 3, "none", False, 22525, FOUNDRY),
    ("MPT 7B", "h100", 8, "fsdp", 2048, 6, 1, "none", False, 10643, FOUNDRY),
    ("MPT 7B", "h100", 8, "fsdp", 8192, 8, 2, "full", False, 6935, FOUNDRY),
    ("MPT 13B", "h100", 8, "fsdp", 2048, 2, 1, "none", False, 4792, FOUNDRY),
    ("MPT 13B", "h100", 64, "fsdp", 2048, 2, 1, "none", False, 4800, FOUNDRY),
    ("MPT 30B", "h100", 32, "fsdp", 2048, 14, 3, "full", False, 2308, FOUNDRY),
    ("MPT 70B", "h100", 64, "fsdp", 2048, 8, 4, "full", False, 1039, FOUNDRY),
    ("MPT 125M", "a100", 8, "fsdp", 2048, 32, 2, "none", False, 141737, FOUNDRY),
    ("MPT 1B", "a100", 8, "fsdp", 2048, 14, 4, "none", False, 20513, FOUNDRY),
    ("MPT 7B", "a100", 8, "fsdp", 2048, 6, 2, "none", False, 4641, FOUNDRY),
    ("MPT 13B", "a100", 8, "fsdp", 2048, 2, 3, "none", False, 2262, FOUNDRY),
    ("MPT 30B", "a100", 8, "fsdp", 2048, 3, 21, "full", False, 916, FOUNDRY),
    ("MPT 7B, bf16 throughout", "a100_40gb", 128, "fsdp", 2048, 18, 1, "full", False, 3623, FOUNDRY),
    ("MPT 13B, bf16 throughout", "a100_40gb", 128, "fsdp", 2048, 16, 1, "full", False, 1972, FOUNDRY),
    ("MPT 70B, bf16 throughout", "a100_40gb", 128, "fsdp", 2048, 4, 1, "full", False, 376, FOUNDRY),
    ("Llama 2 7B", "a100", 128, "hsdp", 4096, 2, 1, "none", True, 3700, FMS),
    ("Llama 2 7B", "h100", 96, "hsdp", 4096, 2, 1, "none", True, 7500, FMS),
]
STEPS = 3  # DDP takes new buckets after the first, and they stay from the second on


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


def published() -> list[dict[str, Any]]:
    found, plans = [], {}
    for what, gpu, gpus, strategy, length, micro, passes, checkpointing, compiled, theirs, source in PUBLISHED:
        precision = "bf16-true" if what.endswith("throughout") else "bf16-mixed"
        words = (*_model(what), f"data.seq_len={length}", f"precision={precision}")
        words += (f"activation_checkpointing={checkpointing}", f"data.micro_batch_size={micro}")
        row = _row(plans, words, gpu, gpus, strategy, micro, passes, compiled)
        ours = row.samples_per_second * length / gpus
        found.append(
            {
                "model": what,
                "GPUs": f"{gpus} {gpu}",
                "strategy": f"{strategy}, {length} x {micro} x {passes}" + ", compiled" * compiled,
                "checkpointing": checkpointing,
                "published": theirs,
                "planned": round(ours),
                "error": f"{ours / theirs - 1:+.0%}",
                "planned GiB": round(row.memory.total / 2**30),
                "source": source,
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def _model(what: str) -> tuple[str, ...]:
    experiment = "experiment=llm/gpt_shakespeare"
    size = what.split(",")[0].split()[-1]
    if what.startswith("MPT"):
        dim, depth, heads = MPT[size]
        shape = (f"model.dim={dim}", f"model.depth={depth}", f"model.num_heads={heads}", "model.bias=false")
        return (experiment, "model=gpt", "data.vocab_size=50368", *shape)
    if what == "Llama 2 7B":
        llama_2 = ("data.vocab_size=32000", "model.vocab_size=32000", "model.num_kv_heads=32", "model.hidden_dim=11008")
        return (experiment, "model=llama3_8b", *llama_2)
    return (experiment, "model=llama3_8b", "data.vocab_size=128256")


def _row(
    plans: dict, words: tuple[str, ...], gpu: str, gpus: int, strategy: str, micro: int, passes: int, compiled: bool
) -> Any:
    """A plan's row without its choice of a micro-batch that fits: what was published has fitted."""
    from dataclasses import replace

    from scaledl.config.folders import CONF
    from scaledl.hardware import DEVICES
    from scaledl.plan import Cluster, Training

    if words not in plans:
        plans.clear()
        plans[words] = Training(list(words), [CONF], [])
    training = plans[words]
    training.strategy_words = [f"strategy={strategy}"]
    training.config.data.global_batch_size = gpus * micro * passes
    training.config.compile = compiled
    device = DEVICES.get(gpu) or replace(DEVICES["h100"], bandwidth=2.4e12)
    cluster = Cluster(gpus, replace(device, memory=1e15))
    return training.row(training.layouts(cluster)[0], cluster)


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
