"""Is it really int8? Answered from the kernels that an engine executed, as a share of all multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantasr.artifact import WHOLE, Artifact
from quantasr.engines.engine import Engine, ExecutedOp, frame_feed
from quantasr.engines.exactness import products
from quantasr.engines.feeds import part_feed
from quantasr.runtime import of_parts
from quantasr.speech.frontend import noise


@dataclass(frozen=True)
class LayerAudit:
    """One layer: what the recipe made of it, and the type in which the engine multiplied.

    ``kind`` is ``product`` for a place in the model where two activations are multiplied, which is no layer;
    ``executed`` is ``-`` where nothing was multiplied, as by an embedding.
    """

    path: str
    kind: str
    planned: str
    executed: str
    macs: int
    reason: str = ""


@dataclass(frozen=True)
class PartAudit:
    """One graph: the kernels of one call, and the ``calls`` that the speech took."""

    name: str
    engine: str
    compute: str
    calls: float
    ops: tuple[ExecutedOp, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all its calls."""
        return round(self.calls * sum(op.macs for op in self.ops))

    @property
    def counts(self) -> Counter[str]:
        """Multiply-accumulates of all its calls in each type."""
        counts: Counter[str] = Counter()
        for op in self.ops:
            counts[op.precision] += round(self.calls * op.macs)
        return counts

    @property
    def share(self) -> dict[str, float]:
        """Share of its multiply-accumulates in each type, largest first."""
        return _shares(self.counts)

    @property
    def int8_share(self) -> float:
        """Share of its multiply-accumulates that ran in 8-bit integers."""
        return self.share.get("int8", 0.0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "engine": self.engine,
            "compute": self.compute,
            "calls": round(self.calls, 2),
            "macs": self.macs,
            "int8_share": round(self.int8_share, 4),
            "share": _rounded(self.share),
        }


@dataclass(frozen=True)
class Audit:
    """Every kernel that ran for ``seconds`` of audio, and the layers of the model that they stand for.

    A model that is one graph has one part, which is called once. The multiply-accumulates of ``layers`` are those of
    all calls. ``products`` says in words how integers were multiplied.
    """

    seconds: float
    parts: tuple[PartAudit, ...]
    layers: tuple[LayerAudit, ...]
    products: str = ""

    @property
    def engine(self) -> str:
        """What ran it: an engine, or each part's."""
        return of_parts({part.name: part.engine for part in self.parts})

    @property
    def compute(self) -> str:
        """The type of the float rest, or of each part's."""
        return of_parts({part.name: part.compute for part in self.parts})

    @property
    def ops(self) -> tuple[ExecutedOp, ...]:
        """The kernels of one call of each part."""
        return tuple(op for part in self.parts for op in part.ops)

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return sum(part.macs for part in self.parts)

    @property
    def share(self) -> dict[str, float]:
        """Share of the multiply-accumulates in each type, largest first."""
        return _shares(sum((part.counts for part in self.parts), Counter()))

    @property
    def int8_share(self) -> float:
        """Share of the multiply-accumulates that ran in 8-bit integers."""
        return self.share.get("int8", 0.0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; several parts have rows of their own."""
        several = {"parts": {part.name: part.to_dict() for part in self.parts}} if len(self.parts) > 1 else {}
        return {
            "engine": self.engine,
            "compute": self.compute,
            "audio_seconds": self.seconds,
            "macs": self.macs,
            "int8_share": round(self.int8_share, 4),
            "share": _rounded(self.share),
            "products": self.products,
            **several,
            "layers": [vars(layer) for layer in self.layers],
            "kernels": [
                {
                    **({"part": part.name} if several else {}),
                    "name": op.name,
                    "kind": op.kind,
                    "precision": op.precision,
                    "macs": op.macs,
                    "seconds": op.seconds,
                }
                for part in self.parts
                for op in part.ops
                if op.macs
            ],
        }


def audit(artifact: Artifact, engines: Mapping[str, Engine], *, seconds: float = 10.0) -> Audit:
    """Run ``seconds`` of noise through the loaded engine of each part and report what it executed.

    What reads features runs once, on those of the noise; other parts once on what they typically read, and their work
    counts as often as so much speech calls them. Raises :class:`quantasr.errors.EngineError` when an engine cannot run
    its graph.
    """
    size = max(artifact.min_samples, round(seconds * artifact.frontend.sample_rate))
    features = artifact.frontend(noise(artifact.frontend, size))[None]
    whole: dict[str, dict[str, Any]] = {name: {"inputs": {"features": None}} for name in engines}
    parts = []
    for name, row in (artifact.parts or whole).items():
        heard = "features" in row["inputs"]
        feed = frame_feed(features) if heard else part_feed(row)
        calls = 1.0 if heard else max(1.0, seconds * row["calls"])
        engine = engines[name]
        parts.append(PartAudit(name, engine.name, engine.compute, calls, tuple(engine.executed(feed))))
    reason = "" if artifact.recipe.get("attention_products") else "attention_products = false"
    layers = join(artifact.layers(), [op for part in parts for op in _all_calls(part)], reason)
    how = of_parts({part.name: products(part.engine, artifact.portable) for part in parts})
    return Audit(size / artifact.frontend.sample_rate, tuple(parts), layers, how)


def _all_calls(part: PartAudit) -> Iterator[ExecutedOp]:
    """Its kernels with the work of all its calls; what it does outside of modules goes by its own name."""
    for op in part.ops:
        covers = {_named(part.name, node): round(part.calls * macs) for node, macs in op.covers.items()}
        yield replace(op, covers=covers)


def _named(part: str, node: str) -> str:
    """``/MatMul_1`` of a decoder -> ``/decoder graph/MatMul_1``; a model that is one graph needs no name."""
    return node if part == WHOLE or "/" in node.strip("/") else f"/{part} graph/{node.strip('/')}"


def _shares(counts: Counter[str]) -> dict[str, float]:
    total = max(counts.total(), 1)
    return {name: count / total for name, count in counts.most_common() if count}


def _rounded(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def join(plan: Sequence[Mapping[str, Any]], ops: Sequence[ExecutedOp], outside: str = "") -> tuple[LayerAudit, ...]:
    """Every layer of the plan with the work that was done for it, then what was done outside of layers.

    A node of the graph is named for the module that it came from, so it belongs to the layer whose path its name
    ends with before the operator; of two such layers, to the longer path.
    """
    paths = {tuple(row["path"].split(".")): row["path"] for row in plan}
    macs: dict[str, Counter[str]] = {}
    for op in ops:
        for node, count in op.covers.items():
            macs.setdefault(_place(node, paths), Counter())[op.precision] += count
    rows = [
        _row(row["path"], row["kind"], _planned(row), macs, row.get("reason") or _refused(row, macs)) for row in plan
    ]
    known = {row["path"] for row in plan}
    return (*rows, *(_row(path, "product", "-", macs, outside) for path in macs if path not in known))


def _place(node: str, paths: Mapping[tuple[str, ...], str]) -> str:
    """The layer that a node of the graph came from, or the module where it is in none."""
    parts = node.strip("/").split("/")
    # What a Sequential ``net`` calls is named ``net/net.1`` by PyTorch's exporter, elsewhere it is ``net.1``.
    merged = [part for i, part in enumerate(parts) if not "".join(parts[i + 1 : i + 2]).startswith(f"{part}.")]
    for names in (parts, merged):
        scope = tuple("/".join(names).replace(".", "/").split("/"))[:-1]
        layer = next((paths[scope[i:]] for i in range(len(scope)) if scope[i:] in paths), None)
        if layer is not None:
            return layer
    # What wraps the framework's model has no place in its paths.
    roots = {path[0] for path in paths}
    first = next((i for i, part in enumerate(scope) if part in roots), 0)
    return ".".join(scope[first:])


def _planned(row: Mapping[str, Any]) -> str:
    return row["mode"] if row["mode"] == "float" else f"{row['mode']} w{row['weight']['bits']}"


def _refused(row: Mapping[str, Any], macs: Mapping[str, Counter[str]]) -> str:
    """That an engine left a layer float whose inputs and weight the recipe quantizes, or nothing."""
    done = macs.get(row["path"])
    meant = row["mode"] in ("static", "dynamic")
    return "this engine runs it in float" if meant and done and "int8" not in done and "unknown" not in done else ""


def _row(path: str, kind: str, planned: str, macs: Mapping[str, Counter[str]], reason: str) -> LayerAudit:
    done = macs.get(path, Counter())
    return LayerAudit(path, kind, planned, ", ".join(sorted(done)) or "-", done.total(), reason)
