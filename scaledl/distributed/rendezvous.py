"""Ranks that torchrun starts again meet under a name of their own, in a store that remembers those before them."""

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store

POLL_SECONDS = 0.02
_ASKS, _CAME = "scaledl/asks/{}", "scaledl/came/{}"


def meet(store: Store, rank: int, world_size: int, timeout: timedelta) -> PrefixStore:
    """The part of `store` that belongs to this start of the ranks.

    PyTorch 2.13 keeps one store for all restarts and numbers none of them, so a rank may read the address of one that
    is dead (pytorch#135712; counts of restarts differ from node to node). Here rank 0 names the meeting and answers
    questions that only living ranks put.

    Raises:
        TimeoutError: if not all ranks have come within the timeout.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(_ASKS.format(rank), mine)
        store.wait([mine], timeout)
        name = store.get(mine).decode()
        store.add(_CAME.format(name), 1)
        return PrefixStore(name, store)
    answered: dict[int, str] = {}
    deadline = time.monotonic() + timeout.total_seconds()
    while (came := 1 + store.add(_CAME.format(mine), 0)) < world_size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{came} of {world_size} ranks came within {timeout}; look at the others' output")
        for other in range(1, world_size):
            key = _ASKS.format(other)
            # Nothing is deleted: between reading and deleting, another question may have come, and would be lost.
            if store.check([key]) and (question := store.get(key).decode()) != answered.get(other):
                store.set(question, mine)
                answered[other] = question
        time.sleep(POLL_SECONDS)
    return PrefixStore(mine, store)
