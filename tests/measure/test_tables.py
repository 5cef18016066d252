"""Tables for people: every figure, and names as they are, brackets and all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from fake_systems import Parrot
from rich.console import Console, RenderableType

from quantasr import sample
from quantasr.artifact import WHOLE, Artifact
from quantasr.engines import EngineOptions, load_engine
from quantasr.errors import ArtifactError
from quantasr.measure.audit import audit
from quantasr.measure.bench import BenchRow, Original, bench
from quantasr.measure.cells import megabytes, percent
from quantasr.measure.evaluate import evaluate_systems
from quantasr.measure.footprint import Footprint
from quantasr.measure.latency import Timing, ratio
from quantasr.measure.report import artifact_table, audit_table, bench_table, evaluation_table

NAME = "mine [bold]x[/bold] [openvino bf16]"


def shown(table: RenderableType) -> str:
    out = StringIO()
    Console(file=out, width=250).print(table)
    return out.getvalue()


def test_units() -> None:
    assert percent(0.0125) == "1.25 %"
    assert [megabytes(size) for size in (1_234_567, 99_900_000, 123_456_789)] == ["1.2 MB", "99.9 MB", "123 MB"]


def test_the_evaluation_table_names_the_systems() -> None:
    found = evaluate_systems(
        [Parrot(NAME, lambda i: "six", sample_rate=8000), Parrot("[red]", lambda i: "six", sample_rate=8000)],
        sample.evaluation(),
        limit=2,
    )
    text = shown(evaluation_table(found))
    assert NAME in text
    assert "[red]" in text
    assert "WER [95 %]" in text
    assert "2 utterances, 2 words" in text  # six, four
    assert "50.00 %" in text


def test_the_bench_table_names_the_systems() -> None:
    first, second = Timing(NAME, 10.0, (0.2, 0.2)), Timing("b", 10.0, (0.1, 0.1))
    rows = [
        BenchRow(
            NAME,
            first,
            ratio(first, first),
            first,
            ratio(first, first),
            4_000_000,
            2,
            Footprint(500_000_000, 1.25, 3.0),
        ),
        BenchRow("b [fp32]", second, ratio(second, first), second, ratio(second, first), 1_000_000, 2, None, 0.7103),
    ]
    text = shown(bench_table(rows))
    for part in (NAME, "b [fp32]", f"time ÷ {NAME} [quartiles]", "0.500 [0.500, 0.500]", "71.03 %", "500 MB", "1.25 s"):
        assert part in text
    assert "10.0 s of audio, batch 1, 2 threads, 2 turns interleaved" in text


def test_the_audit_and_the_artifact(sample_artifact: Callable[[str], Path]) -> None:
    artifact = Artifact.load(sample_artifact("default"))
    found = audit(artifact, {WHOLE: load_engine("onnxruntime", artifact.graph, EngineOptions(1))}, seconds=1.0)
    text = shown(audit_table(found))
    for row in artifact.layers():
        assert row["path"] in text
    assert "the recipe leaves it float" in text
    assert percent(found.int8_share) in text
    text = shown(artifact_table(replace(artifact, name=NAME)))
    for part in (NAME, "Wav2Vec2ForCTC", "48 utterances", "parity float", "quantized_openvino"):
        assert part in text


def test_bench_runs_every_engine_in_turns(sample_artifact: Callable[[str], Path]) -> None:
    artifact = Artifact.load(sample_artifact("default"))
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    parrot = Original("nowhere", Parrot("original", str, sample_rate=8000), 4_000_000)
    rows = bench([artifact], wave, original=parrot, threads=1, rounds=3, memory=False)
    labels = [row.label for row in rows]
    assert labels[:3] == [
        "original (PyTorch)",
        "digits-wav2vec2-default onnxruntime fp32",
        "digits-wav2vec2-default openvino fp32",
    ]
    assert rows[0].ratio.median == rows[0].encoder_ratio.median == 1.0
    assert all(row.encoder.p50 > 0 and len(row.encoder.seconds) == 3 for row in rows[1:])
    assert rows[1].to_dict()["encoder"]["ratio_to_first"]["median"] > 0
    assert all(row.size == artifact.size and len(row.timing.seconds) == 3 for row in rows[1:])
    assert rows[0].int8_share is None
    assert all(0.3 < (row.int8_share or 0) < 0.9 for row in rows[1:])
    assert rows[1].to_dict()["threads"] == 1


def test_bench_refuses_models_of_different_sample_rates(sample_artifact: Callable[[str], Path]) -> None:
    artifact = Artifact.load(sample_artifact("default"))
    parrot = Original("nowhere", Parrot("original", str, sample_rate=16000), 1)
    with pytest.raises(ArtifactError, match=r"digits-wav2vec2-default 8000 Hz, original 16000 Hz"):
        bench([artifact], np.zeros(8000, np.float32), original=parrot)
