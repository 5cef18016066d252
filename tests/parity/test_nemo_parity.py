"""Every kind of NeMo model, loaded by quantasr, against the same file run by NeMo: features, log-probs, text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_nemo
import torch

from quantasr import load_model
from quantasr.sources import CtcModel

SPEECH = tiny_nemo.speech(1.3, 0.8, 0.31)
TOLERANCE = 1e-3


class Pair(NamedTuple):
    """A model twice."""

    name: str
    mine: CtcModel
    original: Any

    def run_original(self, waves: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of a padded batch, and how many frames of each row come from its recording."""
        batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
        lengths = torch.tensor([len(wave) for wave in waves])
        with torch.no_grad():
            found, counts, *_ = self.original(input_signal=batch, input_signal_length=lengths)
            if hasattr(self.original, "ctc_decoder"):
                found = self.original.ctc_decoder(encoder_output=found)
        return found, counts

    def hypotheses(self, waves: list[np.ndarray], **options: Any) -> list[Any]:
        """What NeMo's own greedy decoding makes of each recording alone."""
        decoding = getattr(self.original, "ctc_decoding", None) or self.original.decoding
        for key, value in options.items():
            setattr(decoding, key, value)
        found = []
        for wave in waves:
            logprobs, counts = self.run_original([wave])
            found += decoding.ctc_decoder_predictions_tensor(logprobs, decoder_lengths=counts, return_hypotheses=True)
        return found


@pytest.fixture(scope="module", params=tiny_nemo.VARIANTS)
def pair(request: pytest.FixtureRequest, tiny_nemo_file: Callable[[str], Path]) -> Pair:
    file = tiny_nemo_file(request.param)
    return Pair(request.param, load_model(tiny_nemo.ctc(file)), tiny_nemo.original(file))


def test_features_are_the_originals(pair: Pair) -> None:
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in SPEECH], batch_first=True)
    features, counts = pair.original.preprocessor(
        input_signal=batch, length=torch.tensor([len(wave) for wave in SPEECH])
    )
    mine, lengths = pair.mine.inputs(SPEECH)
    assert lengths.tolist() == counts.tolist()
    for row, theirs, count in zip(mine, features, counts, strict=True):
        np.testing.assert_allclose(row[:count], theirs[:, :count].T, atol=1e-4)


def test_logprobs_and_texts_are_the_originals(pair: Pair) -> None:
    transcriber = pair.mine.transcriber(chunk_seconds=0)
    texts = [transcript.text for transcript in transcriber.transcribe(SPEECH)]
    theirs = [hypothesis.text.strip() for hypothesis in pair.hypotheses(SPEECH)]
    for wave, mine in zip(SPEECH, transcriber.logprobs(SPEECH), strict=True):
        logprobs, counts = pair.run_original([wave])
        expected = logprobs[0, : int(counts[0])].numpy()
        assert mine.shape == expected.shape
        np.testing.assert_allclose(mine, expected, atol=TOLERANCE)
    assert texts == theirs
    assert len(set(texts)) == len(texts), "texts that are all alike compare nothing"


def test_words_are_those_of_the_text_with_the_originals_frames(pair: Pair) -> None:
    """NeMo times a word from the token before it to the beginning of its last token; ours lie within and behind.

    Its words are not those of its text where a token has a space inside (the unknown one) or loses the one before it.
    """
    (hypothesis,) = pair.hypotheses(SPEECH[:1], compute_timestamps=True)
    (transcript,) = pair.mine.transcriber(chunk_seconds=0).transcribe(SPEECH[:1])
    assert [word.text for word in transcript.words] == hypothesis.text.split()
    theirs = [row for row in hypothesis.timestamp["word"] if row["word"].strip()]
    if [word.text for word in transcript.words] != [row["word"].strip() for row in theirs]:
        assert pair.name not in ("quartznet", "conformer", "hybrid", "hybrid-bpe"), "these have comparable words"
        return
    for word, row in zip(transcript.words, theirs, strict=True):
        start, end = (round(seconds / pair.mine.frame_seconds, 3) for seconds in (word.start, word.end))
        assert row["start_offset"] <= start <= row["end_offset"] < end + 1


def test_parts_of_the_model_keep_their_paths(pair: Pair) -> None:
    mine = {path for path, _ in pair.mine.module.named_modules() if path}
    theirs = {path for path, _ in pair.original.named_modules()}
    assert mine <= theirs
    head = "ctc_decoder" if pair.name.startswith("hybrid") else "decoder"
    assert {path.split(".")[0] for path in mine} == {"encoder", head}
    assert pair.mine.provenance["parameters"] == sum(
        p.numel() for key, p in pair.original.named_parameters() if key.startswith(("encoder.", f"{head}."))
    )


def test_what_is_said_of_the_model(pair: Pair) -> None:
    mine = pair.mine
    assert mine.family == ("nemo_conformer" if "conformer" in pair.name or "hybrid" in pair.name else "nemo_conv")
    assert (mine.sample_rate, mine.padded_batches) == (16000, True)
    assert mine.provenance["architecture"] == type(pair.original).__name__
    # A frame more for every frame_seconds of audio.
    a, b = (len(x) for x in mine.transcriber(chunk_seconds=0).logprobs(tiny_nemo.speech(1.0, 3.0)))
    assert (b - a) * mine.frame_seconds == pytest.approx(2.0, abs=1.01 * mine.frame_seconds)


def test_the_shortest_recording_gives_two_frames(pair: Pair) -> None:
    counts = []
    for samples in (pair.mine.min_samples, pair.mine.min_samples - 1):
        logprobs, frames = pair.run_original([SPEECH[0][:samples]])
        assert bool(torch.isfinite(logprobs).all())
        counts.append(int(frames[0]))
    assert counts == [2, 1]
    assert pair.mine.transcriber().logprobs([SPEECH[0][:100]])[0].shape[0] == 2, "shorter ones are filled up"


def test_a_batch_gives_each_recording_what_it_gets_alone(pair: Pair) -> None:
    waves = [*SPEECH, SPEECH[0][:11111], SPEECH[0]]
    alone = pair.mine.transcriber(chunk_seconds=0).logprobs(waves)
    together = pair.mine.transcriber(chunk_seconds=0, batch_size=5).logprobs(waves)
    for one, batched in zip(alone, together, strict=True):
        np.testing.assert_allclose(batched, one, atol=TOLERANCE)


def test_a_long_recording_in_windows_has_the_frames_of_the_whole(pair: Pair) -> None:
    (wave,) = tiny_nemo.speech(13.0)
    (whole,) = pair.mine.transcriber(chunk_seconds=0).logprobs([wave])
    (windows,) = pair.mine.transcriber(chunk_seconds=6.4, overlap_seconds=1.6).logprobs([wave])
    assert len(windows) == len(whole)
