"""Kaldi folders whose files are missing, damaged or not of one model: one line each, that says what, where and why."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kaldi

from quantasr import load_model, sample
from quantasr.errors import ModelLoadError
from quantasr.kaldi.fst import INPUT, read_fst

LDA = "component-node name=lda component=lda input=Append(Offset(input, -1), input, Offset(input, 1), "


def recording() -> Path:
    row = json.loads(sample.evaluation().read_text().splitlines()[20])
    return sample.evaluation().parent / row["audio_filepath"]


def swap(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def dimensions(folder: Path) -> None:
    swap(
        folder / "final.mdl", b"input=Append(Offset(input, -1), input, Offset(input, 1))", b"input=Append(input, input)"
    )


def pdfs(folder: Path) -> None:
    swap(folder / "final.mdl", b"input=output.affine", b"input=prefinal-l")


def no_output(folder: Path) -> None:
    swap(folder / "final.mdl", b"output-node name=output input", b"output-node name=outputs input")


def unknown_node(folder: Path) -> None:
    swap(folder / "final.mdl", b"component=tdnnf2.linear input=tdnn1.batchnorm", b"component=tdnnf2.linear input=tdnn7")


def transition_ids(folder: Path) -> None:
    path = folder / "graph" / "HCLG.fst"
    arcs = read_fst(path).arcs
    last = arcs[arcs[:, INPUT].argmax()]
    swap(path, last[:2].tobytes(), np.array([200, last[1]], np.int32).tobytes())


def fewer_words(folder: Path) -> None:
    path = folder / "graph" / "words.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))


def ivector_dim(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_kaldi.with_ivectors(folder)
    weight = np.zeros((120, 19), np.float32)
    tiny_kaldi.edit(folder, "input-node name=ivector dim=7", LDA + "ReplaceIndex(ivector, t, 0))", LinearParams=weight)


def ivector_features(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_kaldi.with_ivectors(folder)
    weight = np.zeros((120, 23), np.float32)
    tiny_kaldi.edit(folder, "input-node name=input dim=6", LDA + "ReplaceIndex(ivector, t, 0))", LinearParams=weight)
    tiny_kaldi.set_option(folder, num_ceps=6)


def no_extractor(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_kaldi.with_ivectors(folder)
    shutil.rmtree(folder / "ivector")


def damaged_extractor(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_kaldi.with_ivectors(folder)
    cut(folder / "ivector" / "final.ie", 0.5)


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("spoil", "where", "problem"),
    [
        (dimensions, "final.mdl", r"byte \d+: node 'lda' reads 80 numbers, but 'lda' takes 120"),
        (pdfs, "final.mdl", "64 outputs, but the transition model has 52 pdfs"),
        (no_output, "final.mdl", "no output-node named 'output'"),
        (unknown_node, "final.mdl", "node 'tdnnf2.linear' reads 'tdnn7', which is not there"),
        (lambda f: cut(f / "final.mdl", 0.7), "final.mdl", r"byte \d+"),
        (lambda f: (f / "final.mdl").write_bytes(b""), "final.mdl", r"byte 0"),
        (lambda f: tiny_kaldi.set_option(f, num_ceps=13), "mfcc.conf", "gives 13 features a frame, and .* reads 40"),
        (lambda f: tiny_kaldi.set_option(f, high_freq=7600), "mfcc.conf", "20 to 7600 Hz is no range within 0 to 4000"),
        (lambda f: tiny_kaldi.set_option(f, sample_frequency="fast"), "mfcc.conf", "'fast' is not a number"),
        (lambda f: tiny_kaldi.set_option(f, num_mels=40), "mfcc.conf", "num-mels"),
        (lambda f: (f / "conf" / "mfcc.conf").unlink(), "", "has no mfcc.conf or fbank.conf"),
        (ivector_dim, "ivector", "gives i-vectors of 5 values, and .* reads 7"),
        (ivector_features, "ivector", "made for 4 features a frame, and .* gives 6"),
        (no_extractor, "", "i-vectors"),
        (damaged_extractor, "final.ie", r"byte \d+"),
        (transition_ids, "graph", "transition-id 200, the model ends at 52"),
        (fewer_words, "graph", "the graph has word 10, but the table of words ends at 3"),
        (lambda f: (f / "graph" / "words.txt").unlink(), "words.txt", "cannot be read"),
        (lambda f: cut(f / "graph" / "HCLG.fst", 0.7), "HCLG.fst", r"byte \d+"),
        (lambda f: shutil.rmtree(f / "graph"), "", "has no decoding graph"),
        (write("frame_subsampling_factor", "three"), "frame_subsampling_factor", "'three' is no number of frames"),
        (write("frame_subsampling_factor", "1000"), "frame_subsampling_factor", "makes no sense"),
        (write("cmvn_opts", "norm-vars"), "cmvn_opts", "'norm-vars' is no option"),
    ],
)
def test_one_line(spoil: Any, where: str, problem: str, tmp_path: Path, quantasr_cli: Any) -> None:
    folder = tiny_kaldi.copy(tmp_path / "model")
    spoil(folder)
    ran = quantasr_cli("transcribe", folder, recording())
    assert ran.code == 1 and not ran.out and len(ran.complaints) == 1, ran.err
    assert re.search(problem, ran.err), ran.err
    assert where in ran.err, ran.err


def test_no_model_at_all(tmp_path: Path, quantasr_cli: Any) -> None:
    folder = tiny_kaldi.copy(tmp_path / "model")
    (folder / "final.mdl").unlink()
    with pytest.raises(ModelLoadError, match=rf"^{folder}: has no final.mdl and no am/final.mdl"):
        load_model(folder, source="kaldi")
    ran = quantasr_cli("transcribe", folder, recording())
    assert ran.code == 1 and "no source recognises it" in ran.err and len(ran.complaints) == 1


@pytest.mark.parametrize("options", [("--greedy",), ("--beam-width", "4"), ("--lm", __file__)])
@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
def test_decoding_of_ctc_models(command: str, options: tuple[str, ...], quantasr_cli: Any) -> None:
    speech = (recording(),) if command == "transcribe" else ("--manifest", sample.evaluation(), "--limit", "1")
    ran = quantasr_cli(command, tiny_kaldi.DIGITS, *speech, *options)
    assert ran.code == 1 and len(ran.complaints) == 1, ran.err
    assert "searches a graph of words" in ran.err and options[0] in ran.err, ran.err
