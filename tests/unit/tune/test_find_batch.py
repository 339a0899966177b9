import signal

import pytest
from omegaconf import OmegaConf

from scaledl.tune import trial
from scaledl.tune.find_batch import NO_MEMORY, _reason, sizes
from scaledl.tune.size import Size, best


@pytest.mark.parametrize(
    ("total", "ranks", "expected"),
    [(64, 1, [1, 2, 4, 8, 16, 32, 64]), (64, 2, [1, 2, 4, 8, 16, 32]), (24, 1, [1, 2, 4, 8, 12, 24]), (1, 1, [1])],
)
def test_sizes_divide_the_share_of_a_rank(
    total: int, ranks: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    config = OmegaConf.create({"data": {"global_batch_size": total}, "strategy": {}})
    assert sizes(config) == expected


def test_ranks_that_share_a_matrix_take_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = OmegaConf.create({"data": {"global_batch_size": 4}, "strategy": {"tensor_parallel_size": 2}})
    assert sizes(config) == [1, 2, 4]


def test_the_smallest_that_is_nearly_the_fastest_is_best() -> None:
    tried = [Size(1, 100.0), Size(2, 190.0), Size(4, 200.0), Size(8, 150.0), Size(16, reason=NO_MEMORY)]
    assert best(tried) == 2
    with pytest.raises(ValueError, match="no micro-batch runs; of 1 samples: it compares"):
        best([Size(1, reason="it compares"), Size(2, reason=NO_MEMORY)])


@pytest.mark.parametrize(
    ("code", "words", "reason"),
    [
        (-signal.SIGKILL, "", NO_MEMORY),
        (1, "scaledl: rank 1: OutOfMemoryError: CUDA out of memory. Tried", NO_MEMORY),
        (2, "note\nscaledl: a batch is no cake\n", "a batch is no cake"),
        (7, "", "exit code 7"),
    ],
)
def test_why_a_size_did_not_run(code: int, words: str, reason: str) -> None:
    assert _reason(trial.Ended(code, words)) == reason
