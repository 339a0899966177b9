"""Check a composed config against the signatures of what it names, before anything is built: all problems at once.

The signature of a target is its schema. Nothing is constructed here; modules are imported, and only those whose names
stand under an allowed root, because importing code named in a config runs that code.
"""

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scaledl.config.accepts import accepts, described, literals

# What a config may name. Classes only, because functions of these libraries load pickles and start programs.
ALLOWED = (
    "scaledl.callbacks",
    "scaledl.data",
    "scaledl.distributed",
    "scaledl.federated",
    "scaledl.layers",
    "scaledl.loggers",
    "scaledl.models",
    "scaledl.optim",
    "scaledl.tasks",
    "torch.nn",
    "torch.optim",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.trainer.trainer.Trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "optuna.pruners",
    "wandb.Settings",
    "wandb.sdk.wandb_settings.Settings",
)
_FUNCTIONS = ("scaledl.optim.schedule",)
_SPECIAL = {"_target_", "_partial_"}


class ConfigError(ValueError):
    """What is wrong with a config, every problem in one message."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(dict.fromkeys(problems))
        count = "one problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"the config has {count}:", *(f"  - {problem}" for problem in self.problems)]))


def validate(
    config: DictConfig, root: type, provided: Mapping[str, Collection[str]], allowed: Collection[str] = ALLOWED
) -> list[str]:
    """Every problem of `config`, whose top must be as the dataclass `root` says.

    Args:
        provided: by node (`task`), the arguments that code passes itself and a config need not give.
    """
    check = _Check(provided, allowed)
    check.call(config, "", root)
    return check.problems


class _Check:
    """A walk through a config that collects problems."""

    def __init__(self, provided: Mapping[str, Collection[str]], allowed: Collection[str]):
        self.provided, self.allowed = provided, allowed
        self.problems: list[str] = []

    def node(self, node: Any, path: str) -> None:
        if isinstance(node, ListConfig):
            for index in range(len(node)):
                self.node(self.value(node, index, f"{path}[{index}]"), f"{path}[{index}]")
        elif isinstance(node, DictConfig) and "_target_" not in node:
            for key in map(str, node):
                self.node(self.value(node, key, f"{path}.{key}"), f"{path}.{key}")
        elif isinstance(node, DictConfig):
            try:
                target = locate(node["_target_"], self.allowed)
            except (ValueError, ImportError) as error:
                self.problems.append(f"{path}: {error}")
            else:
                self.call(node, path, target)

    def call(self, node: DictConfig, path: str, target: Callable[..., Any]) -> None:
        parameters, hints = _signature(target)
        given = self.provided.get(path, ())
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        owner = getattr(target, "__name__", str(target)) if path else "the config"
        for key in map(str, node):
            key_path = f"{path}.{key}" if path else key
            if key in _SPECIAL:
                continue
            if key in given:
                self.problems.append(f"{key_path}: the run sets this itself, from the rest of the config; leave it out")
            elif key.startswith("_"):
                self.problems.append(f"{key_path}: not allowed; give arguments by their names")
            elif key in names or takes_any:
                self.argument(node, key, key_path, hints.get(key, Any))
            else:
                hint = did_you_mean(key, [name for name in names if name not in given])
                self.problems.append(f"{key_path}: {owner} has no setting {key!r}{hint}")
        if not node.get("_partial_"):
            needed = [name for name in names if parameters[name].default is inspect.Parameter.empty]
            written = set(node)  # `in` would not see a key whose value is ???
            missing = [name for name in needed if name not in written and name not in given]
            self.problems += [f"{path}.{name}: missing; {owner} needs it".lstrip(".") for name in missing]

    def argument(self, node: DictConfig, key: str, path: str, hint: Any) -> None:
        before = len(self.problems)
        value = self.value(node, key, path)
        if len(self.problems) > before or _is_fact_to_be_found(node, key, value):
            return
        self.node(value, path)
        if not accepts(value, hint):
            meant = did_you_mean(value, literals(hint)) if isinstance(value, str) else ""
            shown = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            self.problems.append(f"{path}: {shown!r} is not {described(hint)}{meant}")

    def value(self, node: DictConfig | ListConfig, key: Any, path: str) -> Any:
        try:
            return node[key]
        except OmegaConfBaseException as error:
            raw = _raw(node, key)
            link = f"{raw} cannot be resolved ({str(error).splitlines()[0]})"
            self.problems.append(f"{path}: {'must be given' if raw == '???' else link}")
            return None


def locate(name: str, allowed: Collection[str] = ALLOWED) -> Callable[..., Any]:
    """The class or function called `name`, if it stands under an allowed root.

    Raises:
        ValueError: the name is not allowed, does not exist, or leads out of the allowed roots (`torch.nn.os.system`).
    """
    if not _under(name, allowed):
        raise ValueError(
            f"_target_ {name!r} may not be named by a config; if you trust it, add --allow {name.split('.')[0]}"
        )
    module_name, found = name, None
    while "." in module_name and found is None:
        module_name = module_name.rpartition(".")[0]
        try:
            found = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise ValueError(f"_target_ {name!r} needs the package {error.name!r}; install it") from error
    parent: Any = found
    for part in name[len(module_name) + 1 :].split("."):
        if not hasattr(parent, part):
            known = [key for key, value in vars(parent).items() if callable(value)] if parent else []
            raise ValueError(f"_target_ {name!r} does not exist{did_you_mean(part, known)}")
        parent = getattr(parent, part)
    real = f"{getattr(parent, '__module__', '')}.{getattr(parent, '__qualname__', '')}"
    extended = [root for root in allowed if root not in ALLOWED]
    trusted = inspect.isclass(parent) or (callable(parent) and _under(real, [*_FUNCTIONS, *extended]))
    if not trusted or not _under(real, allowed) or "._" in f".{name}":
        raise ValueError(f"_target_ {name!r} is really {real!r}, which a config may not call")
    return parent


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _signature(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # a builtin without a signature takes what it takes
        parameters = {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        hints = {name: p.annotation for name, p in parameters.items() if not isinstance(p.annotation, str)}
    return parameters, {name: hint for name, hint in hints.items() if hint is not inspect.Parameter.empty}


def _is_fact_to_be_found(node: DictConfig, key: str, value: Any) -> bool:
    """A null that is linked from `data` is a fact (vocab_size, ...) that the data tells once it is prepared."""
    raw = _raw(node, key)
    return value is None and isinstance(raw, str) and raw.startswith("${data.")


def _raw(node: DictConfig | ListConfig, key: Any) -> Any:
    container: Any = OmegaConf.to_container(node, resolve=False)
    return container[key]


def _under(name: str, roots: Collection[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)
