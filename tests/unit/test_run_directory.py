"""A run's directory takes the same model and task again, and nobody else's."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from scaledl import run_directory

COMPOSED = """
data: {_target_: some.Data, vocab_size: 65}
model: {_target_: some.Model, dim: 64, vocab_size: "${data.vocab_size}", stages: [[1, 2], [3, 4]]}
task: {_target_: some.Task, loss: cross_entropy}
optimizer: {_target_: some.Optimizer, lr: 1e-3}
trainer: {max_steps: 10}
"""


def config(**changes: object) -> DictConfig:
    composed = OmegaConf.create(COMPOSED)
    for path, value in changes.items():
        OmegaConf.update(composed, path.replace("__", "."), value, force_add=True)
    return composed


def test_the_config_is_written_resolved_and_with_its_links(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "family" / "name" / "id"
    run_directory.open_for(config(), run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["composed.yaml", "config.yaml"]
    resolved = OmegaConf.to_container(run_directory.load_config(run_dir), resolve=False)
    assert resolved == OmegaConf.to_container(config(), resolve=True)
    linked = run_directory.load_config(run_dir, run_directory.LINKED)
    linked.data.vocab_size = 66
    assert linked.model.vocab_size == 66


def test_the_same_model_and_task_go_on_with_other_settings_around_them(tmp_path: Path) -> None:
    run_directory.open_for(config(), tmp_path)
    run_directory.open_for(config(trainer__max_steps=20, optimizer__lr=0.5), tmp_path)
    assert run_directory.load_config(tmp_path).trainer.max_steps == 20
    assert run_directory.load_config(tmp_path).optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dim": 128}, r"another model \(model.dim was 64\)"),
        ({"model___target_": "some.Other"}, r"another model \(model._target_ was 'some.Model'\)"),
        ({"model__stages": [[1, 2], [3, 5]]}, r"another model \(model.stages was \[\[1, 2\], \[3, 4\]\]\)"),
        ({"model__depth": 2}, r"another model \(model.depth was None\)"),
        ({"data__vocab_size": 66}, r"another model \(model.vocab_size was 65\)"),  # through the link
        ({"task__loss": "perceptron"}, r"another task \(task.loss was 'cross_entropy'\)"),
    ],
)
def test_another_model_or_task_is_refused_and_nothing_is_changed(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    run_directory.open_for(config(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"holds a run with {message}; choose another run_id"):
        run_directory.open_for(config(**changes), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_setting_that_is_gone_makes_another_model(tmp_path: Path) -> None:
    run_directory.open_for(config(model__depth=2), tmp_path)
    with pytest.raises(ValueError, match=r"model.depth was 2"):
        run_directory.open_for(config(), tmp_path)


def test_a_folder_without_a_config_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run directory \(it holds no config.yaml\)"):
        run_directory.load_config(tmp_path)


def test_a_summary_replaces_the_one_before(tmp_path: Path) -> None:
    run_directory.write_summary(tmp_path, {"status": "failed", "metrics": {"val/loss": 0.1 + 0.2}})
    run_directory.write_summary(tmp_path, {"status": "completed"})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == '{\n  "status": "completed"\n}\n'
