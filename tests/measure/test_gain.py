"""What quantization gains in time: each graph at its fastest, and said plainly when it gains nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from quantasr.artifact import Artifact
from quantasr.engines import ENGINES
from quantasr.measure import gain as module
from quantasr.measure.gain import Gain, gain


def test_each_graph_is_taken_at_its_fastest(
    sample_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {("artifact onnxruntime", "fp32"): 3.0, ("artifact openvino", "fp32"): 2.0, ("float openvino", "fp32"): 5.0}

    def measure(_: Artifact, engines: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], float]:
        assert {label.split()[0] for label, _ in engines} == {"artifact", "float"}
        return {system: speed.get(system, 8.0) for system in engines}

    monkeypatch.setattr(module, "measure", measure)
    artifact = Artifact.load(sample_artifact("default"))
    found = gain(artifact, artifact.folder)
    assert found == Gain(pytest.approx(0.4), ("openvino", "fp32"), ("openvino", "fp32"))
    assert not found.slower


def test_slower_than_float_is_said() -> None:
    found = Gain(1.25, ("onnxruntime", "fp32"), ("openvino", "bf16"))
    assert found.slower.startswith("slower than float: 1.25 of the time")
    assert "onnxruntime fp32 against float on openvino bf16" in found.slower
    assert found.to_dict()["slower_than_float"] == found.slower
    assert not Gain(1.02, ("onnxruntime", "fp32"), ("openvino", "bf16")).slower, "within what a short run can tell"


def test_it_is_measured_and_recorded_when_an_artifact_is_made(sample_artifact: Callable[[str], Path]) -> None:
    measured = Artifact.load(sample_artifact("default")).measured
    assert 0.05 < measured["time_to_float"] < 20
    assert measured["fastest"].split()[0] in ENGINES and measured["fastest_float"].split()[0] in ENGINES
