"""A worker of its own process, whose trials are real launches of a program that takes a moment and no torch.

python worker.py SWEEP_DIR STORAGE_URL N_TRIALS SECONDS_OF_A_TRIAL
"""

import sys
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution

from scaledl.sweep.launchers import Local, Processes
from scaledl.sweep.search import Search, open_study
from scaledl.sweep.worker import Worker

TRIAL = """
import json, sys, time
words = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
with open(words["run_dir"] + "/begun", "a") as file:
    file.write(words["x"] + "\\n")
time.sleep(float(sys.argv[1]))
with open(words["run_dir"] + "/ended", "a") as file:
    file.write(words["x"] + "\\n")
best = {"metric": "val/loss", "value": float(words["x"]) ** 2, "step": 1}
with open(words["run_dir"] + "/summary.json", "w") as file:
    json.dump({"status": "completed", "best": best, "metrics": {}}, file)
"""


class Moments(Local):
    def __init__(self, seconds: str):
        self.seconds = seconds  # and not the devices, for which torch would be imported

    def start(self, words, folder, slot, environment):
        return Processes([sys.executable, "-S", "-c", TRIAL, self.seconds, *words], environment, folder)


def main(folder: str, url: str, n_trials: str, seconds: str) -> int:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = open_study(url, "s", sampler, optuna.pruners.NopPruner(), ["minimize"])
    search = Search(study, {"x": FloatDistribution(-1, 1)}, int(n_trials), patience=30)
    launcher = Moments(seconds)
    return Worker(search, launcher, 0, Path(folder), ["train"], ["val/loss"], url, 3, 1.0).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
