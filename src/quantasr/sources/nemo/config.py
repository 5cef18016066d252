"""What a NeMo model's configuration says, of which nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantasr.errors import ArtifactError, ModelLoadError
from quantasr.sources.nemo.archive import CONFIG
from quantasr.sources.nemo.transducer_config import TransducerConfig, read_transducer
from quantasr.speech.frontend import LogMelFrontend

CTC_MODELS = {
    "EncDecCTCModel": "decoder",
    "EncDecCTCModelBPE": "decoder",
    "EncDecHybridRNNTCTCModel": "ctc_decoder",
    "EncDecHybridRNNTCTCBPEModel": "ctc_decoder",
}
"""NeMo's classes with a CTC head -> the path of the head."""

TRANSDUCERS = (
    "EncDecRNNTModel",
    "EncDecRNNTBPEModel",
    "EncDecHybridRNNTCTCModel",
    "EncDecHybridRNNTCTCBPEModel",
)
"""NeMo's classes with prediction network and joint."""

NOT_YET = (
    "EncDecRNNTBPEModelWithPrompt",
    "EncDecRNNTBPEEOUModel",
    "EncDecHybridRNNTCTCBPEModelWithPrompt",
    "EncDecHybridASRFrameVADModel",
    "EncDecHybridRNNTCTCBPEEOUModel",
    "EncDecMultiTalkerRNNTBPEModel",
    "EncDecMultiTaskModel",
    "EncDecTransfModelBPE",
    "EncDecK2SeqModel",
    "EncDecK2SeqModelBPE",
    "EncDecK2RnntSeqModel",
    "EncDecK2RnntSeqModelBPE",
    "ASRWithTTSModel",
)
"""NeMo's recognisers that decode in another way."""

ENCODERS = {"ConvASREncoder": "nemo_conv", "ConformerEncoder": "nemo_conformer"}
"""NeMo's encoders -> the family whose built-in recipes fit."""

_PREPROCESSOR = "AudioToMelSpectrogramPreprocessor"
_PACKAGE = "nemo.collections.asr."
_REFERENCE = re.compile(r"\$\{(?:model\.)?([\w.]+)\}")
_MAX_NODES = 200_000
_YAML_FLOAT = re.compile(
    r"""^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:e[-+]?[0-9]+)?|[0-9][0-9_]*e[-+]?[0-9]+|\.[0-9_]+(?:e[-+]?[0-9]+)?
    |\.inf|\.nan)$""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class NemoConfig:
    """What is needed of a model's configuration: its parts to build, the features and the tokens.

    ``encoder`` and ``decoder`` are the arguments of ``encoder_class`` and of ``ConvASRDecoder``; ``head`` is the path
    of the CTC head, empty where there is none. ``tokenizer`` is None for models of characters, whose tokens are
    ``labels``. ``transducer`` is None for CTC models, and for hybrids of which only the CTC head is asked for.
    """

    model_class: str
    head: str
    encoder_class: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    frontend: LogMelFrontend
    tokenizer: dict[str, Any] | None
    labels: tuple[str, ...]
    transducer: TransducerConfig | None = None

    @property
    def family(self) -> str:
        """The family whose built-in recipes fit."""
        return ENCODERS[self.encoder_class] if self.transducer is None else "nemo_transducer"


def read_config(where: str, content: bytes, *, ctc: bool = False) -> NemoConfig:
    """Read ``model_config.yaml``, of a hybrid without its transducer if ``ctc``.

    Raises :class:`ModelLoadError` where it is no CTC model or transducer that we know.
    """
    root = load_yaml(where, content)
    model_class = _class_name(where, root.get("target"), "the model")
    known = dict.fromkeys((*CTC_MODELS, *TRANSDUCERS))
    if model_class in NOT_YET:
        raise ModelLoadError(f"{where}: {model_class} is not supported yet; supported are {', '.join(known)}")
    if model_class not in known:
        raise ModelLoadError(
            f"{where}: {model_class} is no CTC model and no transducer; supported are {', '.join(known)}"
        )
    if root.get("adapters"):
        raise ModelLoadError(f"{where}: adapters are not supported: merge them into the model first")
    head = CTC_MODELS.get(model_class, "")
    if ctc and not head:
        raise ModelLoadError(f"{where}: {model_class} has no CTC head: leave #ctc out")
    resolver = _Resolver(where, root)
    transducer = None
    if model_class in TRANSDUCERS and not ctc:
        transducer = read_transducer(where, resolver.part, resolver.section)
    encoder_class, encoder = resolver.part("encoder")
    if encoder_class not in ENCODERS:
        raise ModelLoadError(f"{where}: encoder {encoder_class} is not supported; supported are {', '.join(ENCODERS)}")
    decoder: dict[str, Any] = {}
    if head:
        decoder_class, decoder = resolver.part("decoder" if head == "decoder" else "aux_ctc.decoder")
        if decoder_class != "ConvASRDecoder":
            raise ModelLoadError(f"{where}: decoder {decoder_class} is not supported; supported is ConvASRDecoder")
    preprocessor_class, preprocessor = resolver.part("preprocessor")
    if preprocessor_class != _PREPROCESSOR:
        raise ModelLoadError(
            f"{where}: features of {preprocessor_class} are not supported; supported are those of {_PREPROCESSOR}"
        )
    bpe = model_class.endswith(("BPE", "BPEModel"))
    vocabulary = decoder.get("vocabulary") or resolver.section("labels")
    if not isinstance(vocabulary, list) or not all(isinstance(token, str) for token in vocabulary):
        raise ModelLoadError(f"{where}: the decoder's vocabulary is no list of tokens in {CONFIG}")
    tokenizer = resolver.section("tokenizer") if bpe else None
    if bpe and not isinstance(tokenizer, dict):
        raise ModelLoadError(f"{where}: the configuration has no tokenizer, which {model_class} needs")
    return NemoConfig(
        model_class=model_class,
        head=head,
        encoder_class=encoder_class,
        encoder=encoder,
        decoder=decoder,
        frontend=_frontend(where, preprocessor),
        tokenizer=tokenizer,
        labels=tuple(vocabulary),
        transducer=transducer,
    )


def load_yaml(where: str, content: bytes) -> dict[str, Any]:
    """The section of a configuration that describes the model, of plain values."""
    import yaml

    # Plain values only, with 1e-5 a number, as OmegaConf reads it.
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _YAML_FLOAT, list("-+0123456789."))
    try:
        root = yaml.load(content, loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelLoadError(f"{where}: {CONFIG} is no YAML of plain values: {reason}") from None
    if isinstance(root, dict) and "target" not in root and isinstance(root.get("model"), dict):
        root = root["model"]
    if not isinstance(root, dict):
        raise ModelLoadError(f"{where}: {CONFIG} is no mapping; it must describe a model")
    return root


def _class_name(where: str, target: Any, what: str) -> str:
    """The last part of a class's path in NeMo's ASR collection."""
    if not isinstance(target, str) or not target:
        raise ModelLoadError(f"{where}: the configuration does not say of which class {what} is")
    if not target.startswith(_PACKAGE):
        raise ModelLoadError(f"{where}: {what} is of class {target!r}, not one of NeMo's speech recognition")
    return target.rsplit(".", 1)[1]


class _Resolver:
    """Sections of a configuration with their references to other entries put in: ``${model.sample_rate}``.

    Anything else between ``${`` and ``}`` is refused: OmegaConf would call a function by that name.
    """

    def __init__(self, where: str, root: dict[str, Any]) -> None:
        self._where, self._root = where, root
        self._nodes = 0

    def section(self, path: str) -> Any:
        """The entry at ``path``, or None."""
        return self._resolve(self._at(path), path, 0)

    def part(self, path: str) -> tuple[str, dict[str, Any]]:
        """Class and arguments of the part at ``path``; also as NeMo before 1.0 wrote it (``cls`` and ``params``)."""
        row = self.section(path)
        if not isinstance(row, dict):
            raise ModelLoadError(f"{self._where}: the configuration has no {path}")
        arguments = dict(row)
        target = arguments.pop("_target_", None) or arguments.pop("cls", None)
        if "params" in arguments:
            arguments |= arguments.pop("params") or {}
        if _mentions(arguments, "_target_"):
            raise ModelLoadError(f"{self._where}: {path} names a class of its own inside, which is not supported")
        return _class_name(self._where, target, f"its {path}"), arguments

    def _at(self, path: str) -> Any:
        value: Any = self._root
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _resolve(self, value: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > 50:
            raise ModelLoadError(f"{self._where}: {path} in the configuration is nested too deep, or refers to itself")
        if isinstance(value, dict):
            return {str(key): self._resolve(item, path, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolve(item, path, depth + 1) for item in value]
        if isinstance(value, str) and "${" in value:
            reference = _REFERENCE.fullmatch(value)
            if reference is None:
                raise ModelLoadError(f"{self._where}: {path} has {value!r}: only references to other entries are read")
            return self._resolve(self._at(reference[1]), path, depth + 1)
        return value


def _mentions(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_mentions(item, key) for item in value.values())
    return isinstance(value, list) and any(_mentions(item, key) for item in value)


# Arguments of NeMo's preprocessor that change nothing when a model runs.
_TRAINING_ONLY = {"dither", "pad_to", "rng", "nb_augmentation_prob", "nb_max_freq", "use_torchaudio", "max_duration"}
_DEPRECATED = {"stft_conv", "stft_exact_pad", "use_grads"}


def _frontend(where: str, row: Mapping[str, Any]) -> LogMelFrontend:
    """The features that the arguments of ``AudioToMelSpectrogramPreprocessor`` describe."""
    row = {key: value for key, value in row.items() if key not in _TRAINING_ONLY | _DEPRECATED}
    try:
        return _log_mel(dict(row))
    except ArtifactError as error:
        raise ModelLoadError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ModelLoadError(f"{where}: preprocessor: {error}") from None


def _log_mel(row: dict[str, Any]) -> LogMelFrontend:
    rate = int(row.pop("sample_rate", 16000))
    window = _samples(row, "window_size", "n_window_size", 0.02, rate)
    hop = _samples(row, "window_stride", "n_window_stride", 0.01, rate)
    fft = row.pop("n_fft", None) or 2 ** int(np.ceil(np.log2(window)))
    guard = row.pop("log_zero_guard_value", 2**-24)
    if isinstance(guard, str) and guard in ("tiny", "eps"):
        guard = getattr(np.finfo(np.float32), guard)
    normalize = row.pop("normalize", "per_feature")
    fixed: Mapping[str, Any] = {}
    if isinstance(normalize, Mapping):
        fixed, normalize = normalize, "fixed"
    elif normalize not in ("per_feature", "all_features"):
        normalize = "none"  # NeMo's configurations write NA, null or false
    mel_norm = row.pop("mel_norm", "slaney")
    frontend = LogMelFrontend(
        sample_rate=rate,
        window_length=window,
        hop_length=hop,
        window=str(row.pop("window", "hann") or "none"),
        fft_length=int(fft),
        num_mel_bins=int(row.pop("features", 64)),
        low_frequency=float(row.pop("lowfreq", 0) or 0),
        high_frequency=float(row.pop("highfreq", None) or rate / 2),
        mel_norm="none" if mel_norm is None else str(mel_norm),
        preemphasis=float(row.pop("preemph", 0.97) or 0),
        mag_power=float(row.pop("mag_power", 2.0)),
        log=bool(row.pop("log", True)),
        log_guard=str(row.pop("log_zero_guard_type", "add")),
        log_guard_value=float(guard),
        normalize=normalize,
        fixed_mean=fixed.get("fixed_mean", ()),
        fixed_std=fixed.get("fixed_std", ()),
        frame_splicing=int(row.pop("frame_splicing", 1) or 1),
        exact_pad=bool(row.pop("exact_pad", False)),
        padding_value=float(row.pop("pad_value", 0) or 0),
    )
    if row:
        raise ValueError(f"argument {sorted(row)[0]!r} is unknown")
    return frontend


def _samples(row: dict[str, Any], seconds: str, samples: str, default: float, rate: int) -> int:
    """A duration that is written in seconds or in samples, as NeMo reads it."""
    count, duration = row.pop(samples, None), row.pop(seconds, default)
    return int(duration * rate) if duration else int(count)
