"""Is it really int8? Answered from the kernels that an engine executed, as a share of all multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantasr.artifact import Artifact
from quantasr.engines.engine import Engine, ExecutedOp


@dataclass(frozen=True)
class LayerAudit:
    """One layer: what the recipe made of it, and the type in which the engine multiplied."""

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
    """Run ``seconds`` of noise through a loaded engine and report what it executed."""
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * artifact.frontend.sample_rate))
    features = artifact.frontend(noise.astype(np.float32))[None]
    ops = engine.executed(features, np.array([features.shape[1]]))
    return Audit(engine.name, engine.compute, seconds, tuple(ops), tuple(_layers(artifact.layers(), ops)))


def _layers(plan: Sequence[dict[str, Any]], ops: Sequence[ExecutedOp]) -> list[LayerAudit]:
    """Join the plan with the kernels: a node of the graph carries the path of the layer that it came from."""
    nodes = [(_parts(node), op) for op in ops if op.macs for node in op.covers]
    rows = []
    for row in plan:
        path = _parts(row["path"])
        found = {id(op): op for parts, op in nodes if _contains(parts, path)}
        planned = row["mode"] if row["mode"] == "float" else f"{row['mode']} w{row['weight']['bits']}"
        executed = ", ".join(sorted({op.precision for op in found.values()})) or "-"
        macs = sum(op.macs for op in found.values())
        rows.append(LayerAudit(row["path"], row["kind"], planned, executed, macs, row.get("reason", "")))
    return rows


def _parts(name: str) -> list[str]:
    return name.replace(".", "/").strip("/").split("/")


def _contains(parts: list[str], path: list[str]) -> bool:
    """Whether ``path`` is a run of whole parts of a node's name: layer 1 is not layer 11."""
    return any(parts[i : i + len(path)] == path for i in range(len(parts) - len(path) + 1))
