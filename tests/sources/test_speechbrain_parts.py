"""``EncoderDecoderASR`` in parts and searched by our own code, against SpeechBrain's searchers on the live model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("speechbrain")

from hyperpyyaml import load_hyperpyyaml
from tiny_speechbrain_attention import open_attention, write_attention

from quantasr import sample
from quantasr.engines import ENGINES, load_engine
from quantasr.engines.engine import EngineOptions
from quantasr.errors import ModelLoadError
from quantasr.export import export_float, save_graph
from quantasr.runtime import EnginePart
from quantasr.sources import load_model
from quantasr.sources.speechbrain.attention import AttentionModel, load_attention
from quantasr.speech.manifest import read_manifest
from quantasr.speech.seq2seq import SearchTranscriber

_DATA = Path(__file__).parents[1] / "data" / "speechbrain"
_ONE = torch.ones(1)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def make(folder: Path, kind: str, **changes: str) -> AttentionModel:
    """A tiny model of random weights; ``changes`` are put into its hyperparameters, or its search's."""
    write_attention(folder, kind)
    if changes:
        path = folder / "hyperparams.yaml"
        text = path.read_text("utf-8")
        for key, value in changes.items():
            text, count = re.subn(rf"^(  {key}:).*$", rf"\g<1> {value}", text, flags=re.M)
            if not count:
                text = text.replace("  max_decode_ratio: 1.0\n", f"  max_decode_ratio: 1.0\n  {key}: {value}\n")
        path.write_text(text, "utf-8")
        torch.manual_seed(3)
        hparams = load_hyperpyyaml(text)
        with torch.no_grad():
            hparams["seq_lin"].w.weight.normal_(0, 0.6)
            hparams["seq_lin"].w.bias[2] -= 1.0
        for name in ("asr", "lm"):
            torch.save(hparams[f"{name}_model"].state_dict(), folder / f"{name}.ckpt")
    return load_attention(open_attention(folder), str(folder), {"source": "speechbrain"})


@torch.no_grad()
def theirs(model: AttentionModel, wave: np.ndarray) -> tuple[list[int], float | None]:
    """Tokens and score of SpeechBrain's search."""
    searcher = model.interface.mods["decoder"]
    hypotheses, _, scores, _ = searcher(model.interface.encode_batch(torch.from_numpy(wave)[None], _ONE), _ONE)
    return [int(token) for token in hypotheses[0]], float(scores[0]) if scores.ndim == 1 else None


def assert_same(model: AttentionModel, transcriber: SearchTranscriber, waves: list[np.ndarray]) -> None:
    texts = set()
    for wave in waves:
        tokens, score = theirs(model, wave)
        found = transcriber.search(wave)
        assert found.tokens.tolist() == tokens
        if score is not None:
            assert found.score == pytest.approx(score, abs=1e-4)
        texts.add(tuple(tokens))
    assert len(texts) > 1, "all texts alike prove nothing"


@pytest.fixture(scope="module", params=["gru_beam", "lstm_greedy", "transformer_beam", "conformer_beam"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AttentionModel:
    return make(tmp_path_factory.mktemp("asr") / request.param, request.param)


WAVES = [noise(12000), noise(8000, 1)]


def test_texts_and_scores_are_speechbrains(model: AttentionModel) -> None:
    """With a language model, CTC for all tokens or the best ones, coverage, and limits of the attention's shift."""
    transcriber = model.transcriber(model.parts())
    assert_same(model, transcriber, WAVES)
    assert [one.text for one in transcriber.transcribe(WAVES)] == [
        one.text.strip() for one in model.transcriber().transcribe(WAVES)
    ]


@pytest.mark.parametrize("width", [1, 8])
def test_other_beams(model: AttentionModel, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = model.interface.mods["decoder"]
    if not hasattr(searcher, "beam_size"):
        pytest.skip("greedy")
    monkeypatch.setattr(searcher, "beam_size", width)
    assert_same(model, model.transcriber(model.parts(), beam_width=width), WAVES)


def test_steps_with_a_cache_say_what_the_whole_prefix_says(model: AttentionModel) -> None:
    """SpeechBrain's Transformer decodes each prefix anew; ours keeps keys and values."""
    paths = model.paths(WAVES)
    assert max(map(len, paths)) > 3
    found = model.transcriber(model.parts()).logprobs(WAVES, paths)
    for rows, expected, path in zip(found, model.logprobs(WAVES, paths), paths, strict=True):
        assert rows.shape == (len(path) + 1, 30)
        np.testing.assert_allclose(rows, expected, atol=1e-4)


def test_a_language_model_with_a_cache_is_the_whole_prefixs(model: AttentionModel) -> None:
    """Padding, which token 0 is to SpeechBrain's ``TransformerLM`` wherever it stands, included."""
    parts = model.parts()
    if "lm" not in parts:
        pytest.skip("no language model")
    transcriber = model.transcriber(parts)
    tokens = [1, 5, 0, 7, 7, 3, 0, 0, 9]
    stepper = transcriber._stepper("lm", {"encoded": np.zeros((1, 1, 1))}, 1)
    rows = [stepper(np.array([token]))["logprobs"][0] for token in tokens]
    lm = next(held.lm for held in model.interface.mods["decoder"].scorer.full_scorers.values() if hasattr(held, "lm"))
    with torch.no_grad():
        if hasattr(lm, "encoder"):
            logits = lm(torch.tensor([tokens]))[0]
        else:
            lm.reshape = False
            logits = lm(torch.tensor([tokens]))[0][0]
    np.testing.assert_allclose(np.stack(rows), torch.log_softmax(logits, -1).numpy(), atol=1e-4)


_SHAPES = [
    ("gru_beam", {"attn_type": "content", "temperature": "1.0"}),
    ("gru_beam", {"rnn_type": "lstm", "num_layers": "2", "min_decode_ratio": "0.5"}),
    (
        "gru_beam",
        {"rnn_type": "rnn", "scaling": "2.5", "length_normalization": "false", "using_max_attn_shift": "false"},
    ),
    ("lstm_greedy", {"attn_type": "keyvalue"}),
    ("transformer_beam", {"normalize_before": "false", "using_eos_threshold": "true"}),
]


@pytest.mark.parametrize(("kind", "changes"), _SHAPES, ids=[*"abcde"])
def test_other_shapes(kind: str, changes: dict[str, str], tmp_path: Path) -> None:
    model = make(tmp_path, kind, **changes)
    assert_same(model, model.transcriber(model.parts()), [noise(9000), noise(6000, 1)])


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_graphs_say_what_speechbrain_says(model: AttentionModel, engine: str, tmp_path: Path) -> None:
    """Of other lengths than they were traced with, and of more steps than 16, from which on OpenVINO once was wrong."""
    if "conformer" in model.name and engine == "openvino":
        pytest.skip("its decoder is the Transformer's")
    if not model.exportable:
        model.expected = [theirs(model, wave) for wave in WAVES]
        model.along = model.logprobs(WAVES, [np.array(tokens) for tokens, _ in model.expected])
    model.make_exportable()
    parts = {}
    for name, part in model.parts().items():
        save_graph(export_float(model, part), tmp_path / f"{name}.onnx")
        parts[name] = EnginePart(load_engine(engine, tmp_path / f"{name}.onnx", EngineOptions(compute="fp32")))
    transcriber = model.transcriber(parts)
    assert max(len(tokens) for tokens, _ in model.expected) > 16
    assert [transcriber.search(wave).tokens.tolist() for wave in WAVES] == [tokens for tokens, _ in model.expected]
    found = transcriber.logprobs(WAVES, [np.array(tokens) for tokens, _ in model.expected])
    for rows, expected in zip(found, model.along, strict=True):
        np.testing.assert_allclose(rows, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["crdnn_attention", "transformer_attention"])
def test_trained_models(name: str) -> None:
    model: Any = load_model(_DATA / name, trust=True)
    waves = [utterance.load(model.sample_rate) for utterance in read_manifest(sample.evaluation())[:3]]
    transcriber = model.transcriber(model.parts())
    assert_same(model, transcriber, waves)
    expected = [one.text for one in model.transcriber().transcribe(waves)]
    assert [one.text for one in transcriber.transcribe(waves)] == expected
    for one, wave in zip(transcriber.logprobs(waves, model.paths(waves)), waves, strict=True):
        np.testing.assert_allclose(one, model.logprobs([wave])[0], atol=1e-4)


def test_what_has_no_parts_runs_in_speechbrain_alone(tmp_path: Path) -> None:
    model = make(tmp_path, "lstm_greedy", temperature="0.7")
    assert model.transcriber().transcribe([noise(9000)])
    with pytest.raises(ModelLoadError, match=r"temperature 0.7 draws lots: set it to 0; PyTorch may still quantize it"):
        model.parts()


def test_a_part_leaves_its_layers_in_the_mode_that_they_are_in(model: AttentionModel) -> None:
    """A new module is in training mode, and would hand dropout on to the live model."""
    model.transcriber(model.parts()).search(WAVES[0])
    assert not any(part.training for part in model.module.modules())
