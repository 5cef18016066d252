"""Folders as ``EncoderDecoderASR`` reads them, with random weights, written the way published models are."""

from __future__ import annotations

from pathlib import Path

import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.utils.fetching import LocalStrategy

_TOP = """\
pretrained_path: speechbrain/no-such-model
sample_rate: 16000
n_mels: 40
output_neurons: {vocabulary}
blank_index: 0
bos_index: 1
eos_index: 2

normalizer: !new:speechbrain.processing.features.InputNormalization
  norm_type: global
compute_features: !new:speechbrain.lobes.features.Fbank
  sample_rate: !ref <sample_rate>
  n_mels: !ref <n_mels>
tokenizer: !new:sentencepiece.SentencePieceProcessor
"""

_PRETRAINER = """
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    normalizer: !ref <normalizer>
    asr: !ref <asr_model>
    lm: !ref <lm_model>
    tokenizer: !ref <tokenizer>
  paths:
    normalizer: !ref <pretrained_path>/normalizer.ckpt
    asr: !ref <pretrained_path>/asr.ckpt
    lm: !ref <pretrained_path>/lm.ckpt
    tokenizer: !ref <pretrained_path>/tokenizer.ckpt
"""

_CRDNN = """
enc: !new:speechbrain.lobes.models.CRDNN.CRDNN
  input_shape: [null, null, !ref <n_mels>]
  activation: !name:torch.nn.LeakyReLU
  cnn_blocks: 2
  cnn_channels: [{channels}, {channels}]
  cnn_kernelsize: [3, 3]
  inter_layer_pooling_size: [2, 2]
  time_pooling: true
  using_2d_pooling: false
  time_pooling_size: 2
  rnn_class: !name:speechbrain.nnet.RNN.{recurrent}
  rnn_layers: 2
  rnn_neurons: {width}
  rnn_bidirectional: true
  dnn_blocks: 1
  dnn_neurons: {width}
emb: !new:speechbrain.nnet.embedding.Embedding
  num_embeddings: !ref <output_neurons>
  embedding_dim: {width}
dec: !new:speechbrain.nnet.RNN.AttentionalRNNDecoder
  enc_dim: {width}
  input_size: {width}
  rnn_type: {cell}
  attn_type: location
  hidden_size: {width}
  attn_dim: {width}
  num_layers: 1
  scaling: 1.0
  channels: 4
  kernel_size: 11
  re_init: true
ctc_lin: !new:speechbrain.nnet.linear.Linear
  input_size: {width}
  n_neurons: !ref <output_neurons>
seq_lin: !new:speechbrain.nnet.linear.Linear
  input_size: {width}
  n_neurons: !ref <output_neurons>
lm_model: !new:speechbrain.lobes.models.RNNLM.RNNLM
  output_neurons: !ref <output_neurons>
  embedding_dim: {width}
  rnn_layers: 1
  rnn_neurons: {width}
  dnn_blocks: 1
  dnn_neurons: {width}
  return_hidden: true
asr_model: !new:torch.nn.ModuleList
  - [!ref <enc>, !ref <emb>, !ref <dec>, !ref <ctc_lin>, !ref <seq_lin>]
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
  input_shape: [null, null, !ref <n_mels>]
  compute_features: !ref <compute_features>
  normalize: !ref <normalizer>
  model: !ref <enc>
"""

_RNN_BEAM = """
coverage_scorer: !new:speechbrain.decoders.scorer.CoverageScorer
  vocab_size: !ref <output_neurons>
rnnlm_scorer: !new:speechbrain.decoders.scorer.RNNLMScorer
  language_model: !ref <lm_model>
  temperature: 1.25
ctc_scorer: !new:speechbrain.decoders.scorer.CTCScorer
  eos_index: !ref <eos_index>
  blank_index: !ref <blank_index>
  ctc_fc: !ref <ctc_lin>
scorer: !new:speechbrain.decoders.scorer.ScorerBuilder
  full_scorers: [!ref <rnnlm_scorer>, !ref <coverage_scorer>]
  partial_scorers: [!ref <ctc_scorer>]
  weights:
    rnnlm: 0.5
    coverage: 1.5
    ctc: 0.4
decoder: !new:speechbrain.decoders.S2SRNNBeamSearcher
  embedding: !ref <emb>
  decoder: !ref <dec>
  linear: !ref <seq_lin>
  bos_index: !ref <bos_index>
  eos_index: !ref <eos_index>
  min_decode_ratio: 0.0
  max_decode_ratio: {ratio}
  beam_size: {beams}
  eos_threshold: 1.5
  using_max_attn_shift: true
  max_attn_shift: 240
  temperature: 1.25
  scorer: !ref <scorer>
"""

_RNN_GREEDY = """
decoder: !new:speechbrain.decoders.S2SRNNGreedySearcher
  embedding: !ref <emb>
  decoder: !ref <dec>
  linear: !ref <seq_lin>
  bos_index: !ref <bos_index>
  eos_index: !ref <eos_index>
  min_decode_ratio: 0.0
  max_decode_ratio: {ratio}
"""

_RNN_MODULES = """
modules:
  encoder: !ref <encoder>
  decoder: !ref <decoder>
"""

_TRANSFORMER = """
CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
  input_shape: [8, 10, !ref <n_mels>]
  num_blocks: 2
  num_layers_per_block: 1
  out_channels: [{channels}, {channels}]
  kernel_sizes: [3, 3]
  strides: [2, 2]
  residuals: [false, false]
Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
  input_size: {flat}
  tgt_vocab: !ref <output_neurons>
  d_model: {width}
  nhead: 4
  num_encoder_layers: {layers}
  num_decoder_layers: 2
  d_ffn: {wide}
  dropout: 0.0
  activation: !name:torch.nn.GELU
  encoder_module: {encoder}
  attention_type: {attention}
  normalize_before: true
  causal: false
ctc_lin: !new:speechbrain.nnet.linear.Linear
  input_size: {width}
  n_neurons: !ref <output_neurons>
seq_lin: !new:speechbrain.nnet.linear.Linear
  input_size: {width}
  n_neurons: !ref <output_neurons>
lm_model: !new:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
  vocab: !ref <output_neurons>
  d_model: {width}
  nhead: 4
  num_encoder_layers: 1
  num_decoder_layers: 0
  d_ffn: {wide}
  dropout: 0.0
  activation: !name:torch.nn.GELU
  normalize_before: false
asr_model: !new:torch.nn.ModuleList
  - [!ref <CNN>, !ref <Transformer>, !ref <seq_lin>, !ref <ctc_lin>]
Tencoder: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
  transformer: !ref <Transformer>
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
  input_shape: [null, null, !ref <n_mels>]
  compute_features: !ref <compute_features>
  normalize: !ref <normalizer>
  cnn: !ref <CNN>
  transformer_encoder: !ref <Tencoder>
"""

_TRANSFORMER_BEAM = """
transformerlm_scorer: !new:speechbrain.decoders.scorer.TransformerLMScorer
  language_model: !ref <lm_model>
  temperature: 1.15
ctc_scorer: !new:speechbrain.decoders.scorer.CTCScorer
  eos_index: !ref <eos_index>
  blank_index: !ref <blank_index>
  ctc_fc: !ref <ctc_lin>
scorer: !new:speechbrain.decoders.scorer.ScorerBuilder
  full_scorers: [!ref <transformerlm_scorer>, !ref <ctc_scorer>]
  weights:
    transformerlm: 0.6
    ctc: 0.4
decoder: !new:speechbrain.decoders.S2STransformerBeamSearcher
  modules: [!ref <Transformer>, !ref <seq_lin>]
  bos_index: !ref <bos_index>
  eos_index: !ref <eos_index>
  min_decode_ratio: 0.0
  max_decode_ratio: {ratio}
  beam_size: {beams}
  temperature: 1.15
  using_eos_threshold: false
  length_normalization: true
  scorer: !ref <scorer>
"""

_TRANSFORMER_GREEDY = """
decoder: !new:speechbrain.decoders.seq2seq.S2STransformerGreedySearcher
  modules: [!ref <Transformer>, !ref <seq_lin>]
  bos_index: !ref <bos_index>
  eos_index: !ref <eos_index>
  min_decode_ratio: 0.0
  max_decode_ratio: {ratio}
"""

_TRANSFORMER_MODULES = """
modules:
  normalizer: !ref <normalizer>
  encoder: !ref <encoder>
  decoder: !ref <decoder>
  lm_model: !ref <lm_model>
"""

KINDS = {
    "gru_beam": (_CRDNN, _RNN_BEAM, _RNN_MODULES, {"cell": "gru", "recurrent": "LSTM"}),
    "lstm_greedy": (_CRDNN, _RNN_GREEDY, _RNN_MODULES, {"cell": "lstm", "recurrent": "GRU"}),
    "transformer_beam": (
        *(_TRANSFORMER, _TRANSFORMER_BEAM, _TRANSFORMER_MODULES),
        {"encoder": "transformer", "attention": "regularMHA"},
    ),
    "conformer_beam": (
        *(_TRANSFORMER, _TRANSFORMER_BEAM, _TRANSFORMER_MODULES),
        {"encoder": "conformer", "attention": "RelPosMHAXL"},
    ),
    "conformer_greedy": (
        *(_TRANSFORMER, _TRANSFORMER_GREEDY, _TRANSFORMER_MODULES),
        {"encoder": "conformer", "attention": "RelPosMHAXL"},
    ),
}
"""The models that can be made: encoder, search, what is in ``modules``, and their choices."""

TINY = {"width": 32, "wide": 64, "channels": 8, "layers": 2, "beams": 3, "ratio": 1.0, "vocabulary": 30}
"""Sizes; ``ratio`` times the encoder's frames is how many tokens a search makes at most."""


def write_attention(folder: Path, kind: str, *, seed: int = 0, **sizes: float) -> Path:
    """Write a model of one of :data:`KINDS` into ``folder``; ``sizes`` replace those of :data:`TINY`."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, search, modules, choices = KINDS[kind]
    values = {**TINY, **sizes, **choices}
    values["flat"] = int(values["channels"]) * 10
    text = "".join(part.format(**values) for part in (_TOP, encoder, search, modules, _PRETRAINER))
    (folder / "hyperparams.yaml").write_text(text, "utf-8")
    torch.manual_seed(seed)
    hparams = load_hyperpyyaml(text)
    _enliven(hparams)
    torch.save(hparams["asr_model"].state_dict(), folder / "asr.ckpt")
    torch.save(hparams["lm_model"].state_dict(), folder / "lm.ckpt")
    mean, std = torch.linspace(-12, -9, 40), torch.linspace(8, 11, 40)
    torch.save({"count": 7, "glob_mean": mean, "glob_std": std}, folder / "normalizer.ckpt")
    _write_tokenizer(folder / "tokenizer.ckpt", int(values["vocabulary"]))
    return folder


def open_attention(folder: Path) -> EncoderDecoderASR:
    """The model in ``folder`` as SpeechBrain itself opens it."""
    where = {"pretrained_path": str(folder)}
    strategy = LocalStrategy.NO_LINK  # writes nothing
    return EncoderDecoderASR.from_hparams(str(folder), overrides=where, local_strategy=strategy)


@torch.no_grad()
def _enliven(hparams: dict) -> None:
    """Batch norms that have seen data, and outputs that differ from step to step, so that a search has a choice."""
    for part in [*hparams["asr_model"].modules(), *hparams["lm_model"].modules()]:
        if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 1.5)
    for name in ("seq_lin", "ctc_lin"):
        hparams[name].w.weight.normal_(0, 0.6)
        hparams[name].w.bias.normal_(0, 0.3)
    hparams["seq_lin"].w.bias[2] -= 1.0  # or searches end at once


def _write_tokenizer(path: Path, size: int) -> None:
    """A piece for every character: ``<unk>``, ``<s>``, ``</s>`` (which are blank, bos and eos), a space, the others."""
    characters = [*"abcdefghijklmnopqrstuvwxyz", *(chr(0x4E00 + i) for i in range(size))][: size - 4]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(characters)] * 2),
            model_writer=file,
            vocab_size=size,
            model_type="char",
            character_coverage=1.0,
            max_sentence_length=100_000,
            minloglevel=2,
        )
