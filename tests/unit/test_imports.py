"""Imports point down: layers -> models; tasks know neither models nor data; config knows nothing of ours."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "scaledl"

FORBIDDEN = {
    "config": ("scaledl.",),
    "layers": ("scaledl.models", "scaledl.tasks", "scaledl.data", "scaledl.callbacks", "scaledl.distributed"),
    "models": ("scaledl.tasks", "scaledl.data", "scaledl.callbacks", "scaledl.distributed", "scaledl.optim"),
    "tasks": ("scaledl.models", "scaledl.data", "scaledl.callbacks", "scaledl.build", "scaledl.train"),
    "data": ("scaledl.models", "scaledl.tasks", "scaledl.callbacks", "scaledl.build", "scaledl.train"),
    "optim": ("scaledl.models", "scaledl.tasks", "scaledl.data", "scaledl.callbacks"),
    "distributed": ("scaledl.models", "scaledl.tasks", "scaledl.data", "scaledl.callbacks"),
    "callbacks": ("scaledl.models", "scaledl.build", "scaledl.train", "scaledl.federated"),
    "federated": ("scaledl.models", "scaledl.config", "scaledl.build", "scaledl.train"),
    "planning": ("scaledl.models", "scaledl.data", "scaledl.callbacks", "scaledl.build", "scaledl.train"),
    "interpret": ("scaledl.models", "scaledl.callbacks", "scaledl.build", "scaledl.train"),
}
LIGHT = ("cli.py", "experiments.py", "config/folders.py", "interpret/methods.py")
HEAVY = ("torch", "lightning", "hydra", "omegaconf", "numpy", "rich")


def imports(path: Path, only_top_level: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if only_top_level else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_point_down(layer: str) -> None:
    own = "scaledl.config" if layer == "config" else f"scaledl.{layer}"
    files = list((PACKAGE / layer).glob("*.py"))
    assert files
    for path in files:
        upward = [n for n in imports(path) if n.startswith(FORBIDDEN[layer]) and not n.startswith(own)]
        assert not upward, f"{path.name} imports {upward}"


@pytest.mark.parametrize("name", LIGHT)
def test_help_and_list_import_nothing_heavy(name: str) -> None:
    heavy = [n for n in imports(PACKAGE / name, only_top_level=True) if n.split(".")[0] in HEAVY]
    assert not heavy


def test_only_build_instantiates() -> None:
    users = [p.name for p in PACKAGE.rglob("*.py") if any(n.startswith("hydra.utils") for n in imports(p))]
    assert users == ["build.py"]


def test_nothing_is_called_utils_or_helpers() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if "util" in p.name or "helper" in p.name]
