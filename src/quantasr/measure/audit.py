"""Is it really int8? Answered from the kernels that an engine executed, as a share of all multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantasr.artifact import Artifact
from quantasr.engines.engine import Engine, ExecutedOp, frame_feed
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
class Audit:
    """Every kernel of one run on ``seconds`` of audio, and the layers of the model that they stand for."""

    engine: str
    compute: str
    seconds: float
    ops: tuple[ExecutedOp, ...]
    layers: tuple[LayerAudit, ...]

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return sum(op.macs for op in self.ops)

    @property
    def share(self) -> dict[str, float]:
        """Share of the multiply-accumulates in each type, largest first."""
        counts: Counter[str] = Counter()
        for op in self.ops:
            counts[op.precision] += op.macs
        return {name: count / self.macs for name, count in counts.most_common() if count}

    @property
    def int8_share(self) -> float:
        """Share of the multiply-accumulates that ran in 8-bit integers."""
        return self.share.get("int8", 0.0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "engine": self.engine,
            "compute": self.compute,
            "audio_seconds": self.seconds,
            "macs": self.macs,
            "int8_share": round(self.int8_share, 4),
            "share": {name: round(share, 4) for name, share in self.share.items()},
            "layers": [vars(layer) for layer in self.layers],
            "kernels": [
                {"name": op.name, "kind": op.kind, "precision": op.precision, "macs": op.macs, "seconds": op.seconds}
                for op in self.ops
                if op.macs
            ],
        }


def audit(artifact: Artifact, engine: Engine, *, seconds: float = 10.0) -> Audit:
    """Run ``seconds`` of noise through a loaded engine and report what it executed.

    Raises :class:`quantasr.errors.EngineError` when the engine cannot run the graph.
    """
    size = max(artifact.min_samples, round(seconds * artifact.frontend.sample_rate))
    features = artifact.frontend(noise(artifact.frontend, size))[None]
    ops = engine.executed(frame_feed(features))
    reason = "" if artifact.recipe.get("attention_products") else "attention_products = false"
    layers = join(artifact.layers(), ops, reason)
    return Audit(engine.name, engine.compute, size / artifact.frontend.sample_rate, tuple(ops), layers)


def join(plan: Sequence[Mapping[str, Any]], ops: Sequence[ExecutedOp], products: str = "") -> tuple[LayerAudit, ...]:
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
    return (*rows, *(_row(path, "product", "-", macs, products) for path in macs if path not in known))


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
