"""Everything under conf/ composes, validates and builds; every experiment says how it is run."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from scaledl import build, run_directory
from scaledl.config.folders import CONF, options
from scaledl.data.tokenizer import ByteTokenizer
from scaledl.experiments import FIELDS, all_experiments
from scaledl.tasks.base import Task
from scaledl.train import composed

EXPERIMENTS = options("experiment", [CONF])
README = Path(__file__).parents[2] / "README.md"


def some_run(folder: Path) -> Path:
    """What an experiment that goes on with another run reads of it: its model and its tokenizer."""
    tokenizer = ByteTokenizer()
    tokenizer.save(folder)
    config = composed(
        ["experiment=llm/gpt_shakespeare", "data/tokenizer=byte", "model.vocab_size=257", "model.max_seq_len=256"],
        [CONF],
        [],
    )
    run_directory.write_config(folder, OmegaConf.to_yaml(config), config)
    return folder


def some_mnist(folder: Path) -> Path:
    """Some images in MNIST's files, as its test part alone."""
    images = np.arange(200 * 28 * 28, dtype=np.uint8).reshape(200, 28, 28)
    labels = np.arange(200, dtype=np.uint8) % 10
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
        (folder / f"t10k-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_builds_on_the_meta_device(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEDL_CACHE", str(tmp_path))
    data_of_its_own = [f"data.path={some_mnist(tmp_path)}"] if name.endswith("/mnist") else []
    if "init_from=runs" in (CONF / "experiment" / f"{name}.yaml").read_text():  # the command that its header gives
        data_of_its_own = [f"init_from={some_run(tmp_path)}"]
    config = composed([f"experiment={name}", "run_id=test", *data_of_its_own], [CONF], [])
    data = build.data(config)
    build.settle_steps(config, len(data.split("train")))
    model = build.model(config)
    assert all(parameter.is_meta for parameter in model.on_meta().parameters())
    task = build.task(config, model)
    assert isinstance(task, Task)
    build.check_fit(config, task, data.split("train"))
    assert config.trainer.max_steps > 0


@pytest.mark.parametrize("experiment", all_experiments([CONF]), ids=lambda experiment: experiment.name)
def test_an_experiment_says_how_it_is_run(experiment) -> None:
    assert experiment.idea
    assert all(getattr(experiment, field) for field in FIELDS)
    assert f"experiment={experiment.name}" in experiment.run


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (g, n)
        for g in ("optimizer", "scheduler", "trainer", "strategy", "callbacks", "logger")
        for n in options(g, [CONF])
    ],
)
def test_every_choice_composes(group: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2" if (group, name) == ("strategy", "tp") else "1")
    assert composed(["experiment=mlp/circles", f"{group}={name}"], [CONF], [])[group] is not None


@pytest.mark.parametrize("experiment", all_experiments([CONF]), ids=lambda experiment: experiment.name)
def test_the_readme_names_it(experiment) -> None:
    assert experiment.name in README.read_text()
