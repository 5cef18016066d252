"""A live Whisper model as its two parts, with its tokenizer, its features and its search around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.sources.asr_model import Paths, evaluating
from quantasr.sources.huggingface.whisper.graph import DecoderGraph, EncoderGraph
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.speech.frontend import WhisperMelFrontend
from quantasr.speech.parts import Parts
from quantasr.speech.transcript import Waveform
from quantasr.speech.whisper import WhisperTokenizer, WhisperTranscriber

_TOKENS_PER_SECOND = 4.0
"""Of English speech read aloud; 3 to 5 in most recordings."""
_TYPICAL_PAST = 16


class WhisperGraph(nn.Module):
    """Both parts once: ``features``, ``tokens`` ``[batch, n]`` -> log-probs ``[batch, n, vocabulary]``."""

    def __init__(self, encoder: EncoderGraph, decoder: DecoderGraph) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """See the class."""
        crossed = self.encoder(features)
        empty = [torch.zeros(len(tokens), *shape) for shape in _empty_caches(self.encoder.model.config)]
        logits = self.decoder(tokens, torch.arange(tokens.shape[1]), *empty, *_by_layer(crossed))[0]
        return torch.log_softmax(logits.float(), dim=-1)


@dataclass
class WhisperModel(PartsModel):
    """A ``WhisperForConditionalGeneration``, English-only or multilingual, of any size."""

    frontend: WhisperMelFrontend
    tokenizer: WhisperTokenizer

    decoder: ClassVar[str] = "whisper"

    def parts(self) -> dict[str, TorchPart]:
        """``encoder`` (:class:`EncoderGraph`) and ``decoder`` (:class:`DecoderGraph`)."""
        graph: Any = self.graph
        return {"encoder": self._encoder_part(graph.encoder), "decoder": self._decoder_part(graph.decoder)}

    def transcriber(self, parts: Parts | None = None, **options: Any) -> WhisperTranscriber:
        """See :class:`PartsModel`; ``options`` are those of :class:`quantasr.speech.whisper.WhisperOptions`."""
        return WhisperTranscriber(
            parts or self.parts(),
            self.frontend,
            self.tokenizer,
            self.decoding,
            **{
                "name": self.name,
                "frame_seconds": self.frame_seconds,
                "min_samples": self.min_samples,
                **options,
            },
        )

    def run(self, wave: Waveform) -> None:
        """Transcribe it."""
        self.transcriber().transcribe([wave])

    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        """What the search decides in the first window of each wave: the prompt, and the tokens behind it."""
        return self.transcriber().paths(waves)

    def logprobs(self, waves: Sequence[Waveform], paths: Paths = None) -> list[NDArray[np.float32]]:
        """Log-probs along ``paths`` by transformers' own forward of the whole model, without caches.

        ``[tokens + 1, vocabulary]``: behind the prompt and behind each token after it. Windows are 30 s long, whatever
        the search's ``encode`` says: transformers hears nothing else.
        """
        facts, found = self.transcriber().facts, []
        for wave, path in zip(waves, self.paths(waves) if paths is None else paths, strict=True):
            tokens = torch.from_numpy(path[None, : facts.max_length])
            with evaluating(self.module), torch.no_grad():
                logits = self.module(self._window(wave), decoder_input_ids=tokens, use_cache=False).logits[0]
            rows = logits[facts.prompt_length(path) - 1 :].float()
            found.append(torch.log_softmax(rows, dim=-1).numpy())
        return found

    def probe(self, seconds: float = 1.0, batch: int = 1) -> tuple[Tensor, ...]:
        """Noise, and some tokens."""
        features = super().probe(seconds, batch)[0]
        frames = min(features.shape[1], round(100 * max(seconds, 0.1))) // 2 * 2
        return features[:, :frames], torch.arange(4).expand(batch, 4)

    def _window(self, wave: Waveform) -> Tensor:
        """Features of the first 30 s, ``[1, bins, time]``, as transformers takes them."""
        return torch.from_numpy(self.frontend(wave[: self.frontend.chunk_samples])).T[None]

    def _encoder_part(self, graph: EncoderGraph) -> TorchPart:
        layers = range(self.decoding["layers"])
        keys, values = [f"cross_key_{i}" for i in layers], [f"cross_value_{i}" for i in layers]
        axes = {"features": {0: "batch", 1: "time"}}
        axes |= {name: {0: "batch", 3: "frames"} for name in keys}
        axes |= {name: {0: "batch", 2: "frames"} for name in values}
        return TorchPart(
            graph=graph,
            inputs=("features",),
            outputs=(*keys, *values),
            axes=axes,
            example=lambda: (self.probe(1.0, batch=2)[0],),
            typical={"time": 2 * self.decoding["frames"], "frames": self.decoding["frames"]},
        )

    def _decoder_part(self, graph: DecoderGraph) -> TorchPart:
        layers = range(self.decoding["layers"])
        past, cross, grown = (
            [f"{kind}{what}_{i}" for i in layers for what in ("key", "value")] for kind in ("past_", "cross_", "")
        )
        axes = {
            "tokens": {0: "batch", 1: "new"},
            "rows": {0: "rows"},
            "logits": {0: "batch", 1: "rows"},
            "alignment": {0: "batch", 2: "new", 3: "frames"},
        }
        axes |= {name: {0: "batch", 2: "past"} for name in past}
        axes |= {name: {0: "batch", 2: "total"} for name in grown}
        # Of one recording, whose beams share it.
        axes |= {name: {0: "audio", 3 if "key" in name else 2: "frames"} for name in cross}
        frames, total = self.decoding["frames"], _TYPICAL_PAST + 1
        return TorchPart(
            graph=graph,
            inputs=("tokens", "rows", *past, *cross),
            outputs=("logits", *grown, "alignment"),
            axes=axes,
            example=partial(_decoder_example, graph),
            typical={"past": _TYPICAL_PAST, "total": total, "frames": frames},
            calls=_TOKENS_PER_SECOND,
        )


def _decoder_example(graph: DecoderGraph) -> tuple[Tensor, ...]:
    """Three tokens behind five, two rows of two recordings."""
    config = graph.model.config
    heads, size = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    generator = torch.Generator().manual_seed(0)
    past, cross = [], []
    for _ in range(config.decoder_layers):
        past += [torch.randn(2, heads, 5, size, generator=generator) for _ in range(2)]
        cross += [torch.randn(2, heads, *shape, generator=generator) for shape in ((size, 12), (12, size))]
    return torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([0, 2]), *past, *cross


def _empty_caches(config: Any) -> list[tuple[int, int, int]]:
    """Shapes without the batch of a past of no tokens: key and value of every layer."""
    heads = config.decoder_attention_heads
    return [(heads, 0, config.d_model // heads)] * (2 * config.decoder_layers)


def _by_layer(crossed: Sequence[Tensor]) -> list[Tensor]:
    """Keys of all layers, then values -> key and value of each layer in turn, as the decoder takes them."""
    keys, values = crossed[: len(crossed) // 2], crossed[len(crossed) // 2 :]
    return [tensor for pair in zip(keys, values, strict=True) for tensor in pair]
