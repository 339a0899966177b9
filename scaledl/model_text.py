"""A model as lines that a person reads: its modules and how many parameters each has."""

from torch import nn

DEPTH = 3


def describe(model: nn.Module, depth: int = DEPTH) -> str:
    """A line for each module down to `depth`; equal ones that follow one another are one line, as in `blocks.0-11`."""
    rows: list[tuple[int, str, str, int]] = []

    def walk(name: str, module: nn.Module, level: int) -> None:
        rows.append((level, name, type(module).__name__, sum(p.numel() for p in module.parameters())))
        if level == depth:
            return
        children = list(module.named_children())
        while children:
            first, child = children[0]
            alike = 1
            while alike < len(children) and str(children[alike][1]) == str(child):
                alike += 1
            last = children[alike - 1][0]
            walk(first if alike == 1 else f"{first}-{last}, each", child, level + 1)
            children = children[alike:]

    walk("model", model, 0)
    names = ["  " * level + name for level, name, _, _ in rows]
    width, kinds = max(map(len, names)), max(len(kind) for _, _, kind, _ in rows)
    lines = [f"{n:<{width}}  {k:<{kinds}}  {c:>14,}" for n, (_, _, k, c) in zip(names, rows, strict=True)]
    return "\n".join(lines) + "\n"
