"""What `hydra.sweeper.*` may say, and what is refused before a trial."""

import pytest

from scaledl.config.folders import CONF, options
from scaledl.config.validate import ConfigError
from scaledl.sweep.settings import read

FOLDERS = [CONF]


@pytest.mark.parametrize("name", options("sweep", FOLDERS))
def test_every_file_is_valid(name: str) -> None:
    asked = read([f"sweep={name}", "experiment=mlp/digits"], FOLDERS, [])
    assert asked.words == ["experiment=mlp/digits"]
    assert asked.settings.launcher["_target_"].endswith("Local")


def test_words_change_settings() -> None:
    asked = read(
        [
            "sweep=tpe_asha",
            "hydra.sweep.dir=here",
            "hydra.sweeper.n_trials=7",
            "hydra.sweeper.sampler.n_startup_trials=3",
            "hydra.sweeper.sampler.seed=1",
            "hydra/launcher=slurm",
            "hydra.launcher.nodes=2",
            "optimizer.lr=interval(0.1,0.2)",
        ],
        FOLDERS,
        [],
    )
    assert (asked.folder, asked.settings.n_trials, asked.settings.sampler.n_startup_trials) == ("here", 7, 3)
    assert asked.settings.launcher["_target_"].endswith("Slurm")
    assert asked.settings.launcher.nodes == 2
    assert asked.words == ["optimizer.lr=interval(0.1,0.2)"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sweep=tpe_ahsa", "did you mean 'tpe_asha'"),
        ("hydra/launcher=slrum", "did you mean 'slurm'"),
        (
            "hydra.sweeper.n_trails=3",
            "hydra.sweeper.n_trails: the config has no setting 'n_trails'; did you mean 'n_trials'",
        ),
        ("hydra.sweeper.n_trials=many", "hydra.sweeper.n_trials: 'many' is not a whole number"),
        ("hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: at least 1"),
        ("hydra.sweeper.sampler.n_startup=3", "hydra.sweeper.sampler.n_startup: TPESampler has no setting"),
        ("hydra.sweeper.sampler._target_=os.system", "may not be named by a config"),
        ("hydra.launcher.rank=2", "hydra.launcher.rank: Local has no setting 'rank'; did you mean 'ranks'"),
        ("hydra.run.dir=x", "a sweep has hydra.sweep.dir"),
        ("hydra.sweeper.seeds=1", "one seed has no interval"),
        ("hydra.sweeper.objectives={val/acc:max,num_parameters:min}", "several objectives cannot be pruned"),
        ("hydra.sweeper.objectives={val/acc:maximize}", "maximize is neither min nor max"),
    ],
)
def test_mistakes_are_named(word: str, expected: str) -> None:
    words = ["sweep=tpe_asha", "experiment=mlp/digits", word]
    with pytest.raises(ConfigError) as error:
        read(words if not word.startswith("sweep=") else words[1:], FOLDERS, [])
    assert expected in str(error.value)
