"""Pages that were freed are there again without the system's help."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from scaledl.host_memory import keep_freed
if sys.argv[1] == "keep":
    keep_freed()
def step():  # two tensors of 64 MiB, of 16384 pages each
    return (torch.ones(2**24) + 1).sum()
for _ in range(30):  # until small remainders of blocks have found their places, which took up to 11 steps
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_three_steps(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_step_reuses_the_pages_of_the_step_before() -> None:
    assert faults_of_three_steps("keep") < 1000
    assert faults_of_three_steps("leave") > 3 * 16384  # or this would show nothing
