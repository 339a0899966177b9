"""`scaledl plan` as a person types it: it allocates nothing, writes nothing, and says what is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY_GPT

pytestmark = pytest.mark.e2e
LLAMA_8B = ["experiment=llm/gpt_shakespeare", "model=llama3_8b", "data.seq_len=8192", "data.vocab_size=128256"]


def test_eight_billion_parameters_are_planned_without_memory(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["plan", *LLAMA_8B, "precision=bf16-mixed", "activation_checkpointing=full", "strategy=fsdp"]
    words += ["--gpus", "64", "--gpu", "h100", "--tokens", "300B", "--price", "2.5", "--json", "plan.json"]
    program = (
        "import resource, sys; from scaledl.cli import run; code = run(sys.argv[1:], False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2e9  # the weights alone would be 32e9 bytes
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["plan.json"]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["num_parameters"] == 8_030_261_248
    assert found["recommended"] == "fsdp"
    row = found["strategies"][0]
    assert row["memory"]["weights"] == 4 * found["num_parameters"] / 64
    assert row["memory"]["optimizer"] == pytest.approx(8 * found["num_parameters"] / 64, rel=1e-3)
    assert row["memory"]["total"] < 40 * 2**30
    assert 0.2 < row["mfu"] < 0.6
    assert row["days"] == pytest.approx(300e9 / row["tokens_per_second"] / 86_400)
    assert row["cost"] == pytest.approx(row["days"] * 24 * 64 * 2.5)


def test_every_strategy_has_a_row(scaledl: Callable[..., subprocess.CompletedProcess], tmp_path: Path) -> None:
    out = scaledl("plan", *TINY_GPT, "--gpus", "16", "--gpu", "a100", "--json", "plan.json").stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    names = [row["strategy"] for row in found["strategies"]]
    assert {"ddp", "fsdp", "hsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3", "tp 2"} <= set(names)
    assert "single" not in names
    assert "num_heads=2" in found["refused"]["tp 4"]
    assert f"strategy={found['recommended']}: the fastest that fits, or as good as that" in out
    assert "data.global_batch_size=16, for 16 ranks" in out


def test_images_are_planned_too(scaledl: Callable[..., subprocess.CompletedProcess]) -> None:
    assert "samples/s" in scaledl("plan", "experiment=resnet/digits", "--gpus", "1", "--gpu", "l4").stdout


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ([*TINY_GPT, "--gpu", "h10"], "did you mean h100?", 1),
        ([*TINY_GPT, "--gpu", "h100", "model.dept=2"], "did you mean 'depth'?", 2),
        ([*TINY_GPT, "--gpu", "h100", "data.path=/data/text"], "set data.vocab_size=", 1),
        ([*TINY_GPT, "--gpu", "h100", "--tokens", "many"], "--tokens", 2),
        (["experiment=mlp/digits", "--gpu", "h100", "--tokens", "1B"], "this data is not made of tokens", 1),
        ([*TINY_GPT, "--gpu", "h100", "strategy=tp", "strategy.tensor_parallel_size=3"], "cannot divide 8 devices", 1),
    ],
)
def test_what_cannot_be_planned_is_one_message(
    words: list[str], message: str, code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "scaledl", "plan", *words, "--gpus", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
