"""The finders on families that train in other ways: two optimisers, streams of text, noise, an environment."""

import json
import math
from pathlib import Path

import pytest

from scaledl.config.folders import CONF
from scaledl.loggers.lines import read
from scaledl.tune.find_lr import find_lr
from scaledl.tune.measure import measure

FAMILIES = {
    "gan": ["experiment=gan/digits", "model.generator_channels=[8,16]", "model.discriminator_channels=[8,16]"],
    "diffusion": ["experiment=diffusion/digits", "model.dim=8"],
    "recurrent": ["experiment=recurrent/lstm_text", "model.dim=32", "data.seq_len=16"],
    "rl": ["experiment=rl/cartpole_ppo", "data.global_batch_size=4"],
}


@pytest.fixture(params=FAMILIES)
def words(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if request.param == "rl":
        pytest.importorskip("gymnasium")
    monkeypatch.setenv("SCALEDL_CACHE", str(tmp_path / "cache"))
    batch = [] if request.param == "rl" else ["data.global_batch_size=16"]
    return [*FAMILIES[request.param], *batch, f"run_dir={tmp_path / 'run'}"]


def test_the_learning_rate_grows_over_the_range(words: list[str], tmp_path: Path) -> None:
    num_steps = 12
    found = find_lr(words, [CONF], [], 1e-5, 1e-3, num_steps)
    told = json.loads((tmp_path / "run" / "lr_finder.json").read_text())
    assert told["suggestion"] == found
    assert found is None or 1e-5 < found < 1e-3
    assert told["rates"] == pytest.approx([1e-5 * 100 ** (step / (num_steps - 1)) for step in range(num_steps)])
    assert len(told["losses"]) == num_steps
    assert all(map(math.isfinite, told["losses"]))
    left = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")}
    assert left == {"lr_finder.json", "plots", "plots/lr_finder.png"}


def test_sizes_are_measured(words: list[str], tmp_path: Path) -> None:
    measure(words, [CONF], [], [1, 2], 1, tmp_path / "sizes.jsonl")
    measured = read(tmp_path / "sizes.jsonl")
    assert [each["size"] for each in measured] == [1, 2]
    for each in measured:
        assert each["reason"] == ""
        assert each["samples_per_second"] > 0
        assert each["memory_there"] > each["memory"] > 2**20
    assert not (tmp_path / "run").exists()


def test_a_family_that_needs_its_whole_batch_says_why_less_does_not_run(tmp_path: Path) -> None:
    words = ["experiment=ssl/simclr_digits", "data.global_batch_size=4", f"run_dir={tmp_path / 'run'}"]
    measure(words, [CONF], [], [2, 4], 1, tmp_path / "sizes.jsonl")
    two, four = read(tmp_path / "sizes.jsonl")
    assert "compares all samples of a global batch" in two["reason"]
    assert four["samples_per_second"] > 0
