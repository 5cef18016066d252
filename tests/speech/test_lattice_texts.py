"""Which text a lattice gives: by minimum Bayes risk or the best path; and what of that an artifact keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantasr.errors import ArtifactError
from quantasr.kaldi.fst import SymbolTable
from quantasr.kaldi.nnet3.model import read_model
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.lattice.align import read_boundaries
from quantasr.speech.lattice.decoder import LatticeOptions
from quantasr.speech.lattice.files import DecodingFiles, find_graph
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.lattice.transcriber import LatticeTranscriber

DATA = Path(__file__).parents[1] / "data" / "kaldi" / "digits"
TRANSITIONS = read_model(DATA / "final.mdl").transitions
FILES = DecodingFiles(find_graph(DATA / "graph"), TRANSITIONS.pdf_of_tid, LatticeOptions(acoustic_scale=1.0))


def two_firsts():
    """The best path is x x (0.4); against y z (0.3) and w z (0.3), x z has fewer expected errors."""
    ints = lambda *values: np.array(values, np.int32)  # noqa: E731
    floats = lambda *values: np.array(values, np.float32)  # noqa: E731
    return Lattice(
        ints(0, 0, 0, 1, 2, 3), ints(1, 2, 3, 4, 4, 4), ints(1, 1, 1, 2, 2, 2), ints(1, 2, 4, 1, 3, 3),
        floats(*-np.log([0.4, 0.3, 0.3]), 0, 0, 0), floats(0, 0, 0, 0, 0, 0), floats(*[np.inf] * 4, 0),
        ints(0, 1, 1, 1, 2), 2, words=SymbolTable(("<eps>", "x", "y", "z", "w")),
    )  # fmt: skip


def heard(**options):
    files = replace(FILES, options=replace(FILES.options, **options))
    recogniser = LatticeTranscriber(
        None, KaldiFrontend(), name="small", frame_seconds=0.03, min_samples=1, decoder=files
    )
    return recogniser._joined([two_firsts(), two_firsts()], [16000, 16000])


def test_minimum_bayes_risk_is_the_default():
    found = heard()
    assert found.text == "x z x z" and [w.confidence for w in found.words] == pytest.approx([0.4, 0.6] * 2, abs=1e-5)
    assert [(w.start, w.end) for w in found.words[2:]] == [pytest.approx((1.0, 1.03)), pytest.approx((1.03, 1.06))]
    assert found.to_dict()["words"][1] == {"text": "z", "start": 0.03, "end": 0.06, "confidence": 0.6}
    assert found.score == pytest.approx(np.log(0.4) / 2, abs=1e-5)  # of the best path


def test_the_best_path_is_an_option():
    found = heard(text="best_path")
    assert found.text == "x x x x" and all(word.confidence is None for word in found.words)
    assert found.to_dict()["words"][0] == {"text": "x", "start": 0.0, "end": 0.03}


def test_artifacts_keep_where_words_end(tmp_path):
    path = tmp_path / "word_boundary.int"
    path.write_text("".join(f"{phone} singleton\n" for phone in TRANSITIONS.topology.phones.tolist()))
    files = replace(FILES, boundaries=read_boundaries(path, TRANSITIONS), options=LatticeOptions(text="best_path"))
    folder = tmp_path / "artifact"
    folder.mkdir()
    files.copy_to(folder)
    found = DecodingFiles.read(files.to_dict(), folder)
    assert found.options == files.options and found.silent is None
    np.testing.assert_array_equal(found.boundaries, files.boundaries)
    np.save(folder / "boundaries.npy", files.boundaries[:-1])
    with pytest.raises(ArtifactError, match=r"boundaries\.npy and transitions\.npy do not go together"):
        DecodingFiles.read(files.to_dict(), folder)


def test_older_artifacts_are_read(tmp_path):
    FILES.copy_to(tmp_path)
    row = FILES.to_dict()
    for name in ("text", "lm_scale"):
        del row["options"][name]
    found = DecodingFiles.read(row, tmp_path)
    assert found.boundaries is None and (found.options.text, found.options.lm_scale) == ("mbr", 1.0)
