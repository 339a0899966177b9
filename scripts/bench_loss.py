#!/usr/bin/env python
"""The memory that a step of a language model needs with whole logits and with logits in chunks.

  .venv/bin/python scripts/bench_loss.py
  .venv/bin/python scripts/bench_loss.py --vocab-size 50257 --tokens 4096 --json loss.json

Each case is a fresh process, which makes one model from one seed, and takes one loss and its gradients; its figure is
the peak of its resident memory above what it held before. Prints them, their ratio, and the largest difference of a
parameter's gradient, relative to its norm. Seconds are those of the processor, of one step that allocates everything.
Exits with 1 if a gradient differs by more than 1e-5.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from scaledl.models.gpt import GPT


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def case(name: str, sizes: argparse.Namespace, gradients: Path) -> dict[str, float]:
    torch.manual_seed(0)
    # Without biases: that of the keys has no gradient but rounding.
    model = GPT(sizes.vocab_size, sizes.seq_len, dim=sizes.dim, depth=sizes.depth, num_heads=4, bias=False)
    ids = torch.randint(0, sizes.vocab_size, (sizes.tokens // sizes.seq_len, sizes.seq_len + 1))
    inputs, labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if sizes.bf16:
        torch.set_autocast_enabled("cpu", True)
    model.loss(inputs[:1, :8], labels[:1, :8]).backward()  # loads what a first call loads
    model.zero_grad()
    before, began = resident(), time.process_time()
    loss = whole_loss(model, inputs, labels) if name == "whole" else model.loss(inputs, labels)
    loss.backward()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, gradients)
    return {"loss": loss.item(), "extra_bytes": peak - before, "peak_bytes": peak, "cpu_seconds": seconds}


def whole_loss(model: GPT, inputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1).float(), labels.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("vocab-size", 128_000), ("tokens", 2048), ("seq-len", 512), ("dim", 256), ("depth", 2)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    sizes = parser.parse_args()
    if sizes.case:
        print(json.dumps(case(sizes.case[0], sizes, Path(sizes.case[1]))))
        return
    found, gradients = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole", "chunked"):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", name, f"{folder}/{name}.pt"]
            found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            gradients[name] = torch.load(f"{folder}/{name}.pt", weights_only=True)
    whole, chunked = gradients["whole"], gradients["chunked"]
    gap = max(((whole[name] - chunked[name]).norm() / whole[name].norm()).item() for name in whole)
    for name, figures in found.items():
        print(f"{name:8} loss {figures['loss']:.6f}, step {figures['extra_bytes'] / 2**20:8.1f} MiB,", end=" ")
        print(f"process {figures['peak_bytes'] / 2**20:8.1f} MiB, {figures['cpu_seconds']:.2f} s of the processor")
    ratio = found["chunked"]["extra_bytes"] / found["whole"]["extra_bytes"]
    of_process = found["chunked"]["peak_bytes"] / found["whole"]["peak_bytes"]
    print(f"ratio of the step's memory {ratio:.3f}, of the process's {of_process:.3f}")
    print(f"largest difference of a gradient {gap:.1e}")
    if sizes.json:
        figures = found | {"ratio": ratio, "ratio_of_process": of_process, "gradient_gap": gap}
        sizes.json.write_text(json.dumps(figures, indent=1))
    sys.exit(gap > 1e-5 and not sizes.bf16)


if __name__ == "__main__":
    main()
