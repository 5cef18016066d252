"""Tiny SpeechBrain CTC models with random weights, saved as folders, one for each way in which they differ."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.encoder import CTCTextEncoder

LABELS = ["<blank>", " ", *"abcdefghijklmnopqrs", "'"]

_WAV2VEC2: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "conv_dim": (24, 24, 24),
    "conv_kernel": (10, 4, 3),
    "conv_stride": (5, 4, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
}
_LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

# name -> (configuration, model, class in SpeechBrain, changes of the configuration)
LOBES: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "wav2vec2": (hf.Wav2Vec2Config, hf.Wav2Vec2Model, "wav2vec2.Wav2Vec2", {}),
    "wav2vec2-large": (hf.Wav2Vec2Config, hf.Wav2Vec2Model, "wav2vec2.Wav2Vec2", _LARGE),
    "hubert": (hf.HubertConfig, hf.HubertModel, "hubert.HuBERT", {}),
    "wavlm": (hf.WavLMConfig, hf.WavLMModel, "wavlm.WavLM", {}),
}

_WAV2VEC2_YAML = """
    pretrained_path: nobody/nothing
    sample_rate: 16000
    blank_index: 0
    wav2vec2: !new:speechbrain.integrations.huggingface.{lobe}
        source: !ref <pretrained_path>/wav2vec2
        output_norm: {output_norm}
        freeze: True
        save_path: wav2vec2_checkpoint
    enc: !new:speechbrain.nnet.containers.Sequential
        input_shape: [null, null, 32]
        linear1: !name:speechbrain.nnet.linear.Linear
            n_neurons: 24
            bias: True
        bn1: !name:speechbrain.nnet.normalization.BatchNorm1d
        activation: !new:torch.nn.LeakyReLU
        drop: !new:torch.nn.Dropout
            p: 0.15
        linear2: !name:speechbrain.nnet.linear.Linear
            n_neurons: 24
            bias: True
    ctc_lin: !new:speechbrain.nnet.linear.Linear
        input_size: 24
        n_neurons: {outputs}
    log_softmax: !new:speechbrain.nnet.activations.Softmax
        apply_log: True
    encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
        wav2vec2: !ref <wav2vec2>
        enc: !ref <enc>
        ctc_lin: !ref <ctc_lin>
        log_softmax: !ref <log_softmax>
    model: !new:torch.nn.ModuleList
        - [!ref <enc>, !ref <ctc_lin>]
    modules:
        encoder: !ref <encoder>
    pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
        loadables:
            wav2vec2: !ref <wav2vec2>
            asr: !ref <model>
            tokenizer: !ref <tokenizer>
"""

_CRDNN_YAML = """
    sample_rate: 16000
    blank_index: 0
    compute_features: !new:speechbrain.lobes.features.Fbank
        sample_rate: !ref <sample_rate>
        n_fft: 400
        n_mels: 20
    normalize: !new:speechbrain.processing.features.InputNormalization
        norm_type: {norm_type}
    model: !new:speechbrain.lobes.models.CRDNN.CRDNN
        input_shape: [null, null, 20]
        activation: !name:torch.nn.LeakyReLU
        dropout: 0.15
        cnn_blocks: 2
        cnn_channels: [8, 8]
        cnn_kernelsize: [3, 3]
        inter_layer_pooling_size: [2, 2]
        time_pooling: {time_pooling}
        time_pooling_size: 2
        rnn_class: !name:speechbrain.nnet.RNN.{rnn}
        rnn_layers: 2
        rnn_neurons: 16
        rnn_bidirectional: True
        dnn_blocks: 2
        dnn_neurons: 24
    ctc_lin: !new:speechbrain.nnet.linear.Linear
        input_size: 24
        n_neurons: {outputs}
    log_softmax: !new:speechbrain.nnet.activations.Softmax
        apply_log: True
    encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
        compute_features: !ref <compute_features>
        normalize: !ref <normalize>
        model: !ref <model>
        ctc_lin: !ref <ctc_lin>
        log_softmax: !ref <log_softmax>
    asr: !new:torch.nn.ModuleList
        - [!ref <model>, !ref <ctc_lin>]
    modules:
        encoder: !ref <encoder>
    pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
        loadables:
            normalize: !ref <normalize>
            asr: !ref <asr>
            tokenizer: !ref <tokenizer>
"""

_GREEDY = """
    decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
        blank_id: !ref <blank_index>
"""
_TEXT_ENCODER = """
    tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder
"""
_PIECES = """
    tokenizer: !new:sentencepiece.SentencePieceProcessor
"""

# name -> what differs from the first of its kind
VARIANTS: dict[str, dict[str, Any]] = {
    "sb-wav2vec2": {"lobe": "wav2vec2"},
    "sb-wav2vec2-large": {"lobe": "wav2vec2-large", "output_norm": True},
    "sb-hubert": {"lobe": "hubert"},
    "sb-wavlm": {"lobe": "wavlm"},
    "sb-crdnn": {"rnn": "LSTM"},
    "sb-crdnn-gru": {"rnn": "GRU", "norm_type": "sentence", "time_pooling": True},
    "sb-crdnn-ligru": {"rnn": "LiGRU"},
}

NOT_EXPORTED = {"sb-crdnn-ligru"}


def yaml_of(name: str, **changes: Any) -> str:
    """The ``hyperparams.yaml`` of a variant."""
    options = {"output_norm": False, "norm_type": "global", "time_pooling": False, "outputs": len(LABELS)}
    options |= {"decoding": _GREEDY, "tokenizer": _TEXT_ENCODER, **VARIANTS[name], **changes}
    if "lobe" in options:
        options["lobe"] = LOBES[options["lobe"]][2]
    template = _WAV2VEC2_YAML if "lobe" in options else _CRDNN_YAML
    parts = (options.pop("decoding"), options.pop("tokenizer"))
    return "".join(map(textwrap.dedent, (parts[1], template.format(**options), parts[0])))


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Make the variant called ``name`` with random weights, seed 0, and save it into ``folder``."""
    text = yaml_of(name, **changes)
    torch.manual_seed(0)
    lobe = VARIANTS[name].get("lobe")
    if lobe is not None:
        _save_lobe(lobe, folder / "wav2vec2")
    hparams = load_hyperpyyaml(text, {"pretrained_path": str(folder)} if lobe else None)
    encoder = hparams["modules"]["encoder"].eval()
    shake(encoder, gain=1.0 if lobe else 2.5)
    for key, part in hparams["pretrainer"].loadables.items():
        if isinstance(part, CTCTextEncoder):
            part.update_from_iterable(LABELS[1:], sequence_input=False)
            part.insert_blank("<blank>", 0)
            part.save(folder / f"{key}.ckpt")
        elif key == "normalize":
            part.glob_mean, part.glob_std, part.count = torch.randn(20) * 3 - 20, torch.rand(20) * 5 + 10, 7
            part._save(str(folder / f"{key}.ckpt"))
        elif isinstance(part, torch.nn.Module):
            torch.save(part.state_dict(), folder / f"{key}.ckpt")
    (folder / "hyperparams.yaml").write_text(text, "utf-8")
    return folder


def shake(module: torch.nn.Module, gain: float) -> None:
    """Make a fresh model's output depend on all of it, and more on what it hears."""
    with torch.no_grad():
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            # Fresh norms are the identity, fresh biases zero and fresh statistics 0 and 1: all would hide mistakes.
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif key.split(".")[-1].startswith(("drop_mask", "h_init", "kernel")):
                continue
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
            elif tensor.ndim > 1:
                tensor.mul_(gain)


def _save_lobe(name: str, folder: Path) -> None:
    config, model, _, changes = LOBES[name]
    model(config(**{**_WAV2VEC2, **changes})).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)


def original(folder: Path) -> Any:
    """The model, as its own library reads it, without a trace in the folder."""
    from speechbrain.inference.ASR import EncoderASR

    overrides = {"pretrained_path": str(folder)} if (folder / "wav2vec2").is_dir() else {}
    return EncoderASR.from_hparams(str(folder), overrides=overrides)
