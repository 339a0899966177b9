"""A job that hangs names the ranks it waits for, with what they do, and ends; it does not wait for ever.

Every rank gives signs of life to the store that all share. Where a main thread makes no progress for the set time, one
rank reads the signs, reports, and passes its verdict to the others; then all end.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

EXIT_HUNG = 124  # as timeout(1)

STORE_SECONDS = 5.0  # a store that needs longer for an answer is dead
LAUNCHER_SECONDS = 45  # longer than torchrun gives its ranks to end
LINES = 16

_T = TypeVar("_T")
_PREFIX, _CLAIMS, _VERDICT = "scaledl/alive/", "scaledl/watchdog/claims", "scaledl/watchdog/verdict"
_LIBRARIES = sys.stdlib_module_names | {"torch", "lightning", "deepspeed"}
_STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waits for a disk or a driver", "Z": "dead"}


def connect(timeout_seconds: float = STORE_SECONDS) -> dist.Store:
    """A connection to the default process group's store that shares neither lock nor timeout with the training's."""
    store = _get_default_store().clone()  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=timeout_seconds))
    return store


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself; `idle` seconds ago it was at its last tick."""

    host: str
    pid: int
    born: str
    beats: int
    clock: float
    ticks: int
    where: str
    idle: float
    doing: str
    left: str = ""

    @property
    def process_state(self) -> str:
        """The state letter of /proc; empty on another host, or if the process id has passed to another process."""
        state, born = _stat(self.pid) if self.host == socket.gethostname() else ("", "")
        return state if born == self.born else ""

    def kill(self) -> None:
        """End the process if it is on this host."""
        if self.process_state and self.pid != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


class Watchdog:
    """Ends this process with EXIT_HUNG when its main thread, or another rank's, has not ticked for the set time.

    Time in which this process itself was stopped does not count.

    Args:
        store: a client of its own, as `connect` gives.
        rank: of this process.
        world_size: how many ranks share the store.
        timeout_seconds: how long two ticks may lie apart.
        interval_seconds: between two signs of life; at most a quarter of the timeout.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, timeout_seconds: float, interval_seconds: float = 1.0
    ):
        self.rank, self.world_size, self.timeout_seconds = rank, world_size, timeout_seconds
        self.interval_seconds = min(interval_seconds, timeout_seconds / 4)
        self._store = store
        self._progress = (0, "start")
        self._beats, self._left = 0, ""
        self._launcher = os.getppid()
        self._born = _stat(os.getpid())[1]
        self._rank_zero: Sign | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="scaledl-watchdog", daemon=True)

    def start(self) -> None:
        atexit.register(self.stop)  # a thread that is in the store when the interpreter ends would abort the process
        self._thread.start()

    def tick(self, where: str) -> None:
        self._progress = (self._progress[0] + 1, where)

    def stop(self, why: str = "finished") -> None:
        """End the watch; from now on other ranks hear that this one has left, and why."""
        atexit.unregister(self.stop)
        self._left = self._left or why
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(3 * STORE_SECONDS)

    def _watch(self) -> None:
        idle, seen, before = 0.0, self._progress, time.monotonic()
        exchange: Future[list[Sign] | None] | None = None
        while not self._stopped.is_set():
            now = time.monotonic()
            idle += min(now - before, 3 * self.interval_seconds)
            before = now
            if self._progress is not seen:
                idle, seen = 0.0, self._progress
            if exchange is None or exchange.done():
                exchange = _in_background(partial(self._exchange, self._sign(idle)))
            with contextlib.suppress(TimeoutError, RuntimeError):
                silent = exchange.result(self.interval_seconds)
                if silent is not None:
                    self._stopped.wait(3 * self.interval_seconds)  # the rank that reported goes first
                    self._end(silent)
            if idle >= self.timeout_seconds:
                self._give_up(idle, seen)
            self._stopped.wait(self.interval_seconds)
        last = _in_background(partial(self._publish, self._sign(idle)))
        for call in (exchange, last):  # one that is still in the store when the interpreter ends aborts the process
            with contextlib.suppress(TimeoutError, RuntimeError):
                if call is not None:
                    call.result(STORE_SECONDS)

    def _sign(self, idle: float) -> Sign:
        self._beats += 1
        ticks, where = self._progress
        host, doing = socket.gethostname(), _doing()
        return Sign(host, os.getpid(), self._born, self._beats, time.time(), ticks, where, idle, doing, self._left)

    def _publish(self, sign: Sign) -> None:
        self._store.set(f"{_PREFIX}{self.rank}", json.dumps(asdict(sign)))

    def _exchange(self, sign: Sign) -> list[Sign] | None:
        """Publish the sign; the silent ranks if another rank has given its verdict."""
        self._publish(sign)
        if self._rank_zero is None:
            self._rank_zero = self._read([0]).get(0)
        if not self._store.check([_VERDICT]):
            return None
        return [Sign(**fields) for fields in json.loads(self._store.get(_VERDICT))]

    def _read(self, ranks: list[int]) -> dict[int, Sign]:
        keys = {rank: f"{_PREFIX}{rank}" for rank in ranks}
        if not self._store.check(list(keys.values())):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        many = keys and self._store.has_extended_api()  # type: ignore[attr-defined]
        values = self._store.multi_get(list(keys.values())) if many else map(self._store.get, keys.values())
        return {rank: Sign(**json.loads(value)) for rank, value in zip(keys, values, strict=True)}

    def _give_up(self, idle: float, seen: tuple[int, str]) -> None:
        """Find out who is missing, report and end; or leave that to the rank that came first."""
        everyone = list(range(self.world_size))
        pause = 3 * self.interval_seconds
        try:
            first = _in_background(partial(self._store.add, _CLAIMS, 1)).result(STORE_SECONDS) == 1
            if not first and idle < self.timeout_seconds + 2 * STORE_SECONDS + 2 * pause:
                return
            before = _in_background(partial(self._read, everyone)).result(STORE_SECONDS)
            self._stopped.wait(pause)
            after = _in_background(partial(self._read, everyone)).result(STORE_SECONDS)
        except (TimeoutError, RuntimeError):
            self._give_up_on_store(idle, seen)
            return
        if self._progress is not seen:
            with contextlib.suppress(TimeoutError, RuntimeError):
                _in_background(partial(self._store.set, _CLAIMS, "0")).result(STORE_SECONDS)
            return
        after[self.rank] = self._sign(idle + pause)
        silent = {rank for rank in before if after[rank].beats == before[rank].beats and not after[rank].left}
        if self._stopped.is_set():
            return
        _print(report(idle, self.world_size, after, silent))
        with contextlib.suppress(TimeoutError, RuntimeError):
            verdict = json.dumps([asdict(after[rank]) for rank in silent])
            _in_background(partial(self._store.set, _VERDICT, verdict)).result(STORE_SECONDS)
        self._stopped.wait(2 * self.interval_seconds)  # the store may end with this process: let the others read it
        self._end([after[rank] for rank in silent])

    def _give_up_on_store(self, idle: float, seen: tuple[int, str]) -> None:
        if self._stopped.is_set() or self._progress is not seen:
            return
        lines = [
            f"scaledl: no progress for {idle:.0f} s on rank {self.rank}, and the ranks' shared store does not answer.",
            f"  rank {self.rank} (host {socket.gethostname()}, pid {os.getpid()}) is at: {seen[1]}, in {_doing()}",
            "  The store lives in the launcher, or else in rank 0: look at that process, its host and the network.",
        ]
        stopped = self._rank_zero if self._rank_zero and self._rank_zero.process_state in ("T", "t") else None
        if stopped:
            lines.insert(1, f"  rank 0 (host {stopped.host}, pid {stopped.pid}) is stopped")
        _print("\n".join(lines))
        if "TORCHELASTIC_RUN_ID" in os.environ:  # cut off as we are, torchrun would wait for its own store for minutes
            with contextlib.suppress(OSError):
                if os.getppid() == self._launcher:  # else it is gone, and our parent is another
                    os.kill(self._launcher, signal.SIGTERM)
                    _kill_later(self._launcher)
        self._end([stopped] if stopped else [])

    def _end(self, silent: list[Sign]) -> None:
        for sign in silent:  # a stopped process would not react to the launcher's SIGTERM
            sign.kill()
        if not self._stopped.is_set():  # else the main thread ends the process, maybe with an error of its own
            os._exit(EXIT_HUNG)


def report(idle: float, world_size: int, signs: dict[int, Sign], silent: set[int]) -> str:
    """The ranks that hold the others up come first, then those that do what few others do."""
    furthest = max((sign.ticks for rank, sign in signs.items() if rank not in silent), default=0)
    alike = Counter(sign.doing for sign in signs.values())
    lines: list[tuple[int, int, int, str]] = []
    for rank in range(world_size):
        sign = signs.get(rank)
        if sign is None:
            lines.append((0, 0, rank, f"rank {rank} has given no sign of life since the start"))
            continue
        who = f"rank {rank} (host {sign.host}, pid {sign.pid})"
        last = f"at: {sign.where}, in {sign.doing}"
        if rank in silent:
            kind, state = 0, _STATES.get(sign.process_state, "")
            state = f" ({state})" if state else ""
            text = f"gives no sign of life for {max(0.0, time.time() - sign.clock):.0f} s{state}; it was last {last}"
        elif sign.left:
            kind, text = 1, f"has left ({sign.left}); it was last at: {sign.where}"
        elif sign.ticks < furthest:
            kind, text = 2, f"is behind, for {sign.idle:.0f} s {last}"
        else:
            kind, text = 3, f"waits, for {sign.idle:.0f} s {last}"
        lines.append((kind, alike[sign.doing], rank, f"{who} {text}"))
    lines.sort()
    more = [f"and {len(lines) - LINES} more ranks"] if len(lines) > LINES else []
    advice = (
        "Look at the silent processes and their hosts: stopped, out of memory, disk, network.",
        "Look at the error of the rank that has left.",
        "Find out what holds up the ranks behind, or raise timeout_seconds if that may take so long.",
        "All wait for each other: in different operations if their code has parted, else for the network.",
    )[lines[0][0]]
    heading = f"scaledl: no progress for {idle:.0f} s; of {world_size} ranks"
    return "\n  ".join([heading, *(text for *_, text in lines[:LINES]), *more, advice])


def _doing() -> str:
    """The collective that the main thread is in, or else its innermost function, and who of no library called it."""
    innermost = frame = sys._current_frames().get(threading.main_thread().ident or 0)
    operation: FrameType | None = None
    while frame is not None and _module(frame).partition(".")[0] in _LIBRARIES:
        communicates = _module(frame).startswith(("torch.distributed.", "deepspeed.comm"))
        if operation is None and communicates and "_checkpoint" not in _module(frame):
            operation = frame
        frame = frame.f_back
    operation = operation or innermost
    parts = [f"{at.f_code.co_qualname} ({_module(at)}:{at.f_lineno})" for at in (operation, frame) if at is not None]
    return ", called by ".join(dict.fromkeys(parts))


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "?")


def _stat(pid: int) -> tuple[str, str]:
    """(state letter, start time) of a process, both empty where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _kill_later(pid: int) -> None:
    """Kill a process that has not ended by then: torchrun may hear SIGTERM only when a call to its store returns."""
    still_it = f'[ "$(cut -d" " -f22 /proc/{pid}/stat)" = {_stat(pid)[1]} ]'
    command = f"sleep {LAUNCHER_SECONDS}; {still_it} && kill -9 {pid}"
    quiet: dict[str, int] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen(["sh", "-c", command], start_new_session=True, **quiet)  # type: ignore[call-overload]


def _in_background(function: Callable[[], _T]) -> "Future[_T]":
    """Call in a thread that can be left behind: a dead store, or a full pipe, may never let it return."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="scaledl-watchdog-call", daemon=True).start()
    return future


def _print(text: str) -> None:
    """To stderr past sys.stderr, whose lock the main thread may hold."""
    with contextlib.suppress(TimeoutError, OSError):
        _in_background(partial(os.write, 2, f"\n{text}\n".encode())).result(STORE_SECONDS)
