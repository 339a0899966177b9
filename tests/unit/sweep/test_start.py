"""What is refused before the first trial, and what a sweep shows of its settings."""

from pathlib import Path

import pytest
import yaml

from scaledl.config.folders import CONF
from scaledl.config.validate import ConfigError
from scaledl.sweep.start import search, settings_of

DIGITS = ["sweep=tpe_asha", "experiment=mlp/digits"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer.lrr=interval(0.1,0.2)"], "optimizer.lrr: AdamW has no setting 'lrr'; did you mean 'lr'?"),
        (["optimizer.lr=interval(0.2,0.1)"], "the first number must be the smaller one"),
        (["model.dropout=choice(0.1,much)"], "model.dropout: 'much' is not a number"),
        (["model.hidden_dims=[8],8"], "model.hidden_dims: 8 is not a list"),
        (["optimizer=adamw,adamx"], "there is no optimizer 'adamx'"),
        (["hydra.launcher.ranks=2"], "strategy=single is one process, but the launcher started 2"),
        (["optimizer.lr=0.1", "optimizer.weight_decay=0.0"], "every parameter is fixed"),
        (["hydra.sweeper.objectives={val/acc:max}"], "the pruner looks at monitor=val/loss"),
        (["hydra.sweeper.pruner.reduction=3"], "SuccessiveHalvingPruner has no setting 'reduction'"),
    ],
    ids=["key", "range", "type", "list", "group", "ranks", "fixed", "objective", "pruner"],
)
def test_a_wrong_space_is_refused(words: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        search([*DIGITS, *words, f"hydra.sweep.dir={tmp_path / 'sweep'}"], [CONF], [])
    assert expected in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_trials_without_their_database_are_not_trained_over(tmp_path: Path) -> None:
    (tmp_path / "trial_0000").mkdir()
    (tmp_path / "trial_0000" / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"holds trials, but the study mlp/digits/.* in its database holds none"):
        search([*DIGITS, f"hydra.sweep.dir={tmp_path}"], [CONF], [])
    assert not (tmp_path / "trial_0001").exists()


def test_settings_are_shown_without_secrets() -> None:
    storage = "hydra.sweeper.storage=postgresql://me:secret@host/name"
    said = settings_of([*DIGITS, storage, "hydra.sweeper.n_trials=7"], [CONF], [])
    assert "secret" not in said
    shown = yaml.safe_load(said)
    assert shown["n_trials"] == 7
    assert shown["storage"] == "postgresql://me:***@host/name"
    assert shown["words"] == ["experiment=mlp/digits"]
