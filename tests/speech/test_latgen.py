"""Kaldi's search as a decoder: its lattices read, its best paths found, and a program in its place."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.archive import Archive
from quantasr.kaldi.nnet3.model import read_model
from quantasr.speech.lattice.archives import read_lattice
from quantasr.speech.lattice.decoder import LatticeOptions
from quantasr.speech.lattice.files import DecodingFiles, find_graph
from quantasr.speech.lattice.latgen import LatgenDecoder

DATA = Path(__file__).parents[1] / "data" / "kaldi"
LATTICE = DATA / "golden" / "lattice.txt"
LOGLIKES = np.load(DATA / "golden" / "loglikes.npy")
PATHS = json.loads((DATA / "golden" / "best_paths.json").read_text())
MODEL = DATA / "digits" / "final.mdl"


def _files(**options):
    pdf_of_tid = read_model(MODEL).transitions.pdf_of_tid
    return DecodingFiles(find_graph(DATA / "digits" / "graph"), pdf_of_tid, LatticeOptions(**options))


def _read(text, scale=1.0):
    return read_lattice(text.splitlines(), "here", scale, None)


@pytest.fixture(scope="module")
def own():
    """Our own search with the options that Kaldi's was run with."""
    return _files(beam=12, lattice_beam=4, acoustic_scale=1).decoder(LOGLIKES)


@pytest.mark.parametrize("row", PATHS, ids=lambda row: f"{row['lm_weight']:g},{row['penalty']:g}")
def test_best_paths_are_kaldis(row, own):
    for lattice in (_read(LATTICE.read_text()), own):
        best = lattice.best_path(1.0, 1 / row["lm_weight"], row["penalty"])
        assert (list(best.words), list(best.alignment)) == (row["words"], row["alignment"])


def test_paths_differ():
    assert len({tuple(row["words"]) for row in PATHS}) >= 4  # or the test above would show nothing


def test_hand_made_lattice():
    # 7 -> 5 -> 9 with words 3 and 4, or 7 -> 9 by two arcs in one; states in no order, start first.
    found = _read(
        "u \n7\t5\t2\t3\t1.5,-2\n7\t8\t4\t0\n8\t9\t6\t9\t0.5,8\n5\t9\t3\t4\t1,0.5\n9\t0.25,0\n\nv \n0\t1\t1\t1\n"
    )
    assert found.frames == 2 and found.states == 4 and found.reached_final
    best = found.best_path()
    assert best.words == (3, 4) and (best.begin, best.end) == ((0, 1), (1, 2))
    assert best.graph_cost == 2.75 and best.acoustic_cost == -1.5
    assert found.best_path(1.0, 0.1, 1.0).words == (9,)  # 0.75 + 0.8 + 1 against 2.75 - 0.15 + 2
    assert np.all(np.diff(found.source) >= 0) and np.all(found.source < found.target)


@pytest.mark.parametrize("text", ["", "u \n\n", "u \n"])
def test_no_lattice(text):
    assert _read(text) is None


@pytest.mark.parametrize(
    "text, problem",
    [
        ("u\n0 1 2 3 4 5\n", "here: line 2: no arc of a lattice: 4 or 5 columns"),
        ("u\n0 1 2\n1\n", "here: the lattice is determinized"),
        ("u\n0 1 2 x\n", "line 2: no arc"),
        ("u\n0 1 2 3 1\n", "line 2: no arc"),
        ("u\n0 1 2 -3\n", "line 2: no arc of a lattice: a number below 0"),
        ("u\n0 1 2 3\n1 0 2 3\n1\n", "goes back to its start"),
        ("u\n0 1 2 3\n1 2 2 3\n2 1 2 3\n1\n", "has a loop"),
        ("u\n0 1 2 3\n", "no path passes"),
        ("u\n0 1 2 3\n4 5 1 1\n5\n", "no path passes"),
    ],
)
def test_damaged_lattices(text, problem):
    with pytest.raises(KaldiFileError, match=problem):
        _read(text)


# ---- the program ----


@pytest.fixture
def kaldi(tmp_path, monkeypatch):
    """A stand-in for latgen-faster-mapped: keeps its arguments and the archive, prints a lattice."""

    def install(script):
        program = tmp_path / "src" / "bin" / "latgen-faster-mapped"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("KALDI_ROOT", str(tmp_path))
        return tmp_path

    return install


def test_program_is_called_as_kaldi_wants(kaldi):
    here = kaldi(
        'cd $(dirname $0); echo "$@" > said; for a; do case $a in ark:*) cp "${a#ark:}" got;; esac; done; '
        f"cat {LATTICE}"
    )
    files = _files(beam=12, lattice_beam=4, acoustic_scale=1)
    found = LatgenDecoder(MODEL, files)(LOGLIKES)
    said = (here / "src" / "bin" / "said").read_text().split()
    assert {"--beam=12", "--lattice-beam=4", "--acoustic-scale=1", "--determinize-lattice=false"} <= set(said)
    assert said[-4:-2] == [str(MODEL), str(files.files["HCLG.fst"])] and said[-1] == "ark,t:-"
    assert not any("max-active" in word for word in said)  # no limit is Kaldi's default
    np.testing.assert_array_equal(Archive(f"ark:{here}/src/bin/got")["utterance"], LOGLIKES)
    assert found.text(found.best_path().words) == "nine two six" and found.reached_final
    kaldi(f"echo 'WARNING: Outputting partial output for utterance' >&2; cat {LATTICE}")
    assert not LatgenDecoder(MODEL, files)(LOGLIKES).reached_final
    kaldi("exit 0")
    assert LatgenDecoder(MODEL, files)(LOGLIKES).best_path().words == ()


@pytest.mark.parametrize(
    "script, problem",
    [
        ("echo bad model >&2; exit 3", "failed with 3: bad model"),
        ("echo 'u '; echo 0 1 2 3; echo 1", "1 frames came of 24"),
    ],
)
def test_program_that_fails(kaldi, script, problem):
    kaldi(script)
    with pytest.raises(ModelLoadError, match=problem):
        LatgenDecoder(MODEL, _files())(LOGLIKES)


def test_what_is_missing(kaldi, monkeypatch, tmp_path):
    kaldi("exit 0")
    with pytest.raises(ModelLoadError, match="no such file"):
        LatgenDecoder(tmp_path / "final.mdl", _files())
    with pytest.raises(ModelLoadError, match=r"takes an HCLG\.fst"):
        LatgenDecoder(MODEL, DecodingFiles({"HCLr.fst": tmp_path, "Gr.fst": tmp_path}, np.zeros(1, np.int32)))
    monkeypatch.setenv("KALDI_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(ModelLoadError, match="cannot be run"):
        LatgenDecoder(MODEL, _files())
    monkeypatch.delenv("KALDI_ROOT")
    with pytest.raises(ModelLoadError, match="KALDI_ROOT is not set"):
        LatgenDecoder(MODEL, _files())
