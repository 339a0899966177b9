"""What a logger beside the run's own log is told besides metrics: where the run begins, and how it ended."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class RunLogger(Logger):
    """Rank 0 calls both, `begin` before the first metric and `end` after the last, also of a run that failed.

    No error of `end` ends the run: it is told.
    """

    def begin(self, step: int, facts: dict[str, Any]) -> None:
        """The run goes on from `step` (0: it begins); what a killed attempt logged after it is logged again."""

    def end(self, summary: dict[str, Any]) -> None:
        """The run's summary.json has been written."""


@contextmanager
def told(what: str) -> Iterator[None]:
    """An error becomes a line for the person: a training does not end, and its own error is not hidden, for a log's."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: {in_a_line(error)}", stacklevel=3)


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip().partition(chr(10))[0]}".strip()
