"""What a sweep searches: Hydra's words with several values, as Optuna's distributions."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from scaledl.config.validate import ConfigError

Space = dict[str, BaseDistribution]
STORAGE = "hydra.sweeper.storage"


def parse(word: str) -> Override:
    """
    Raises:
        ConfigError: the word is not of Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        key = word.partition("=")[0]
        if key == STORAGE:  # it may hold a password
            raise ConfigError(
                [f"{key}: not in Hydra's grammar; put it into quotes, or into SCALEDL_SWEEP_STORAGE"]
            ) from None
        raise ConfigError([f"{word}: not in the form key=value ({str(error).splitlines()[0]})"]) from error


def space_of(words: Iterable[str]) -> tuple[Space, list[str]]:
    """The space of the words with several values, and the other words; of one key, the last word counts.

    Raises:
        ConfigError: every word that cannot be searched.
    """
    space: Space = {}
    fixed: dict[str, str] = {}
    problems: list[str] = []
    for word in words:
        try:
            override = parse(word)
            key = override.get_key_element()
            if override.is_sweep_override():
                space[key] = _distribution(override)
                fixed.pop(key, None)
            else:
                fixed[key] = word
                space.pop(key, None)
        except ConfigError as error:
            problems += error.problems
        except (ValueError, HydraException) as error:
            problems.append(f"{word}: {error}")
    if problems:
        raise ConfigError(problems)
    return space, list(fixed.values())


def words_of(point: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in point.items()]


def corners(space: Space) -> list[dict[str, Any]]:
    """Points that show together every end of every range and every choice, the first of them all of the lowest."""
    lowest = {key: _ends(distribution)[0] for key, distribution in space.items()}
    return [lowest, *({**lowest, key: end} for key, each in space.items() for end in _ends(each)[1:])]


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return [distribution.low, distribution.high]


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    logarithmic = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        return _interval(value.start, value.end, logarithmic)
    if logarithmic:
        raise ValueError("tag(log, ...) is for an interval, as in tag(log, interval(1e-4, 1e-1))")
    if isinstance(value, RangeSweep):
        return _range(value)
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise ValueError("there is no value to choose; give some, as in choice(32,64)")
    return CategoricalDistribution(choices)


def _interval(low: Any, high: Any, logarithmic: bool) -> BaseDistribution:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the interval from {low} to {high} is empty: the first number must be the smaller one")
    if logarithmic and low <= 0:
        raise ValueError(f"a logarithmic interval cannot begin at {low}; begin it above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=logarithmic)
    return FloatDistribution(low, high, log=logarithmic)


def _range(value: RangeSweep) -> BaseDistribution:
    numbers = sorted(value.range()) if value.step else []  # the end is not among them, as in Python
    if not numbers:
        raise ValueError(f"the range from {value.start} to {value.stop} in steps of {value.step} is empty")
    if isinstance(numbers[0], int):
        return IntDistribution(numbers[0], int(numbers[-1]), step=abs(int(value.step)))
    return FloatDistribution(float(numbers[0]), float(numbers[-1]), step=abs(float(value.step)))
