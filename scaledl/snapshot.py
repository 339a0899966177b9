"""The code of a run, kept in its directory, so that a job that waits in a queue runs what was submitted."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

from scaledl.config.folders import CONF

_PACKAGE = Path(__file__).resolve().parent
SLURM = next(
    folder for folder in (_PACKAGE / "slurm", _PACKAGE.parent / "slurm") if (folder / "train.sbatch").is_file()
)


def keep_code(folder: Path, packages: list[str]) -> None:
    """Copy scaledl, its conf/ and slurm/, and packages that are not installed to `folder`, with commits and changes.

    Raises:
        ValueError: a package cannot be found.
        OSError: the folder exists.
    """
    sources = {package: source for package in packages if "site-packages" not in (source := _source_of(package)).parts}
    beside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(_PACKAGE, beside / "scaledl", ignore=no_caches)
    shutil.copytree(SLURM, beside / "slurm")
    if CONF.parent != _PACKAGE:
        shutil.copytree(CONF, beside / "conf")
    for package, source in sources.items():
        if source.is_dir():
            shutil.copytree(source, beside / package, ignore=no_caches)
        else:
            shutil.copy2(source, beside / source.name)
    of = {"project": Path.cwd()} | ({"scaledl": _PACKAGE.parent} if (_PACKAGE.parent / ".git").exists() else {})
    for name, checkout in of.items():
        if commit := _git(checkout, "rev-parse", "HEAD"):
            (beside / f"{name}.commit").write_text(commit)
            (beside / f"{name}.diff").write_text(_git(checkout, "diff", "HEAD"))
    beside.rename(folder)


def commit_of_scaledl() -> str | None:
    """The commit of the code that runs, be it a checkout or a kept copy; an installed package has none."""
    kept = _PACKAGE.parent / "scaledl.commit"
    if kept.is_file():
        return kept.read_text().strip()
    return _git(_PACKAGE.parent, "rev-parse", "HEAD").strip() or None if (_PACKAGE.parent / ".git").exists() else None


def _source_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"--allow {package}: there is no such package to be found from here")
    origin = Path(found.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def _git(folder: Path, *words: str) -> str:
    """What git answers; nothing where there is no git or no repository."""
    try:
        asked = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return ""
    return asked.stdout if asked.returncode == 0 else ""
