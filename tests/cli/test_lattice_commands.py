"""``score-lattices``, ``loglikes`` and ``lattices`` on the hybrid model of spoken digits."""

import json
from pathlib import Path

import numpy as np
import pytest

from quantasr.cli import main
from quantasr.kaldi.archive import Archive, archive_writer
from quantasr.sample import calibration, evaluation, model
from quantasr.speech.frontend.kaldi_features import KaldiFeatures
from quantasr.speech.lattice.archives import read_lattices
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.manifest import read_manifest

DIGITS = str(Path(__file__).parents[1] / "data" / "kaldi" / "digits")


def test_score_lattices(capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = ["score-lattices", DIGITS, "--manifest", str(evaluation()), "--limit", "3", "--utterances", str(rows)]
    more = ["--tuning", str(calibration()), "--lm-weights", "0.5,1", "--penalties", "0", "--json"]
    assert main([*command, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["own"] == {"lm_weight": 1.0, "penalty": 0.0} and len(found["grid"]) == 2
    assert found["result"]["wer"]["utterances"] == 3 and found["result"]["wer"]["rate"] < 0.1
    assert len(rows.read_text().splitlines()) == 3
    assert main([*command, "--lm-weights", "1"]) == 0
    said = capsys.readouterr()
    assert "no --tuning" in said.err and "THE SAME SPEECH" in " ".join(said.out.split()) and "speakers" in said.out


def test_loglikes(capsys, tmp_path):
    out = f"ark,scp:{tmp_path}/x.ark,{tmp_path}/x.scp"
    assert main(["loglikes", DIGITS, "--manifest", str(evaluation()), "--limit", "2", "--out", out]) == 0
    archive = Archive(f"scp:{tmp_path}/x.scp")
    assert len(archive) == 2 and all(matrix.shape[1] == 52 for matrix in archive.values())
    assert "2 recordings" in capsys.readouterr().out


@pytest.mark.parametrize("form, more", [("ark", []), ("ark,t", ["--raw"])])
def test_lattices(form, more, capsys, tmp_path):
    command = ["lattices", DIGITS, "--manifest", str(evaluation()), "--limit", "2", "--out", f"{form}:{tmp_path}/x.ark"]
    assert main([*command, *more]) == 0
    assert "2 lattices" in capsys.readouterr().out
    found = dict(read_lattices(tmp_path / "x.ark"))
    assert len(found) == 2 and all(isinstance(lattice, Lattice) == bool(more) for lattice in found.values())
    audio = read_manifest(evaluation())[0].audio
    assert main(["transcribe", DIGITS, str(audio), "--confidences"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    (first, *_) = found.values()
    assert len(rows) == len(first.best_path().words)
    assert all(0.5 < float(row[4]) <= 1 and float(row[1]) < float(row[2]) for row in rows)


def test_loglikes_and_words_of_features(capsys, tmp_path):
    """From feats.scp as from the sound; i-vectors that the model does not read are refused."""
    utterance = read_manifest(evaluation())[0]
    mfcc = KaldiFeatures.from_conf(Path(DIGITS) / "conf" / "mfcc.conf", "mfcc")
    with archive_writer(tmp_path / "feats.ark", tmp_path / "feats.scp") as put:
        put(utterance.id, mfcc(utterance.load(8000)))
    said = ["--limit", "1", "--out"]
    assert main(["loglikes", DIGITS, "--manifest", str(evaluation()), *said, f"ark:{tmp_path}/sound.ark"]) == 0
    assert main(["loglikes", DIGITS, "--manifest", str(tmp_path), *said, f"ark:{tmp_path}/features.ark"]) == 0
    sound, features = (Archive(tmp_path / f"{name}.ark")[utterance.id] for name in ("sound", "features"))
    np.testing.assert_allclose(features, sound, atol=1e-5)
    assert main(["transcribe", DIGITS, str(tmp_path / "feats.scp")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{utterance.id}\t{utterance.text}"
    command = ["loglikes", DIGITS, "--manifest", str(tmp_path), "--ivectors", f"scp:{tmp_path}/feats.scp"]
    assert main([*command, *said, f"ark:{tmp_path}/x.ark"]) == 1


@pytest.mark.parametrize(
    "command, problem",
    [
        (["score-lattices", str(model())], "searches no lattice"),
        (["score-lattices", DIGITS, "--lm-weights", "0"], "weights above 0"),
        (["score-lattices", DIGITS, "--utterances", "no/such/folder/x"], "cannot be written"),
        (["score-lattices", DIGITS, "--latgen", "final.mdl"], "KALDI_ROOT is not set"),
        (["lattices", str(model()), "--out", "ark:x"], "searches no lattice"),
        (["loglikes", DIGITS, "--out", "ark,scp:x"], "write ark:FILE"),
    ],
)
def test_refused_in_one_line(command, problem, capsys, monkeypatch):
    monkeypatch.delenv("KALDI_ROOT", raising=False)
    assert main([*command, "--manifest", str(evaluation()), "--limit", "1"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert problem in said[-1] and said[-1].startswith("quantasr: ")
