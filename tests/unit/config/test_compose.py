"""Words of a command line: what they choose, set and get wrong."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scaledl.config.compose import compose
from scaledl.config.folders import CONF, config_folders
from scaledl.config.rules import broken_rules
from scaledl.config.validate import ConfigError
from scaledl.train import composed

CIRCLES = "experiment=mlp/circles"


def message(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        composed(list(words), [CONF], [])
    return str(caught.value)


def test_the_issue_s_example_names_both_problems_with_a_suggestion() -> None:
    said = message("model.depht=3", "optimizer.lr=fast", "experiment=llm/gpt_shakespeare")
    assert "model.depht: GPT has no setting 'depht'; did you mean 'depth'?" in said
    assert "optimizer.lr: 'fast' is not a number" in said
    assert "2 problems" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["experiment=mlp/circle"], "did you mean 'mlp/circles'?"),
        ([CIRCLES, "model=mpl"], "there is no model 'mpl'; did you mean 'mlp'?"),
        ([CIRCLES, "modell=mlp"], "no setting 'modell'; did you mean 'model'?"),
        ([CIRCLES, "trainer.max_step=3"], "did you mean 'max_steps'?"),
        ([CIRCLES, "seed=1,2"], "several values"),
        ([CIRCLES, "seed"], "not in the form key=value"),
        ([CIRCLES, "hydra.run.dir=x"], "a run writes to run_dir"),
        ([CIRCLES, "callbacks.extra.x=1"], "callbacks.extra"),
        ([CIRCLES, "data.global_batch_size=61", "data.micro_batch_size=7"], "data.micro_batch_size=61 would"),
        ([CIRCLES, "trainer.max_steps=-1", "trainer.max_epochs=-1"], "no end to the training"),
        ([CIRCLES, "task.model=3"], "leave it out"),
        ([CIRCLES, "trainer.max_epochs=3"], "both end the training"),
        ([CIRCLES, "trainer.devices=2"], "trainer.devices: the run sets this itself"),
        ([CIRCLES, "logger=null"], "there is no logger None (logger may be: csv, none, "),
        ([CIRCLES, "checkpoint=null"], "checkpoint"),
        ([CIRCLES, "seed=-1"], "from 0 up"),
        ([], "nothing to train"),
    ],
)
def test_a_mistake_is_named(words: list[str], expected: str) -> None:
    assert expected in message(*words)


def test_an_argument_that_no_yaml_mentions_can_be_set_without_a_plus() -> None:
    config = composed([CIRCLES, "trainer.fast_dev_run=false"], [CONF], [])
    assert config.trainer.fast_dev_run is False


def test_run_id_is_settled_once_and_experiment_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEDL_RUN_ID", "here")
    config, problems = compose([CIRCLES], [CONF])
    assert not problems
    assert (config.run_id, config.experiment, config.run_dir) == ("here", "mlp/circles", "runs/mlp/circles/here")


def test_more_ranks_than_the_strategy_serves_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config, _ = compose([CIRCLES], [CONF])
    assert any("strategy=single is one process" in problem for problem in broken_rules(config))


def test_a_users_folder_adds_and_overrides(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment" / "mine" / "rings.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\ndefaults:\n  - /experiment/mlp/circles\nseed: 7\n")
    config = composed(["experiment=mine/rings"], config_folders([str(tmp_path)]), [])
    assert (config.seed, config.experiment) == (7, "mine/rings")
    ours = CONF / "model" / "mlp.yaml"
    theirs = tmp_path / "model" / "mlp.yaml"
    theirs.parent.mkdir()
    theirs.write_text(ours.read_text().replace("dropout: 0.0", "dropout: 0.25"))
    assert composed([CIRCLES], config_folders([str(tmp_path)]), []).model.dropout == 0.25


def test_a_value_within_what_another_run_gives_changes_that_alone(tmp_path: Path) -> None:
    words = ["experiment=llm/finetune", "model.dropout=0.25"]
    target = "scaledl.models.gpt.GPT"
    (tmp_path / "config.yaml").write_text(f"model: {{_target_: {target}, vocab_size: 7, max_seq_len: 8}}\n")
    config = composed([*words, f"init_from={tmp_path}"], [CONF], [])
    (tmp_path / "config.yaml").unlink()  # what was taken from there is not looked up again
    assert OmegaConf.to_container(config.model) == {
        "_target_": target,
        "vocab_size": 7,
        "max_seq_len": 8,
        "dropout": 0.25,
    }
    assert "model.dropout=0.25: model is that of another run" in message(*words)
    assert "init_from=RUN" in message(*words, "init_from=nowhere")


def test_a_folder_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match="no such folder"):
        config_folders(["/nowhere/conf"])
