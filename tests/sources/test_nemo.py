"""NeMo models as they come: archives, folders, old configurations, tokenizers; what NeMo itself makes is the truth."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tiny_nemo
import torch
from transformers import BertTokenizer

from quantasr import load_model
from quantasr.errors import ModelLoadError
from quantasr.sources import CtcModel, nemo
from quantasr.sources.nemo.archive import open_archive
from quantasr.sources.nemo.config import read_config
from quantasr.speech.frontend import LogMelFrontend

SPEECH = tiny_nemo.speech(1.1, 0.6)


def _same(a: CtcModel, b: CtcModel) -> None:
    for mine, other in zip(a.transcriber().logprobs(SPEECH), b.transcriber().logprobs(SPEECH), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert a.tokenizer == b.tokenizer and a.frontend == b.frontend


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("model.nemo", True),
        ("model.nemo#ctc", True),
        ("nvidia/parakeet-tdt_ctc-110m#ctc", True),
        ("nvidia/parakeet-ctc-0.6b", True),
        ("nvidia/stt_en_conformer_ctc_small", True),
        ("stt_en_citrinet_512", True),
        ("someone/stt_eu_conformer_ctc_large", True),
        ("QuartzNet15x5Base-En", True),
        ("facebook/wav2vec2-base-960h", False),
        ("hf-internal-testing/tiny-random-wav2vec2", False),
        ("somewhere/on/the/disk", False),
    ],
)
def test_names_that_are_recognised(where: str, expected: bool) -> None:
    assert nemo.recognises(where) is expected


def test_a_gzipped_archive_and_a_folder_are_the_plain_archive(
    tiny_nemo_file: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tiny_nemo_file("hybrid-bpe")
    plain = load_model(tiny_nemo.ctc(file))
    assert plain.name == "hybrid-bpe"
    files = tiny_nemo.contents(file)
    _same(plain, load_model(f"{tiny_nemo.pack(files, tmp_path / 'gzipped.nemo', 'w:gz')}#ctc"))
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    assert nemo.recognises(str(tmp_path / "folder"))
    _same(plain, load_model(f"{tmp_path / 'folder'}#ctc"))
    any_name = tmp_path / "model.tar"
    any_name.write_bytes(file.read_bytes())
    _same(plain, load_model(f"{any_name}#ctc", source="nemo"))


def test_a_hub_id_is_fetched_and_never_restored_by_nemo(
    tiny_nemo_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    file, asked = tiny_nemo_file("hybrid"), []

    def fetch(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((repository, name, revision))
        if name != "other.nemo":
            raise EntryNotFoundError("404")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["README.md", "other.nemo"])
    model = load_model("nvidia/stt_xx_tiny", revision="v2")
    assert asked == [("nvidia/stt_xx_tiny", name, "v2") for name in ("stt_xx_tiny.nemo", "other.nemo")]
    assert (model.name, model.provenance["model"], model.provenance["revision"]) == (
        "stt_xx_tiny", "nvidia/stt_xx_tiny", "v2",
    )  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["a.nemo", "b.nemo"])
    with pytest.raises(ModelLoadError, match=r"its repository has 2 \.nemo files"):
        load_model("nvidia/stt_xx_tiny")


def test_a_name_of_nvidias_hub_is_fetched_and_never_restored_by_nemo(
    tiny_nemo_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo.collections.asr.models import ASRModel

    def fetch(name: str, return_model_file: bool = False) -> str:
        assert return_model_file
        return str(tiny_nemo_file("hybrid"))

    monkeypatch.setattr(ASRModel, "from_pretrained", fetch)
    assert load_model("stt_xx_tiny").provenance["architecture"] == "EncDecHybridRNNTCTCModel"


def test_weights_in_pytorchs_older_format(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    files = tiny_nemo.contents(tiny_nemo_file("quartznet"))
    buffer = io.BytesIO()
    state = torch.load(io.BytesIO(files["model_weights.ckpt"]), weights_only=True)
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    old = tiny_nemo.pack({**files, "model_weights.ckpt": buffer.getvalue()}, tmp_path / "old.nemo")
    _same(load_model(old), load_model(tiny_nemo_file("quartznet")))


def test_half_precision_weights_are_used_in_float32(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    files = tiny_nemo.contents(tiny_nemo_file("quartznet"))
    state = torch.load(io.BytesIO(files["model_weights.ckpt"]), weights_only=True)
    buffer = io.BytesIO()
    torch.save({key: value.half() if value.ndim == 3 else value for key, value in state.items()}, buffer)
    model = load_model(tiny_nemo.pack({**files, "model_weights.ckpt": buffer.getvalue()}, tmp_path / "half.nemo"))
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    whole = load_model(tiny_nemo_file("quartznet")).transcriber().logprobs(SPEECH)
    for mine, other in zip(model.transcriber().logprobs(SPEECH), whole, strict=True):
        np.testing.assert_allclose(mine, other, atol=0.5)


def test_a_configuration_as_nemo_before_1_0_wrote_it(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Classes under `cls` with their arguments under `params`, numbers behind references, 1e-05 without a dot."""

    def age(row: dict[str, Any]) -> None:
        for part in ("preprocessor", "encoder", "decoder"):
            arguments = row[part]
            row[part] = {"cls": arguments.pop("_target_"), "params": arguments}
        row["target"] = "nemo.collections.asr.models.EncDecCTCModel"
        row["bins"] = row["preprocessor"]["params"]["features"]
        row["encoder"]["params"]["feat_in"] = "${model.bins}"
        row["preprocessor"]["params"] |= {"features": "${bins}", "stft_conv": False, "log_zero_guard_value": 2**-24}
        row["decoder"]["params"] |= {"vocabulary": "${model.labels}", "num_classes": -1, "feat_in": None}

    file = tiny_nemo_file("quartznet")
    old = tiny_nemo.edited(file, tmp_path / "old.nemo", age)
    files = tiny_nemo.contents(old)
    text = files["model_config.yaml"].decode().replace("5.960464477539063e-08", "5.960464477539063E-08")
    assert "E-08" in text
    tiny_nemo.pack({**files, "model_config.yaml": text.replace("1.0e-05", "1e-05").encode()}, old)
    _same(load_model(old), load_model(file))


def test_fused_attention_is_taken_apart(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Its two products could not be quantized otherwise; the result is the same."""
    file = tiny_nemo_file("conformer")
    fused = tiny_nemo.edited(file, tmp_path / "fused.nemo", lambda row: row["encoder"].update(use_pytorch_sdpa=True))
    original = tiny_nemo.original(fused)
    assert original.encoder.layers[0].self_attn.use_pytorch_sdpa
    with torch.no_grad():
        theirs, *_ = original(
            input_signal=torch.from_numpy(SPEECH[0])[None], input_signal_length=torch.tensor([len(SPEECH[0])])
        )
    mine = load_model(fused)
    assert not mine.module.encoder.layers[0].self_attn.use_pytorch_sdpa
    (found,) = mine.transcriber().logprobs(SPEECH[:1])
    np.testing.assert_allclose(found, theirs[0, : len(found)].numpy(), atol=1e-3)


@pytest.mark.parametrize("name", tiny_nemo.NOT_RUN_BY_NEMO)
def test_subsamplings_that_nemo_cannot_run(name: str, tiny_nemo_file: Callable[[str], Path]) -> None:
    """Alone they are their layers one after the other, and a batch gives each recording what it gets alone."""
    model = load_model(tiny_nemo_file(name))
    subsampling: Any = model.module.encoder.pre_encode
    for wave in (*SPEECH, SPEECH[0][:12000]):
        features, lengths = model.inputs([wave])
        plain: Any = features[:, None] if subsampling.conv2d_subsampling else features.transpose(1, 2)
        with torch.no_grad():
            for layer in subsampling.conv:
                plain = layer(plain)
            plain = plain.transpose(1, 2)
            if subsampling.conv2d_subsampling:
                plain = subsampling.out(plain.flatten(2))
            found, counts = subsampling(x=features, lengths=lengths)
        assert counts.tolist() == [plain.shape[1]]
        torch.testing.assert_close(found, plain)
    alone = model.transcriber().logprobs(SPEECH)
    together = model.transcriber(batch_size=2).logprobs(SPEECH)
    for one, batched in zip(alone, together, strict=True):
        np.testing.assert_allclose(batched, one, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"normalize": "NA"}, {"normalize": "none"}),
        ({"normalize": None}, {"normalize": "none"}),
        ({"window_size": 0.02, "n_fft": None}, {"window_length": 320, "fft_length": 512}),
        ({"sample_rate": 8000, "n_fft": None}, {"sample_rate": 8000, "window_length": 200, "hop_length": 80}
         | {"fft_length": 256, "high_frequency": 4000.0}),
        ({"preemph": None, "pad_value": 1.5}, {"preemphasis": 0.0, "padding_value": 1.5}),
        ({"log_zero_guard_type": "clamp", "log_zero_guard_value": "tiny"},
         {"log_guard": "clamp", "log_guard_value": float(np.finfo(np.float32).tiny)}),
        ({"normalize": {"fixed_mean": [0.0] * 16, "fixed_std": [1.0] * 16}},
         {"normalize": "fixed", "fixed_mean": (0.0,) * 16, "fixed_std": (1.0,) * 16}),
        ({"window_size": None, "window_stride": None, "n_window_size": 512, "n_window_stride": 128},
         {"window_length": 512, "hop_length": 128}),
        ({"lowfreq": 20, "highfreq": 7000, "mel_norm": None, "exact_pad": True, "mag_power": 1.0, "log": False},
         {"low_frequency": 20.0, "high_frequency": 7000.0, "mel_norm": "none", "exact_pad": True, "mag_power": 1.0}
         | {"log": False}),
    ],
)  # fmt: skip
def test_features_are_read_off_the_configuration(
    tiny_nemo_file: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = tiny_nemo.edited(
        tiny_nemo_file("quartznet"), tmp_path / "model.nemo", lambda row: row["preprocessor"].update(changes)
    )
    with open_archive(str(path)) as archive:
        frontend = read_config(str(path), archive.read("model_config.yaml")).frontend
    usual = {"window_length": 400, "num_mel_bins": 16, "high_frequency": 8000.0}
    assert frontend == LogMelFrontend(**(usual | expected))


# -- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with control pieces, a symbol of its own, punctuation and bytes."""
    return tiny_nemo.sentencepiece_folder(
        tmp_path_factory.mktemp("pieces"),
        vocab_size=320,
        bos_id=1,
        eos_id=2,
        byte_fallback=True,
        user_defined_symbols=["[laugh]", ",", "."],
        hard_vocab_limit=False,
    )


def test_texts_of_pieces_are_nemos(pieces: Path, tmp_path: Path) -> None:
    """Of any ids: unknown, control, symbols of its own, punctuation behind a space, and bytes of characters."""
    path = tiny_nemo.save("citrinet", tmp_path, pieces)
    decoding = tiny_nemo.original(path).decoding
    model = load_model(path)
    vocabulary = len(model.tokenizer) - 1
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    assert vocabulary == len(processor)
    rng = np.random.default_rng(0)
    spelt = [processor.encode("a ß and 日本 , done ."), processor.encode("the [laugh] box .")]
    words = [i for i in range(vocabulary) if not processor.is_byte(i)]
    samples = [*spelt, *(rng.choice(words, size=12).tolist() for _ in range(300))]
    assert any(processor.is_byte(i) for i in spelt[0])
    for ids in samples:
        theirs = decoding.decode_tokens_to_str_with_strip_punctuation(ids)
        mine = model.tokenizer.decode(ids)
        assert mine == theirs.strip(), ids
        found = model.tokenizer.words(ids, list(range(len(ids))), list(range(1, len(ids) + 1)))
        assert [word.text for word in found] == mine.split()


def test_texts_of_characters_are_nemos(tiny_nemo_file: Callable[[str], Path]) -> None:
    file = tiny_nemo_file("quartznet")
    decoding = tiny_nemo.original(file).decoding
    tokenizer = load_model(file).tokenizer
    assert tokenizer.punctuation == "'"
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.choice([0, 0, 1, 2, 3, 27], size=12).tolist()
        assert tokenizer.decode(ids) == decoding.decode_tokens_to_str_with_strip_punctuation(ids).strip()


def test_texts_of_wordpieces_are_berts(tiny_nemo_file: Callable[[str], Path], tmp_path: Path) -> None:
    """NeMo fetches BERT's tokenizer from the hub to read them, so BERT's class stands for it."""
    words = ["[UNK]", "the", "##re", "a", "##b", "##'", "fox", ".", "##s"] + [f"w{i}" for i in range(39)]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", "utf-8")

    def change(row: dict[str, Any]) -> None:
        row["tokenizer"] = {"dir": "somewhere", "type": "wpe", "vocab_path": "nemo:abc_vocab.txt"}
        row["decoder"]["vocabulary"] = []
        row["labels"] = []

    file = tiny_nemo.edited(tiny_nemo_file("citrinet"), tmp_path / "model.nemo", change)
    tiny_nemo.pack({**tiny_nemo.contents(file), "abc_vocab.txt": vocabulary.read_bytes()}, file)
    tokenizer = load_model(file).tokenizer
    bert = BertTokenizer(str(vocabulary), do_lower_case=False)
    rng = np.random.default_rng(0)
    for _ in range(100):
        ids = [1, *rng.integers(0, 9, size=10).tolist()]
        theirs = bert.convert_tokens_to_string([words[i] for i in ids])
        assert tokenizer.decode(ids).replace(" .", ".") == theirs.replace(" .", ".")


def test_nothing_is_printed_and_nemo_is_imported_only_to_load(tiny_nemo_file: Callable[[str], Path]) -> None:
    program = (
        "import sys\n"
        "from quantasr import load_model\n"
        "from quantasr.sources import nemo\n"
        f"assert nemo.recognises({str(tiny_nemo_file('hybrid'))!r}) and 'nemo' not in sys.modules\n"
        f"model = load_model({str(tiny_nemo_file('hybrid'))!r})\n"
        "assert 'nemo' in sys.modules\n"
        "model.transcriber().transcribe([__import__('numpy').ones(16000, 'float32')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
