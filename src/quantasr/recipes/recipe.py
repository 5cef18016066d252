"""A recipe: ordered rules that say, by module path and layer kind, how each layer is quantized."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from quantasr.errors import RecipeError
from quantasr.numerics.observers import observer_factory
from quantasr.numerics.qtypes import QType
from quantasr.recipes.pattern import Pattern, nearest

FORMAT = 1
MODES = ("static", "dynamic", "weight_only", "float")
LAYER_KINDS = (
    "linear",
    "depthwise_conv1d",
    "conv1d",
    "depthwise_conv2d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "embedding",
    "embedding_bag",
    "lstm",
    "gru",
    "lstm_cell",
    "gru_cell",
    "rnn_cell",
)
LOOKED_UP = ("embedding", "embedding_bag")
"""Kinds whose weights nothing is multiplied with."""
NEVER_STATIC = ("lstm", "gru", "lstm_cell", "gru_cell", "rnn_cell")
"""Kinds whose kernels take the scales of their inputs from each call."""
COMPUTE = ("auto", "fp32", "bf16", "fp16")
ENGINES = ("auto", "onnxruntime", "openvino")
FLOAT_STORAGE = ("fp32", "fp16", "bf16")
WEIGHT_ONLY_INPUTS = ("float", "int8")


_WEIGHT = QType(8, True, "per_channel")
_INPUT = QType(8, False, "per_tensor")


@dataclass(frozen=True)
class QConfig:
    """How one layer is quantized; the observers are names from :data:`quantasr.numerics.observers.OBSERVERS`.

    ``static``: weight and input, the input's scale from calibration. ``dynamic``: weight and input, the input's
    scale from each call, so that recordings in one batch share it. ``weight_only``: the weight alone. ``float``:
    neither.
    """

    mode: str = "static"
    weight: QType = _WEIGHT
    input: QType = _INPUT
    weight_observer: str = "min_max"
    input_observer: str = "percentile(99.999)"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RecipeError(f"mode = {self.mode!r}: choose one of {', '.join(MODES)}")
        observer_factory(self.weight_observer)
        observer_factory(self.input_observer)
        if self.mode in ("static", "dynamic") and self.input.granularity != "per_tensor":
            raise RecipeError(
                f"input granularity = {self.input.granularity!r}: a layer's input has one scale, per_tensor"
            )
        if self.mode == "dynamic" and (self.input.bits, self.input.symmetric) != (8, False):
            raise RecipeError(f"mode dynamic quantizes inputs as int8 affine, not {self.input}")

    def updated(self, table: dict[str, Any], where: str) -> QConfig:
        """A copy with the keys of a TOML table (``mode``, ``weight``, ``input``) replaced."""
        with _at(where):
            _only(table, {"mode", "weight", "input"})
            weight, weight_observer = _tensor(self.weight, self.weight_observer, table, "weight")
            input_, input_observer = _tensor(self.input, self.input_observer, table, "input")
            return QConfig(table.get("mode", self.mode), weight, input_, weight_observer, input_observer)

    def to_dict(self) -> dict[str, Any]:
        """The keys that :meth:`updated` reads."""
        return {
            "mode": self.mode,
            "weight": {**self.weight.to_dict(), "observer": self.weight_observer},
            "input": {**self.input.to_dict(), "observer": self.input_observer},
        }

    def summary(self) -> dict[str, Any]:
        """As :meth:`to_dict`, without what the mode does not use."""
        unused = {"float": ("weight", "input"), "weight_only": ("input",)}.get(self.mode, ())
        return {key: value for key, value in self.to_dict().items() if key not in unused}

    def __str__(self) -> str:
        """The shorthand: ``static w8a8``, ``weight_only w4``, ``float``."""
        weight = "" if self.mode == "float" else f" w{self.weight.bits}"
        return f"{self.mode}{weight}{f'a{self.input.bits}' if self.mode in ('static', 'dynamic') else ''}"


FLOAT = QConfig(mode="float")


def _tensor(qtype: QType, observer: str, table: dict[str, Any], key: str) -> tuple[QType, str]:
    row = table.get(key, {})
    if not isinstance(row, dict):
        raise RecipeError(f"{key} = {row!r}: write a table, like {{ bits = 8, symmetric = true }}")
    with _at(key):
        _only(row, {"bits", "symmetric", "granularity", "group_size", "observer"})
        granularity = row.get("granularity", qtype.granularity)
        group = row.get("group_size", qtype.group_size if granularity == "per_group" else None)
        observer = _typed(row, "observer", observer)
        observer_factory(observer)
        return QType(row.get("bits", qtype.bits), row.get("symmetric", qtype.symmetric), granularity, group), observer


@dataclass(frozen=True)
class Rule:
    """Layers whose path matches ``match`` and whose kind is ``kind`` (any, when None) get ``changes``.

    ``match`` is a :class:`~quantasr.recipes.pattern.Pattern` over the dotted path of a layer, or of a module around
    layers. A rule that matches no layer is an error unless ``optional``.
    """

    match: str
    changes: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in LAYER_KINDS:
            raise RecipeError(f"rule {self.match!r}: kind = {self.kind!r}: choose one of {', '.join(LAYER_KINDS)}")
        Pattern(self.match)

    def matches(self, path: str, kind: str) -> bool:
        """Whether the rule speaks of the layer at ``path``."""
        return (self.kind is None or self.kind == kind) and Pattern(self.match).matches(path)

    def to_dict(self) -> dict[str, Any]:
        """The rule as a TOML table."""
        row: dict[str, Any] = {"match": self.match}
        if self.kind is not None:
            row["kind"] = self.kind
        if self.optional:
            row["optional"] = True
        return {**row, **self.changes}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a quantized model.

    ``rules`` are read in order and the last that matches a layer wins; a layer that none matches stays float,
    and so does one whose path matches a pattern in ``exclude``. ``defaults`` fills what a rule leaves open.
    ``attention_products`` quantizes the two matrix products inside attention. ``reduce_range`` gives the weights of
    layers whose inputs are quantized too, and one operand of each attention product, 7 bits for 8: CPUs without VNNI
    add pairs of 8-bit products in 16 bits, which saturate (:mod:`quantasr.engines.exactness`). ``compute`` is the type
    in which the float rest runs, ``float_storage`` the type in which it is stored; ``engine`` is the one to run on.
    ``weight_only_inputs`` "int8" lets engines round the inputs of ``weight_only`` layers to 8 bits, in blocks, where
    that is how they are fast.
    Without rules, a recipe for half precision: ``float_storage`` is then fp16 or bf16.
    """

    name: str
    rules: tuple[Rule, ...]
    defaults: QConfig = QConfig()
    exclude: tuple[str, ...] = ()
    attention_products: bool = False
    reduce_range: bool = True
    compute: str = "auto"
    float_storage: str = "fp32"
    weight_only_inputs: str = "float"
    engine: str = "auto"
    description: str = ""

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("compute", self.compute, COMPUTE),
            ("float_storage", self.float_storage, FLOAT_STORAGE),
            ("weight_only_inputs", self.weight_only_inputs, WEIGHT_ONLY_INPUTS),
            ("engine", self.engine, ENGINES),
        ):
            if value not in choices:
                raise RecipeError(f"recipe {self.name!r}: {key} = {value!r}: choose one of {', '.join(choices)}")
        for rule in self.rules:
            self.defaults.updated(rule.changes, f"recipe {self.name!r}, rule {rule.match!r}")
        if not isinstance(self.exclude, tuple):
            raise RecipeError(f"recipe {self.name!r}: exclude = {self.exclude!r}: give a tuple of patterns")

    @property
    def halves(self) -> bool:
        """Whether it quantizes nothing and only stores weights in 16 bits: it says so by having no rules."""
        return not self.rules and not self.attention_products and self.float_storage != "fp32"

    def qconfig(self, path: str, kind: str) -> QConfig:
        """What the recipe says of the layer of ``kind`` at ``path``."""
        if any(Pattern(pattern).matches(path) for pattern in self.exclude):
            return FLOAT
        found = FLOAT
        for rule in self.rules:
            if rule.matches(path, kind):
                found = self.defaults.updated(rule.changes, f"rule {rule.match!r}")
        return self.in_range(found, kind)

    def in_range(self, qconfig: QConfig, kind: str) -> QConfig:
        """``qconfig`` with weights of 7 bits instead of 8 where :attr:`reduce_range` asks for them."""
        # Weights alone are multiplied with floats, or with inputs rounded in blocks by kernels that cannot saturate;
        # rows of an embedding are only looked up.
        products = qconfig.mode in ("static", "dynamic") and kind not in LOOKED_UP
        return replace(qconfig, weight=qconfig.weight.reduced) if self.reduce_range and products else qconfig

    def check_used(self, layers: Mapping[str, str], modules: Mapping[str, str] | None = None) -> None:
        """Raise :class:`RecipeError` unless every rule and exclusion, and the whole, match some of ``{path: kind}``.

        A rule must also be possible for some layer that it matches. ``modules`` are all modules of the model and the
        names of their classes, to say what is at a path that holds no layer, or which paths are nearest.
        """
        for rule in self.rules:
            kinds = {kind for path, kind in layers.items() if rule.matches(path, kind)}
            where = f"recipe {self.name!r}: rule {rule.match!r}"
            if not kinds and not rule.optional:
                kind = f" of kind {rule.kind}" if rule.kind else ""
                found = _missing(rule.match, kind, layers, modules or {})
                raise RecipeError(f"{where} {found} (mark it optional = true if that is meant)")
            if kinds and kinds <= set(NEVER_STATIC) and self.defaults.updated(rule.changes, where).mode == "static":
                raise RecipeError(
                    f"{where} asks for mode static, but {' and '.join(sorted(kinds))} can only be dynamic: "
                    "no kernel takes fixed scales for a recurrent layer"
                )
        for pattern in self.exclude:
            if not any(Pattern(pattern).matches(path) for path in layers):
                found = _missing(pattern, "", layers, modules or {})
                raise RecipeError(f"recipe {self.name!r}: exclude {pattern!r} {found}")
        if self.halves:
            return
        if not self.attention_products and all(self.qconfig(p, k).mode == "float" for p, k in layers.items()):
            raise RecipeError(f"recipe {self.name!r} leaves every layer float: nothing would be quantized")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that :meth:`from_dict` reads back to an equal recipe."""
        return {
            "format": FORMAT,
            "name": self.name,
            "description": self.description,
            "engine": self.engine,
            "compute": self.compute,
            "float_storage": self.float_storage,
            "weight_only_inputs": self.weight_only_inputs,
            "attention_products": self.attention_products,
            "reduce_range": self.reduce_range,
            "exclude": list(self.exclude),
            "defaults": self.defaults.to_dict(),
            "rules": [rule.to_dict() for rule in self.rules],
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any], where: str = "recipe") -> Recipe:
        """Build and check a recipe; raises :class:`RecipeError` naming ``where`` and the key."""
        with _at(where):
            # The number first: a newer format may have keys that are unknown here.
            if table.get("format") != FORMAT:
                raise RecipeError(f"format = {table.get('format')!r}: this quantasr reads format = {FORMAT}")
            _only(table, set(cls("x", ()).to_dict()))
            rules = []
            for i, row in enumerate(_typed(table, "rules", list[Any]()), 1):
                with _at(f"rule {i}"):
                    rules.append(_rule(row))
            exclude = _typed(table, "exclude", list[Any]())
            if not all(isinstance(pattern, str) for pattern in exclude):
                raise RecipeError(f"exclude = {exclude!r}: write a list of patterns of module paths")
            return cls(
                name=_typed(table, "name", "unnamed"),
                rules=tuple(rules),
                defaults=QConfig().updated(_typed(table, "defaults", dict[str, Any]()), "defaults"),
                exclude=tuple(exclude),
                attention_products=_typed(table, "attention_products", False),
                reduce_range=_typed(table, "reduce_range", True),
                compute=table.get("compute", "auto"),
                float_storage=table.get("float_storage", "fp32"),
                weight_only_inputs=table.get("weight_only_inputs", "float"),
                engine=table.get("engine", "auto"),
                description=_typed(table, "description", ""),
            )

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a TOML file."""
        path = Path(path)
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
        except UnicodeDecodeError:
            raise RecipeError(f"{path}: cannot read the recipe: it is not UTF-8 text") from None
        try:
            return cls.from_dict(tomllib.loads(text), str(path))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path}: not TOML: {error}") from None

    def dumps(self) -> str:
        """The recipe as TOML text."""
        return tomli_w.dumps(self.to_dict())


def _missing(match: str, kind: str, layers: Mapping[str, str], modules: Mapping[str, str]) -> str:
    """What there is instead of a layer that ``match`` could mean."""
    if any(Pattern(match).matches(path) for path in layers):
        return f"matches no layer{kind}"
    there = {path: name for path, name in modules.items() if Pattern(match).matches(path)}
    if there:
        path, name = next(iter(there.items()))
        return f"matches no layer that can be quantized: {path} is a {name}"
    similar = nearest(match, [*modules, *layers])
    if similar:
        return f"matches no layer: did you mean {' or '.join(similar)}?"
    return f"matches no layer; paths look like {', '.join(list(layers)[:3])}"


def _rule(row: Any) -> Rule:
    if not isinstance(row, dict) or not isinstance(row.get("match"), str):
        raise RecipeError('needs match = "a pattern of module paths"')
    _only(row, {"match", "kind", "optional", "mode", "weight", "input"})
    changes = {k: v for k, v in row.items() if k in ("mode", "weight", "input")}
    return Rule(row["match"], changes, row.get("kind"), _typed(row, "optional", False))


_T = TypeVar("_T", str, bool, list[Any], dict[str, Any])
_WORDS = {str: "a string", bool: "true or false", list: "a list", dict: "a table"}


def _typed(table: dict[str, Any], key: str, default: _T) -> _T:
    """The value of ``key``, which must be of the type of ``default``."""
    value = table.get(key, default)
    if not isinstance(value, type(default)):
        raise RecipeError(f"{key} = {value!r}: write {_WORDS[type(default)]}")
    return value


def _only(table: dict[str, Any], known: set[str]) -> None:
    """Refuse a misspelt key instead of ignoring it."""
    unknown = sorted(set(table) - known)
    if unknown:
        raise RecipeError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Name the place in every complaint from inside."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
