"""Rules between settings: batches that split, ranks that divide."""

import re

import pytest

from scaledl.config.compose import compose
from scaledl.config.folders import CONF
from scaledl.config.rules import broken_rules, micro_batch_of


def problems(*words: str) -> list[str]:
    config, found = compose(["experiment=mlp/circles", *words], [CONF])
    assert not found
    return broken_rules(config)


def batches(total: int, micro: int) -> tuple[str, str]:
    return f"data.global_batch_size={total}", f"data.micro_batch_size={micro}"


def test_the_micro_batch_is_the_largest_that_splits_the_share_into_equal_parts() -> None:
    for share in range(1, 40):
        for at_most in range(1, 50):
            fitting = [size for size in range(1, at_most + 1) if share % size == 0]
            assert micro_batch_of(share, at_most) == fitting[-1]


@pytest.mark.parametrize(
    ("ranks", "total", "micro"),
    [(1, 64, 64), (1, 64, 1000), (1, 24, 10), (1, 10, 4), (2, 12, 4), (2, 62, 31), (3, 66, 22), (4, 4, 1)],
)
def test_batches_that_split_nearly_as_asked_are_no_problem(
    monkeypatch: pytest.MonkeyPatch, ranks: int, total: int, micro: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert problems("strategy=ddp", *batches(total, micro)) == []


@pytest.mark.parametrize(("ranks", "total", "micro"), [(1, 61, 7), (1, 14, 5), (2, 62, 8), (4, 4 * 22, 10)])
def test_batches_that_split_only_far_smaller_are_refused_with_a_size_that_helps(
    monkeypatch: pytest.MonkeyPatch, ranks: int, total: int, micro: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    (said,) = problems("strategy=ddp", *batches(total, micro))
    assert f"data.micro_batch_size={micro} only by {micro_batch_of(total // ranks, micro)};" in said
    suggested = re.search(r"data\.micro_batch_size=(\d+) would split them", said)
    assert suggested is not None
    assert problems("strategy=ddp", *batches(total, int(suggested[1]))) == []


def test_a_batch_that_the_ranks_cannot_share_is_refused_with_one_that_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    (said,) = problems("strategy=ddp", *batches(64, 8))
    assert said.endswith("cannot be shared by 3 ranks: it must be a multiple of 3, such as 66")
    assert problems("strategy=ddp", *batches(66, 11)) == []


@pytest.mark.parametrize(("total", "micro"), [(0, 1), (8, 0), (-8, 8)])
def test_batches_hold_samples(total: int, micro: int) -> None:
    (said,) = problems(*batches(total, micro))
    assert said.endswith("must be at least 1")


def test_ranks_that_share_matrices_take_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert problems("strategy=tp", *batches(6, 3)) == []  # two ranks that take different data, of three samples each
    (said,) = problems("strategy=tp", *batches(7, 7))
    assert "cannot be shared by 2 ranks" in said


@pytest.mark.parametrize("size", [3, 8, 0, -1])
def test_ranks_that_the_tensor_parallel_size_does_not_divide_are_refused(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    (said,) = problems("strategy=tp", f"strategy.tensor_parallel_size={size}")
    assert f"strategy.tensor_parallel_size={size} does not divide the 4 ranks" in said


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_tensor_parallel_size_that_divides_the_ranks_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert problems("strategy=tp", f"strategy.tensor_parallel_size={size}") == []
