"""Small networks as quantasr sees a recogniser, to quantize and export in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantasr.engines import EngineOptions, load_engine
from quantasr.engines.engine import frame_feed
from quantasr.export import export_quantized, save_graph
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.recipes import Recipe
from quantasr.sources import CtcModel
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.tokenizer import Tokenizer

WIDTH = 16
"""Samples in one frame, and features in one frame, of every small network."""


class Framed(nn.Module):
    """``[batch, time]`` -> frames of 16 samples -> ``body``, which sees ``[batch, frames, 16]``."""

    def __init__(self, body: nn.Module, channels_first: bool = False) -> None:
        super().__init__()
        self.body = body
        self.channels_first = channels_first

    def forward(self, features: Tensor) -> Tensor:
        x = features.reshape(features.shape[0], -1, WIDTH)
        out = self.body(x.transpose(1, 2)).transpose(1, 2) if self.channels_first else self.body(x)
        return out


def asr_model(body: nn.Module, channels_first: bool = False) -> CtcModel:
    """``body`` as a recogniser of waves of 1600 samples a second, without normalisation and without padding."""
    module = Framed(body, channels_first).eval()
    return CtcModel(
        name="tiny",
        family="tiny",
        module=module,
        graph=module,
        frontend=WaveFrontend(1600, normalize=False),
        tokenizer=Tokenizer(("<pad>", "|", *"abcdefghijklmnopqrstuv"), 0),
        padded_batches=False,
        frame_seconds=0.01,
        min_samples=WIDTH,
    )


def waves(count: int = 3, frames: int = 40, seed: int = 3) -> list[np.ndarray]:
    """Waves whose values are skewed, so that affine zero points are not in the middle."""
    rng = np.random.default_rng(seed)
    return [(rng.gamma(2.0, 0.5, frames * WIDTH) - 0.7).astype(np.float32) for _ in range(count)]


def recipe(*rules: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe from tables, as a TOML file would give them; the rule ``*`` when there are none."""
    return Recipe.from_dict(
        {"format": 1, "name": "test", "rules": list(rules) or [{"match": "*"}], **changes}, "test recipe"
    )


def quantized(model: CtcModel, chosen: Recipe, speech: Iterable[np.ndarray] | None = None) -> Prepared:
    """Prepared, calibrated and converted."""
    prepared = prepare(model, chosen)
    calibrate(prepared, waves() if speech is None else speech)
    convert(prepared)
    return prepared


def simulate(prepared: Prepared, *inputs: np.ndarray) -> np.ndarray:
    """What the simulation gives for ``inputs``."""
    with prepared.active(Phase.SIMULATE), torch.inference_mode():
        out = prepared.model.graph(*(torch.from_numpy(x) for x in inputs))
    return (out[0] if isinstance(out, tuple) else out).numpy()


def run_graph(path: Path, engine: str, features: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
    """What ``engine`` gives for a graph on disk, in fp32 on one thread."""
    loaded = load_engine(engine, path, EngineOptions(threads=1, compute="fp32"))
    return loaded.run(frame_feed(features, lengths))["logprobs"]


def exported(prepared: Prepared, folder: Path) -> Path:
    """The graph of a converted model, on disk."""
    path = folder / "graph.onnx"
    save_graph(export_quantized(prepared), path)
    return path
