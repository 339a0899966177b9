"""From a config to objects: the number of steps, links to what the data found, and errors in their own words."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scaledl import build
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.preemption import Preemption
from scaledl.config.folders import CONF
from scaledl.loggers.jsonl import JsonlLogger
from scaledl.train import composed


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "num_samples", "batch", "expected"),
    [
        (-1, 3, 100, 10, 30),
        (-1, 1, 101, 10, 11),  # an epoch is not cut short
        (-1, 3, 101, 10, 31),  # epochs follow one another without a gap
        (-1, 1, 5, 10, 1),
        (7, -1, 100, 10, 7),
        (7, 3, 100, 10, 7),
    ],
)
def test_epochs_become_steps(max_steps: int, max_epochs: int, num_samples: int, batch: int, expected: int) -> None:
    trainer = {"max_steps": max_steps, "max_epochs": max_epochs}
    config = OmegaConf.create({"trainer": trainer, "data": {"global_batch_size": batch}})
    build.settle_steps(config, num_samples)
    assert config.trainer.max_steps == expected


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "scaledl.callbacks.checkpoint.Checkpoint", "every_n_steps": 0},
            "checkpoint.every_n_steps=0 and keep_last=2 must be at least 1",
        ),
        (
            {
                "_target_": "scaledl.data.text.TextData",
                "global_batch_size": 1,
                "micro_batch_size": 1,
                "tokenizer": {"_target_": "scaledl.data.tokenizer.BpeTokenizer", "vocab_size": 3},
            },
            "vocab_size=3",
        ),
    ],
    ids=["itself", "nested"],
)
def test_what_a_constructor_says_arrives_without_other_words_around_it(node: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build.instantiate(OmegaConf.create(node))
    assert type(caught.value) is ValueError
    assert "full_key" not in str(caught.value)
    assert "instantiating" not in str(caught.value)


def test_arguments_arrive_as_plain_python() -> None:
    node = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Flatten"}]}
    assert len(build.instantiate(OmegaConf.create(node))) == 1
    mlp = {"_target_": "scaledl.models.mlp.MLP", "in_dim": 2, "hidden_dims": [3], "out_dim": 2, "_partial_": True}
    assert type(build.instantiate(OmegaConf.create(mlp)).keywords["hidden_dims"]) is list


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["experiment=mlp/moons", f"runs_dir={tmp_path}", "run_id=a"]


def test_what_the_data_finds_out_reaches_the_model(words: list[str]) -> None:
    config = composed(words, [CONF], [])
    assert config.data.in_dim is None
    build.data(config)
    model = build.model(config).on_meta()
    assert (model.in_dim, model.out.out_features) == (2, 2)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_trainer_counts_validation_in_optimiser_steps_and_everyone_knows_the_run_directory(
    words: list[str], tmp_path: Path
) -> None:
    batches = ["data.global_batch_size=32", "data.micro_batch_size=8", "trainer.val_check_interval=5"]
    config = composed([*words, *batches], [CONF], [])
    strategy = build.strategy(config)
    trainer = build.trainer(config, tmp_path, build.data(config), strategy)
    assert trainer.strategy is strategy
    assert trainer.val_check_interval == 20
    assert trainer.accumulate_grad_batches == 4
    assert trainer.max_epochs == -1
    assert all(callback.run_dir == tmp_path for callback in trainer.callbacks if hasattr(callback, "run_dir"))
    assert isinstance(build.checkpoint_of(trainer), Checkpoint)
    assert isinstance(trainer.callbacks[-1], Preemption)  # last: what it stops is logged and saved
    assert [type(logger) for logger in trainer.loggers] == [JsonlLogger]
    assert trainer.loggers[0].path == tmp_path / "metrics.jsonl"
