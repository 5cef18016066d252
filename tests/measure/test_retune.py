"""Decoding parameters searched on tuning speech: on a model that loses its quiet words to the blank."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_parts
from rich.console import Console

import quantasr
from quantasr import sample
from quantasr.artifact import Artifact
from quantasr.atomic import MANIFEST
from quantasr.cli import main
from quantasr.engines import EngineOptions, load_engine
from quantasr.errors import ManifestError, RecipeError
from quantasr.measure.remember import RememberingEngine
from quantasr.measure.report import artifact_table
from quantasr.measure.report_parts import retune_table
from quantasr.measure.retune import retune
from quantasr.runtime import load
from quantasr.speech.manifest import Utterance, read_manifest
from quantasr.speech.parts import Arrays


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Utterance]]:
    """The model as an artifact, and the speech that it was calibrated on."""
    folder = tmp_path_factory.mktemp("toy")
    speech = tiny_parts.record(folder, 4, seed=0)
    tiny_parts.artifact(folder / "made", speech)
    return folder / "made", speech


@pytest.fixture
def artifact(made: tuple[Path, list[Utterance]], tmp_path: Path) -> Path:
    """A copy to be changed."""
    folder = tmp_path / "out"
    folder.mkdir()
    for path in made[0].iterdir():
        os.link(path, folder / path.name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_the_blank_swallowed_comes_back(artifact: Path, tmp_path: Path) -> None:
    tuning, other = tiny_parts.record(tmp_path, 6, seed=1), tiny_parts.record(tmp_path, 5, seed=2)
    before, said = contents(artifact), []
    found = quantasr.retune(artifact, tuning, evaluation=other, threads=1, say=said.append)
    # Every recording has one word of amplitude 0.25, which scores 2.5 against the blank's 3.
    counts = found.before.result.wer.counts
    assert (counts.substitutions, counts.deletions, counts.insertions) == (0, 6, 0)
    assert found.best.options == {"blank_penalty": 0.75} and found.best.errors == 0
    assert found.gained and found.written and found.own == {"blank_penalty": 0.0}
    assert found.comparison.difference == pytest.approx(-0.25)
    assert found.evaluation is not None
    assert [result.wer.rate for result in found.evaluation.results] == [0.25, 0.0]
    assert said[0].startswith("tuning blank_penalty (now 0.0): 11 runs over 6 utterances")

    kept = Artifact.load(artifact)
    assert kept.decoding["blank_penalty"] == 0.75
    assert kept.provenance["retuned"]["before"] == "25.00 % (S 0 + D 6 + I 0 of 24)"
    assert load(artifact).transcribe([other[0].load(8000)])[0].text == other[0].text
    assert len(kept.calibration()) == 4 + 6
    with pytest.raises(ManifestError, match=r"1 of 1 utterances .* are among the calibration and tuning speech"):
        quantasr.evaluate(load(artifact), tuning[:1])
    changed = {name for name, content in contents(artifact).items() if content != before[name]}
    assert changed == {MANIFEST, "calibration.json"}
    assert not list(tmp_path.glob(".*"))

    out = StringIO()
    Console(file=out, width=200).print(retune_table(found))
    Console(file=out, width=200).print(artifact_table(kept))
    text = out.getvalue()
    assert "blank_penalty 0.75: 25.00 % (S 0 + D 6 + I 0 of 24) -> 0.00 %" in text
    assert "* blank_penalty 0.75" in text and "evaluation, retuned" in text and "as it is: blank_penalty 0.0" in text
    json.dumps(found.to_dict())


def test_nothing_is_written_where_nothing_is_gained(artifact: Path, tmp_path: Path) -> None:
    before = contents(artifact)
    loud = tiny_parts.record(tmp_path, 2, seed=3, quiet=0.6)
    found = retune(artifact, loud, grids={"blank_penalty": (0.5, 3.5), "max_symbols": (1, 10)})
    assert not found.gained and not found.written and found.best is found.before
    assert found.trials[-1].options == {"max_symbols": 1} and len(found.trials) == 4
    assert any(trial.result.wer.counts.insertions for trial in found.trials)  # 3.5 nats off leave the blank below 0
    quiet = tiny_parts.record(tmp_path, 2, seed=4)
    dry = retune(artifact, quiet, grids={"blank_penalty": (1.0,)}, dry_run=True)
    assert dry.gained and not dry.written
    assert contents(artifact) == before


def test_what_cannot_be_tuned(artifact: Path, made: tuple[Path, list[Utterance]], tmp_path: Path) -> None:
    speech = made[1]
    with pytest.raises(RecipeError, match="has no option 'blank_penlty'; near it: blank_penalty"):
        retune(artifact, speech, grids={"blank_penlty": (1.0,)})
    with pytest.raises(RecipeError, match="max_symbols is 0; it must be"):
        retune(artifact, speech, grids={"blank_penalty": (1.0,), "max_symbols": (0,)})
    with pytest.raises(ManifestError, match="are in the evaluation manifest too"):
        retune(artifact, speech, evaluation=speech[:1])
    with pytest.raises(ManifestError, match="among the calibration speech of toy-toy"):
        retune(artifact, tiny_parts.record(tmp_path, 1, seed=5), evaluation=speech)
    with pytest.raises(ManifestError, match="no utterances to tune on"):
        retune(artifact, [])
    with pytest.raises(ManifestError, match="text"):
        retune(artifact, [replace(speech[0], text=None)])


def test_a_greedy_ctc_model_has_nothing_to_tune(sample_artifact: object) -> None:
    folder = sample_artifact("default")  # type: ignore[operator]
    speech = read_manifest(sample.evaluation())[:1]
    with pytest.raises(RecipeError, match="it has nothing to tune: name options and values"):
        retune(folder, speech, engine="onnxruntime")
    with pytest.raises(RecipeError, match="no search whose options could be tuned"):
        retune(folder, speech, engine="onnxruntime", grids={"alpha": (0.5,)})


def test_the_weights_of_ctcs_beam_search(sample_artifact: object, tmp_path: Path) -> None:
    pytest.importorskip("pyctcdecode")
    original = Artifact.load(sample_artifact("default"))  # type: ignore[operator]
    for path in original.folder.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / MANIFEST).unlink()
    from quantasr.speech.beam import BeamDecoder

    # A bonus for each word that makes up words.
    decoding = {**BeamDecoder(beam_width=4, beta=30.0).to_dict(), "lm": None}
    replace(original, folder=tmp_path, decoding=decoding).write_manifest()
    speech = read_manifest(sample.evaluation())[:3]
    quick: Any = {"engine": "onnxruntime", "threads": 1}
    found = retune(tmp_path, speech, grids={"beta": (0.0,), "beam_width": (4,)}, **quick)
    assert found.own == {"beta": 30.0, "beam_width": 4}
    with pytest.raises(RecipeError, match="CTC's beam search has no option 'gamma'; it has alpha"):
        retune(tmp_path, speech, grids={"gamma": (0.0,)}, **quick)


def test_an_encoder_runs_once(made: tuple[Path, list[Utterance]]) -> None:
    calls = 0
    engine = load_engine("onnxruntime", made[0] / "encoder.onnx", EngineOptions(1))

    class Counting:
        name = "counting"

        def run(self, feed: Arrays) -> object:
            nonlocal calls
            calls += 1
            return engine.run(feed)

    remembering = RememberingEngine(Counting())  # type: ignore[arg-type]
    feeds = [{"features": np.full((1, size), 0.1, np.float32), "lengths": np.array([size])} for size in (800, 880)]
    first = remembering.run(feeds[0])["encoded"]
    expected = first.copy()
    first[:] = 0  # the caller's own
    np.testing.assert_array_equal(remembering.run(dict(feeds[0]))["encoded"], expected)
    assert calls == 1 and remembering.name == "counting"
    remembering.run(feeds[1])
    assert calls == 2
    full = RememberingEngine(Counting(), room=0)  # type: ignore[arg-type]
    full.run(feeds[0]), full.run(feeds[0])
    assert calls == 4


def manifest(path: Path, utterances: list[Utterance]) -> Path:
    rows = [{"audio_filepath": str(u.audio), "text": u.text, "duration": 0.17} for u in utterances]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_the_command(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(artifact)
    quiet = manifest(tmp_path / "tuning.jsonl", tiny_parts.record(tmp_path, 2, seed=6))
    loud = manifest(tmp_path / "evaluation.jsonl", tiny_parts.record(tmp_path, 2, seed=7, quiet=0.6))
    asked = ["retune", str(artifact), "--tuning", str(quiet), "--grid", "blank_penalty=0.75,1"]
    assert main([*asked, "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["chosen"] == {"blank_penalty": 0.75}
    assert "--dry-run" in err and contents(artifact) == before
    # Loud words need no penalty, so it gains nothing there.
    assert main([*asked, "--evaluation", str(loud), "--dry-run"]) == 0
    assert "on the evaluation speech that gains nothing" in capsys.readouterr().err
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert "* blank_penalty 0.75" in out and f"{artifact}: blank_penalty 0.75" in err
    assert main(asked) == 0
    assert "is unchanged" in capsys.readouterr().err
