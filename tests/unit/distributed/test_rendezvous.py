import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from scaledl.distributed.rendezvous import meet

SOON = timedelta(seconds=20)


@pytest.fixture
def port() -> Iterator[int]:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


def client(port: int) -> TCPStore:
    return TCPStore("localhost", port, is_master=False, timeout=SOON)


def meeting(port: int, order: list[int]) -> dict[int, bytes]:
    """What each rank reads of what rank 0 wrote."""
    read = {}

    def come(rank: int) -> None:
        store = meet(client(port), rank, len(order), SOON)
        if rank == 0:
            store.set("address", f"of meeting {order}")
        read[rank] = store.get("address")

    threads = [threading.Thread(target=come, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return read


def test_a_second_meeting_reads_nothing_of_the_first(port: int) -> None:
    assert meeting(port, [0, 1, 2]) == dict.fromkeys(range(3), b"of meeting [0, 1, 2]")
    assert meeting(port, [2, 1, 0]) == dict.fromkeys(range(3), b"of meeting [2, 1, 0]")


def test_the_question_of_a_rank_that_died_is_answered_to_nobody(port: int) -> None:
    client(port).set("scaledl/asks/1", "dead")
    assert meeting(port, [0, 1]) == dict.fromkeys(range(2), b"of meeting [0, 1]")


def test_ranks_that_do_not_come_are_counted(port: int) -> None:
    with pytest.raises(TimeoutError, match="1 of 2 ranks came"):
        meet(client(port), 0, 2, timedelta(seconds=0.2))
