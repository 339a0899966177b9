"""How far a long piece of work is: a bar on a terminal, lines elsewhere, nothing at all for less than a second."""

import sys
import time
from typing import Any

SECONDS = 10.0  # between two lines


class Progress:
    """Shows bytes done, their rate, that of each process and the time that is left.

    Args:
        total: bytes (or characters, whose number is about the same); None: not known.
    """

    def __init__(self, what: str, total: int | None, processes: int = 1):
        self.what, self.total, self.processes = what, total, processes
        self.began = time.monotonic()
        self.next = self.began + 1
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        if not sys.stderr.isatty():
            print(f"{self.what}: {self.line(done, now - self.began)}", file=sys.stderr, flush=True)
            self.next = now + SECONDS
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
            self.bar.add_task("", total=self.total)
        self.bar.update(0, completed=done, description=f"{self.what}: {self.line(done, now - self.began)}")
        self.next = now + 0.2

    def line(self, done: int, seconds: float) -> str:
        rate = done / seconds / 1e6
        of = f" of {self.total / 1e6:.1f}" if self.total else ""
        words = [f"{done / 1e6:.1f}{of} MB", f"{rate:.1f} MB/s"]
        if self.processes > 1:
            words.append(f"{rate / self.processes:.1f} MB/s per core")
        if self.total and rate:
            words.append(f"{max(0.0, self.total - done) / 1e6 / rate:.0f} s left")
        return ", ".join(words)
