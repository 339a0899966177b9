"""Every combination of a space, each once, however many workers share them."""

import math
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from scaledl.config.validate import ConfigError
from scaledl.sweep.search import firsts_before
from scaledl.sweep.space import Space


class Every(BaseSampler):
    """The k-th place of a sweep is the k-th combination, of which the last parameter changes fastest.

    Optuna's BruteForceSampler repeats some when several workers ask, or when a sweep that is complete is called again.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}

    def cover(self, space: Space) -> int:
        """Take the combinations from a space; how many there are.

        Raises:
            ConfigError: every parameter that has no end of values.
        """
        endless = [name for name, each in space.items() if isinstance(each, FloatDistribution) and each.step is None]
        if endless:
            words = "an interval has no end of values; give some, as in 0.001,0.01, or fix it"
            raise ConfigError([f"{name}: {words}" for name in endless])
        self._values = {name: _values(space[name]) for name in sorted(space)}  # whatever the order of the words
        return math.prod(len(values) for values in self._values.values())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        rest = firsts_before(study.get_trials(deepcopy=False), trial.number)
        for name in reversed(self._values):
            rest, at = divmod(rest, len(self._values[name]))
            if name == param_name:
                return self._values[name][at]
        raise KeyError(param_name)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        return {}


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    assert distribution.step is not None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + number * distribution.step for number in range(count)]
