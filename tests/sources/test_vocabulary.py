"""New vocabularies: the encoder stays, the head is new, and the saved model loads in its own framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import tiny_nemo
import torch

from quantasr import load_model
from quantasr.errors import TrainingError
from quantasr.sources import characters_of, new_vocabulary, rebuild_model
from quantasr.training.labels import LabelEncoder

SPEECH = tiny_hf.speech(0.9, 0.5)
TOKENS = [" ", *"abcxyzäß", "'"]


def _same(a: Any, b: Any) -> None:
    for mine, other in zip(a.logprobs(SPEECH), b.logprobs(SPEECH), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert a.tokenizer == b.tokenizer


def test_hugging_face(tiny_hf_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_hf_folder("wav2vec2-large")
    original: Any = load_model(folder)
    model: Any = new_vocabulary(load_model(folder), TOKENS, keep_shared=True)  # type: ignore[arg-type]
    assert model.tokenizer.tokens == ("<pad>", "<unk>", "|", *TOKENS[1:])
    assert model.tokenizer.blank_id == 0 and model.tokenizer.word_delimiter == "|"
    assert LabelEncoder.of(model).encode("xa ß'b") == [6, 3, 2, 10, 11, 4]
    old, new = original.module.lm_head, model.module.lm_head
    for token in ("<pad>", "|", "a", "c"):
        before, after = (m.tokenizer.tokens.index(token) for m in (original, model))
        torch.testing.assert_close(new.weight[after], old.weight[before], rtol=0, atol=0)
        assert new.bias[after] == old.bias[before]
    fresh = new.weight[model.tokenizer.tokens.index("x")]
    assert new.bias[model.tokenizer.tokens.index("x")] == 0 and 0.1 < fresh.std() < 0.6  # initializer_range is 0.3
    assert new.weight.requires_grad

    model.save(tmp_path / "saved")
    _same(load_model(tmp_path / "saved"), model)
    theirs, processor = tiny_hf.original(tmp_path / "saved"), tiny_hf.processor(tmp_path / "saved")
    assert theirs.config.vocab_size == len(processor.tokenizer) == len(model.tokenizer)
    assert theirs.config.pad_token_id == 0
    ids = processor.tokenizer("xa ß'b").input_ids
    assert ids == [6, 3, 2, 10, 11, 4] and processor.decode(ids) == "xa ß'b"
    with torch.no_grad():
        found = theirs(**processor([SPEECH[0]], sampling_rate=16000, return_tensors="pt")).logits.log_softmax(-1)
    np.testing.assert_allclose(model.logprobs(SPEECH[:1])[0], found[0].numpy(), atol=1e-3)


def test_letters_of_another_case(tmp_path: Path) -> None:
    """Tokenizers that lower their texts have capitals inside: with small letters they would know none."""
    import transformers

    folder = tiny_hf.save("wav2vec2-base", tmp_path / "model")
    vocabulary = str(folder / "vocab.json")
    transformers.Wav2Vec2CTCTokenizer(vocabulary, pad_token="<pad>", do_lower_case=True).save_pretrained(folder)
    for tokens, lowers in (([" ", "A", "B"], True), ([" ", "a", "b"], False)):
        model: Any = load_model(folder)
        assert model.tokenizer.lowercase
        model = new_vocabulary(model, tokens)
        assert model.tokenizer.lowercase is lowers
        model.save(tmp_path / f"saved {lowers}")
        processor = tiny_hf.processor(tmp_path / f"saved {lowers}")
        assert processor.tokenizer("a b").input_ids == [3, 2, 4]
        assert processor.decode([3, 2, 4]) == "a b" == model.tokenizer.decode([3, 2, 4])


def test_a_place_for_the_blank_is_kept_and_seeds_decide(tiny_hf_folder: Callable[[str], Path]) -> None:
    models: list[Any] = [
        new_vocabulary(load_model(tiny_hf_folder("wav2vec2-base")), ["a", "<pad>", "|"], seed=seed)  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    ]
    assert models[0].tokenizer.tokens == ("<unk>", "a", "<pad>", "|") and models[0].tokenizer.blank_id == 2
    weights = [model.module.lm_head.weight for model in models]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


NEMO = [("quartznet", False), ("quartznet", True), ("fastconformer", False), ("fastconformer", True)]


@pytest.mark.parametrize(("name", "pieces"), NEMO)
def test_nemo(name: str, pieces: bool, tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    """From characters to others, to pieces, and back."""
    original: Any = load_model(tiny_nemo_file(name))
    file = tiny_nemo.sentencepiece_folder(tmp_path / "pieces", 40) / "tokenizer.model"
    model: Any = new_vocabulary(load_model(tiny_nemo_file(name)), file if pieces else TOKENS, keep_shared=True)  # type: ignore[arg-type]
    encoder: Any = original.module.encoder.state_dict()
    for key, value in model.module.encoder.state_dict().items():
        torch.testing.assert_close(value, encoder[key], rtol=0, atol=0)
    old, new = (m.module.decoder.decoder_layers[0] for m in (original, model))
    assert len(new.weight) == len(model.tokenizer) == (41 if pieces else len(TOKENS) + 1)
    torch.testing.assert_close(new.weight[-1], old.weight[-1], rtol=0, atol=0)  # of the blank
    if "a" in original.tokenizer.tokens and "a" in model.tokenizer.tokens:
        rows = [m.tokenizer.tokens.index("a") for m in (original, model)]
        torch.testing.assert_close(new.weight[rows[1]], old.weight[rows[0]], rtol=0, atol=0)

    model.save(tmp_path / "saved.nemo")
    again: Any = load_model(tmp_path / "saved.nemo")
    _same(again, model)
    assert again.files == {**model.files, "nemo.json": again.files["nemo.json"]}
    theirs = tiny_nemo.original(tmp_path / "saved.nemo")
    assert len(theirs.decoder.vocabulary) + 1 == len(model.tokenizer)
    features, lengths = model.inputs(SPEECH[:1])
    with torch.no_grad():
        encoded, _ = theirs.encoder(audio_signal=features.transpose(1, 2), length=lengths)
        found = theirs.decoder(encoder_output=encoded)[0]
    np.testing.assert_allclose(model.logprobs(SPEECH[:1])[0], found[: len(model.logprobs(SPEECH[:1])[0])], atol=1e-5)
    ids = torch.arange(len(model.tokenizer) - 1)
    text = theirs.decoding.decode_ids_to_str(ids.tolist())  # type: ignore[no-untyped-call]
    assert model.tokenizer.decode(ids.tolist()).split() == text.split()


def test_a_native_folder_has_the_new_head(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    for place, source in (
        (tiny_nemo_file("quartznet"), "nemo"),
        (tiny_hf.save("wav2vec2-base", tmp_path), "huggingface"),
    ):
        model: Any = new_vocabulary(load_model(place), TOKENS)  # type: ignore[arg-type]
        folder = tmp_path / source
        folder.mkdir()
        for name, content in model.files.items():
            (folder / name).write_bytes(content)
        again: Any = rebuild_model(source, folder)
        again.module.load_state_dict(model.module.state_dict())
        _same(again, model)


def test_tokens_of_texts_and_files(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    assert characters_of(["ab  c\n", "ça"]) == [" ", "a", "b", "c", "ç"]
    assert characters_of(["ab", "a"]) == ["a", "b"]
    (tmp_path / "tokens.txt").write_bytes(b"a\r\n \r\nb\r\n")
    model: Any = new_vocabulary(load_model(tiny_nemo_file("quartznet")), tmp_path / "tokens.txt")  # type: ignore[arg-type]
    assert model.tokenizer.tokens == ("a", " ", "b", "<blank>")


def test_bad_vocabularies(
    tiny_hf_folder: Callable[[str], Path], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model: Any = load_model(tiny_hf_folder("wav2vec2-base"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "gap.txt").write_bytes(b"a\n\nb\n")
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe4\n")
    (tmp_path / "some.model").write_bytes(b"no")
    for tokens, message in (
        ([], "the new vocabulary has no tokens"),
        (["a", "b", "a"], "twice in the new vocabulary: 'a'"),
        ([" ", "a", "|"], r"twice in the new vocabulary: '\|'"),
        (["a", ""], "token 2 of the new vocabulary is empty"),
        (tmp_path / "empty.txt", r"empty\.txt: the new vocabulary has no tokens"),
        (tmp_path / "gap.txt", r"gap\.txt: token 2 of the new vocabulary is empty: a space is ' '"),
        (tmp_path / "latin.txt", r"latin\.txt: is no text in UTF-8"),
        (tmp_path / "none.txt", r"none\.txt: cannot be read: No such file"),
        (tmp_path / "some.model", "have no SentencePiece model: give characters"),
    ):
        with pytest.raises(TrainingError, match=message) as caught:
            new_vocabulary(model, tokens)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    model.make_exportable()
    with pytest.raises(TrainingError, match="was made ready for export: load it again"):
        new_vocabulary(model, TOKENS)
    with pytest.raises(TrainingError, match="source speechbrain cannot be given a new vocabulary"):
        new_vocabulary(load_model(tiny_model("sb-crdnn"), trust=True), TOKENS)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="is a hybrid, whose transducer would keep the old vocabulary"):
        new_vocabulary(load_model(tiny_model("hybrid")), TOKENS)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="<blank> is no token of a vocabulary"):
        new_vocabulary(load_model(tiny_model("quartznet")), ["a", "<blank>"])  # type: ignore[arg-type]
