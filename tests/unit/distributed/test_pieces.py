"""A range of a flattened tensor is a few rectangles, and each part is live memory until it is staged."""

import math
import random

import pytest
import torch
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from scaledl.distributed.pieces import Pieces


def place(whole: torch.Tensor, offsets: tuple[int, ...], part: torch.Tensor) -> torch.Tensor:
    """The view of the whole that a part stands for."""
    for dim, (offset, length) in enumerate(zip(offsets, part.shape, strict=True)):
        whole = whole.narrow(dim, offset, length)
    return whole


def random_ranges(count: int) -> list[tuple[tuple[int, ...], int, int]]:
    chance, found = random.Random(0), []
    for _ in range(count):
        size = tuple(chance.randint(1, 5) for _ in range(chance.randint(0, 4)))
        start, stop = sorted(chance.choices(range(math.prod(size) + 1), k=2))
        found.append((size, start, stop))
    return found


def test_the_parts_of_a_range_are_that_range_and_no_more_than_they_must_be() -> None:
    for size, start, stop in random_ranges(500):
        whole = torch.arange(math.prod(size)).view(size)
        pieces = Pieces.of_range(size, start, whole.flatten()[start:stop])
        assert len(pieces.parts) <= max(1, 2 * len(size) - 1)
        assert all(torch.equal(place(whole, offsets, part), part) for offsets, part in pieces.parts)
        covered = [part.flatten() for _, part in pieces.parts if part.numel()]
        assert torch.cat([torch.arange(0), *covered]).tolist() == list(range(start, stop))


def test_a_range_needs_the_most_parts_when_it_begins_and_ends_within_the_innermost_rows() -> None:
    pieces = Pieces.of_range((4, 3, 5), 1, torch.zeros(58))
    assert [(offsets, tuple(part.shape)) for offsets, part in pieces.parts] == [
        ((0, 0, 1), (1, 1, 4)),
        ((0, 1, 0), (1, 2, 5)),
        ((1, 0, 0), (2, 3, 5)),
        ((3, 0, 0), (1, 2, 5)),
        ((3, 2, 0), (1, 1, 4)),
    ]


def test_what_is_written_into_the_parts_of_a_range_is_in_the_range() -> None:
    flat = torch.zeros(9, requires_grad=True)
    for _, part in Pieces.of_range((3, 4), 2, flat).parts:
        part.fill_(1)
    assert flat.tolist() == [1] * 9


def test_an_empty_range_has_no_parts_but_a_tensor_without_elements_is_whole() -> None:
    assert Pieces.of_range((3, 4), 5, torch.zeros(0)).parts == []
    for pieces in (Pieces.of_range((3, 0), 0, torch.zeros(0)), Pieces.of(torch.zeros(3, 0))):
        ((offsets, part),) = pieces.parts
        assert (offsets, part.shape, pieces.size) == ((0, 0), (3, 0), (3, 0))


def test_a_number_has_one_part() -> None:
    for pieces in (Pieces.of(torch.tensor(3.0)), Pieces.of_range((), 0, torch.tensor([3.0]))):
        assert [(offsets, part.shape, part.item()) for offsets, part in pieces.parts] == [((), (), 3)]


@pytest.mark.parametrize(("start", "length"), [(0, 13), (12, 1), (-1, 2)])
def test_a_range_that_is_not_within_the_tensor_is_refused(start: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"is no range of the 12 elements of a tensor \(3, 4\)"):
        Pieces.of_range((3, 4), start, torch.zeros(length))


def test_a_plain_tensor_is_one_part_on_the_same_memory() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    ((offsets, part),) = Pieces.of(weight).parts
    assert (offsets, part.data_ptr(), part.requires_grad) == ((0, 0), weight.data_ptr(), False)


def test_a_staged_copy_does_not_see_what_comes_later() -> None:
    weight = torch.zeros(3, 4)
    staged = Pieces.of(weight).staged()
    weight.fill_(1)
    assert staged.parts[0][1].eq(0).all()
    assert staged.size == weight.size()


def test_buffers_are_used_again_if_they_fit() -> None:
    flat = torch.arange(9.0)
    buffers = Pieces.of_range((3, 4), 2, flat).staged()
    flat += 1
    again = Pieces.of_range((3, 4), 2, flat).staged(buffers)
    assert [part.data_ptr() for _, part in again.parts] == [part.data_ptr() for _, part in buffers.parts]
    assert torch.cat([part.flatten() for _, part in again.parts]).equal(flat)
    for other in (Pieces.of_range((3, 4), 3, flat), Pieces.of_range((3, 4), 2, flat.long())):
        assert other.staged(buffers) is not buffers


def test_the_planner_of_dcp_sees_shards() -> None:
    flat = torch.arange(6.0)
    pieces = Pieces.of_range((3, 4), 2, flat)
    plan = create_default_local_save_plan({"w": pieces}, is_coordinator=False)
    assert {item.type for item in plan.items} == {WriteItemType.SHARD}
    assert [item.index for item in plan.items] == [MetadataIndex("w", (0, 2)), MetadataIndex("w", (1, 0))]
    assert [item.tensor_data.size for item in plan.items if item.tensor_data] == [(3, 4), (3, 4)]
    assert pieces.__get_tensor_shard__(plan.items[1].index).tolist() == [[2, 3, 4, 5]]
