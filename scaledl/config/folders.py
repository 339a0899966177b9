"""Where configs lie: our own conf/ (in a checkout or inside the installed wheel), behind the user's folders."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent

CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())


def config_folders(user_folders: list[str]) -> list[Path]:
    """The user's folders, which win, then ours.

    Raises:
        ValueError: a folder does not exist.
    """
    for folder in user_folders:
        if not Path(folder).is_dir():
            raise ValueError(
                f"--config-dir {folder}: there is no such folder; give one that holds experiment/, model/, ..."
            )
    return [*(Path(folder).resolve() for folder in user_folders), CONF]


def as_words(folders: list[Path], allowed: list[str]) -> list[str]:
    """The options by which another process finds the same configs; the last folder is ours."""
    words = [word for folder in folders[:-1] for word in ("--config-dir", str(folder))]
    return words + [word for package in allowed for word in ("--allow", package)]


def is_group(key: str, folders: list[Path]) -> bool:
    return any((folder / key).is_dir() for folder in folders)


def options(group: str, folders: list[Path]) -> list[str]:
    """Names that `group=` may take, such as `mlp/circles` for `experiment`."""
    pattern = "**/*.yaml" if group == "experiment" else "*.yaml"  # a folder below another group is a group of its own
    return sorted(
        {
            path.relative_to(folder / group).with_suffix("").as_posix()
            for folder in folders
            for path in (folder / group).glob(pattern)
        }
    )
