"""NeMo's transducers: loaded by quantasr, against the same file restored, run and decoded by NeMo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_nemo
import torch

from quantasr import load_model
from quantasr.errors import ModelLoadError, RecipeError
from quantasr.sources import CtcModel, rebuild_model
from quantasr.sources.nemo.transducer import TransducerModel

SPEECH = tiny_nemo.speech(1.6, 0.7)
HYBRIDS = (*tiny_nemo.HYBRIDS, "hybrid-tdt")
NAMES = (*tiny_nemo.TRANSDUCERS, "hybrid")


class Pair(NamedTuple):
    """A model twice."""

    name: str
    mine: TransducerModel
    original: Any


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tiny_nemo_file: Callable[[str], Path]) -> Pair:
    file = tiny_nemo_file(request.param)
    model = load_model(file)
    assert isinstance(model, TransducerModel)
    return Pair(request.param, model, tiny_nemo.original(file))


def nemos(original: Any, waves: list[np.ndarray], strategy: str, **options: Any) -> list[Any]:
    """What NeMo's own decoding makes of each recording alone."""
    return tiny_nemo.transduced(original, waves, strategy, **options)


def test_texts_are_nemos(pair: Pair) -> None:
    transcripts = pair.mine.transcriber(chunk_seconds=0).transcribe(SPEECH)
    texts = [transcript.text for transcript in transcripts]
    assert len(set(texts)) == len(texts), "texts that are all alike compare nothing"
    for strategy in ("greedy", "greedy_batch"):
        assert texts == [found.text.strip() for found in nemos(pair.original, SPEECH, strategy)]


def test_a_batch_gives_each_recording_what_it_gets_alone(pair: Pair) -> None:
    waves = [*SPEECH, SPEECH[0][:11111]]
    for width in (1, 3):
        alone = pair.mine.transcriber(chunk_seconds=0, beam_width=width).transcribe(waves)
        together = pair.mine.transcriber(chunk_seconds=0, beam_width=width, batch_size=3).transcribe(waves)
        for one, other in zip(alone, together, strict=True):
            assert one.text == other.text
            assert [word[:3] for word in map(astuple, one.words)] == [word[:3] for word in map(astuple, other.words)]


def test_a_beam_is_nemos_alignment_length_synchronous_search(pair: Pair) -> None:
    if "stateless" in pair.name or pair.name == "tdt-gaps":
        pytest.skip("NeMo 3.0 has no such search for stateless networks, and takes durations' indices for frames")
    search = pair.mine.transcriber(chunk_seconds=0, beam_width=4)
    theirs = nemos(pair.original, SPEECH, "malsd_batch", beam_size=4)
    for wave, transcript, found in zip(SPEECH, search.transcribe(SPEECH), theirs, strict=True):
        assert transcript.text == found.text.strip()
        frames = round(wave.size / pair.mine.sample_rate / pair.mine.frame_seconds)
        assert transcript.score is not None
        assert transcript.score == pytest.approx(float(found.score) / frames, rel=0.15, abs=1e-3)


def test_words_have_nemos_frames(pair: Pair) -> None:
    if pair.name in ("rnnt", "hybrid"):
        pytest.skip("NeMo 3.0 cannot time characters of transducers")
    (theirs,) = nemos(pair.original, SPEECH[:1], "greedy_batch", compute_timestamps=True)
    (mine,) = pair.mine.transcriber(chunk_seconds=0).transcribe(SPEECH[:1])
    seconds = pair.mine.frame_seconds
    duration = SPEECH[0].size / pair.mine.sample_rate
    expected = [
        (row["word"], min(row["start_offset"] * seconds, duration), min(row["end_offset"] * seconds, duration))
        for row in theirs.timestamp["word"]
        if row["word"].strip()
    ]
    if " ⁇ " in theirs.text or [word for word, *_ in expected] != theirs.text.split():
        return  # NeMo's own words are not those of its text where a token has a space inside
    assert [(word.text, word.start, word.end) for word in mine.words] == expected
    assert all(0 < word.confidence <= 1 for word in mine.words if word.confidence is not None)


def test_steps_give_what_nemos_joint_gives_for_the_whole(pair: Pair) -> None:
    search = pair.mine.transcriber(chunk_seconds=0)
    paths = search.paths(SPEECH)
    for mine, theirs, path in zip(
        search.logprobs(SPEECH, paths), pair.mine.logprobs(SPEECH, paths), paths, strict=True
    ):
        assert mine.shape == theirs.shape and len(mine) == len(path)
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        # The path is that of the best token at each place.
        tokens = len(pair.mine.tokenizer)
        assert (mine[:, :tokens].argmax(1) == path[:, 0]).all()


def test_the_rewritten_model_says_the_same(pair: Pair, tiny_nemo_file: Callable[[str], Path]) -> None:
    model = load_model(tiny_nemo_file(pair.name))
    assert isinstance(model, TransducerModel)
    paths = pair.mine.paths(SPEECH)
    model.make_exportable()
    for mine, before in zip(model.logprobs(SPEECH, paths), pair.mine.logprobs(SPEECH, paths), strict=True):
        np.testing.assert_allclose(mine, before, atol=1e-3)
    for mine, before in zip(
        model.transcriber().logprobs(SPEECH, paths), pair.mine.logprobs(SPEECH, paths), strict=True
    ):
        np.testing.assert_allclose(mine, before, atol=1e-3)
    assert not any(isinstance(part, torch.nn.LSTM) for part in model.module.modules())


def test_parts_have_what_they_say(pair: Pair) -> None:
    parts = pair.mine.parts()
    assert set(parts) == {"encoder", "decoder", "joiner"} | ({"ctc"} if pair.name in HYBRIDS else set())
    for part in parts.values():
        arguments = part.example()
        found = part({name: values.numpy() for name, values in zip(part.inputs, arguments, strict=True)})
        assert set(found) == set(part.outputs)
        for name, axes in part.axes.items():
            assert name in (*part.inputs, *part.outputs) and set(axes) <= {0, 1}
            assert found.get(name, np.zeros((2, 2))).shape[0] == 2


def test_the_shortest_recordings_have_a_text(pair: Pair) -> None:
    for samples in (1, 100, 1600):
        (found,) = pair.mine.transcriber().transcribe([SPEECH[0][:samples]])
        assert found.duration == samples / 16000
        assert all(word.end <= found.duration for word in found.words)


@pytest.mark.parametrize("name", HYBRIDS)
def test_both_heads_of_a_hybrid(name: str, tiny_nemo_file: Callable[[str], Path]) -> None:
    model, ctc = load_model(tiny_nemo_file(name)), load_model(f"{tiny_nemo_file(name)}#ctc")
    assert isinstance(model, TransducerModel) and isinstance(ctc, CtcModel)
    assert ctc.name == model.name == name and ctc.family == "nemo_conformer"
    heard, alone = model.transcriber(head="ctc"), ctc.transcriber()
    assert [a.text for a in heard.transcribe(SPEECH)] == [b.text for b in alone.transcribe(SPEECH)]
    for mine, other in zip(heard.logprobs(SPEECH, heard.paths(SPEECH)), ctc.logprobs(SPEECH), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_a_model_is_rebuilt_from_its_files(pair: Pair, tmp_path: Path) -> None:
    for name, content in pair.mine.files.items():
        (tmp_path / name).write_bytes(content)
    again = rebuild_model("nemo", tmp_path)
    assert isinstance(again, TransducerModel)
    again.module.load_state_dict(pair.mine.module.state_dict())
    assert again.decoding == pair.mine.decoding
    for mine, other in zip(again.logprobs(SPEECH[:1]), pair.mine.logprobs(SPEECH[:1]), strict=True):
        np.testing.assert_array_equal(mine, other)


def _changed(file: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    path = tiny_nemo.edited(file, tmp_path / "model.nemo", change)
    with pytest.raises(ModelLoadError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["joint"].update(_target_="nemo.collections.asr.modules.HATJoint"), "joint HATJoint is not"),
        (lambda row: row["decoder"].update(_target_="nemo.collections.asr.modules.LSTMDecoder"),
         "prediction network LSTMDecoder is not supported; supported are RNNTDecoder, StatelessTransducerDecoder"),
        (lambda row: row["decoder"].update(normalization_mode="layer"), "with layer normalization is not supported"),
        (lambda row: row["decoder"].update(blank_as_pad=False), "blank_as_pad: false is not supported"),
        (lambda row: row["decoder"]["prednet"].update(rnn_hidden_size=24), "an LSTM with projections"),
        (lambda row: row["decoding"].update(big_blank_durations=[2, 4]), "multi-blank transducers are not supported"),
        (lambda row: row["decoding"].update(durations=[0, 1]), "its durations are [0, 1], but its joint has 5 outputs"),
        (lambda row: (row["decoding"].pop("durations"), row["model_defaults"].pop("tdt_durations"), row.pop("loss")),
         "its joint has 5 more outputs than tokens, and no durations to stand for them"),
        (lambda row: row["joint"]["jointnet"].update(activation="gelu"), "cannot build or run its ConformerEncoder"),
        (lambda row: row["decoder"]["prednet"].update(pred_rnn_layers=3), "weights are missing, the first is decoder."),
        (lambda row: row["decoder"]["prednet"].update(pred_rnn_layers=1), "weights belong to no part of the model"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_one_line(
    tiny_nemo_file: Callable[[str], Path], tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in _changed(tiny_nemo_file("tdt"), tmp_path, change)


def test_a_head_that_is_not_there(tiny_nemo_file: Callable[[str], Path]) -> None:
    with pytest.raises(ModelLoadError, match="EncDecRNNTModel has no CTC head: leave #ctc out"):
        load_model(f"{tiny_nemo_file('rnnt')}#ctc")
    with pytest.raises(RecipeError, match="model 'rnnt' has no CTC head: only hybrid models have one"):
        load_model(tiny_nemo_file("rnnt")).transcriber(head="ctc")


def test_durations_may_stand_in_any_of_three_places(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    for kept in ("decoding", "model_defaults", "loss"):

        def change(row: dict[str, Any], kept: str = kept) -> None:
            if kept != "decoding":
                row["decoding"].pop("durations")
            if kept != "model_defaults":
                row["model_defaults"].pop("tdt_durations")
            if kept != "loss":
                row.pop("loss")

        path = tiny_nemo.edited(tiny_nemo_file("tdt-gaps"), tmp_path / f"{kept}.nemo", change)
        assert load_model(path).decoding["durations"] == [0, 1, 2, 4, 8]  # type: ignore[attr-defined]
