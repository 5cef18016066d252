"""Audit and bench of a recogniser in parts: each part with its calls, and where the time of a recording goes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_parts
from rich.console import Console, RenderableType

import quantasr
from quantasr.artifact import Artifact
from quantasr.cli import main
from quantasr.errors import EngineError
from quantasr.measure import bench as benching
from quantasr.measure.audit import audit
from quantasr.measure.bench import bench
from quantasr.measure.original import load_original
from quantasr.measure.report_parts import audit_parts_table, split_table
from quantasr.runtime import load

WAVE = tiny_parts.say([0, 1, 2, 3], [0.6] * 4)
STAGES = ["frontend", "encoder", "decoder", "joiner", "search"]
MIXED = {"encoder": "openvino", "decoder": "onnxruntime", "joiner": "onnxruntime"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("toy")
    return tiny_parts.artifact(folder / "made", tiny_parts.record(folder, 3, seed=0))


def shown(table: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=250).print(table)
    return out.getvalue()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_part_is_audited_with_its_calls(artifact: Artifact, engine: str) -> None:
    found = audit(artifact, load(artifact, engine=engine, threads=1, compute="fp32").engines, seconds=1.0)
    assert found.engine == engine and found.seconds == 1.0
    parts = {part.name: part for part in found.parts}
    assert [(name, part.calls) for name, part in parts.items()] == [("encoder", 1), ("decoder", 4), ("joiner", 12)]
    # 100 frames: 7 filters of 80 taps and a matrix of 7 x 7; the joiner's matrix for 8 frames in each of 12 calls.
    assert [part.macs for part in parts.values()] == [100 * (7 * 80 + 7 * 7), 0, 12 * 8 * 7 * 7]
    assert [part.int8_share for part in parts.values()] == [1.0, 0.0, 1.0]
    assert found.share == {"int8": 1.0} and found.macs == 60900 + 4704
    rows = {row.path: (row.executed, row.macs) for row in found.layers}
    assert rows == {
        "model.encoder.0": ("int8", 56000),
        "model.encoder_out": ("int8", 4900),  # the graph's last product, which OpenVINO would call by the output's name
        "model.decoder": ("-", 0),
        "proj_out": ("int8", 4704),
    }
    row = json.loads(json.dumps(found.to_dict()))
    assert row["parts"]["joiner"] == {
        "engine": engine, "compute": "fp32", "calls": 12.0, "macs": 4704, "int8_share": 1.0, "share": {"int8": 1.0},
    }  # fmt: skip
    assert {kernel["part"] for kernel in row["kernels"]} == {"encoder", "joiner"}
    text = shown(audit_parts_table(found))
    assert f"joiner  │ {engine} fp32 │    12 │        7.17 % │ 100.00 % │ 100.00 % int8" in text


def test_parts_on_engines_of_their_own(artifact: Artifact) -> None:
    mixed = load(artifact, engine=MIXED, threads=1, compute="fp32")
    assert {part: engine.name for part, engine in mixed.engines.items()} == MIXED
    assert mixed.name.endswith("[encoder openvino fp32, decoder onnxruntime fp32, joiner onnxruntime fp32]")
    assert mixed.transcribe([WAVE])[0].text == "one two three four"
    found = audit(artifact, mixed.engines, seconds=1.0)
    assert found.engine == "encoder openvino, decoder onnxruntime, joiner onnxruntime" and found.int8_share == 1.0
    with pytest.raises(EngineError, match="has no part 'joint' to be run on openvino: it has encoder, decoder, joiner"):
        load(artifact, engine={"joint": "openvino"})
    with pytest.raises(EngineError, match="engine 'tensorrt' is unknown"):
        load(artifact, engine={"encoder": "tensorrt"})


def test_one_engine_for_parts_of_a_model_that_has_none(sample_artifact: Any) -> None:
    with pytest.raises(EngineError, match=r"has no part 'encoder' .*: it is one graph: name one engine"):
        load(sample_artifact("default"), engine={"encoder": "openvino"})


def test_where_the_time_goes(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = load(artifact, engine=MIXED, threads=1, compute="fp32")
    monkeypatch.setattr(benching, "load", lambda *_, **__: mixed)
    monkeypatch.setattr(quantasr, "load_model", lambda *_, **__: tiny_parts.toy(), raising=False)
    rows = bench([artifact], WAVE, original=load_original("toy", 1), threads=1, rounds=1, memory=False)
    labels = [row.label for row in rows]
    assert labels[:3] == ["original (PyTorch)", "toy-toy onnxruntime fp32", "toy-toy openvino fp32"]
    assert labels[-1] == "toy-toy auto (encoder openvino fp32, decoder onnxruntime fp32, joiner onnxruntime fp32)"
    for row in rows:
        assert [share.stage for share in row.split] == STAGES
        calls = {share.stage: share.calls for share in row.split}
        # The blank and four words; a word ends a block of frames.
        assert calls["frontend"] == calls["encoder"] == 1 and calls["decoder"] == 5 and calls["joiner"] >= 5
        assert all(share.seconds > 0 for share in row.split)
        assert sum(share.seconds for share in row.split) <= row.timing.p50  # of the same run
    assert list(rows[0].to_dict()["split"]) == STAGES
    text = shown(split_table(rows))
    assert all(label in text for label in labels) and "× 5" in text


def test_the_same_engine_for_all_is_not_shown_twice(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    same = load(artifact, engine="openvino", threads=1, compute="fp32")
    monkeypatch.setattr(benching, "load", lambda *_, **__: same)
    rows = bench([artifact], np.zeros(800, np.float32), threads=1, rounds=1, memory=False)
    assert not any("auto" in row.label for row in rows)


def test_inspect_and_bench_on_the_command_line(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(artifact.folder)
    engines = ",".join(f"{part}={name}" for part, name in MIXED.items())
    assert main(["inspect", where, "--engine", engines, "--compute", "auto", "--threads", "1"]) == 0
    out, _ = capsys.readouterr()
    assert "parts, in 10.0 s of speech: 100.00 % int8" in out and "model.encoder_out" in out
    asked = ["bench", where, "--threads", "1", "--rounds", "1", "--seconds", "0.5", "--no-memory"]
    assert main(asked) == 0
    assert "where the time of one recording goes" in capsys.readouterr().out


def test_memory_and_load_time_of_parts(artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (utterance,) = tiny_parts.record(tmp_path, 1, seed=7)
    asked = ["transcribe", str(artifact.folder), str(utterance.audio), "--json", "--stats", "--engine", "onnxruntime"]
    assert main([*asked, "--option", "blank_penalty=1"]) == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == utterance.text
    assert last["stats"]["peak_bytes"] > 0 and last["stats"]["load_seconds"] > 0
