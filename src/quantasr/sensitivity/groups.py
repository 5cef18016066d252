"""Which layers are quantized together: the rows of the table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from quantasr.errors import RecipeError
from quantasr.recipes.pattern import Pattern, nearest

BY = {
    "module": "blocks (an index in the path, as encoder.layers.3), and the modules beside and around them",
    "layer": "each layer",
    "kind": "linear, conv1d, ...",
    "part": "encoder, decoder, joiner of a model in parts; of others the first name of the path",
}
"""Ways to group layers."""

PRODUCTS = "attention products"
"""The group of the two matrix products inside attention, which are no layers."""

_INDEX = re.compile(r"(.*_)?(\d+)")


def group_layers(
    layers: Mapping[str, str], by: str, match: str | None = None, parts: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """``{path: kind}`` as ``{group: paths}``, both in the order of the model.

    ``parts`` are those that the layers belong to, where a model is in parts. ``match`` restricts it to the layers of a
    :class:`~quantasr.recipes.pattern.Pattern`; names of groups do not depend on it. Raises :class:`RecipeError` when
    ``by`` is unknown or nothing matches.
    """
    if by not in BY:
        raise RecipeError(f"by = {by!r}: choose one of {', '.join(BY)}")
    chosen = [path for path in layers if match is None or Pattern(match).matches(path)]
    if not chosen:
        similar = nearest(match or "", layers)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"paths look like {', '.join(list(layers)[:3])}"
        raise RecipeError(f"pattern {match!r} matches no layer: {hint}")
    names = {
        "module": lambda: module_names(list(layers)),
        "layer": lambda: {path: path for path in layers},
        "kind": lambda: dict(layers),
        "part": lambda: {path: (parts or {}).get(path) or path.partition(".")[0] for path in layers},
    }[by]()
    groups: dict[str, list[str]] = {}
    for path in chosen:
        groups.setdefault(names[path], []).append(path)
    return groups


def module_names(paths: list[str]) -> dict[str, str]:
    """The module that each layer belongs to for its users.

    A block is one of a row of modules that are numbered (``layers.3``, ``block_3``), of which one at least holds
    several layers; the outermost row counts. What is in no block belongs to the child of the nearest module that has
    blocks in it, or of the first module with several children where there are no blocks: ``lm_head``,
    ``wav2vec2.feature_extractor``, ``encoder.ctc_lin``.
    """
    rows = _rows(paths)
    names: dict[str, str] = {}
    trunk: set[tuple[str, ...]] = {()}  # modules around blocks
    for path in paths:
        parts = tuple(path.split("."))
        cut = next((i for i in range(len(parts)) if _row(parts, i) in rows), None)
        if cut is not None:
            names[path] = ".".join(parts[: cut + 1])
            trunk.update(parts[:i] for i in range(cut + 1))
    rest = [tuple(path.split(".")) for path in paths if path not in names]
    if not names:
        trunk = {_common(rest)}
    for parts in rest:
        depth = max(i for i in range(len(parts)) if parts[:i] in trunk or i == 0)
        names[".".join(parts)] = ".".join(parts[: depth + 1])
    return names


def _row(parts: tuple[str, ...], i: int) -> tuple[str, ...] | None:
    """The row that component ``i`` of a path is a number of: the path before it and what stands before the number."""
    found = _INDEX.fullmatch(parts[i])
    return None if found is None else (*parts[:i], found[1] or "")


def _rows(paths: list[str]) -> set[tuple[str, ...]]:
    """Rows of two modules and more, one of which holds several layers."""
    sizes: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path in paths:
        parts = tuple(path.split("."))
        for i in range(len(parts)):
            if (row := _row(parts, i)) is not None:
                sizes[row][parts[i]] += 1
    return {row for row, members in sizes.items() if len(members) > 1 and max(members.values()) > 1}


def _common(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The longest module that is around all layers."""
    first, last = min(paths), max(paths)
    same = [a == b for a, b in zip(first[:-1], last[:-1], strict=False)]
    return first[: same.index(False) if False in same else len(same)]
