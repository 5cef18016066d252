"""Which layers an engine computes wrongly, found one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_nets import asr_model, exported, quantized, recipe, waves
from torch import Tensor, nn

from quantasr.engines import ENGINES, EngineOptions, load_engine
from quantasr.export.wrong_layers import wrong_layers

X = np.stack(waves(2, 30, seed=9))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 24)
        self.conv = nn.Conv1d(24, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        scores = torch.softmax(x @ x.transpose(1, 2), -1)
        return self.conv((scores @ x).transpose(1, 2)).transpose(1, 2)


@pytest.fixture(params=["static", "dynamic"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    rules = recipe({"match": "*", "mode": request.param}, attention_products=request.param == "static")
    return exported(quantized(asr_model(Net()), rules), tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_layer_is_wrong_on_the_engines(engine: str, graph: Path) -> None:
    options = EngineOptions(1, "fp32")
    assert wrong_layers(graph, {"features": X}, lambda path: load_engine(engine, path, options)) == []


@pytest.mark.parametrize("name", ["first", "second", "conv"])
def test_the_wrong_one_is_named(name: str, graph: Path) -> None:
    class Wrong:
        """Right but for one layer, whose sums are too small."""

        def __init__(self, path: Path) -> None:
            self._wrong = any(name in tensor.name for tensor in onnx.load(str(path)).graph.initializer)
            self._engine = load_engine("onnxruntime", path, EngineOptions(1))

        def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
            return {key: row * (0.5 if self._wrong else 1) for key, row in self._engine.run(feed).items()}

    (found,) = wrong_layers(graph, {"features": X}, Wrong)
    assert found.name.endswith(name) and found.error > 0.4
