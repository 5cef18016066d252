"""Patterns that say which layers of a model are meant, as its users write their paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache

from quantasr.errors import RecipeError

_INDEX = re.compile(r"(?<=\w)\[\s*(-?\d*(?:\s*[,:]\s*-?\d*)*)\s*\]")
"""Numbers, lists and slices in brackets right behind a name: ``layers[3]``, ``layers[0, 2]``, ``layers[0:6]``."""


@dataclass(frozen=True)
class Pattern:
    """A path of a layer, or of a module that holds layers: then all of them are meant.

    ``*``, ``?`` and ``[a-c]`` are those of the shell, and ``*`` also crosses dots. Behind a name, ``[3]``, ``[0, 2]``
    and ``[0:6]`` are Python's, counted from the front: ``encoder.layers[0:6]`` is ``encoder.layers.0`` to
    ``encoder.layers.5`` and what is in them. Raises :class:`RecipeError` for an index that is none.
    """

    text: str

    def __post_init__(self) -> None:
        _compiled(self.text)

    def matches(self, path: str) -> bool:
        """Whether the layer or module at ``path`` is meant."""
        expression, tests = _compiled(self.text)
        found = expression.fullmatch(path)
        return found is not None and all(test(int(found[f"i{n}"])) for n, test in enumerate(tests))


@lru_cache(maxsize=1024)
def _compiled(text: str) -> tuple[re.Pattern[str], list[Callable[[int], bool]]]:
    parts = _INDEX.split(text)
    tests = [_index_test(index, text) for index in parts[1::2]]
    shell = [re.fullmatch(r"\(\?s:(.*)\)\\[Zz]", translate(part), re.DOTALL) for part in parts[::2]]
    expression = ""
    for n, part in enumerate(shell):
        assert part is not None, "fnmatch.translate wraps a pattern in (?s:...) and anchors its end"
        expression += (rf"\.(?P<i{n - 1}>\d+)" if n else "") + part[1]
    return re.compile(rf"(?s:{expression})(?:\..+)?"), tests


def _index_test(index: str, text: str) -> Callable[[int], bool]:
    """What ``[index]`` says of a number."""
    if "-" in index:
        raise RecipeError(f"{text!r}: [{index}] counts from the back: count from the front")
    try:
        if ":" not in index:
            numbers = {int(number) for number in index.split(",")}
            return numbers.__contains__
        start, stop, step = ([int(number) if number.strip() else None for number in index.split(":")] + [None])[:3]
        chosen = slice(start or 0, stop, step)
        if index.count(":") > 2 or step == 0:
            raise ValueError
    except ValueError:
        raise RecipeError(f"{text!r}: [{index}] is no index: write [3], [0, 2] or [0:6]") from None
    return lambda i: i in range(*chosen.indices(i + 1))


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names in ``known`` that are most like ``name``, best first.

    Names of as many parts come first: who misspells one part means the same depth.
    """
    names = list(dict.fromkeys(known))
    depth = name.count(".")
    alike = [other for other in names if other.count(".") == depth]
    found = get_close_matches(name, alike, count, 0.5) + get_close_matches(name, names, count, 0.5)
    return list(dict.fromkeys(found))[:count]
