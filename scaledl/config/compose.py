"""From the words of a command line to a config, with every problem of the words found at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from scaledl.config import resolvers
from scaledl.config.folders import is_group, options
from scaledl.config.validate import ConfigError, did_you_mean


def compose(words: list[str], folders: list[Path]) -> tuple[DictConfig, list[str]]:
    """The composed config of `words` (Hydra's override grammar) and what was wrong with them.

    Value overrides are taken without Hydra's own check of keys: validation against the signatures sees more (a key that
    an argument has but no yaml mentions is right) and finds all the wrong ones together. What stands in another run is
    copied from there first, so that a value may change a part of it.

    Raises:
        ConfigError: the words cannot be composed at all.
    """
    overrides, problems = _parse(words, folders)
    experiment = next((o.value() for o in overrides if o.key_or_group == "experiment"), None)
    inner = [o for o in overrides if "." in o.key_or_group and not o.is_delete() and not _is_choice(o, folders)]
    lines = [_line(o, folders) for o in overrides if o not in inner]
    try:
        config = _hydra("train", lines, folders)
        with flag_override(config, ["struct", "readonly"], False):
            resolvers.copy_from_runs(config)
            for override in inner:
                node = override.key_or_group.partition(".")[0]
                if OmegaConf.is_interpolation(config, node):
                    problems.append(
                        f"{override.input_line}: {node} is that of another run, which is not found; give its "
                        "directory, init_from=RUN"
                    )
                else:
                    OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([*problems, _reason(error)]) from error
    if config.experiment is None:
        config.experiment = experiment or "custom/run"
    config.run_id = str(config.run_id)  # settled once: every later reading of the link sees the same name
    return config, problems


def change(config: DictConfig, words: list[str], folders: list[Path]) -> list[str]:
    """Apply `words` to a composed config, as `scaledl resume` does; returns what was wrong with them."""
    resolvers.register()
    overrides, problems = _parse(words, folders)
    for override in overrides:
        place = override.key_or_group.replace("/", ".")
        if place == "experiment":
            problems.append(f"{override.input_line}: a run keeps its experiment; start a new run for another one")
            continue
        value: Any = override.value()
        if _is_choice(override, folders):
            value = choose(override.key_or_group, str(value), folders)
        with flag_override(config, ["struct", "readonly"], False):
            OmegaConf.update(config, place, value, merge=False)
    return problems


def choose(group: str, choice: str, folders: list[Path], lines: Sequence[str] = ()) -> DictConfig:
    """The file `choice` of conf/<group>, composed by itself.

    Args:
        lines: of Hydra's grammar, as they stand.

    Raises:
        ConfigError: it cannot be composed.
    """
    try:
        return OmegaConf.select(_hydra(f"{group}/{choice}", list(lines), folders), group.replace("/", "."))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError([f"{group}={choice}: {_reason(error)}"]) from error


def _parse(words: list[str], folders: list[Path]) -> tuple[list[Override], list[str]]:
    """The overrides that can be used, and what is wrong with the others."""
    overrides, problems = [], []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            problems.append(f"{word}: not in the form key=value ({str(error).splitlines()[0]})")
            continue
        problem = _problem(override, folders)
        if problem:
            problems.append(problem)
        else:
            overrides.append(override)
    return overrides, problems


def _hydra(name: str, lines: list[str], folders: list[Path]) -> DictConfig:
    resolvers.register()
    GlobalHydra.instance().clear()
    # Hydra's own entry looks into the folder of train.yaml first; here the user's folders win.
    Plugins.instance()  # they read file:// and pkg://
    search_path = ConfigSearchPathImpl()
    search_path.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        search_path.append("scaledl", f"file://{folder}")
    search_path.append("schema", "structured://")
    Hydra.create_main_hydra2("scaledl", search_path)
    try:
        return hydra_compose(name, overrides=lines)
    finally:
        GlobalHydra.instance().clear()


def _is_choice(override: Override, folders: list[Path]) -> bool:
    return is_group(override.key_or_group.split("@")[0], folders) and not isinstance(override.value(), dict)


def _line(override: Override, folders: list[Path]) -> str:
    line = override.input_line or ""
    return line if override.is_delete() or _is_choice(override, folders) else "++" + line.lstrip("+")


def _problem(override: Override, folders: list[Path]) -> str | None:
    key, line = override.key_or_group.split("@")[0], override.input_line
    if key == "sweep":
        return f"{line}: a search is started by `scaledl train -m`; hydra/launcher=slurm makes each trial a Slurm job"
    if override.is_sweep_override():
        return f"{line}: several values; give one, or quote it if the comma belongs to it"
    if key.startswith("hydra"):
        return f"{line}: hydra.* settings do nothing here; a run writes to run_dir, which you may set"
    if is_group(key, folders) and not override.is_delete():
        known, value = options(key, folders), override.value()
        if value is None or (isinstance(value, str) and value not in known):
            hint = did_you_mean(value or "", known)
            return f"{line}: there is no {key} {value!r}{hint} ({key} may be: {', '.join(known)})"
        if key == "experiment" and "@package _global_" not in _text(f"experiment/{value}.yaml", folders):
            return f"{line}: the file must begin with the line `# @package _global_`, for it changes all groups"
    return None


def _text(name: str, folders: list[Path]) -> str:
    return next((folder / name).read_text(encoding="utf-8") for folder in folders if (folder / name).is_file())


def _reason(error: Exception) -> str:
    cause: BaseException = error
    while isinstance(cause, ConfigCompositionException) and cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(line.strip() for line in str(cause).splitlines() if line.strip())
