"""What all start from: the windows that ScaleDL's data pipeline gives, in its order, and its initial weights.

    python prepare.py JOB.json WORD...

Writes `windows.npy` (steps, batch, T + 1) int64 and `weights.safetensors` beside the job.
"""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from scaledl import build
from scaledl.config.folders import CONF
from scaledl.data.sampler import TrainBatches
from scaledl.train import composed

path = Path(sys.argv[1])
job = json.loads(path.read_text())
config = composed(sys.argv[2:], [CONF], ["scaledl_clock"])
data = build.data(config)
train_set = data.split("train")
assert train_set is not None
order = TrainBatches(len(train_set), data.global_batch_size, data.global_batch_size, seed=data.seed)
batches = [train_set.__getitems__(indices) for indices in islice(order, job["steps"])]
windows = [torch.cat((b["input_ids"], b["labels"][:, -1:]), dim=1).numpy() for b in batches]  # (B, T + 1)
np.save(path.parent / "windows.npy", np.stack(windows))
save_file(build.model(config)().state_dict(), path.parent / "weights.safetensors")
