"""What rank 0 finds, all ranks hear, its errors too."""

import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scaledl.distributed import group


def fail(error: Exception) -> Callable:
    def ask() -> None:
        raise error

    return ask


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Calls `agreed` as rank 0 and then as rank 1 of two, over a wire that carries what pickle can."""

    def call(ask: Callable, rank: int) -> Any:
        wire: list[bytes] = []

        def broadcast(box: list, device: torch.device) -> None:
            if not wire:
                wire.append(pickle.dumps(box))
            box[:] = pickle.loads(wire[0])

        monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        if rank == 0:
            return group.agreed(ask)
        try:
            group.agreed(ask)
        except Exception:
            assert wire, "rank 0 failed before it told the others, which would wait for ever"
        monkeypatch.setenv("RANK", "1")
        return group.agreed(fail(AssertionError("only rank 0 is to look")))

    return call


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("found", [None, 0, {"step": 5}, [1, 2]])
def test_every_rank_has_what_rank_0_finds(on: Callable, rank: int, found: Any) -> None:
    assert on(lambda: found, rank) == found


ERRORS = [
    ValueError("all are damaged\nno whole checkpoint is left"),
    FileNotFoundError(2, "No such file or directory", "x"),
    json.JSONDecodeError("Expecting value", "x", 0),
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_rank_0_is_raised_on_every_rank(on: Callable, rank: int, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        on(fail(error), rank)
    assert str(caught.value) == str(error)


def test_a_run_of_one_process_needs_no_group() -> None:
    assert not dist.is_initialized()
    assert group.agreed(lambda: 5) == 5
    with pytest.raises(ValueError, match="mine"):
        group.agreed(fail(ValueError("mine")))


def test_a_process_joins_as_often_as_it_likes() -> None:
    for _ in range(2):
        group.join()
        group.join()
        assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
        dist.destroy_process_group()
