"""Every mistake in a config has its own words, and all of them come at once."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from scaledl.config.validate import ALLOWED, ConfigError, locate, validate


@dataclass
class Top:
    seed: int
    model: dict[str, Any] | None = None
    data: dict[str, Any] | None = None


class Model:
    def __init__(
        self, dim: int, depth: int = 2, rate: float = 0.1, kind: Literal["a", "b"] = "a", sizes: list[int] | None = None
    ):
        pass


def problems(**top: Any) -> list[str]:
    config = OmegaConf.create({"seed": 0, **top})
    return validate(config, Top, {}, (*ALLOWED, __name__))


def model(**arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Model", **arguments}


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ({"sed": 1}, "sed: the config has no setting 'sed'; did you mean 'seed'?"),
        ({"seed": "many"}, "seed: 'many' is not a whole number"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"model": model()}, "model.dim: missing; Model needs it"),
        ({"model": model(dim=1, depht=3)}, "model.depht: Model has no setting 'depht'; did you mean 'depth'?"),
        ({"model": model(dim="wide")}, "model.dim: 'wide' is not a whole number"),
        ({"model": model(dim=None)}, "model.dim: None is not a whole number"),
        ({"model": model(dim=1, kind="c")}, "model.kind: 'c' is not one of a, b"),
        ({"model": model(dim=1, rate="x")}, "model.rate: 'x' is not a number"),
        ({"model": model(dim=1, sizes=["x"])}, "model.sizes: ['x'] is not a list, each item a whole number or null"),
        ({"model": model(dim=1, sizes=3)}, "model.sizes: 3 is not a list, each item a whole number or null"),
        ({"model": model(dim="${nowhere}")}, "model.dim: ${nowhere} cannot be resolved"),
        ({"model": model(dim="???")}, "model.dim: must be given"),
        ({"model": {"_target_": f"{__name__}.Modle", "dim": 1}}, "did you mean 'Model'?"),
        ({"model": {"_target_": "os.system", "command": "true"}}, "add --allow os"),
        ({"model": {"_target_": "torch.nn.modules.module.warnings.warn"}}, "which a config may not call"),
        ({"model": {"_target_": "torch.nn.modules.module.torch.load", "f": "x"}}, "which a config may not call"),
        ({"model": {"_target_": "lightning.pytorch.cli.instantiate_class"}}, "may not be named"),
        ({"model": {"_target_": "scaledl.cli.run", "words": []}}, "may not be named"),
        ({"model": {"_target_": "torch.nn.Sequential", "_args_": [1]}}, "_args_: not allowed"),
        ({"model": {"_target_": "torch.load", "f": "x"}}, "'torch.load' may not be named"),
    ],
)
def test_a_mistake_is_named(top: dict[str, Any], expected: str) -> None:
    found = problems(**top)
    assert len(found) == 1
    assert expected in found[0]


def test_right_configs_pass() -> None:
    assert problems(model=model(dim=3, rate=1, sizes=[1, 2], kind="b")) == []


def test_a_fact_of_the_data_may_still_be_null() -> None:
    assert problems(model=model(dim="${data.dim}"), data={"dim": None}) == []


def test_all_problems_come_in_one_message() -> None:
    found = problems(sed=1, model=model(dim="wide", depht=3))
    assert len(found) == 3
    message = str(ConfigError(found))
    assert message.startswith("the config has 3 problems:")
    assert all(problem in message for problem in found)


def test_nested_targets_are_checked() -> None:
    inner = {"_target_": "torch.nn.Linear", "in_features": "x", "out_features": 1}
    outer = {"_target_": "torch.nn.TransformerEncoder", "encoder_layer": inner, "num_layers": 1}
    assert problems(model=outer) == ["model.encoder_layer.in_features: 'x' is not a whole number"]


def test_nothing_outside_the_allowed_roots_is_imported() -> None:
    with pytest.raises(ValueError, match="may not be named"):
        locate("antigravity.geohash")
    import sys

    assert "antigravity" not in sys.modules
