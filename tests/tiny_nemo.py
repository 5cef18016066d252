"""Tiny NeMo CTC models with random weights, saved as `.nemo` files, one for each way in which the families differ."""

from __future__ import annotations

import io
import logging
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from tiny_hf import speech

# Asked before NeMo is first imported: its loggers otherwise complain about exporters that nobody asked for.
os.environ.setdefault("NEMO_TESTING", "True")
logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"(nemo|lightning|pytorch_lightning|torchmetrics|pydub|megatron)\b.*")

LABELS = [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]
_SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "one two three four five six seven eight nine zero",
    "she sells sea shells by the sea shore",
    "how much wood would a woodchuck chuck",
    "a recogniser turns the sound of speech into its text",
    "pack my box with five dozen liquor jugs it's done",
)

_MEL: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "sample_rate": 16000,
    "window_size": 0.025,
    "window_stride": 0.01,
    "window": "hann",
    "features": 16,
    "n_fft": 512,
    "normalize": "per_feature",
    "frame_splicing": 1,
    "dither": 1e-5,
    "pad_to": 0,
}
_SPEC_AUGMENT: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
    "freq_masks": 2,
    "time_masks": 2,
    "freq_width": 3,
    "time_width": 0.05,
}
_HEAD: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
    "feat_in": None,
    "num_classes": -1,
    "vocabulary": [],
}


def _block(filters: int, kernel: int, **options: Any) -> dict[str, Any]:
    block = {
        "filters": filters,
        "repeat": 1,
        "kernel": [kernel],
        "stride": [1],
        "dilation": [1],
        "dropout": 0.1,
        "residual": True,
        "separable": True,
    }
    return {**block, **options}


def _convolutions(*blocks: dict[str, Any], feat_in: int = 16, **options: Any) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.ConvASREncoder",
        "feat_in": feat_in,
        "activation": "relu",
        "conv_mask": True,
        "jasper": list(blocks),
        **options,
    }


def _conformer(**options: Any) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": 16,
        "feat_out": -1,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 4,
        "subsampling": "striding",
        "subsampling_factor": 4,
        "subsampling_conv_channels": -1,
        "ff_expansion_factor": 2,
        "self_attention_model": "rel_pos",
        "att_context_size": [-1, -1],
        "xscaling": True,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": 7,
        "conv_norm_type": "batch_norm",
        "dropout": 0.1,
        **options,
    }


def _fast_conformer(**options: Any) -> dict[str, Any]:
    fast = {"subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": 16, "xscaling": False}
    return _conformer(**fast | options)


_SE: dict[str, Any] = {"se": True, "se_context_size": -1, "se_reduction_ratio": 4}
_LAST: dict[str, Any] = {"stride": [2], "stride_last": True, "residual_mode": "stride_add"}
_STREAMING: dict[str, Any] = {
    "causal_downsampling": True,
    "conv_context_size": "causal",
    "conv_norm_type": "layer_norm",
    "att_context_size": [12, 3],
    "att_context_style": "chunked_limited",
}

_QUARTZNET = _convolutions(
    _block(24, 11, stride=[2], residual=False),
    _block(24, 11, repeat=2),
    _block(32, 13, repeat=3),
    _block(32, 9, residual=False, dilation=[2]),
    _block(48, 1, residual=False, separable=False),
)
_JASPER = _convolutions(
    _block(24, 11, stride=[2], residual=False, separable=False),
    _block(24, 11, repeat=2, residual_dense=True, separable=False),
    _block(32, 13, repeat=2, residual_dense=True, separable=False),
    _block(32, 9, residual=False, dilation=[2], separable=False),
    _block(48, 1, residual=False, separable=False),
)
_CITRINET = _convolutions(
    _block(32, 5, residual=False, **_SE),
    _block(32, 11, repeat=2, **_SE, **_LAST),
    _block(32, 13, repeat=2, **_SE),
    _block(32, 7, repeat=2, **_SE, **_LAST),
    _block(32, 7, repeat=2, **_SE, **_LAST),
    _block(48, 9, residual=False, **_SE),
)

ENCODERS: dict[str, dict[str, Any]] = {
    "quartznet": _QUARTZNET,
    "jasper": _JASPER,
    "citrinet": _CITRINET,
    "citrinet-context": _convolutions(_block(32, 5, residual=False), _block(32, 7, **{**_SE, "se_context_size": 16})),
    "quartznet-rarities": _convolutions(
        _block(24, 11, stride=[2], repeat=2, residual=False),
        _block(24, 7, heads=4),
        _block(24, 9, future_context=2),
        _block(32, 9, groups=4, separable=False, kernel_size_factor=0.5),
        activation="swish",
        residual_mode="max",
    ),
    "conformer": _conformer(),
    "conformer-vggnet": _conformer(subsampling="vggnet", subsampling_conv_channels=8),
    "conformer-stacking": _conformer(subsampling="stacking"),
    "conformer-stacking-norm": _conformer(subsampling="stacking_norm"),
    "conformer-conv1d": _conformer(subsampling="striding_conv1d"),
    "conformer-abs-pos": _conformer(self_attention_model="abs_pos"),
    "conformer-layer-norm": _conformer(conv_norm_type="layer_norm"),
    "conformer-fused-norm": _conformer(conv_norm_type="fused_batch_norm"),
    "conformer-tied": _conformer(untie_biases=False),
    "conformer-reduction": _conformer(reduction="pooling", reduction_position=0, reduction_factor=2),
    "conformer-reduction-striding": _conformer(reduction="striding", reduction_position=-1, reduction_factor=2),
    "conformer-full-rate": _conformer(subsampling_factor=1),
    "conformer-feat-out": _conformer(feat_out=24),
    "conformer-limited": _conformer(att_context_size=[12, 6]),
    "fastconformer": _fast_conformer(),
    "fastconformer-conv1d": _fast_conformer(subsampling="dw_striding_conv1d"),
    "fastconformer-no-bias": _fast_conformer(use_bias=False),
    "fastconformer-local": _fast_conformer(self_attention_model="rel_pos_local_attn", att_context_size=[8, 8]),
    "fastconformer-streaming": _fast_conformer(**_STREAMING),
    "fastconformer-lookaheads": _fast_conformer(**_STREAMING | {"att_context_size": [[12, 3], [12, 1]]}),
}
"""Name -> the encoder's configuration."""

_BPE = {name for name in ENCODERS if name not in ("quartznet", "jasper")}
HYBRIDS: dict[str, tuple[str, bool]] = {
    "hybrid": ("fastconformer", False),
    "hybrid-bpe": ("fastconformer", True),
}
"""Name -> the encoder that it has, and whether its tokens are SentencePiece's."""

NOT_RUN_BY_NEMO = ("conformer-vggnet", "conformer-conv1d", "fastconformer-conv1d")
"""NeMo 3.0.0 builds and saves these, but its masked subsampling raises on their layers."""

TRANSDUCERS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "rnnt": ("fastconformer", False, {}),
    "rnnt-citrinet": ("citrinet", True, {}),
    "stateless": ("fastconformer", True, {"context": 2}),
    "stateless-one": ("fastconformer", True, {"context": 1}),
    "tdt": ("fastconformer", True, {"layers": 2, "durations": [0, 1, 2, 3, 4]}),
    "tdt-gaps": ("conformer", True, {"durations": [0, 1, 2, 4, 8], "activation": "tanh"}),
    "hybrid-tdt": ("fastconformer", True, {"durations": [0, 1, 2, 3, 4], "hybrid": True}),
}
"""Name -> the encoder that it has, whether its tokens are SentencePiece's, and what its transducer is like."""

VARIANTS: tuple[str, ...] = (*(name for name in ENCODERS if name not in NOT_RUN_BY_NEMO), *HYBRIDS)
"""Names of models that NeMo itself runs; :func:`save` and :func:`build` know NOT_RUN_BY_NEMO besides."""


def sentencepiece_folder(folder: Path, vocab_size: int = 48, **options: Any) -> Path:
    """A SentencePiece model trained on a few sentences, in the files that NeMo wants."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 5),
        model_writer=written,
        vocab_size=vocab_size,
        **{"bos_id": -1, "eos_id": -1, "minloglevel": 2, **options},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(len(processor))]
    (folder / "tokenizer.vocab").write_text("".join(f"{piece}\t0\n" for piece in pieces), "utf-8")
    # NeMo's own vocab.txt has the pieces as words start or go on in WordPiece, without the unknown one.
    words = [piece[1:] if piece.startswith("\u2581") else f"##{piece}" for piece in pieces if piece != "<unk>"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    return folder


def config(name: str, tokenizer: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The ``model`` section of the variant called ``name``; ``changes`` replace whole entries of it."""
    encoder_name, bpe = HYBRIDS.get(name, (name, name in _BPE))
    if name in TRANSDUCERS:
        encoder_name, bpe, options = TRANSDUCERS[name]
    row: dict[str, Any] = {
        "sample_rate": 16000,
        "preprocessor": dict(_MEL),
        "spec_augment": dict(_SPEC_AUGMENT),
        "encoder": dict(ENCODERS[encoder_name]),
        "decoder": dict(_HEAD),
        "optim": {"name": "adamw", "lr": 0.001},
    }
    if bpe:
        row["tokenizer"] = {"dir": str(tokenizer), "type": "bpe"}
    else:
        row["labels"] = list(LABELS)
        row["decoder"] |= {"vocabulary": list(LABELS), "num_classes": len(LABELS)}
    if name in HYBRIDS:
        row |= _transducer(row, hybrid=True)
    elif name in TRANSDUCERS:
        row |= _transducer(row, **options)
    return {**row, **changes}


def _transducer(
    row: dict[str, Any],
    *,
    hybrid: bool = False,
    layers: int = 1,
    context: int = 0,
    durations: list[int] | None = None,
    activation: str = "relu",
) -> dict[str, Any]:
    """A transducer's sections; in a hybrid the CTC head is the second one. ``context`` tokens instead of an LSTM."""
    found = _rnnt(row, layers, activation)
    if hybrid:
        ctc = {"ctc_loss_weight": 0.3, "decoder": row["decoder"], "decoding": {"strategy": "greedy"}}
        found["aux_ctc"] = ctc
    if context:
        found["decoder"] = {
            "_target_": "nemo.collections.asr.modules.StatelessTransducerDecoder",
            "context_size": context,
            "normalization_mode": "layer" if context > 1 else None,
            "prednet": {"pred_hidden": 12, "dropout": 0.0},
        }
    if durations:
        found["model_defaults"] |= {"tdt_durations": durations, "num_tdt_durations": len(durations)}
        found["joint"]["num_extra_outputs"] = len(durations)
        found["decoding"] |= {"model_type": "tdt", "durations": durations}
        found["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": durations, "sigma": 0.02}}
    return found


def _rnnt(row: dict[str, Any], layers: int, activation: str) -> dict[str, Any]:
    width = row["encoder"]["d_model"] if "d_model" in row["encoder"] else row["encoder"]["jasper"][-1]["filters"]
    return {
        "model_defaults": {"enc_hidden": width, "pred_hidden": 12, "joint_hidden": 12},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": 12, "pred_rnn_layers": layers, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": 12, "activation": activation, "dropout": 0.0},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}},
    }


def model_class(row: dict[str, Any]) -> Any:
    """NeMo's class for a configuration."""
    from nemo.collections.asr import models

    bpe = "tokenizer" in row
    if "aux_ctc" in row:
        return models.EncDecHybridRNNTCTCBPEModel if bpe else models.EncDecHybridRNNTCTCModel
    if "joint" in row:
        return models.EncDecRNNTBPEModel if bpe else models.EncDecRNNTModel
    return models.EncDecCTCModelBPE if bpe else models.EncDecCTCModel


def build(name: str, folder: Path, pieces: Path | None = None, **changes: Any) -> Any:
    """NeMo's own model of the variant called ``name``, random weights, seed 0.

    ``pieces`` is the folder of a SentencePiece model; one is made in ``folder`` otherwise, if the variant needs it.
    """
    from omegaconf import OmegaConf

    row = config(name, pieces or folder / "tokenizer", **changes)
    if "tokenizer" in row and pieces is None:
        sentencepiece_folder(folder / "tokenizer")
    silence()
    torch.manual_seed(0)
    model = model_class(row)(cfg=OmegaConf.create(row)).eval()
    randomize(model)
    if name not in NOT_RUN_BY_NEMO:
        spread_tokens(model)
    return model


def randomize(model: torch.nn.Module) -> None:
    """Move norms, biases and statistics away from the identity, which would hide mistakes."""
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if key.startswith("preprocessor"):
                continue
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
            elif key.endswith(("pos_bias_u", "pos_bias_v")):
                tensor.normal_(0, 0.3)


@torch.no_grad()
def spread_tokens(model: Any) -> None:
    """Let the CTC head of a random model give many different tokens: it reads the encoder's output standardised."""
    waves = [torch.from_numpy(wave) for wave in speech(2.0, 1.5)]
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    features, frames = model.preprocessor(input_signal=padded, length=lengths)
    encoded, counts = model.encoder(audio_signal=features, length=frames)
    rows = torch.cat([row[:, :count].T for row, count in zip(encoded, counts.tolist(), strict=True)])
    if hasattr(model, "joint"):
        spread_joint(model.joint, rows)
        if not hasattr(model, "ctc_decoder"):
            return
    head = (model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder).decoder_layers[0]
    weight = torch.randn(head.weight.shape[:2]) / (rows.std(0) + 1e-3) / len(rows[0]) ** 0.5 * 3
    head.weight.copy_(weight[..., None])
    head.bias.copy_(torch.randn(len(weight)) - weight @ rows.mean(0))


def spread_joint(joint: Any, rows: torch.Tensor) -> None:
    """Let a random joint give blanks in two of three frames, and many different tokens in the others."""
    weight = torch.randn(joint.enc.weight.shape) / (rows.std(0) + 1e-3) / len(rows[0]) ** 0.5 * 2
    joint.enc.weight.copy_(weight)
    joint.enc.bias.copy_(-weight @ rows.mean(0))
    joint.pred.weight.mul_(4)
    last = joint.joint_net[-1]
    last.weight.normal_(0, 1)
    scores = joint.joint_net(joint.enc(rows))
    blank = joint.num_classes_with_blank - 1 - joint.num_extra_outputs
    last.bias[blank] += (scores[:, :blank].max(1).values - scores[:, blank]).quantile(0.66)


def save(name: str, folder: Path, pieces: Path | None = None, **changes: Any) -> Path:
    """Write the variant called ``name`` as ``folder/<name>.nemo`` with NeMo's own ``save_to``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.nemo"
    build(name, folder, pieces, **changes).save_to(str(path))
    return path


def ctc(path: Path) -> Path:
    """Where the CTC model in a file is: of a hybrid only its CTC head."""
    return Path(f"{path}#ctc") if path.stem in HYBRIDS else path


def original(path: Path) -> Any:
    """The model of a file, as NeMo itself reads it: for the tests' own files only, since it runs what they say."""
    from nemo.collections.asr.models import ASRModel

    silence()
    return ASRModel.restore_from(str(path), map_location="cpu").eval()


def transduced(model: Any, waves: list[Any], strategy: str, beam_size: int = 4, **options: Any) -> list[Any]:
    """What NeMo's own search makes of each recording alone: hypotheses."""
    from omegaconf import OmegaConf, open_dict

    decoding = model.cfg.decoding.copy()
    with open_dict(decoding):
        decoding.strategy = strategy
        beam = {"beam_size": beam_size, "score_norm": True, "max_symbols": 10, "allow_cuda_graphs": False}
        decoding.beam = OmegaConf.create({**beam, "return_best_hypothesis": True})
        for key, value in options.items():
            decoding[key] = value
    head = {"decoder_type": "rnnt"} if hasattr(model, "ctc_decoder") else {}
    model.change_decoding_strategy(decoding, verbose=False, **head)
    found = []
    with torch.no_grad():
        for wave in waves:
            encoded, counts = model(
                input_signal=torch.from_numpy(wave)[None], input_signal_length=torch.tensor([len(wave)])
            )
            found += model.decoding.rnnt_decoder_predictions_tensor(
                encoder_output=encoded, encoded_lengths=counts, return_hypotheses=True
            )
    return found


def silence() -> None:
    """Keep NeMo's log out of the tests' output."""
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(logging.CRITICAL)


def contents(path: Path) -> dict[str, bytes]:
    """The files in a `.nemo`, by name."""
    with tarfile.open(path) as tar:
        return {
            member.name.removeprefix("./"): file.read()
            for member in tar
            if member.isfile() and (file := tar.extractfile(member)) is not None
        }


def pack(files: dict[str, bytes], path: Path, mode: Literal["w:", "w:gz"] = "w:") -> Path:
    """Write files as a `.nemo`."""
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a `.nemo` whose configuration was changed in place."""
    files = contents(path)
    row = yaml.safe_load(files["model_config.yaml"])
    change(row)
    return pack({**files, "model_config.yaml": yaml.safe_dump(row, sort_keys=False).encode()}, target)
