"""The Kaldi training script: its graphs by hand, its parts on tones; and the recogniser that it made."""

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("kaldifst")
pytest.importorskip("numba")

import quantasr
from quantasr.sources.kaldi.build import build_network

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = Path(__file__).parents[1] / "data" / "kaldi" / "digits"
MODULES = ("train_kaldi_digits", "kaldi_export", "kaldi_tdnnf", "digit_training", "digit_strings")


@pytest.fixture(scope="module")
def training():
    """``train_kaldi_digits``, which finds what is beside it as it does when run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_kaldi_digits")
        for name in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def corpus(training):
    """One speaker whose digits are tones."""
    time = np.arange(1600, dtype=np.float32) / 8000
    return [
        training.Recording(word, "ann", take, (np.sin(2 * np.pi * (300 + 250 * digit) * time).astype(np.float32),))
        for take in range(20)
        for digit, word in enumerate(("zero", "one", "two"))
    ]


@pytest.fixture(scope="module")
def ids(training):
    return training.phone_ids(training.read_lexicon())


def test_the_phone_language_model_by_hand(training, ids):
    graphs = training.chain_graphs(ids)
    words = list(training.read_lexicon())
    lm = training.phone_lm(graphs.pronunciations, words)
    silence, first = 1, {name: ids[name] + 1 for name in ("T_B", "UW_E")}
    costs = {row[0]: math.exp(-w) for row, w in zip(lm.arcs.tolist(), lm.weights.tolist(), strict=True)}
    begin = range(lm.first[lm.start], lm.first[lm.start + 1])
    starts = {int(lm.arcs[i, 0]): math.exp(-lm.weights[i]) for i in begin}
    assert starts[silence] == pytest.approx(training.PAUSES)
    assert starts[first["T_B"]] == pytest.approx((1 - training.PAUSES) / len(words))
    assert sum(starts.values()) == pytest.approx(1)
    assert costs[first["UW_E"]] == pytest.approx(1)  # nothing else goes on so


def test_numerators_are_part_of_the_denominator(training, ids):
    graphs = training.chain_graphs(ids)
    scores = torch.randn(3, 40, 2 * len(ids), generator=torch.Generator().manual_seed(0), requires_grad=True)
    numerators = [graphs.numerator(text) for text in ("one", "zero two", "nine eight seven")]
    value, posteriors = training.lf_mmi(scores, torch.tensor([40, 25, 40]), numerators, graphs.denominator, leak=0.1)
    assert (value < 0).all() and torch.isfinite(value).all()
    inside = (torch.arange(40) < torch.tensor([40, 25, 40])[:, None]).float()
    torch.testing.assert_close(posteriors.sum(2), inside, rtol=1e-4, atol=1e-4)


def test_bottlenecks_move_towards_orthogonal_rows(training):
    torch.manual_seed(0)
    model = training.Tdnnf(training.Shape(), 6, torch.zeros(40), torch.ones(40))

    def distance() -> float:
        rows = model.layers[0].linear.weight.detach().flatten(1)
        gram = rows @ rows.T
        return float((gram / gram.trace() * len(gram) - torch.eye(len(gram))).norm())

    before = distance()
    for _ in range(60):
        model.constrain()
    assert distance() < 0.05 * before


@pytest.mark.parametrize("frames", [99, 100, 101])
def test_network_written_for_kaldi_computes_the_same(training, frames):
    torch.manual_seed(0)
    model = training.Tdnnf(training.Shape(), 6, torch.randn(40), torch.rand(40) + 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.num_batches_tracked.fill_(1)
    model.eval()
    context = model.shape.context
    feats = torch.randn(1, frames + 2 * context, 40)
    network = training.to_network(model)
    with torch.no_grad():
        wanted = model(feats.transpose(1, 2))
        for output, scores in zip(("output", "output-xent"), wanted, strict=True):
            read = build_network(network, context, context, subsampling=3, output=output)
            torch.testing.assert_close(read(feats), scores, rtol=1e-3, atol=1e-3)
    assert wanted[0].shape == (1, -(-frames // 3), 6)


def test_two_steps_make_a_folder_that_is_a_model(training, corpus, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made" / "digits"
    command = ["train_kaldi_digits.py", str(out), "--data", "nowhere", "--steps", "2", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(training, "read_corpus", lambda _: corpus)
    one = [training.Example(corpus[0].waves[0], "zero", "ann")]
    monkeypatch.setattr(sys.modules["digit_training"], "fixed_set", lambda *_: one)
    errors = {"sub": 1, "del": 0, "ins": 0, "words": 8}
    monkeypatch.setattr(training, "evaluate", lambda _: {"evaluation": errors})
    monkeypatch.setattr(training, "version", lambda _: "0.3.45")
    threads = torch.get_num_threads()
    training.main()
    torch.set_num_threads(threads)
    assert "evaluation: WER 12.50 %" in capsys.readouterr().out
    assert "| evaluation | 12.50 % | 1 | 0 | 0 | 8 |" in (out / "README.md").read_text()
    made, kept = ({p.relative_to(f) for f in [folder] for p in f.rglob("*")} for folder in (out, FOLDER))
    assert made == kept
    for name in ("tree", "phones.txt", "graph/HCLG.fst", "graph/words.txt"):
        assert (out / name).read_bytes() == (FOLDER / name).read_bytes(), name
    model = quantasr.load_model(str(out))
    texts = [t.text for t in model.transcriber().transcribe([corpus[0].waves[0]])]
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["out", "--data", "nowhere"], "nowhere: no all.jsonl there; give the folder that holds it as --data"),
        (["out", "--data", ".", "--rate", "-1"], "--rate -1.0: must be more than 0"),
        (["out", "--data", ".", "--steps", "0"], "--steps 0: must be more than 0"),
    ],
)
def test_bad_input_is_one_line(training, arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_kaldi_digits.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        training.main()
    said = capsys.readouterr().err if caught.value.code == 2 else str(caught.value.code)
    assert complaint in said.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def some_examples(training, tmp_path):
    """Every eighth string of the evaluation set, and a manifest of them."""
    rows = [json.loads(line) for line in (training.SAMPLE / "evaluation.jsonl").read_text().splitlines()][3::8]
    for row in rows:
        row["audio_filepath"] = str(training.SAMPLE / row["audio_filepath"])
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return training.read_set(tmp_path / "some.jsonl")


def test_committed_folder_recognises_the_samples_speech(training, tmp_path):
    examples = some_examples(training, tmp_path)
    found = quantasr.load_model(str(FOLDER)).transcriber().transcribe([e.wave for e in examples])
    counts = training.word_errors([e.text for e in examples], [t.text for t in found])
    assert counts["words"] > 100
    assert training.wer(counts) < 3


# Not imported to see whether it is there: vosk and kaldifst bring OpenFst both, and wait for each other for ever.
@pytest.mark.skipif(importlib.util.find_spec("vosk") is None, reason="vosk is not installed")
def test_vosk_recognises_with_the_committed_folder(training, tmp_path):
    examples = some_examples(training, tmp_path)
    folder = training.vosk_folder(FOLDER, tmp_path / "vosk")
    command = [sys.executable, EXAMPLES / "vosk_transcribe.py", folder, tmp_path / "some.jsonl"]
    texts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=100).stdout)
    assert training.wer(training.word_errors([e.text for e in examples], texts)) < 3


def test_committed_folder_is_small_and_says_nothing_of_where_it_was_made():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for name in ("lexicon.txt", "mfcc.conf"):
        (kept,) = FOLDER.rglob(name)
        assert kept.read_text() == (EXAMPLES / "kaldi_digits" / name).read_text()
    for path in files:
        content = path.read_bytes()
        for place in (b"/work", b"/tmp", b"/home", b"/root", b"/Users", b"file:"):
            assert place not in content, (path, place)
    assert "CC BY-SA 4.0" in (FOLDER / "LICENSE").read_text()
