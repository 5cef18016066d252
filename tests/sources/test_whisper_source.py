"""Whisper as two parts: what they compute, what is read off a checkpoint, and what is written back."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tiny_hf
import tiny_whisper
import torch
import transformers
from safetensors.torch import load_file, save_file

from quantasr.errors import ModelLoadError
from quantasr.export import export_float, save_graph
from quantasr.quantize.layers import find_layers
from quantasr.quantize.prepare import check_fits
from quantasr.recipes import builtin_recipe
from quantasr.sources import load_model, rebuild_model
from quantasr.sources.huggingface.whisper.model import WhisperModel

SPEECH = tiny_hf.speech(0.8, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant, made once. Read it only."""

    @cache
    def make(name: str) -> Path:
        return tiny_whisper.save(name, tmp_path_factory.mktemp(name))

    return make


def _load(where: Path) -> WhisperModel:
    model = load_model(where)
    assert isinstance(model, WhisperModel)
    return model


def _tokens(model: WhisperModel, count: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(1).integers(0, model.decoding["vocabulary"], (batch, count))


def _features(model: WhisperModel) -> np.ndarray:
    return np.stack([model.frontend(wave) for wave in SPEECH])


def _cross(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in found.items() if name.startswith("cross_")}


def _steps(model: WhisperModel, parts: dict, tokens: np.ndarray, splits: tuple[int, ...]) -> np.ndarray:
    """Logits of all tokens, read in pieces of those lengths, with the caches that each piece gives the next."""
    cross = _cross(parts["encoder"]({"features": _features(model)}))
    facts = model.decoding
    empty = np.zeros((len(tokens), facts["heads"], 0, facts["head_dim"]), np.float32)
    past = {f"past_{kind}_{i}": empty for i in range(facts["layers"]) for kind in ("key", "value")}
    rows, at = [], 0
    for count in splits:
        feed = {"tokens": tokens[:, at : at + count], "rows": np.arange(count)}
        found = parts["decoder"]({**feed, **past, **cross})
        assert found["alignment"].shape == (len(tokens), len(facts["alignment_heads"]), count, tiny_whisper.FRAMES)
        np.testing.assert_allclose(found["alignment"].sum(-1), 1.0, atol=1e-5)
        past = {name: found[name.removeprefix("past_")] for name in past}
        rows.append(found["logits"])
        at += count
    return np.concatenate(rows, axis=1)


@pytest.mark.parametrize("name", tiny_whisper.VARIANTS)
def test_the_parts_compute_what_transformers_does(name: str, folder: Callable[[str], Path]) -> None:
    model = _load(folder(name))
    tokens = _tokens(model, 9, batch=2)
    features = torch.from_numpy(_features(model)).transpose(1, 2)
    with torch.no_grad():
        expected = tiny_whisper.original(folder(name))(features, decoder_input_ids=torch.from_numpy(tokens)).logits
    for splits in ((9,), (3, 1, 1, 4), (1,) * 9):  # uncached, mixed, and token by token
        np.testing.assert_allclose(_steps(model, model.parts(), tokens, splits), expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("name", ["multilingual", "untied"])
def test_the_graphs_compute_what_the_parts_do(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, graphs = _load(folder(name)), {}
    for part, source in model.parts().items():
        save_graph(export_float(model, source), tmp_path / f"{part}.onnx")
        graphs[part] = _OnnxPart(tmp_path / f"{part}.onnx")
    tokens = _tokens(model, 7, batch=2)
    expected = _steps(model, model.parts(), tokens, (7,))
    for splits in ((7,), (2, 1, 4)):  # other lengths than the trace had, from empty caches
        np.testing.assert_allclose(_steps(model, graphs, tokens, splits), expected, atol=2e-4)
    # Less audio than a window: fewer frames.
    short = _features(model)[:, :42]
    there, here = graphs["encoder"]({"features": short}), model.parts()["encoder"]({"features": short})
    assert there["cross_key_0"].shape[-1] == 21
    for output in here:
        np.testing.assert_allclose(there[output], here[output], atol=1e-4)


class _OnnxPart:
    def __init__(self, path: Path) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))


def test_one_recording_serves_all_beams(folder: Callable[[str], Path]) -> None:
    model = _load(folder("multilingual"))
    parts = model.parts()
    cross = _cross(parts["encoder"]({"features": _features(model)[:1]}))
    tokens, facts = _tokens(model, 4, batch=3), model.decoding
    empty = np.zeros((3, facts["heads"], 0, facts["head_dim"]), np.float32)
    past = {f"past_{kind}_{i}": empty for i in range(facts["layers"]) for kind in ("key", "value")}
    rows = np.array([1, 3])
    together = parts["decoder"]({"tokens": tokens, "rows": rows, **past, **cross})["logits"]
    assert together.shape == (3, 2, facts["vocabulary"])
    for i in range(3):
        one = {name: array[i : i + 1] for name, array in past.items()}
        alone = parts["decoder"]({"tokens": tokens[i : i + 1], "rows": rows, **one, **cross})["logits"]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5)


def test_step_by_step_and_transformers_agree_along_a_path(folder: Callable[[str], Path]) -> None:
    model = _load(folder("multilingual"))
    start, middle = model.decoding["start"], model.decoding["no_timestamps"]
    prompt = [start, model.decoding["languages"]["de"], model.decoding["transcribe"], middle]
    paths = [np.array([*prompt, 7, 30, 31]), np.array([*prompt, 8])]
    whole, steps = model.logprobs(SPEECH, paths), model.transcriber().logprobs(SPEECH, paths)
    assert [len(rows) for rows in whole] == [4, 2]  # behind the prompt, and behind each token after it
    for one, other in zip(whole, steps, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_search_finds_what_generate_finds(folder: Callable[[str], Path]) -> None:
    model = _load(folder("multilingual"))
    original = tiny_whisper.original(folder("multilingual"))
    features = torch.from_numpy(_features(model)).transpose(1, 2)
    # No times: random weights write them anywhere, and transformers cuts at them.
    facts = model.decoding
    silent = [*facts["suppress_tokens"], *range(facts["end"] + 1, facts["vocabulary"])]
    found = original.generate(
        features, language="de", task="transcribe", return_timestamps=False, suppress_tokens=silent, max_new_tokens=15
    )
    paths = model.transcriber(language="de", suppress_tokens=silent).paths(SPEECH)
    for path, row in zip(paths, found.tolist(), strict=True):
        here, there = ([token for token in ids if token < facts["end"]] for ids in (path[4:].tolist(), row))
        count = min(len(here), len(there))
        assert count > 5 and here[:count] == there[:count]


def test_what_an_english_checkpoint_says(folder: Callable[[str], Path]) -> None:
    facts = _load(folder("english")).decoding
    assert facts["languages"] == {} and facts["transcribe"] is None and facts["translate"] is None
    assert facts["alignment_heads"] == [[1, head] for head in range(4)]  # all of the upper half
    assert facts["begin_suppress_tokens"] == [220, facts["end"]]
    assert facts["max_initial_timestamp_index"] == 25
    assert (facts["layers"], facts["heads"], facts["head_dim"]) == (2, 4, 8)
    assert json.loads(json.dumps(facts)) == facts


def test_what_a_multilingual_checkpoint_says(folder: Callable[[str], Path]) -> None:
    model = _load(folder("turbo"))
    facts = model.decoding
    ids = transformers.AutoTokenizer.from_pretrained(folder("turbo")).get_added_vocab()
    assert facts["languages"] == {code: ids[f"<|{code}|>"] for code in tiny_whisper.LANGUAGES}
    for key, token in {
        "start": "startoftranscript",
        "end": "endoftext",
        "no_speech": "nospeech",
        "no_timestamps": "notimestamps",
        "prev_sot": "startofprev",
        "translate": "translate",
        "transcribe": "transcribe",
    }.items():
        assert facts[key] == ids[f"<|{token}|>"], key
    assert ids["<|0.00|>"] == facts["no_timestamps"] + 1
    assert facts["alignment_heads"] == [[0, 1], [0, 3]]
    assert facts["layers"] == 1 and model.frontend.num_mel_bins == 24
    assert model.frame_seconds == 0.02


def test_a_checkpoint_without_generation_config(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Fine-tuned models often lack it: what it would say is in the tokenizer."""
    copy = Path(shutil.copytree(folder("english"), tmp_path / "model"))
    (copy / "generation_config.json").unlink()
    _edit(copy / "config.json", suppress_tokens=[5])
    told, found = _load(folder("english")).decoding, _load(copy).decoding
    for key in ("start", "end", "no_timestamps", "no_speech", "prev_sot", "languages", "alignment_heads"):
        assert found[key] == told[key], key
    assert found["suppress_tokens"] == [5]


def test_the_tokenizer_writes_what_transformers_writes(folder: Callable[[str], Path]) -> None:
    model = _load(folder("english"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder("english"))
    ids = theirs("the cat in a hat, naïve – 猫", add_special_tokens=False).input_ids
    assert model.tokenizer.decode(ids) == "the cat in a hat, naïve – 猫"
    assert len(model.tokenizer) == len(theirs) and model.tokenizer.first_special == theirs.eos_token_id


@pytest.mark.parametrize("name", ["multilingual", "untied"])
def test_saved_and_rebuilt(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = _load(folder(name))
    with torch.no_grad():
        model.module.model.decoder.layers[0].fc1.bias += 0.25
    paths = [np.array([model.decoding["start"], model.decoding["no_timestamps"], 7])]
    expected = model.logprobs(SPEECH[:1], paths)[0]
    model.save(tmp_path / "saved")
    again = _load(tmp_path / "saved")
    np.testing.assert_array_equal(again.logprobs(SPEECH[:1], paths)[0], expected)
    assert (again.decoding, again.tokenizer, again.frontend) == (model.decoding, model.tokenizer, model.frontend)
    transformers.AutoProcessor.from_pretrained(tmp_path / "saved")  # whole for transformers too

    (tmp_path / "files").mkdir()
    for file, content in model.files.items():
        (tmp_path / "files" / file).write_bytes(content)
    rebuilt = rebuild_model("huggingface", tmp_path / "files")
    assert isinstance(rebuilt, WhisperModel)
    rebuilt.module.load_state_dict(model.module.state_dict())
    np.testing.assert_array_equal(rebuilt.logprobs(SPEECH[:1], paths)[0], expected)
    for field in ("name", "family", "frontend", "tokenizer", "decoding", "min_samples", "provenance", "files"):
        assert getattr(rebuilt, field) == getattr(model, field), field


@pytest.mark.parametrize("variant", ["default", "fast", "w4"])
def test_recipes_fit_every_shape(variant: str, folder: Callable[[str], Path]) -> None:
    for name in tiny_whisper.VARIANTS:
        model = _load(folder(name))
        check_fits(model, builtin_recipe("whisper", variant))


def test_the_graph_calls_every_layer_once(folder: Callable[[str], Path]) -> None:
    model = _load(folder("turbo"))
    called: Counter[str] = Counter()
    layers = [path for path, (kind, _) in find_layers(model.module).items() if kind != "embedding"]
    for path in layers:
        model.module.get_submodule(path).register_forward_hook(lambda *_, path=path: called.update([path]))
    with torch.no_grad():
        logprobs = model.graph(*model.probe(seconds=0.5, batch=2))
    assert logprobs.shape == (2, 4, model.decoding["vocabulary"])
    assert called == dict.fromkeys(layers, 1)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def _refusal(where: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(where)
    said = str(caught.value)
    assert str(where) in said and "\n" not in said and len(said) < 500
    return said


def test_broken_folders(folder: Callable[[str], Path], tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(folder("english"), tmp_path / name))

    nan, cut, dithered, other, heads = (broken(name) for name in ("nan", "cut", "dithered", "other", "heads"))
    for wrong in ([[7, 0]], [[0, 9]], "all"):
        _edit(heads / "generation_config.json", alignment_heads=wrong)
        assert "cannot load it" in _refusal(heads) or "alignment_heads has head" in _refusal(heads)

    tensors = load_file(nan / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.weight"][0, 0] = float("nan")
    save_file(tensors, nan / "model.safetensors", {"format": "pt"})
    assert "fc1.weight has NaN" in _refusal(nan)

    tensors = {key: tensor for key, tensor in load_file(cut / "model.safetensors").items() if ".decoder." not in key}
    save_file(tensors, cut / "model.safetensors", {"format": "pt"})
    assert "weights are missing" in _refusal(cut)

    _edit(dithered / "preprocessor_config.json", dither=0.1)
    assert "dither" in _refusal(dithered)

    transformers.Wav2Vec2FeatureExtractor().save_pretrained(other)
    assert "is not Whisper's" in _refusal(other)
