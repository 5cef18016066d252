"""NeMo files that cannot be loaded, or must not be: one line each, which says what, where and what to do."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nemo
import torch

from quantasr import load_model
from quantasr.errors import ModelLoadError
from quantasr.sources.nemo import archive

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


@pytest.fixture
def good(tiny_nemo_file: Callable[[str], Path]) -> Path:
    """A small model with characters."""
    return tiny_nemo_file("quartznet")


@pytest.fixture
def bpe(tiny_nemo_file: Callable[[str], Path]) -> Path:
    """A small model with pieces."""
    return tiny_nemo_file("citrinet")


def _refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(path, **options)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said and len(said) < 500
    return said


def _with_config(good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    return tiny_nemo.edited(good, tmp_path / "model.nemo", change)


def _with_weights(good: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    files = tiny_nemo.contents(good)
    state = torch.load(io.BytesIO(files[WEIGHTS]), weights_only=True)
    change(state)
    return _with_object(good, tmp_path, state)


def _with_object(good: Path, tmp_path: Path, weights: Any) -> Path:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return tiny_nemo.pack({**tiny_nemo.contents(good), WEIGHTS: buffer.getvalue()}, tmp_path / "model.nemo")


class Bomb:
    """Unpickles to a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# -- the archive -----------------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such file" in _refusal(tmp_path / "none.nemo")


def test_a_name_that_no_hub_gives() -> None:
    assert "no pretrained model could be fetched by that name" in _refusal("stt_en_no_such_model")


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8bnot gzip either", bytes(1024)])
def test_not_a_tar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.nemo"
    path.write_bytes(content)
    said = _refusal(path)
    assert "not a tar archive" in said or "truncated or damaged" in said or f"has no {CONFIG}" in said


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_a_member_outside_of_the_archive(good: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.nemo"
    with tarfile.open(path, "w") as tar:
        for member, content in {**tiny_nemo.contents(good), name: b"evil"}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    said = _refusal(path)
    assert repr(name) in said and "points outside of it: do not trust this file" in said
    assert not (tmp_path.parent / "evil.txt").exists() and not Path("/tmp/evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_plain_file(good: Path, tmp_path: Path, kind: bytes) -> None:
    path = Path(tmp_path / "model.nemo")
    path.write_bytes(good.read_bytes())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "'link' is a link or a device" in _refusal(path)


def test_a_configuration_that_is_a_link(good: Path, tmp_path: Path) -> None:
    files = tiny_nemo.contents(good)
    del files[CONFIG]
    path = tiny_nemo.pack(files, tmp_path / "model.nemo")
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo(CONFIG)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(info)
    assert "is a link or a device" in _refusal(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_truncated_archive(good: Path, tmp_path: Path, share: float, mode: Any) -> None:
    path = tiny_nemo.pack(tiny_nemo.contents(good), tmp_path / "model.nemo", mode)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "copy" in _refusal(path)


def test_an_archive_that_unpacks_to_far_more(good: Path, tmp_path: Path) -> None:
    files = {"zeros": bytes(100 << 20), **tiny_nemo.contents(good)}
    assert "would unpack to far more" in _refusal(tiny_nemo.pack(files, tmp_path / "model.nemo", "w:gz"))


def test_a_configuration_that_is_too_large(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_FILE", 100)
    monkeypatch.setattr(archive, "_MAX_MEMBERS", 100)
    path = tmp_path / "model.nemo"
    path.write_bytes(good.read_bytes())
    assert f"{CONFIG} has more than" in _refusal(path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file(good: Path, tmp_path: Path, name: str) -> None:
    files = {key: value for key, value in tiny_nemo.contents(good).items() if key != name}
    assert f"it has no {name}: was it saved with NeMo's save_to?" in _refusal(
        tiny_nemo.pack(files, tmp_path / "model.nemo")
    )


def test_a_folder_without_weights(good: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(tiny_nemo.contents(good)[CONFIG])
    assert f"it has no {WEIGHTS}" in _refusal(tmp_path)


# -- the weights -----------------------------------------------------------------------------------------------------


def test_weights_that_run_code_are_not_read(good: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = _with_object(good, tmp_path, {"encoder.x": Bomb(trap)})
    assert "holds more than tensors, which could run code" in _refusal(path)
    assert "holds more than tensors, which could run code" in _refusal(path, trust=True)
    legacy = tiny_nemo.pack({**tiny_nemo.contents(good), WEIGHTS: pickle.dumps(Bomb(trap))}, tmp_path / "old.nemo")
    _refusal(legacy)
    assert not trap.exists()
    torch.load(io.BytesIO(tiny_nemo.contents(path)[WEIGHTS]), weights_only=False)
    assert trap.exists(), "a trap that does not work tests nothing"


@pytest.mark.parametrize(
    "weights",
    [[1, 2], {"x": 3}, torch.zeros(2), {"x": torch.zeros(2).to_sparse()}, {"x": torch.zeros(2, device="meta")}],
)
def test_weights_that_are_no_state_dict(good: Path, tmp_path: Path, weights: Any) -> None:
    assert "is no state dict" in _refusal(_with_object(good, tmp_path, weights))


def test_compressed_weights(good: Path, tmp_path: Path) -> None:
    files = tiny_nemo.contents(good)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files[WEIGHTS])) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    path = tiny_nemo.pack({**files, WEIGHTS: buffer.getvalue()}, tmp_path / "model.nemo")
    assert "is compressed, as PyTorch never writes it" in _refusal(path)


def test_missing_weights(good: Path, tmp_path: Path) -> None:
    path = _with_weights(good, tmp_path, lambda state: state.pop("decoder.decoder_layers.0.bias"))
    assert "1 weights are missing, the first is decoder.decoder_layers.0.bias" in _refusal(path)


def test_weights_of_nothing(good: Path, tmp_path: Path) -> None:
    path = _with_weights(good, tmp_path, lambda state: state.update({"encoder.more": torch.zeros(3)}))
    assert "1 weights belong to no part of the model, the first is encoder.more" in _refusal(path)


def test_weights_of_another_shape(good: Path, tmp_path: Path) -> None:
    key = "decoder.decoder_layers.0.weight"
    path = _with_weights(good, tmp_path, lambda state: state.update({key: torch.zeros(29, 47, 1)}))
    assert f"weight {key} has the shape [29, 47, 1], but the configuration makes it [29, 48, 1]" in _refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(good: Path, tmp_path: Path, value: float) -> None:
    key = "encoder.encoder.0.mconv.2.running_var"
    path = _with_weights(good, tmp_path, lambda state: state[key].fill_(value))
    assert f"weight {key} has NaN or infinite values" in _refusal(path)


def test_features_that_the_configuration_does_not_describe(good: Path, tmp_path: Path) -> None:
    path = _with_weights(good, tmp_path, lambda state: state["preprocessor.featurizer.fb"].mul_(2))
    assert "preprocessor.featurizer.fb in its weights is not what its configuration describes" in _refusal(path)


# -- the configuration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rnnt_models.EncDecRNNTBPEModelWithPrompt", "EncDecMultiTaskModel"])
def test_a_model_that_decodes_in_another_way(good: Path, tmp_path: Path, name: str) -> None:
    path = _with_config(good, tmp_path, lambda row: row.update(target=f"nemo.collections.asr.models.{name}"))
    said = _refusal(path)
    assert f"{name.rsplit('.', 1)[-1]} is not supported yet; supported are EncDecCTCModel, " in said


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nemo.collections.asr.models.EncDecSpeakerLabelModel", "is no CTC model and no transducer; supported"),
        ("nemo.collections.tts.models.FastPitchModel", "not one of NeMo's speech recognition"),
        ("os.system", "not one of NeMo's speech recognition"),
        (None, "does not say of which class the model is"),
        (7, "does not say of which class the model is"),
    ],
)
def test_a_class_that_is_no_recogniser(good: Path, tmp_path: Path, target: Any, message: str) -> None:
    assert message in _refusal(_with_config(good, tmp_path, lambda row: row.update(target=target)))


@pytest.mark.parametrize("part", ["encoder", "decoder", "preprocessor"])
@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "nemo.collections.asr.modules.RNNTDecoder"])
def test_a_part_of_another_class(good: Path, tmp_path: Path, part: str, target: str) -> None:
    path = _with_config(good, tmp_path, lambda row: row[part].update(_target_=target))
    assert part in _refusal(path) or "RNNTDecoder" in _refusal(path)


def test_a_class_hidden_in_an_argument(good: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    call = {"_target_": "pathlib.Path.touch", "_args_": [str(trap)]}
    path = _with_config(good, tmp_path, lambda row: row["encoder"].update(init_mode=call))
    assert "encoder names a class of its own inside" in _refusal(path)
    path = _with_config(good, tmp_path, lambda row: row.update(spec_augment=call, optim=call))
    load_model(path)  # parts that are for training alone are not even looked at
    assert not trap.exists()


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${oc.decode:1}", "${missing", "a${sample_rate}"])
def test_references_that_call_something(good: Path, tmp_path: Path, value: str) -> None:
    path = _with_config(good, tmp_path, lambda row: row["encoder"].update(feat_in=value))
    assert "only references to other entries are read" in _refusal(path)


def test_a_reference_to_itself(good: Path, tmp_path: Path) -> None:
    path = _with_config(good, tmp_path, lambda row: row["encoder"].update(feat_in="${encoder.feat_in}"))
    assert "nested too deep, or refers to itself" in _refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        b"!!python/object/apply:os.system ['true']",
        b"encoder: !!python/name:os.system",
        b"a: [",
        b"- 1",
        b"",
        b"\xff\xfe\x00",
        b"{" * 5000,
    ],
)
def test_a_configuration_that_is_no_plain_yaml(good: Path, tmp_path: Path, text: bytes) -> None:
    files = {**tiny_nemo.contents(good), CONFIG: text}
    assert CONFIG in _refusal(tiny_nemo.pack(files, tmp_path / "model.nemo"))


def test_aliases_that_grow_without_end(good: Path, tmp_path: Path) -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
    text = f"a0: &a0 [x]\n{levels}\ntarget: nemo.collections.asr.models.EncDecCTCModel\nencoder: {{jasper: *a11}}\n"
    files = {**tiny_nemo.contents(good), CONFIG: text.encode()}
    assert "nested too deep" in _refusal(tiny_nemo.pack(files, tmp_path / "model.nemo"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("encoder"), "the configuration has no encoder"),
        (lambda row: row["encoder"].update(no_such_option=1), "NeMo cannot build or run its ConvASREncoder: "),
        (lambda row: row["encoder"].update(jasper="wide"), "NeMo cannot build or run its ConvASREncoder: "),
        (lambda row: row["encoder"].update(quantize=True), "take the float model"),
        (lambda row: row["encoder"].update(conv_mask=False), "conv_mask: false is not supported"),
        (lambda row: row["encoder"].update(normalization_mode="instance"), "its norm 'instance' is not supported"),
        (lambda row: row.update(adapters={"a": {"enabled": True}}), "adapters are not supported"),
        (lambda row: row["decoder"].update(vocabulary=[1, 2]), "vocabulary is no list of tokens"),
        (
            lambda row: row["decoder"].update(vocabulary=["a", "b"]),
            "its decoder has 29 outputs, but its tokenizer has 2",
        ),
        (
            lambda row: row["preprocessor"].update(
                _target_="nemo.collections.asr.modules.AudioToMFCCPreprocessor", n_mels=64
            ),
            "features of AudioToMFCCPreprocessor are not supported",
        ),
        (lambda row: row["preprocessor"].update(window="kaiser"), "window 'kaiser' is unknown"),
        (lambda row: row["preprocessor"].update(wavelets=2), "preprocessor: argument 'wavelets' is unknown"),
        (lambda row: row["preprocessor"].update(features="many"), "preprocessor: "),
        (
            lambda row: row["encoder"].update(_target_="nemo.collections.asr.modules.SqueezeformerEncoder"),
            "encoder SqueezeformerEncoder is not supported; supported are ConvASREncoder, ConformerEncoder",
        ),
    ],
)
def test_a_configuration_that_cannot_be_built(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in _refusal(_with_config(good, tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_norm_type": "group_norm4"}, "its norm 'group_norm4' is not supported: only batch"),
        ({"global_tokens": 1, "self_attention_model": "rel_pos_local_attn"}, "attention with global tokens"),
        ({"d_model": 33}, "NeMo cannot build or run its ConformerEncoder"),
        ({"subsampling": "magic"}, "NeMo cannot build or run its ConformerEncoder: Not valid sub-sampling: magic!"),
    ],
)
def test_conformers_that_are_not_supported(
    tiny_nemo_file: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = _with_config(tiny_nemo_file("conformer"), tmp_path, lambda row: row["encoder"].update(change))
    assert message in _refusal(path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "agg", "langs": {}}, "several languages in one model (type agg) are not supported yet"),
        ({"type": "char"}, "tokenizer type 'char' is unknown; supported are bpe and wpe"),
        ({"type": "bpe", "dir": "x"}, "its tokenizer needs the file tokenizer.model, which is not in it"),
        ({"type": "bpe", "model_path": "nemo:../../etc/passwd"}, "needs the file passwd, which is not in it"),
        ({"type": "bpe", "model_path": f"nemo:{CONFIG}"}, "its tokenizer is no SentencePiece model"),
        ({"type": "bpe", "custom_tokenizer": {"_target_": "os.system"}}, "a tokenizer with a class of its own"),
        (None, "has no tokenizer, which EncDecCTCModelBPE needs"),
    ],
)
def test_tokenizers_that_are_not_supported(bpe: Path, tmp_path: Path, section: Any, message: str) -> None:
    assert message in _refusal(_with_config(bpe, tmp_path, lambda row: row.update(tokenizer=section)))


def test_without_nemo_the_command_that_installs_it(good: Path) -> None:
    program = (
        "import sys; sys.modules['nemo'] = None\n"
        "from quantasr import load_model\n"
        f"try: load_model({str(good)!r})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("ModelLoadError ") and "pip install 'quantasr[nemo]'" in ran.stdout
    assert ran.stderr == ""
