"""The pictures and texts that a run leaves in `samples/` and `plots/`, whatever callback has drawn them."""

import re
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("samples", "plots")
PICTURES, TEXTS = (".png", ".gif"), (".txt",)
_OF_STEP = re.compile(r"step_(\d+)$")


@dataclass(frozen=True)
class Drawn:
    """A file; `step` where its name tells the step at which it was drawn."""

    path: Path
    step: int | None

    @property
    def name(self) -> str:
        """`plots/confusion`, or `samples/pictures` and `samples/texts` for those of every step."""
        kind = "texts" if self.path.suffix in TEXTS else "pictures"
        return f"{self.path.parent.name}/{kind if self.step is not None else self.path.stem}"


def drawn(run_dir: Path) -> list[Drawn]:
    """All of them, samples first, in the order of their steps."""
    found = []
    for folder in FOLDERS:
        for path in sorted((run_dir / folder).glob("*")):
            if path.suffix in PICTURES + TEXTS and not path.name.startswith("."):
                of_step = _OF_STEP.match(path.stem)
                found.append(Drawn(path, int(of_step[1]) if of_step else None))
    return found


class Watched:
    """Gives each file once, and again when it was drawn anew; what is there at the start is an earlier attempt's."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._seen: dict[Path, tuple[int, int]] = {}
        self.new()

    def new(self) -> list[Drawn]:
        found = []
        for each in drawn(self.run_dir):
            state = each.path.stat()
            if self._seen.get(each.path) != (state.st_mtime_ns, state.st_size):
                self._seen[each.path] = state.st_mtime_ns, state.st_size
                found.append(each)
        return found
