"""A NeMo transducer as parts: encoder, prediction network, joint, and of hybrids the CTC head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.sources.asr_model import evaluating
from quantasr.sources.nemo.transducer_config import TransducerConfig
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.speech.frames import check_waves
from quantasr.speech.frontend import collate
from quantasr.speech.parts import Parts
from quantasr.speech.transcript import Waveform
from quantasr.speech.transducer import TransducerTranscriber
from quantasr.speech.transducer.greedy import BLOCK

_TOKENS_PER_SECOND = 4.0
"""SentencePiece tokens of English speech, about."""


class _Some(nn.Module):
    """Some of a model's children under the names that they have there."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, model.get_submodule(name))


class EncoderPart(nn.Module):
    """Features to what the joiner reads of each frame, and of hybrids also to what the CTC head reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = _Some(model, "encoder", "joint")
        self.hybrid = hasattr(model, "ctc_decoder")

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """``[batch, time, bins]``, ``[batch]`` -> ``[batch, frames, H]``, ``[batch]``(, ``[batch, frames, D]``)."""
        from nemo.core.classes.common import typecheck

        model: Any = self.model
        # NeMo's checks of argument types cost time in every layer and cannot be traced.
        with typecheck.disable_checks():
            hidden, counts = model.encoder(audio_signal=features.transpose(1, 2), length=lengths)
        hidden = hidden.transpose(1, 2)
        encoded = model.joint.project_encoder(hidden)
        return (encoded, counts, hidden) if self.hybrid else (encoded, counts)


class DecoderPart(nn.Module):
    """One step of the prediction network: a token and states to what the joiner reads, and the next states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = _Some(model, "decoder", "joint")

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """``[batch, 1]``, states ``[batch, ...]`` -> ``[batch, H]``, next states."""
        model: Any = self.model
        if not is_recurrent(model.decoder):
            predicted, found = model.decoder.predict(tokens, list(state) or None, add_sos=False)
            return (model.joint.project_prednet(predicted)[:, 0], *(found if state else ()))
        hidden = tuple(values.transpose(0, 1).contiguous() for values in state)
        predicted, found = model.decoder.predict(tokens, hidden, add_sos=False)
        return (model.joint.project_prednet(predicted)[:, 0], *(values.transpose(0, 1) for values in found))


class JoinerPart(nn.Module):
    """What is said on some frames after one prediction: scores of all tokens, the blank and the durations."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = _Some(model, "joint")

    def forward(self, encoded: Tensor, prediction: Tensor) -> Tensor:
        """``[batch, frames, H]``, ``[batch, H]`` -> ``[batch, frames, tokens + 1 (+ durations)]``."""
        model: Any = self.model
        scores: Tensor = model.joint.joint_net(encoded + prediction[:, None])
        return scores


class CtcPart(nn.Module):
    """The CTC head of a hybrid model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = _Some(model, "ctc_decoder")

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, frames, D]`` -> log-probs ``[batch, frames, tokens + 1]``."""
        from nemo.core.classes.common import typecheck

        model: Any = self.model
        with typecheck.disable_checks():
            logprobs: Tensor = model.ctc_decoder(encoder_output=hidden.transpose(1, 2))
        return logprobs


class WholeTransducer(nn.Module):
    """Every layer once: what is found out with is which layers a model runs, and how many frames it gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``[batch, time, bins]``, ``[batch]`` -> scores after no token ``[batch, frames, outputs]``, ``[batch]``."""
        model: Any = self.model
        encoded, counts, *hidden = EncoderPart(model)(features, lengths)
        blanks = torch.full((len(features), 1), model.decoder.blank_idx, device=features.device)
        prediction, *_ = DecoderPart(model)(blanks, *begin(model.decoder, len(features)))
        if hidden:
            CtcPart(model)(hidden[0])
        return JoinerPart(model)(encoded, prediction), counts


def is_recurrent(decoder: Any) -> bool:
    """Whether a prediction network has an LSTM; otherwise it has embeddings of the last few tokens."""
    return hasattr(decoder, "pred_rnn_layers")


def begin(decoder: Any, rows: int) -> tuple[Tensor, ...]:
    """States at the beginning of ``rows`` recordings, each ``[rows, ...]``."""
    if is_recurrent(decoder):
        shape = (rows, decoder.pred_rnn_layers, decoder.pred_hidden)
        return torch.zeros(shape), torch.zeros(shape)
    if decoder.context_size == 1:
        return ()
    return (torch.full((rows, decoder.context_size - 1), decoder.blank_idx),)


def decoding_of(module: nn.Module, config: TransducerConfig) -> dict[str, Any]:
    """What the search is told; see :mod:`quantasr.speech.transducer.options`."""
    decoder: Any = module.decoder
    states = {
        name: {
            "shape": list(values.shape[1:]),
            "type": str(values.dtype).removeprefix("torch."),
            "fill": decoder.blank_idx if values.dtype == torch.int64 else 0,
        }
        for name, values in zip(state_names(decoder), begin(decoder, 1), strict=True)
    }
    return {"durations": list(config.durations), "states": states, "max_symbols": config.max_symbols}


def state_names(decoder: Any) -> tuple[str, ...]:
    """Names of a prediction network's states."""
    if is_recurrent(decoder):
        return ("state_h", "state_c")
    return ("state_tokens",) if decoder.context_size > 1 else ()


@dataclass
class TransducerModel(PartsModel):
    """A trained RNN-T, TDT or hybrid model of NeMo's.

    The log-probs of :meth:`logprobs` are those that NeMo's joint gives on a CPU: log-softmax over all its outputs, the
    durations of a TDT model among them.
    """

    decoder: ClassVar[str] = "transducer"

    def parts(self) -> dict[str, TorchPart]:
        """``encoder``, ``decoder``, ``joiner``, and of a hybrid ``ctc``; see :class:`TransducerTranscriber`."""
        module: Any = self.module
        hybrid = hasattr(module, "ctc_decoder")
        width = module.joint.joint_hidden
        states = state_names(module.decoder)
        batch, frames = {0: "batch"}, {0: "batch", 1: "frames"}
        heard = round(10 / self.frame_seconds)  # as windows of 10 s
        parts = {
            "encoder": TorchPart(
                graph=EncoderPart(module),
                inputs=("features", "lengths"),
                outputs=("encoded", "frame_counts", *(("hidden",) if hybrid else ())),
                axes={
                    "features": {0: "batch", 1: "time"}, "lengths": batch, "frame_counts": batch,
                    "encoded": frames, **({"hidden": frames} if hybrid else {}),
                },
                example=lambda: self.probe(2.0, batch=2),
                typical={"frames": heard},
            ),
            "decoder": TorchPart(
                graph=DecoderPart(module),
                inputs=("tokens", *states),
                outputs=("prediction", *(f"next_{name}" for name in states)),
                axes=dict.fromkeys(("tokens", "prediction", *states, *(f"next_{name}" for name in states)), batch),
                example=lambda: (torch.zeros(2, 1, dtype=torch.int64), *begin(module.decoder, 2)),
                calls=_TOKENS_PER_SECOND,
            ),
            "joiner": TorchPart(
                graph=JoinerPart(module),
                inputs=("encoded", "prediction"),
                outputs=("logits",),
                axes={"encoded": frames, "prediction": batch, "logits": frames},
                example=lambda: (torch.zeros(2, 3, width), torch.zeros(2, width)),
                typical={"frames": BLOCK},
                calls=1.25 * _TOKENS_PER_SECOND,
            ),
        }  # fmt: skip
        if hybrid:
            parts["ctc"] = TorchPart(
                graph=CtcPart(module),
                inputs=("hidden",),
                outputs=("logprobs",),
                axes={"hidden": frames, "logprobs": frames},
                example=lambda: (torch.zeros(2, 3, module.encoder._feat_out),),
                typical={"frames": heard},
            )
        return parts

    def transcriber(self, parts: Parts | None = None, **options: Any) -> TransducerTranscriber:
        """This model as a recogniser; ``options`` are those of :class:`TransducerTranscriber`."""
        defaults: dict[str, Any] = {
            "name": self.name,
            "frame_seconds": self.frame_seconds,
            "min_samples": self.min_samples,
        }
        found: Parts = self.parts() if parts is None else parts
        return TransducerTranscriber(found, self.frontend, self.tokenizer, self.decoding, **defaults | options)

    def run(self, wave: Waveform) -> None:
        """Search the text of a wave, and hear it with the CTC head, if there is one."""
        parts = self.parts()
        self.transcriber(parts).transcribe([wave])
        if "ctc" in parts:
            self.transcriber(parts, head="ctc").transcribe([wave])

    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """The decisions of the model's greedy search; see :meth:`TransducerTranscriber.paths`."""
        return self.transcriber(chunk_seconds=0).paths(waves)

    def logprobs(
        self, waves: Sequence[Waveform], paths: list[NDArray[np.int64]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Log-probs of all outputs at each decision of a path, by NeMo's own forward over all its tokens at once."""
        check_waves(waves)
        paths = self.paths(waves) if paths is None else paths
        return [self._follow(wave, path) for wave, path in zip(waves, paths, strict=True)]

    def _follow(self, wave: Waveform, path: NDArray[np.int64]) -> NDArray[np.float32]:
        """NeMo's joint at the frames and after the tokens of a path."""
        module: Any = self.module
        filled = np.pad(wave, (0, max(0, self.min_samples - wave.size)))
        features, lengths = collate([self.frontend(filled)], self.frontend.padding_value)
        steps = torch.from_numpy(path)
        at = (steps[:, 1].cumsum(0) - steps[:, 1]).clamp(min=0)
        spoken = steps[:, 0] != module.decoder.blank_idx
        after = spoken.cumsum(0) - spoken.long()
        tokens = steps[spoken, 0][None]
        with evaluating(module), torch.no_grad():
            from nemo.core.classes.common import typecheck

            with typecheck.disable_checks():
                signal = torch.from_numpy(features).transpose(1, 2)
                hidden, counts = module.encoder(audio_signal=signal, length=torch.from_numpy(lengths))
                predicted, *_ = module.decoder(targets=tokens, target_length=torch.tensor([tokens.shape[1]]))
            at = at.clamp(max=int(counts[0]) - 1)
            heard = module.joint.project_encoder(hidden[0].T)[at]
            said = module.joint.project_prednet(predicted[0].T)[after]
            scores = module.joint.joint_after_projection(heard[:, None], said[:, None])[:, 0, 0]
            return scores.log_softmax(-1).numpy()  # type: ignore[no-any-return]
