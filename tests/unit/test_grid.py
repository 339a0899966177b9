"""Hydra's words with several values, as trials."""

import pytest

from scaledl.config.validate import ConfigError
from scaledl.sweep.grid import combinations


def test_the_last_word_changes_fastest() -> None:
    found = combinations(["experiment=mlp/circles", "optimizer.lr=0.1,0.2", "seed=range(2)"])
    assert [own for _, own in found] == [
        ["optimizer.lr=0.1", "seed=0"],
        ["optimizer.lr=0.1", "seed=1"],
        ["optimizer.lr=0.2", "seed=0"],
        ["optimizer.lr=0.2", "seed=1"],
    ]
    assert found[0][0] == ["experiment=mlp/circles", "optimizer.lr=0.1", "seed=0"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model=gpt,lenet", ["model=gpt", "model=lenet"]),
        ("+model.stages=[1,2],[3]", ["+model.stages=[1,2]", "+model.stages=[3]"]),
        ("seed=choice(3,5)", ["seed=3", "seed=5"]),
        ("data.prompt='a,b'", ["data.prompt='a,b'"]),
        ("~callbacks.samples", ["~callbacks.samples"]),
    ],
)
def test_what_is_one_value_and_what_are_several(word: str, expected: list[str]) -> None:
    assert [words[0] for words, _ in combinations([word])] == expected


def test_a_word_of_no_grammar_is_named() -> None:
    with pytest.raises(ConfigError, match=r"seed=range.: not in the form key=value"):
        combinations(["seed=range("])
    with pytest.raises(ConfigError, match="a grid has no such values"):
        combinations(["optimizer.lr=interval(0,1)"])
