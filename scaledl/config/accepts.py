"""Whether a value of a config fits the type hint of an argument, and that hint in words."""

import inspect
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Union

from omegaconf import DictConfig, ListConfig


def accepts(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, (str, typing.TypeVar)):
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if isinstance(value, DictConfig):
        is_target = "_target_" in value or not len(value)
        mapping = hint is dict or (inspect.isclass(origin) and issubclass(origin, Mapping))
        return is_target or mapping or not _is_plain(hint)
    if value is None:
        return hint in (None, type(None))
    if isinstance(value, bool):
        return hint is bool or (not _is_plain(hint) and not inspect.isclass(hint))
    if hint is float:
        return isinstance(value, (int, float))
    if isinstance(value, ListConfig):
        container = origin or hint
        if not (inspect.isclass(container) and issubclass(container, (Sequence, Collection))) or container is str:
            return not _is_plain(hint)
        items = [argument for argument in arguments if argument is not Ellipsis]
        if container is tuple and len(items) > 1 and Ellipsis not in arguments and len(items) != len(value):
            return False
        return (
            all(accepts(item, items[i] if i < len(items) else items[-1]) for i, item in enumerate(value))
            if items
            else True
        )
    if inspect.isclass(hint):
        return isinstance(value, hint) or (isinstance(value, str) and hasattr(hint, "__fspath__"))
    return not (_is_plain(hint) or inspect.isclass(origin))  # a scalar is no list, mapping or callable


def _is_plain(hint: Any) -> bool:
    return hint in (int, float, str, bool, None, type(None)) or typing.get_origin(hint) is Literal


def literals(hint: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return [option for option in typing.get_args(hint) if isinstance(option, str)]
    return [option for argument in typing.get_args(hint) for option in literals(argument)]


def described(hint: Any) -> str:
    """The hint in words: `list[int]` is "a list of whole numbers"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in names:
        return names[hint]
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(described(option) for option in arguments))
    if origin is list or (origin is tuple and Ellipsis in arguments):
        return f"a list, each item {described(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: " + ", ".join(described(option) for option in arguments)
    if origin is None and inspect.isclass(hint):
        return f"a {hint.__name__}"
    return str(hint).replace("typing.", "")
