"""The finders on two ranks: one answer, on every kind of strategy."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.distributed.launch import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RUNS = Path("runs/mlp/circles")
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


def test_every_strategy_finds_the_losses_of_one_process(scaledl, environment, tmp_path: Path) -> None:
    words = ["find-lr", "experiment=mlp/circles", "--steps", "20", "--max-lr", "0.1"]
    scaledl(*words, "run_id=single")
    expected = json.loads((tmp_path / RUNS / "single" / "lr_finder.json").read_text())
    for strategy in ["ddp", "fsdp", *(["deepspeed_2", "deepspeed_3"] if DEEPSPEED else [])]:
        own = [f"run_id={strategy}", f"strategy={strategy}"]
        launch(2, *words, *own, folder=tmp_path, environment=environment)
        found = json.loads((tmp_path / RUNS / strategy / "lr_finder.json").read_text())
        assert found["rates"] == expected["rates"], strategy
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4), strategy


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *(["deepspeed_2"] if DEEPSPEED else [])])
def test_sizes_are_tried_on_all_ranks(strategy: str, environment, tmp_path: Path) -> None:
    words = ["find-batch", "experiment=mlp/circles", "--steps", "1", "data.global_batch_size=8", "run_id=a"]
    launch(2, *words, f"strategy={strategy}", folder=tmp_path, environment=environment)
    tried = json.loads((tmp_path / RUNS / "a" / "batch_finder.json").read_text())["tried"]
    assert [each["size"] for each in tried] == [1, 2, 4]
    assert not any(each["reason"] for each in tried)


MINE = """
import os
from scaledl.models.mlp import MLP
from scaledl.tune import measure
if os.environ["RANK"] == "1":
    measure.host_memory = lambda: 2000
"""


def test_the_rank_with_the_least_memory_ends_the_search_on_all(environment, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    words = ["find-batch", "--allow", "mine", "experiment=mlp/circles", "model._target_=mine.MLP", "--steps", "1"]
    launch(2, *words, "run_id=a", "strategy=ddp", folder=tmp_path, environment=environment)
    tried = json.loads((tmp_path / RUNS / "a" / "batch_finder.json").read_text())["tried"]
    assert [each["size"] for each in tried] == [1, 2]
    assert tried[0]["memory_there"] == 1000  # half of what two ranks of a host have
    assert "not tried" in tried[1]["reason"]


FAMILIES = {
    "gan/digits": ["model.generator_channels=[8,16]", "model.discriminator_channels=[8,16]"],
    "recurrent/lstm_text": ["model.dim=32", "data.seq_len=16"],
    "rl/cartpole_ppo": [],
}


@pytest.mark.parametrize("experiment", FAMILIES)
def test_other_families_find_the_same_on_two_ranks(experiment: str, scaledl, environment, tmp_path: Path) -> None:
    if experiment.startswith("rl/"):
        pytest.importorskip("gymnasium")
    own = [f"experiment={experiment}", *FAMILIES[experiment], "data.global_batch_size=4"]
    found = []
    for run_dir, words in (("one", []), ("two", ["strategy=ddp"])):
        finder = ["find-lr", *own, "--steps", "12", "--max-lr", "0.001", f"run_dir={run_dir}", *words]
        launch(2, *finder, folder=tmp_path, environment=environment) if words else scaledl(*finder)
        found.append(json.loads((tmp_path / run_dir / "lr_finder.json").read_text()))
    one, two = found
    assert two["rates"] == one["rates"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)

    words = ["find-batch", *own, "--steps", "1", "run_dir=two", "strategy=ddp"]
    launch(2, *words, folder=tmp_path, environment=environment)
    tried = json.loads((tmp_path / "two" / "batch_finder.json").read_text())["tried"]
    assert [(each["size"], each["reason"]) for each in tried] == [(1, ""), (2, "")]
