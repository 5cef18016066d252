"""``EncoderDecoderASR`` as an :class:`AttentionModel`, against SpeechBrain itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("speechbrain")

from tiny_speechbrain_attention import KINDS, open_attention, write_attention

from quantasr.errors import AudioError, ModelLoadError, RecipeError
from quantasr.quantize.layers import find_layers
from quantasr.sources.speechbrain.attention import AttentionModel, load_attention


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(KINDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AttentionModel:
    folder = write_attention(tmp_path_factory.mktemp("asr") / request.param, request.param)
    return load_attention(open_attention(folder), str(folder), {"source": "speechbrain"})


def alone(model: AttentionModel, wave: np.ndarray) -> tuple[str, list[int]]:
    """What SpeechBrain makes of a wave."""
    words, tokens = model.interface.transcribe_batch(torch.from_numpy(wave)[None], torch.ones(1))
    return words[0], list(tokens[0])


def test_the_text_is_speechbrains(model: AttentionModel) -> None:
    waves = [noise(16000), noise(24000, 1), noise(9000, 2), noise(16000, 3)]
    expected = [alone(model, wave) for wave in waves]
    assert len({text for text, _ in expected}) > 1, "all texts alike prove nothing"
    assert [found.text for found in model.transcriber().transcribe(waves)] == [text for text, _ in expected]
    assert [path.tolist() for path in model.paths(waves)] == [tokens for _, tokens in expected]


def test_a_short_recording_is_filled_up(model: AttentionModel) -> None:
    wave = noise(model.min_samples // 3)
    filled = np.pad(wave, (0, model.min_samples - wave.size))
    found = model.transcriber().transcribe([wave])[0]
    assert found.text == alone(model, filled)[0]
    assert found.duration == pytest.approx(wave.size / 16000)


def test_log_probs_along_the_path_are_those_of_the_search(model: AttentionModel) -> None:
    wave = torch.from_numpy(noise(16000))[None]
    searcher, ones = model.interface.mods["decoder"], torch.ones(1)
    with torch.no_grad():
        hypotheses, _, _, searched = searcher(model.interface.encode_batch(wave, ones), ones)
    path = np.array(hypotheses[0])
    rows = model.logprobs([wave[0].numpy()], [path])[0]
    assert rows.shape == (len(path) + 1, 30)
    np.testing.assert_allclose(np.exp(rows).sum(-1), 1, atol=1e-5)
    if searched.ndim == 2:  # beam search tells of the tokens that it took, before its scorers
        weighed = getattr(searcher, "attn_weight", 1.0) * rows[np.arange(len(path)), path]
        np.testing.assert_allclose(weighed, searched[0, : len(path)].numpy(), atol=1e-4)
    else:  # greedy search tells of all tokens
        np.testing.assert_allclose(rows[: len(path)], searched[0, 0, : len(path)].numpy(), atol=1e-5)


def test_log_probs_of_its_own_path_by_default(model: AttentionModel) -> None:
    waves = [noise(8000)]
    np.testing.assert_array_equal(model.logprobs(waves)[0], model.logprobs(waves, model.paths(waves))[0])


def test_every_layer_that_is_called_has_a_path(model: AttentionModel) -> None:
    """Also those that only a scorer holds, and each of them once."""
    layers = find_layers(model.module)
    named = {id(layer) for _, layer in layers.values()}
    assert len(named) == len(layers)
    called: dict[int, str] = {}
    kinds = tuple({type(layer) for _, layer in layers.values()})

    def note(part: torch.nn.Module, _: object) -> None:
        if isinstance(part, kinds):
            called[id(part)] = type(part).__name__

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        model.run(noise(8000))
    finally:
        hook.remove()
    assert called
    assert [kind for part, kind in called.items() if part not in named] == []


def test_the_graph_gives_the_tokens(model: AttentionModel) -> None:
    wave = noise(8000)
    tokens, counts = model.graph(*model.inputs([wave]))
    assert tokens[0, : counts[0]].tolist() == alone(model, wave)[1]


@pytest.mark.parametrize("kind", ["gru_beam", "transformer_beam", "conformer_greedy"])
def test_rewritten_it_says_the_same(kind: str, tmp_path: Path) -> None:
    model = load_attention(open_attention(write_attention(tmp_path, kind)), kind, {})
    waves = [noise(12000), noise(16000, 1)]
    paths = model.paths(waves)
    texts, before = [alone(model, wave)[0] for wave in waves], model.logprobs(waves, paths)
    model.make_exportable()
    for found, expected in zip(model.logprobs(waves, paths), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-4)
    assert [alone(model, wave)[0] for wave in waves] == texts


@pytest.fixture(scope="module")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> AttentionModel:
    folder = write_attention(tmp_path_factory.mktemp("asr") / "greedy", "lstm_greedy")
    return load_attention(open_attention(folder), str(folder), {})


def test_a_long_recording_is_cut_at_its_pauses(greedy: AttentionModel) -> None:
    wave = noise(16000 * 12)
    pauses = [16000 * 4, 16000 * 9]
    for pause in pauses:
        wave[pause - 2000 : pause + 2000] *= 1e-3
    transcriber = greedy.transcriber(chunk_seconds=6.0)
    blocks = np.split(wave, [5, 100_000, 100_001, 170_000])
    pieces = list(transcriber.pieces(blocks))
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    cuts = np.cumsum([piece.size for piece in pieces])[:-1]
    assert all(abs(cut - pause) <= 800 for cut, pause in zip(cuts, pauses, strict=True))
    found = transcriber.transcribe_stream(blocks)
    assert found.text == " ".join(alone(greedy, piece)[0] for piece in pieces)
    assert found.duration == 12.0
    assert greedy.transcriber(chunk_seconds=0).transcribe([wave])[0].text == alone(greedy, wave)[0]


@pytest.mark.parametrize("size", [16000 * 6, 16000 * 6 + 1, 16000 * 7 - 1, 16000 * 7, 16000 * 19 + 77])
def test_pieces_are_the_recording(greedy: AttentionModel, size: int) -> None:
    wave = noise(size)
    pieces = list(greedy.transcriber(chunk_seconds=6.0).pieces([wave]))
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    assert all(16000 <= piece.size <= 16000 * 6 for piece in pieces)


def test_bad_input(greedy: AttentionModel) -> None:
    transcriber = greedy.transcriber()
    with pytest.raises(AudioError, match="wave 1: holds NaN"):
        transcriber.transcribe([noise(16000), np.full(16000, np.nan, np.float32)])
    with pytest.raises(AudioError, match="no samples"):
        transcriber.transcribe_stream([])
    with pytest.raises(RecipeError, match="are for CTC models"):
        greedy.transcriber(decoder=object())
    with pytest.raises(RecipeError, match="chunk_seconds is 1"):
        greedy.transcriber(chunk_seconds=1.0)


def test_other_decoders_are_refused(tmp_path: Path) -> None:
    folder = write_attention(tmp_path, "lstm_greedy")
    interface = open_attention(folder)
    interface.tokenizer = SimpleNamespace()
    with pytest.raises(ModelLoadError, match="has no decode_ids"):
        load_attention(interface, str(folder), {})
    interface.mods["decoder"] = torch.nn.Linear(2, 2)
    with pytest.raises(ModelLoadError, match="decoder Linear is not supported"):
        load_attention(interface, str(folder), {})


def test_a_probe_takes_as_many_steps_as_speech(model: AttentionModel) -> None:
    """Neither none nor all that the search may take, and the search ends by itself again afterwards."""
    wave, before = noise(16000), alone(model, noise(16000))
    steps: list[int] = []
    hook = model.interface.mods["decoder"].fc.register_forward_hook(lambda *_: steps.append(1))
    model.graph(*model.probe(1.0))
    hook.remove()
    assert len(steps) == 5
    assert alone(model, wave) == before


def test_the_encoder_alone(model: AttentionModel) -> None:
    wave = noise(8000)
    with torch.no_grad():  # with gradients PyTorch has another kernel for LSTMs
        expected = model.interface.encode_batch(torch.from_numpy(wave)[None], torch.ones(1))
    torch.testing.assert_close(model.transcriber().encoder_call(wave)(), expected, rtol=0, atol=0)
