"""A run's directory takes its own run again, and no other."""

import re
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from scaledl import run_directory

COMPOSED = """
data: {_target_: some.Data, vocab_size: 65, micro_batch_size: 4}
model: {_target_: some.Model, dim: 64, vocab_size: "${data.vocab_size}", stages: [[1, 2], [3, 4]]}
task: {_target_: some.Task, loss: cross_entropy}
optimizer: {_target_: some.Optimizer, lr: 1e-3}
scheduler: {_target_: some.schedule, warmup_steps: 2, max_steps: "${trainer.max_steps}"}
seed: 0
trainer: {max_steps: 10}
"""


def config(**changes: object) -> DictConfig:
    composed = OmegaConf.create(COMPOSED)
    for path, value in changes.items():
        OmegaConf.update(composed, path.replace("__", "."), value, force_add=True)
    return composed


def write(run_dir: Path, **changes: object) -> None:
    composed = config(**changes)
    run_directory.write_config(run_dir, OmegaConf.to_yaml(composed), composed)


def test_the_config_is_written_resolved_and_with_its_links(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["composed.yaml", "config.yaml"]
    resolved = OmegaConf.to_container(run_directory.load_config(tmp_path), resolve=False)
    assert resolved == OmegaConf.to_container(config(), resolve=True)
    linked = run_directory.load_config(tmp_path, run_directory.LINKED)
    linked.data.vocab_size = 66
    assert linked.model.vocab_size == 66


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer__max_steps": 20},
        {"scheduler__max_steps": 20},
        {"data__micro_batch_size": 2},
        {"data__num_workers": 4},
    ],
)
def test_what_does_not_decide_a_number_may_change(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path)
    run_directory.check_same_run(config(**changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dim": 128}, "model.dim was 64, now 128"),
        ({"model___target_": "some.Other"}, "model._target_ was 'some.Model', now 'some.Other'"),
        ({"model__stages": [[1, 2], [3, 5]]}, "model.stages was [[1, 2], [3, 4]], now [[1, 2], [3, 5]]"),
        ({"model__depth": 2}, "model.depth was None, now 2"),
        ({"data__vocab_size": 66}, "model.vocab_size was 65, now 66"),  # through the link
        ({"task__loss": "perceptron"}, "task.loss was 'cross_entropy', now 'perceptron'"),
        ({"optimizer__lr": 0.5}, "optimizer.lr was 0.001, now 0.5"),
        ({"scheduler__warmup_steps": 5}, "scheduler.warmup_steps was 2, now 5"),
        ({"seed": 1}, "seed was 0, now 1"),
    ],
)
def test_what_decides_a_number_is_kept(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=rf"holds another run: .*{re.escape(message)}.* choose another run_id"):
        run_directory.check_same_run(config(**changes), tmp_path)


def test_a_setting_that_is_gone_makes_another_run(tmp_path: Path) -> None:
    write(tmp_path, model__depth=2)
    with pytest.raises(ValueError, match=r"model\.depth was 2, now left out"):
        run_directory.check_same_run(config(), tmp_path)


def test_a_new_directory_takes_any_run(tmp_path: Path) -> None:
    run_directory.check_same_run(config(), tmp_path / "not there yet")
    run_directory.check_same_run(config(), tmp_path)


def test_a_folder_without_a_config_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run directory \(it holds no config.yaml\)"):
        run_directory.load_config(tmp_path)


def test_a_summary_replaces_the_one_before(tmp_path: Path) -> None:
    run_directory.write_summary(tmp_path, {"status": "failed", "metrics": {"val/loss": 0.1 + 0.2}})
    run_directory.write_summary(tmp_path, {"status": "completed"})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == '{\n  "status": "completed"\n}\n'


def test_a_diverged_run_has_a_summary_that_is_json(tmp_path: Path) -> None:
    run_directory.write_summary(tmp_path, {"metrics": {"val/loss": float("nan")}, "best": {"value": float("inf")}})
    assert run_directory.read_summary(tmp_path) == {"metrics": {"val/loss": None}, "best": {"value": None}}


def test_settings_are_flat_by_their_dotted_names() -> None:
    nested = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}, "seed": 0, "callbacks": {}, "a/b": None}
    assert run_directory.flat(nested) == {"optimizer.lr": 0.1, "optimizer.betas": [0.9, 0.95], "seed": 0, "a/b": None}
    assert run_directory.flat({"n": 1}, "callbacks.pruning") == {"callbacks.pruning.n": 1}


def test_a_tokenizer_of_another_run_is_read_where_the_run_keeps_it(tmp_path: Path) -> None:
    tokenizer = {"_target_": "scaledl.data.tokenizer.SavedTokenizer", "path": "elsewhere"}
    write(tmp_path, data__tokenizer=tokenizer)
    found = config(data__tokenizer=tokenizer)
    run_directory.own_tokenizer(found, tmp_path)
    assert found.data.tokenizer.path == "elsewhere"
    (tmp_path / "tokenizer.json").touch()
    run_directory.own_tokenizer(found, tmp_path)
    assert found.data.tokenizer.path == str(tmp_path)
    run_directory.check_same_run(found, tmp_path)  # which compares no place
    other = config(data__tokenizer=tokenizer | {"_target_": "some.Tokenizer"})
    run_directory.own_tokenizer(other, tmp_path)
    assert other.data.tokenizer.path == "elsewhere"
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        run_directory.check_same_run(other, tmp_path)
