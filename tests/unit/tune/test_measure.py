import os
from pathlib import Path

import pytest
import torch

from scaledl.tune import measure

ALL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "2000"}, 2000),
        (
            "5:cpu:/job\n4:memory:/job\n0::/\n",
            {"memory/job/memory.limit_in_bytes": "3000", "job/memory.max": "1"},
            3000,
        ),
        ("4:cpu,memory:/seen/from/outside\n", {"memory/memory.limit_in_bytes": "4000"}, 4000),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": str(2**63 - 4096)}, ALL),
        ("", {}, ALL),
    ],
    ids=["version 2", "its namespace", "version 1", "a container of version 1", "no limit", "no groups"],
)
def test_memory_is_what_a_control_group_leaves(own: str, limits: dict[str, str], expected: int, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(limit + "\n")
    assert measure.host_memory(tmp_path / "groups", tmp_path / "own") == expected
    assert measure.host_memory(tmp_path / "groups", tmp_path / "nothing") == ALL


def test_ranks_share_what_a_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(measure, "host_memory", lambda: 4000)
    taken, there = measure._memory()
    assert there == 1000
    assert taken > 2**20
