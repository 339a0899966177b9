"""What a logger beside the run's own log is told besides metrics: where the run begins, and how it ended."""

from typing import Any

from lightning.pytorch.loggers.logger import Logger


class RunLogger(Logger):
    """Rank 0 calls both, `begin` before the first metric and `end` after the last, also of a run that failed."""

    def begin(self, step: int, facts: dict[str, Any]) -> None:
        """The run goes on from `step` (0: it begins); what a killed attempt logged after it is logged again."""

    def end(self, summary: dict[str, Any]) -> None:
        """The run's summary.json has been written."""
