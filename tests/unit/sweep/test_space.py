"""Hydra's sweep grammar as spaces."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from scaledl.config.validate import ConfigError
from scaledl.sweep.space import corners, space_of, words_of


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("interval(0.1,0.5)", FloatDistribution(0.1, 0.5)),
        ("tag(log, interval(1e-4, 1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("interval(1,8)", FloatDistribution(1, 8)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log, int(interval(8,512)))", IntDistribution(8, 512, log=True)),
        ("range(1,4)", IntDistribution(1, 3)),  # as in Python, the end is not among them
        ("range(2,11,4)", IntDistribution(2, 10, step=4)),
        ("range(0.5,1.0,0.25)", FloatDistribution(0.5, 0.75, step=0.25)),
        ("16,32", CategoricalDistribution(["16", "32"])),
        ("choice(relu,tanh)", CategoricalDistribution(["relu", "tanh"])),
        ("[64],[64,32]", CategoricalDistribution(["[64]", "[64,32]"])),
    ],
)
def test_words_as_distributions(values: str, expected: object) -> None:
    assert space_of([f"a.b={values}"]) == ({"a.b": expected}, [])


def test_the_last_word_of_a_key_counts() -> None:
    space, fixed = space_of(["a=1,2", "b=3", "a=5", "b=choice(6,7)", "c=x"])
    assert list(space) == ["b"]
    assert fixed == ["a=5", "c=x"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("range(3,3)", "the range from 3 to 3"),
        ("range(4,1)", "is empty"),
        ("interval(0.5,0.1)", "the first number must be the smaller one"),
        ("interval(1,1)", "is empty"),
        ("interval(0,inf)", "is empty"),
        ("tag(log, interval(0, 1))", "begin it above 0"),
        ("tag(log, range(1,4))", "is for an interval"),
        ("choice()", "not in the form"),
    ],
)
def test_an_empty_range_is_named(values: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        space_of([f"model.depth={values}", "seed=range(5,5)"])
    assert expected in str(error.value)
    assert "model.depth" in str(error.value)
    assert "seed=range(5,5)" in str(error.value)  # all of them at once


def test_corners_show_every_end_and_every_choice() -> None:
    space, _ = space_of(["a=interval(0.0,1.0)", "b=x,y,z"])
    assert [words_of(point) for point in corners(space)] == [
        ["a=0.0", "b=x"],
        ["a=1.0", "b=x"],
        ["a=0.0", "b=y"],
        ["a=0.0", "b=z"],
    ]
