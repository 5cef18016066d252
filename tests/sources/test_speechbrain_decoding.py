"""The beam search that a SpeechBrain model brings: its texts, and its way into the artifact."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import tiny_speechbrain
import torch
from speechbrain.dataio.encoder import CTCTextEncoder
from speechbrain.decoders.ctc import CTCBeamSearcher, CTCPrefixBeamSearcher

from quantasr import load, load_model, quantize, sample
from quantasr.errors import ModelLoadError
from quantasr.sources import CtcModel
from quantasr.sources.speechbrain.decoding import read_decoder
from quantasr.sources.speechbrain.tokenizer import read_tokenizer
from quantasr.speech.beam import BeamDecoder
from quantasr.speech.ctc import GREEDY
from quantasr.speech.decoding import decode

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"]
LABELS = ["<blank>", " ", *sorted(set("".join(WORDS)))]

_BEAM = """
    decoding_function: !name:speechbrain.decoders.ctc.CTCBeamSearcher
    test_beam_search:
        blank_index: !ref <blank_index>
        beam_size: 12
        alpha: 0.8
        beta: 0.4
        kenlm_model_path: {lm}
"""


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bigram of the digits, some of them without a weight for backing off, as some tools write them."""
    rng = np.random.default_rng(0)
    pairs = [p for p in itertools.product(["<s>", *WORDS], [*WORDS, "</s>"]) if rng.random() < 0.5 and p[0] != "zero"]
    ones = [f"{-rng.uniform(0.6, 1.6):.3f}\t{w}" + ("" if w == "zero" else "\t-0.3") for w in WORDS]
    twos = [f"{-rng.uniform(0.1, 1.5):.3f}\t{a} {b}" for a, b in pairs]
    head = ["\\data\\", f"ngram 1={len(WORDS) + 3}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    marks = ["-99\t<s>\t-0.3", "-1.2\t</s>", "-2\t<unk>\t-0.1"]
    path = tmp_path_factory.mktemp("lm") / "digits.arpa"
    path.write_text("\n".join([*head, *marks, *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""]), "utf-8")
    return path


def _spoken(noise: float, rng: np.random.Generator) -> torch.Tensor:
    """Log-probs of four digits, ``[frames, vocabulary]``."""
    ids: list[int] = []
    for letter in " ".join(rng.choice(WORDS, 4)):
        ids += [LABELS.index(letter)] * int(rng.integers(1, 3)) + [0] * int(rng.integers(1, 3))
    scores = rng.normal(0, noise, (len(ids), len(LABELS)))
    scores[np.arange(len(ids)), ids] += 4
    return torch.log_softmax(torch.tensor(scores, dtype=torch.float32), -1)


@pytest.mark.parametrize(
    ("options", "with_lm"),
    [
        ({}, True),
        ({}, False),
        ({"beam_size": 20, "alpha": 1.2, "beta": 0.3, "score_boundary": False}, True),
        ({"unigrams": WORDS[:6], "unk_score_offset": -3.0}, True),
        ({"blank_skip_threshold": 0.8, "token_prune_min_logp": -8.0}, True),
    ],
    ids=str,
)
def test_the_texts_are_speechbrains(options: dict[str, Any], with_lm: bool, lm: Path) -> None:
    given = {"kenlm_model_path": str(lm)} if with_lm else {}
    theirs = CTCBeamSearcher(blank_index=0, vocab_list=LABELS, **given, **{"beam_size": 20, **options})
    mine = read_decoder("here", theirs)
    encoder = CTCTextEncoder()
    encoder.insert_blank("<blank>", 0)
    encoder.update_from_iterable(LABELS[1:], sequence_input=False)
    tokenizer = read_tokenizer("here", encoder, len(LABELS), 0, " ")
    rng = np.random.default_rng(1)
    for noise in (1.0, 1.8):
        for _ in range(4):
            logprobs = _spoken(noise, rng)
            assert decode(mine, tokenizer, logprobs.numpy()).text == theirs(logprobs[None])[0][0].text


def test_other_searches(lm: Path) -> None:
    prefix = CTCPrefixBeamSearcher(blank_index=0, vocab_list=LABELS, kenlm_model_path=str(lm), beam_size=7)
    mine = read_decoder("here", prefix)
    assert isinstance(mine, BeamDecoder) and mine.beam_width == 7 and not mine.sentence_end
    # "zero" has no weight for backing off, so SpeechBrain does not know it.
    assert mine.unigrams is not None and set(mine.unigrams) == set(WORDS) - {"zero"}
    with pytest.raises(ModelLoadError, match="decoding_function object is not supported"):
        read_decoder("here", object())


def test_an_artifact_carries_it(lm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_speechbrain.save("sb-crdnn", folder, decoding=_BEAM.format(lm=lm))
    interface = tiny_speechbrain.original(folder)
    capfd.readouterr()
    model = load_model(folder, trust=True)
    assert capfd.readouterr() == ("", "")  # KenLM draws a bar otherwise
    assert isinstance(model, CtcModel) and isinstance(model.own_decoder, BeamDecoder)
    wave = tiny_hf.speech(1.2)[0]
    text = interface.transcribe_batch(torch.from_numpy(wave)[None], torch.ones(1))[0][0]
    assert model.transcriber().transcribe([wave])[0].text == text

    quantize(model, tmp_path / "artifact", calibration=sample.calibration(), recipe="fp16", limit=2)
    loaded = load(tmp_path / "artifact", engine="onnxruntime", compute="fp32")
    assert loaded.decoder == BeamDecoder(**{**model.own_decoder.to_dict(), "lm": tmp_path / "artifact" / "lm.arpa"})
    assert (tmp_path / "artifact" / "lm.arpa").read_bytes() == lm.read_bytes()
    assert loaded.transcribe([wave])[0].text == text
    greedy = load(tmp_path / "artifact", engine="onnxruntime", compute="fp32", decoder=GREEDY)
    assert greedy.decoder is GREEDY
