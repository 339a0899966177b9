#!/usr/bin/env python3
"""How fast linear layers are by MKL and by oneDNN in fp32: what `scaledl.layers.linear` chooses by.

  .venv/bin/python scripts/bench_linear.py --threads 2

Rows are GFLOP/s of the best of `--rounds` turns that the two libraries take: forward, and the gradient of the input.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from scaledl.layers.linear import product

SHAPES = [  # tokens, inputs, outputs
    (768, 128, 344),
    (2048, 320, 320),
    (2048, 320, 1280),
    (2048, 1280, 320),
    (512, 320, 8192),
    (512, 768, 768),
    (512, 768, 3072),
    (512, 3072, 768),
    (256, 768, 50304),
]


def seconds(compute: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("tokens", "in", "out", "forward MKL", "oneDNN", "ratio", "backward MKL", "oneDNN", "ratio")
    for tokens, inputs, outputs in SHAPES:
        x, weight, gradient = (torch.randn(size) for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
        turns: list[Callable[[], Tensor]] = [
            lambda x=x, weight=weight: F.linear(x, weight),
            lambda x=x, weight=weight: product(x, weight),
            lambda gradient=gradient, weight=weight: gradient @ weight,
            lambda gradient=gradient, weight=weight: product(gradient, weight.mT),
        ]
        rounds = [[seconds(turn) for turn in turns] for _ in range(arguments.rounds)]
        best = [min(found) for found in zip(*rounds, strict=True)]
        rates = [2e-9 * tokens * inputs * outputs / least for least in best]
        pairs = [(*(f"{rate:.0f}" for rate in pair), f"{pair[1] / pair[0]:.2f}") for pair in (rates[:2], rates[2:])]
        table.add_row(*map(str, (tokens, inputs, outputs)), *pairs[0], *pairs[1])
    Console().print(table)


if __name__ == "__main__":
    main()
