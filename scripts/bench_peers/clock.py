"""The one clock of all that bench_llm.py compares: it hears every optimiser of its process, whoever made it."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Clock:
    """Reads the time at the end of the optimiser's steps 1, `skip` and `steps`; there alone it waits for the GPU.

    Peak memory is read at the last of them, so that what a program does after its training counts for none.
    """

    def __init__(self, job: dict[str, Any]):
        self.job = job
        self.steps_done = 0
        self.at: dict[int, float] = {}
        self.cpu_at: dict[int, float] = {}
        register_optimizer_step_post_hook(self)

    def __call__(self, optimizer: Any, arguments: Any, named: Any) -> None:
        self.steps_done += 1
        if self.steps_done in (1, self.job["skip"], self.job["steps"]):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.at[self.steps_done], self.cpu_at[self.steps_done] = time.time(), time.process_time()
        if self.steps_done == self.job["steps"]:
            self.peak = peak_memory()

    def write(self, path: Path, losses: list[torch.Tensor]) -> None:
        """What bench_llm.py reads: seconds between the two steps, the time of the first, memory, all losses."""
        steps, skip = self.job["steps"], self.job["skip"]
        if self.steps_done != steps or len(losses) != steps:
            raise RuntimeError(f"{self.steps_done} steps and {len(losses)} losses of {steps} were seen")
        found = {
            "first_step_at": self.at[1],
            "seconds": self.at[steps] - self.at[skip],
            "cpu_seconds": self.cpu_at[steps] - self.cpu_at[skip],
            "peak_memory_bytes": self.peak,
            "losses": [float(loss) for loss in losses],
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        }
        path.write_text(json.dumps(found))


def peak_memory() -> int:
    """Bytes: PyTorch's on the GPU where there is one, else what was resident on the host."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
