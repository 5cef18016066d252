"""Tables of settings, as TOML has them, against the dataclasses that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from quantasr.errors import TrainingError

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def check_table(kind: type, table: Any, where: str) -> None:
    """Raise :class:`TrainingError`, naming ``where`` and the option, for what ``kind`` lacks or has as another type."""
    if not isinstance(table, Mapping):
        raise TrainingError(f"{where} = {table!r}: write a table of options")
    hints = get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise TrainingError(f"{where}: unknown option {unknown[0]!r}; known are {', '.join(sorted(hints))}")
    for name, value in table.items():
        if not _fits(value, hints[name]):
            raise TrainingError(f"{where}: {name} = {value!r}: write {_words(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if is_dataclass(hint):
        return isinstance(value, Mapping | hint)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in arguments if each not in (NoneType, Path))
    if origin is tuple:
        return "a list of " + {int: "whole numbers", float: "numbers"}.get(arguments[0], "strings")
    return _WORDS.get(hint, "a table of options")
