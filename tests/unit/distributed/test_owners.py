"""Who owns which matrix, who sends what to whom, and that results come back to where the parts were."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from scaledl.distributed.owners import Owners, Place, Routes, owners_of
from scaledl.distributed.pieces import Pieces, rectangles

SIZES = {"up": (12, 4), "down": (4, 12), "kernel": (6, 2, 3, 3), "q": (4, 4)}
Parts = dict[str, tuple[int, int]]  # what a rank has of each parameter: [start, stop) of it, flattened


def cost(size: tuple[int, ...]) -> int:
    return math.prod(size) * min(size[0], math.prod(size[1:]))


def test_owners_have_equal_work_whatever_the_order_of_names() -> None:
    layers = {f"blocks.{i}.{name}": size for i in range(12) for name, size in
              (("q", (768, 768)), ("out", (768, 768)), ("up", (3072, 768)), ("down", (768, 3072)))}  # fmt: skip
    names = list(layers)
    random.Random(0).shuffle(names)
    owner = owners_of({name: layers[name] for name in names}, 8)
    assert owner == owners_of(layers, 8)
    assert set(owner) == set(layers)
    loads = [sum(cost(size) for name, size in layers.items() if owner[name] == rank) for rank in range(8)]
    assert max(loads) == min(loads)  # 24 dear matrices and 24 of a quarter: three of each on each rank


def test_few_matrices_leave_ranks_without_work() -> None:
    assert sorted(owners_of({"a": (4, 4), "b": (2, 8), "c": (8, 8)}, 5).values()) == [0, 1, 2]
    assert owners_of({"a": (4, 4), "b": (2, 8), "c": (8, 8)}, 2) == {"c": 0, "a": 1, "b": 1}


def test_a_stack_is_as_dear_as_its_matrices() -> None:
    sizes = {"a": (2, 8, 8), "b": (4, 2, 16), "c": (4, 2, 16)}  # 1,024 and twice 256; not 256 and twice 512
    assert owners_of(sizes, 2, stacked=True) == {"a": 0, "b": 1, "c": 1}
    assert owners_of(sizes, 2)["a"] == owners_of(sizes, 2)["b"]


def places(parts: Parts) -> list[Place]:
    found, begin = [], 0
    for name, (start, stop) in parts.items():
        for offsets, shape in rectangles(SIZES[name], start, stop):
            found.append(Place(name, SIZES[name], offsets, shape, 0, begin))
            begin += math.prod(shape)
    return found


def by_ranges(ranks: int, copies: int = 1) -> list[Parts]:
    """As ZeRO does: equal ranges of all parameters one after the other; `copies` groups of ranks hold the same."""
    total = sum(math.prod(size) for size in SIZES.values())
    share, found = -(-total // ranks), []
    for rank in range(ranks):
        parts, at = {}, 0
        for name, size in SIZES.items():
            start, stop = (min(max(edge - at, 0), math.prod(size)) for edge in (rank * share, (rank + 1) * share))
            if start < stop:
                parts[name] = (start, stop)
            at += math.prod(size)
        found.append(parts)
    return found * copies


WHOLE = {name: (0, math.prod(size)) for name, size in SIZES.items()}


@pytest.mark.parametrize(
    "held", [[WHOLE] * 3, by_ranges(3), by_ranges(7), by_ranges(2, copies=2)], ids=["copies", "3", "7", "2 x 2"]
)
def test_every_owner_gets_each_element_once_and_every_holder_its_result(held: list[Parts]) -> None:
    ranks = range(len(held))
    routes = [Routes([places(parts) for parts in held], rank) for rank in ranks]
    for a in ranks:
        for b in ranks:
            for sent, expected in (("parts_to", "parts_from"), ("results_to", "results_from")):
                there, here = (getattr(routes[x], which)[y] for x, which, y in ((a, sent, b), (b, expected, a)))
                assert [(p.name, p.offsets, p.shape) for p in there] == [(p.name, p.offsets, p.shape) for p in here]
        assert sorted(map(str, places(held[a]))) == sorted(str(p) for of in routes[a].results_from for p in of)
    got = {name: torch.zeros(size, dtype=torch.int64) for name, size in SIZES.items()}
    for rank in ranks:
        for place in [*routes[rank].kept, *(p for of in routes[rank].parts_from for p in of)]:
            assert routes[rank].owner[place.name] == rank
            place.inside(got[place.name]).add_(1)
    assert all((count == 1).all() for count in got.values())
    assert [r.copies for r in routes] == [held == [WHOLE] * 3] * len(held)
    assert [r.moves_parts for r in routes] == [held != [WHOLE] * 3] * len(held)


def test_of_copies_the_nearest_sends() -> None:
    """Ranks 0 to 3 have a copy, 4 to 7 another."""
    routes = [Routes([places(parts) for parts in by_ranges(4, copies=2)], rank) for rank in range(8)]
    pairs = {(a, b) for a in range(8) for b in range(8) if routes[a].parts_to[b]}
    assert pairs
    assert all(a // 4 == b // 4 for a, b in pairs)


def test_results_come_back_into_flat_masters_and_leave_padding_alone() -> None:
    a, b, c = (torch.arange(1.0, n + 1).view(n // 4, 4) for n in (20, 12, 8))
    masters = [torch.cat([b.flatten(), a.flatten(), torch.full((3,), 7.0)]), c.flatten().clone()]
    held = [[("b", b.shape, 0), ("a", a.shape, 12)], [("c", c.shape, 0)]]

    def pieces(tensors: list[Tensor | None]) -> dict[str, Pieces]:
        return {
            name: Pieces.of_range(size, 0, flat.narrow(0, begin, size.numel()))
            for parts, flat in zip(held, tensors, strict=True)
            for name, size, begin in (parts if flat is not None else ())
        }

    owners, seen = Owners(), []
    names = [[name for name, *_ in parts] for parts in held]
    owners.strategy = SimpleNamespace(
        world_size=1, root_device=torch.device("cpu"), masters=lambda: masters, names=lambda: names, pieces=pieces
    )

    def thousandfold(wholes: list[Tensor]) -> list[Tensor]:
        seen.extend(wholes)
        return [1000 * whole for whole in wholes]

    for some in (masters[:1], masters[1:]):  # as ZeRO steps: group by group
        for number, part, size, result in owners(some, [master.clone() for master in some], thousandfold):
            assert number == 0
            part.add_(result, alpha=size[0])
    torch.testing.assert_close(seen, [a, b, c], rtol=0, atol=0)
    flat = [torch.cat([3001 * b.flatten(), 5001 * a.flatten(), torch.full((3,), 7.0)]), 2001 * c.flatten()]
    torch.testing.assert_close(masters, flat, rtol=0, atol=0)


def test_a_process_before_its_strategy_owns_all() -> None:
    parameters, values = [torch.zeros(2, 3), torch.zeros(4, 1, 2)], [torch.ones(2, 3), torch.full((4, 1, 2), 2.0)]
    for number, part, size, result in Owners()(parameters, values, lambda wholes: wholes):
        assert size == parameters[number].shape
        part.add_(result)
    torch.testing.assert_close(parameters, values)
