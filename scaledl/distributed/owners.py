"""Work on whole matrices, shared over ranks: each has one owner, who gets its parts and sends back results.

Where the parts lie is what a strategy says for checkpoints (`RunState.pieces`), so one way serves copies (DDP), shards
(FSDP, HSDP, tensor parallel) and ranges of flattened parameters (ZeRO). A call sends two flat buffers, one of parts and
one of results, however many matrices there are.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaledl.distributed.gradients import local


@dataclass(frozen=True)
class Place:
    """A rectangle of a parameter, and where this rank has it: in which tensor, from which of its elements on."""

    name: str
    size: tuple[int, ...]  # of the whole parameter
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    tensor: int
    begin: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor of the rank."""
        here = local(tensor)
        return here if here.numel() == self.numel else here.view(-1).narrow(0, self.begin, self.numel)

    def inside(self, whole: Tensor) -> Tensor:
        """This part of the whole parameter."""
        return whole[tuple(slice(at, at + n) for at, n in zip(self.offsets, self.shape, strict=True))]


def owners_of(sizes: dict[str, tuple[int, ...]], ranks: int, stacked: bool = False) -> dict[str, int]:
    """The rank of each matrix: the dearest first, each to the rank that has the least to do so far (Graham 1969).

    It depends on names and sizes alone, so that all ranks find the same. Dear is rows · columns · the smaller of both,
    as a product of a matrix with its transpose is; of a parameter of more axes the first are the rows, or with
    `stacked` it counts matrices, which have one owner together.
    """
    cost = {}
    for name, size in sizes.items():
        rows, *columns = size[1:] if stacked else size
        cost[name] = math.prod(size) * min(rows, math.prod(columns))
    load, owner = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: (-cost[name], name)):
        owner[name] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owner[name]] += cost[name]
    return owner


class Routes:
    """Who sends which rectangles to whom, from what every rank holds.

    Args:
        held: the places of each rank.
        rank: whose routes these are.
        stacked: see `owners_of`.
    """

    def __init__(self, held: list[list[Place]], rank: int, stacked: bool = False):
        self.ranks, self.rank = len(held), rank
        sizes = {place.name: place.size for places in held for place in places}
        self.owner = owners_of(sizes, self.ranks, stacked)
        holders: dict[tuple[str, tuple[int, ...]], dict[int, Place]] = defaultdict(dict)
        for holder, places in enumerate(held):
            for place in places:
                holders[place.name, place.offsets][holder] = place
        self.kept: list[Place] = []  # of what this rank owns, what it holds itself
        # By the other rank, and there in the order of names, which is every rank's.
        self.parts_to: list[list[Place]] = [[] for _ in held]
        self.parts_from: list[list[Place]] = [[] for _ in held]
        self.results_to: list[list[Place]] = [[] for _ in held]
        self.results_from: list[list[Place]] = [[] for _ in held]
        self.moves_parts = False
        for name, offsets in sorted(holders):
            found, owner = holders[name, offsets], self.owner[name]
            # Of copies the nearest is sent: whose numbers share their leading bits are of one machine.
            source = min(found, key=lambda holder: holder ^ owner)
            self.moves_parts |= source != owner
            if owner == rank:
                (self.kept if source == rank else self.parts_from[source]).append(found[source])
            elif source == rank:
                self.parts_to[owner].append(found[rank])
            for holder, place in found.items():
                if owner == rank:
                    self.results_to[holder].append(place)
                if holder == rank:
                    self.results_from[owner].append(place)
        self.copies = all(len(found) == self.ranks for found in holders.values())


class Owners:
    """Computes with whole matrices of which a rank may hold parts, each matrix on one rank only.

    One process is the owner of all, as is every process before its strategy has said where it keeps what.
    """

    def __init__(self) -> None:
        self.strategy: Any = None  # a RunState, once it has set up
        self._routes: dict[tuple[int, ...], Routes] = {}

    def __call__(
        self,
        parameters: list[Tensor],
        values: list[Tensor],
        compute: Callable[[list[Tensor]], list[Tensor]],
        stacked: bool = False,
    ) -> Iterator[tuple[int, Tensor, tuple[int, ...], Tensor]]:
        """(number of a parameter, the part of it that this rank has, size of the whole, result for this part).

        All ranks call it together, for the same matrices.

        Args:
            values: what is computed with, laid out as the parameters.
            compute: from matrices to results of their sizes, both in bf16 on a GPU, where parts are sent so, too.
            stacked: each parameter holds many matrices (count, rows, columns).
        """
        routes = self._routes_of(parameters, stacked)
        device = local(values[0]).device if self.strategy is None else self.strategy.root_device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        whole: dict[str, Tensor] = {}
        for place in routes.kept:
            _put(whole, place, place.of(values[place.tensor]).to(device, dtype))
        if routes.moves_parts:
            parts = [[place.of(values[place.tensor]) for place in places] for places in routes.parts_to]
            for place, part in _exchanged(parts, routes.parts_from, device, dtype):
                _put(whole, place, part)
        names = sorted(whole)
        results = dict(zip(names, compute([whole.pop(name) for name in names]), strict=True))
        parts = [[place.inside(results[place.name]) for place in places] for places in routes.results_to]
        shared: Iterator[tuple[Place, Tensor]]
        if routes.ranks == 1:
            shared = zip(routes.results_from[0], parts[0], strict=True)
        elif routes.copies:
            shared = _gathered(parts[routes.rank], routes.results_from, device, dtype)
        else:
            shared = _exchanged(parts, routes.results_from, device, dtype)
        for place, result in shared:
            part = place.of(parameters[place.tensor])
            yield place.tensor, part, place.size, result.to(part.device).reshape(part.shape)

    def _routes_of(self, parameters: list[Tensor], stacked: bool) -> Routes:
        key = tuple(map(id, parameters))
        if key not in self._routes:
            held: list[Any] = [self._places(parameters)]
            if self.strategy is not None and self.strategy.world_size > 1:
                held *= self.strategy.world_size
                dist.all_gather_object(held, held[0])
            self._routes[key] = Routes(held, dist.get_rank() if len(held) > 1 else 0, stacked)
        return self._routes[key]

    def _places(self, parameters: list[Tensor]) -> list[Place]:
        if self.strategy is None:
            sizes = [tuple(parameter.shape) for parameter in parameters]
            return [Place(f"{i:06d}", size, (0,) * len(size), size, i, 0) for i, size in enumerate(sizes)]
        number, masters = {id(parameter): i for i, parameter in enumerate(parameters)}, self.strategy.masters()
        pieces, found = self.strategy.pieces([m if id(m) in number else None for m in masters]), []
        for master, names in zip(masters, self.strategy.names(), strict=True):
            for name in names if id(master) in number else ():
                size, begin = tuple(pieces[name].size), local(master).storage_offset()
                found += [
                    Place(name, size, offsets, tuple(part.shape), number[id(master)], part.storage_offset() - begin)
                    for offsets, part in pieces[name].parts
                ]
        return found


def _put(whole: dict[str, Tensor], place: Place, part: Tensor) -> None:
    if place.shape == place.size:
        whole[place.name] = part.reshape(place.size)
        return
    if place.name not in whole:
        whole[place.name] = part.new_empty(place.size)
    place.inside(whole[place.name]).copy_(part.view(place.shape))


def _flat(parts: list[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    return (torch.cat([part.reshape(-1) for part in parts]) if parts else torch.empty(0)).to(device, dtype)


def _exchanged(
    outgoing: list[list[Tensor]], incoming: list[list[Place]], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Place, Tensor]]:
    """Send each rank its parts; the parts that come from each, flat."""
    sizes = [place.numel for places in incoming for place in places]
    received = torch.empty(sum(sizes), device=device, dtype=dtype)
    dist.all_to_all_single(
        received,
        _flat([part for parts in outgoing for part in parts], device, dtype),
        [sum(place.numel for place in places) for places in incoming],
        [sum(part.numel() for part in parts) for parts in outgoing],
    )
    yield from zip((place for places in incoming for place in places), received.split(sizes), strict=True)


def _gathered(
    outgoing: list[Tensor], incoming: list[list[Place]], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Place, Tensor]]:
    """What every rank sends to all, flat; between machines it passes once, not once for each rank there."""
    longest = max(sum(place.numel for place in places) for places in incoming)
    mine = torch.zeros(longest, device=device, dtype=dtype)
    mine[: sum(part.numel() for part in outgoing)] = _flat(outgoing, device, dtype)
    received = torch.empty(len(incoming) * longest, device=device, dtype=dtype)
    dist.all_gather_into_tensor(received, mine)
    for places, of_rank in zip(incoming, received.split(longest), strict=True):
        sizes = [place.numel for place in places]
        yield from zip(places, of_rank[: sum(sizes)].split(sizes), strict=True)
