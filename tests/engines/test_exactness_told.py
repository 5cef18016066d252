"""What artifacts, inspect and the doctor say of products of integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

import quantasr
from quantasr import cpu
from quantasr.artifact import Artifact
from quantasr.cli import main
from quantasr.cpu import this_cpu
from quantasr.engines import ENGINES, exactness
from quantasr.engines.exactness import inexact
from quantasr.engines.feeds import options_for
from quantasr.measure.audit import audit


def test_a_portable_artifact_asks_no_engine(
    sample_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.load(sample_artifact("default"))
    assert artifact.portable and options_for(artifact).exact_products is False
    older = replace(artifact, integers={})
    assert not older.portable and options_for(older).exact_products is None

    def never(*_: object) -> frozenset[str]:
        raise AssertionError("nothing needs to be found out")

    monkeypatch.setattr(exactness, "inexact", never)
    for engine in ENGINES:
        quantasr.load(artifact, engine=engine)
        with pytest.raises(AssertionError, match="found out"):
            quantasr.load(older, engine=engine)


def test_how_integers_were_multiplied_is_told(
    sample_artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.load(sample_artifact("default"))
    recogniser = quantasr.load(artifact, engine="onnxruntime")
    assert "7-bit weights, which cannot saturate" in audit(artifact, recogniser.engines, seconds=1.0).products
    monkeypatch.setattr(exactness, "inexact", lambda _: frozenset({"linear"}))
    assert "would saturate here: computed as float products" in exactness.products("openvino", False)
    assert "would saturate here: computed as unsigned weights" in exactness.products("onnxruntime", False)
    monkeypatch.setattr(exactness, "inexact", lambda _: frozenset())
    assert this_cpu().integer_products in exactness.products("openvino", False)


def test_the_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTASR_CACHE", str(tmp_path))
    inexact.cache_clear()
    (tmp_path / "engines.json").write_text(json.dumps({"of another CPU": {"inexact": []}}))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cpu"]["name"] == this_cpu().name and found["share"]["threads"] == cpu.threads()
    assert {"onnxruntime", "openvino", "torch:onednn"} <= {row["name"] for row in found["engines"]}
    assert found["foreign"] == 1 and found["cached"] >= len(ENGINES) and found["cache"].startswith(str(tmp_path))
    assert found["packages"]["openvino"] == version("openvino")
    monkeypatch.setattr(cpu, "_quota_files", lambda _: iter([tmp_path / "cpu.max"]))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert this_cpu().integer_products[:20] in shown.out and "engines: products of 8-bit integers" in shown.out
    assert "cpu.max: cannot read the CPU quota (No such file or directory): it is ignored" in shown.err
