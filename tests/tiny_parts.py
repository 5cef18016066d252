"""A transducer whose weights are worked out by hand: words are tones, and quiet ones are lost to the blank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.artifact import Artifact
from quantasr.recipes import Recipe, Rule
from quantasr.sources.asr_model import Paths
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.manifest import Utterance
from quantasr.speech.parts import Parts
from quantasr.speech.tokenizer import WORD_START, Tokenizer
from quantasr.speech.transcript import Waveform
from quantasr.speech.transducer import TransducerTranscriber

RATE, FRAME = 8000, 80
WORDS = ("one", "two", "three", "four", "five", "six")
SIZE = len(WORDS) + 1
BLANK = 3.0
"""What the blank scores; a word of amplitude ``a`` scores ``10 a``."""

RECIPE = Recipe("toy", (Rule("*", {}, "linear"), Rule("*", {}, "conv1d")), compute="fp32")


class Inner(nn.Module):
    """Encoder and prediction network, one module further down, as frameworks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, SIZE, FRAME, stride=FRAME, bias=False))
        self.encoder_out = nn.Linear(SIZE, SIZE, bias=False)
        self.decoder = nn.Embedding(SIZE, SIZE)


class Toy(nn.Module):
    """Matched filters; what was just said is not said again; the blank has its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()
        self.proj_out = nn.Linear(SIZE, SIZE)
        with torch.no_grad():
            filters = [tone(i) / 40 for i in range(len(WORDS))] + [np.zeros(FRAME, np.float32)]
            self.model.encoder[0].weight.copy_(torch.from_numpy(np.stack(filters))[:, None])  # type: ignore[operator]
            self.model.encoder_out.weight.copy_(10 * torch.eye(SIZE))
            said = -20 * torch.eye(SIZE)
            said[-1] = 0
            self.model.decoder.weight.copy_(said)
            self.proj_out.weight.copy_(torch.eye(SIZE))
            self.proj_out.bias.copy_(torch.tensor([0.0] * len(WORDS) + [BLANK]))


class EncoderPart(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.model = toy.model

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        frames = self.model.encoder(features[:, None]).transpose(1, 2)
        return self.model.encoder_out(frames), lengths // FRAME


class DecoderPart(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.model = toy.model

    def forward(self, tokens: Tensor) -> Tensor:
        predicted: Tensor = self.model.decoder(tokens)[:, 0]
        return predicted


class JoinerPart(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.proj_out = toy.proj_out

    def forward(self, encoded: Tensor, prediction: Tensor) -> Tensor:
        scores: Tensor = self.proj_out(encoded + prediction[:, None])
        return scores


class Whole(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.parts = nn.ModuleList([EncoderPart(toy), DecoderPart(toy), JoinerPart(toy)])

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        encoded, _ = self.parts[0](features, lengths)
        scores: Tensor = self.parts[2](encoded, self.parts[1](torch.full((len(features), 1), SIZE - 1)))
        return scores


@dataclass
class ToyModel(PartsModel):
    """Recordings of 8 kHz, frames of 10 ms."""

    decoder: ClassVar[str] = "transducer"

    def parts(self) -> dict[str, TorchPart]:
        toy: Any = self.module
        axes, frames = {0: "batch"}, {0: "batch", 1: "frames"}
        return {
            "encoder": TorchPart(
                EncoderPart(toy),
                ("features", "lengths"),
                ("encoded", "frame_counts"),
                {"features": {0: "batch", 1: "time"}, "lengths": axes, "encoded": frames, "frame_counts": axes},
                lambda: self.probe(1.0, batch=2),
            ),
            "decoder": TorchPart(
                DecoderPart(toy),
                ("tokens",),
                ("prediction",),
                {"tokens": axes, "prediction": axes},
                lambda: (torch.zeros(2, 1, dtype=torch.int64),),
                calls=4.0,
            ),
            "joiner": TorchPart(
                JoinerPart(toy),
                ("encoded", "prediction"),
                ("logits",),
                {"encoded": frames, "prediction": axes, "logits": frames},
                lambda: (torch.zeros(2, 3, SIZE), torch.zeros(2, SIZE)),
                typical={"frames": 8},
                calls=12.0,
            ),
        }

    def transcriber(self, parts: Parts | None = None, **options: Any) -> TransducerTranscriber:
        defaults = {"name": self.name, "frame_seconds": self.frame_seconds, "min_samples": self.min_samples}
        found: Parts = self.parts() if parts is None else parts
        return TransducerTranscriber(found, self.frontend, self.tokenizer, self.decoding, **(defaults | options))

    def run(self, wave: Waveform) -> None:
        self.transcriber().transcribe([wave])

    def paths(self, waves: Sequence[Waveform]) -> list[NDArray[np.int64]]:
        return self.transcriber().paths(waves)

    def logprobs(self, waves: Sequence[Waveform], paths: Paths = None) -> list[NDArray[np.float32]]:
        return self.transcriber().logprobs(waves, self.paths(waves) if paths is None else paths)


def toy() -> ToyModel:
    """The model; at amplitude 0.3 it begins to hear."""
    module = Toy()
    return ToyModel(
        name="toy",
        family="toy",
        module=module,
        graph=Whole(module),
        frontend=WaveFrontend(RATE, normalize=False),
        padded_batches=True,
        min_samples=2 * FRAME,
        tokenizer=Tokenizer((*(f"{WORD_START}{word}" for word in WORDS), "<b>"), SIZE - 1, None, kind="pieces"),
        frame_seconds=FRAME / RATE,
        decoding={"durations": [], "states": {}},
        provenance={"parameters": sum(p.numel() for p in module.parameters()), "model": "toy"},
    )


def artifact(folder: Path, speech: Sequence[Utterance]) -> Artifact:
    """The model as an artifact in ``folder``, in int8 but for its embedding."""
    from quantasr.pipeline import quantize

    return quantize(toy(), folder, calibration=speech, recipe=RECIPE)


def tone(word: int) -> NDArray[np.float32]:
    """One frame, of amplitude 1."""
    return np.sin(2 * np.pi * 200 * (word + 1) * np.arange(FRAME) / RATE).astype(np.float32)


def say(words: Sequence[int], loud: Sequence[float]) -> Waveform:
    """Each word one frame, then three of silence."""
    pieces = [
        np.concatenate([level * tone(word), np.zeros(3 * FRAME, np.float32)])
        for word, level in zip(words, loud, strict=True)
    ]
    return np.concatenate([np.zeros(FRAME, np.float32), *pieces])


def record(folder: Path, count: int, seed: int, quiet: float = 0.25) -> list[Utterance]:
    """Utterances of four words, one of them at amplitude ``quiet``, the others at 0.6."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        words = random.permutation(len(WORDS))[:4].tolist()
        loud = [0.6] * 4
        loud[int(random.integers(4))] = quiet
        path = folder / f"{seed}-{i}.wav"
        soundfile.write(path, say(words, loud), RATE, subtype="FLOAT")
        text = " ".join(WORDS[word] for word in words)
        found.append(Utterance(id=path.stem, audio=path, text=text))
    return found
