"""Give a live model back as it was when something goes wrong on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged_on_error(*modules: nn.Module) -> Iterator[None]:
    """Undo every change of ``modules`` and of all that is in them, hooks and classes too, if an error comes out.

    Values are kept by reference, so that nothing is copied: what changes a tensor must give it new storage.
    """
    parts = {id(part): part for module in modules for part in module.modules()}.values()
    states = [(part, part.__class__, {key: _copy(value) for key, value in vars(part).items()}) for part in parts]
    # A parametrized module has a class of its own, which loses the property when the parametrization goes.
    properties = {kind: _properties(kind) for _, kind, _ in states if kind.__name__.startswith("Parametrized")}
    # Frameworks' models read some of their ways (which attention) off a configuration that they share.
    configs = [vars(part)["config"] for part in parts if hasattr(vars(part).get("config"), "__dict__")]
    plain = [(config, dict(vars(config))) for config in configs]
    tensors = {id(t): (t, t.data, t.requires_grad) for part in parts for t in (*part.parameters(), *part.buffers())}
    try:
        yield
    except BaseException:
        for kind, found in properties.items():
            for name, value in found.items():
                setattr(kind, name, value)
        for part, kind, state in states:
            part.__class__ = kind
            vars(part).clear()
            vars(part).update(state)
        for config, values in plain:
            vars(config).clear()
            vars(config).update(values)
        for tensor, data, requires_grad in tensors.values():
            tensor.data = data
            tensor.requires_grad_(requires_grad)
        raise


def _copy(value: Any) -> Any:
    """A module keeps its parts, tensors and hooks in dictionaries of its own."""
    return value.copy() if isinstance(value, dict | list | set) else value


def _properties(kind: type) -> dict[str, property]:
    return {name: value for name, value in vars(kind).items() if isinstance(value, property)}
