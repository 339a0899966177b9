"""Killed at any moment, a run goes on as if nothing had happened; scripts/kill.py shows it for every strategy."""

from pathlib import Path

import pytest

from scripts.kill import Kill, hunt

pytestmark = [pytest.mark.distributed, pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize(
    ("strategy", "kills"),
    [("single", [Kill("save", "all")]), ("fsdp", [Kill("save", "all"), Kill("any", "one")])],
)
def test_a_killed_run_goes_on_bit_for_bit(strategy: str, kills: list[Kill], tmp_path: Path) -> None:
    result, _ = hunt(strategy, kills, tmp_path, seed=0)
    assert not result.problems, "\n".join(result.problems)
    assert result.kills == len(kills)
    assert result.in_save >= 1
