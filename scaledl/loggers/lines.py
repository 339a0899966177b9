"""metrics.jsonl as a file: read, and rewound to a step. Without torch, for those who only read runs."""

import json
from pathlib import Path
from typing import Any

from scaledl import atomic


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a line torn by a kill is left out."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines


def rewind(path: Path, step: int) -> None:
    """Drop what was logged after `step`, and a torn last line, so that a run resumed from there logs it once."""
    if path.exists():
        atomic.write_text(path, "".join(json.dumps(line) + "\n" for line in read(path) if line["step"] <= step))
