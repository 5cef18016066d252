"""``EncoderDecoderASR``: an encoder, and a decoder that attends to it and searches the text token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.errors import AudioError, ModelLoadError
from quantasr.sources.asr_model import Paths, evaluating
from quantasr.sources.parts_model import PartsModel, TorchPart
from quantasr.sources.speechbrain.parts import TOKENS_PER_SECOND, Encoder, Layout, make_parts, read_layout
from quantasr.sources.speechbrain.projections import project_attention
from quantasr.sources.speechbrain.rewrites import rewrite
from quantasr.sources.speechbrain.searcher import check_searcher
from quantasr.speech.attention import AttentionTranscriber
from quantasr.speech.frontend import Frontend, MelDecibelFrontend, WaveFrontend, noise
from quantasr.speech.parts import Parts
from quantasr.speech.seq2seq import SearchTranscriber
from quantasr.speech.transcript import Waveform

# How many of an encoder's frames a search needs at least is found by trying waves of these lengths.
_SHORTEST_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)


class AttentionGraph(nn.Module):
    """What ``transcribe_batch`` runs, as a function of tensors: encoder and search with all its scorers."""

    def __init__(self, interface: Any, encoder: Encoder | None = None) -> None:
        """Without an ``encoder``, that of ``interface`` is called with waves, and makes its own features."""
        super().__init__()
        self.interface = interface
        self.encoder = encoder

    @property
    def searcher(self) -> Any:
        """SpeechBrain's ``S2SBaseSearcher``, which holds embedding, decoder and output layer."""
        return self.interface.mods["decoder"]

    @torch.no_grad()
    def forward(
        self,
        features: Tensor,
        lengths: Tensor | None = None,
        steps: Tensor | None = None,
        path: Tensor | None = None,
    ) -> Any:
        """``features`` ``[batch, time, ...]``, ``lengths`` ``[batch]`` -> tokens ``[batch, longest]`` and their counts.

        With ``steps`` the search takes so many of them, wherever it would end. With ``path``, the token ids
        ``[tokens]`` of a single wave, nothing is searched: log-probs ``[tokens + 1, vocabulary]`` of each token and of
        the end, each given those before it.
        """
        relative = torch.ones(len(features)) if lengths is None else lengths / lengths.max()
        encoded = self.encoder(features) if self.encoder else self.interface.encode_batch(features, relative)
        if path is not None:
            return self._score(encoded, relative, path)
        with paced(self.searcher, None if steps is None else int(steps)):
            found = self.searcher(encoded, relative)[0]
        counts = torch.tensor([len(tokens) for tokens in found])
        tokens = torch.full((len(found), int(counts.max())), self.searcher.eos_index)
        for row, ids in zip(tokens, found, strict=True):
            row[: len(ids)] = torch.as_tensor(ids)
        return tokens, counts

    def _score(self, encoded: Tensor, relative: Tensor, path: Tensor) -> Tensor:
        """The decoder along ``path``, in the searcher's own steps, without its scorers."""
        searcher = self.searcher
        frames = torch.round(encoded.shape[1] * relative).int()
        memory = searcher.reset_mem(1, device=encoded.device)
        rows = []
        for token in [searcher.bos_index, *path.tolist()]:
            row, memory, _ = searcher.forward_step(torch.tensor([token]), memory, encoded, frames)
            rows.append(row[0].float())
        # Greedy searchers' steps give logits, those of beam search log-probs, which this leaves as they are.
        return torch.log_softmax(torch.stack(rows), dim=-1)


@contextmanager
def paced(searcher: Any, steps: int | None) -> Iterator[None]:
    """Have a search take exactly so many steps, as it would for speech; its own number where that is None.

    On noise it ends at once, or as late as it may, and after another number of steps for each version of a model.
    """
    if steps is None:
        yield
        return
    end = searcher.eos_index
    blocks_end = hasattr(searcher, "beam_size")  # beam search does not take it before its least number of steps
    searcher.change_max_decoding_length = lambda *_: (steps if blocks_end else 0, steps)
    if not blocks_end:
        searcher.eos_index = -1
    try:
        yield
    finally:
        del searcher.change_max_decoding_length
        searcher.eos_index = end


@dataclass
class AttentionModel(PartsModel):
    """A live ``EncoderDecoderASR``, and its parts where it comes apart.

    ``module`` is ``interface.mods``. ``graph(features)`` searches with SpeechBrain's own code: -> tokens ``[1, n]`` and
    their count. What is done to ``module`` is done to ``interface`` too. ``layout`` is None where the model only runs
    in SpeechBrain, for the reason ``unsupported``; features are the wave then.
    """

    interface: Any
    layout: Layout | None = None
    unsupported: str = ""

    decoder: ClassVar[str] = "attention"

    def parts(self) -> dict[str, TorchPart]:
        """``encoder``, ``decoder`` and perhaps ``lm``; raises :class:`ModelLoadError` where it does not come apart."""
        if self.layout is None:
            raise ModelLoadError(f"{self.unsupported}; PyTorch may still quantize it (--engine torch)")
        return make_parts(self.interface, self.name, self.layout)

    def transcriber(self, parts: Parts | None = None, **options: Any) -> Any:
        """SpeechBrain's own search as an :class:`AttentionTranscriber`; around ``parts``, a :class:`SearchTranscriber`.

        ``options`` are those of the class.
        """
        defaults: dict[str, Any] = {"name": self.name, "min_samples": self.min_samples}
        if parts is None:
            defaults["sample_rate"] = self.sample_rate
            return AttentionTranscriber(self.recognise, encode=self.encode, **defaults | options)
        defaults["frame_seconds"] = self.frame_seconds
        return SearchTranscriber(parts, self.frontend, self.tokenizer, self.decoding, **defaults | options)

    def probe(self, seconds: float = 1.0, batch: int = 1) -> tuple[Tensor, ...]:
        """Noise, and steps as for speech of this length."""
        return self.paced(super().probe(seconds, batch)[0])

    def paced(self, features: Tensor) -> tuple[Tensor, ...]:
        """Arguments of ``graph`` that make it search for ``features`` in as many steps as such speech takes."""
        hop = self.frontend.hop_length if isinstance(self.frontend, MelDecibelFrontend) else 1
        seconds = features.shape[1] * hop / self.sample_rate
        lengths = torch.full((len(features),), features.shape[1])
        return features, lengths, torch.tensor(max(1, round(TOKENS_PER_SECOND * seconds)))

    def recognise(self, wave: Waveform) -> str:
        """The text of a whole wave, as ``transcribe_batch`` gives it."""
        with evaluating(self.module):
            texts, _ = self.interface.transcribe_batch(torch.from_numpy(wave)[None], torch.ones(1))
        return str(texts[0])

    def encode(self, wave: Waveform) -> Tensor:
        """What the decoder attends to, ``[1, frames, size]``, features included."""
        with evaluating(self.module), torch.no_grad():
            encoded: Tensor = self.interface.encode_batch(torch.from_numpy(wave)[None], torch.ones(1))
        return encoded

    def run(self, wave: Waveform) -> None:
        """Search the pieces that a transcriber would cut."""
        for piece in self._pieces(wave):
            self._search(piece)

    def paths(self, waves: Sequence[Waveform]) -> Paths:
        """The token ids that the search finds in each whole wave, without bos and eos."""
        return [self._search(wave) for wave in waves]

    def logprobs(self, waves: Sequence[Waveform], paths: Paths = None) -> list[NDArray[np.float32]]:
        """Log-probs along ``paths``, ``[tokens + 1, vocabulary]``: of each token given those before it, and of the end.

        The decoder's alone, at its own temperature: scorers (CTC, language models, coverage) weigh what it says, and
        are not in it. Without ``paths``, along those of :meth:`paths`.
        """
        found = []
        paths = self.paths(waves) if paths is None else paths
        assert paths is not None
        for wave, path in zip(waves, paths, strict=True):
            with evaluating(self.module), torch.no_grad():
                rows = self.graph(*self.inputs([self._filled(wave)]), path=torch.from_numpy(path))
            found.append(rows.numpy())
        return found

    def _search(self, wave: Waveform) -> NDArray[np.int64]:
        with evaluating(self.module), torch.no_grad():
            tokens, counts = self.graph(*self.inputs([self._filled(wave)]))
        ids: NDArray[np.int64] = tokens[0, : counts[0]].numpy()
        return ids

    def _pieces(self, wave: Waveform) -> Iterator[Waveform]:
        pieces: Iterator[Waveform] = self.transcriber().pieces([wave])
        return pieces

    def _filled(self, wave: Waveform) -> Waveform:
        return np.pad(wave, (0, max(0, self.min_samples - wave.size)))


def load_attention(interface: Any, where: str, provenance: dict[str, Any]) -> AttentionModel:
    """A live ``EncoderDecoderASR`` as a model; raises :class:`ModelLoadError` where its decoder is of another kind."""
    check_searcher(interface, where)
    name_scorers(interface)
    interface.eval()
    layout, unsupported = None, ""
    try:
        layout = read_layout(interface, where)
    except ModelLoadError as error:  # SpeechBrain's own search needs none of it
        unsupported = str(error)
    frontend: Frontend = WaveFrontend(int(interface.audio_normalizer.sample_rate), normalize=False)
    graph = AttentionGraph(interface, None if layout is None else Encoder(interface, layout.head))
    graph.train(interface.mods.training)
    frontend = frontend if layout is None else layout.frontend
    shortest = _shortest(graph, frontend, where)
    parameters = sum(p.numel() for p in interface.mods.parameters())
    return AttentionModel(
        name=str(provenance.get("name") or where.rstrip("/").rpartition("/")[2]),
        family="speechbrain_attention",
        module=interface.mods,
        graph=graph,
        frontend=frontend,
        padded_batches=False,
        min_samples=shortest if layout is None else max(shortest, layout.min_samples),
        tokenizer=None if layout is None else layout.tokenizer,
        frame_seconds=0.0 if layout is None else layout.frame_seconds,
        decoding={} if layout is None else layout.decoding,
        interface=interface,
        layout=layout,
        unsupported=unsupported,
        rewrite=_rewrite,
        provenance={"architecture": "EncoderDecoderASR", "parameters": parameters, **provenance},
    )


def _rewrite(module: nn.Module) -> None:
    rewrite(module)
    project_attention(module)


def name_scorers(interface: Any) -> None:
    """Add to ``interface.mods`` what its search calls and only a scorer holds, under its name in the hyperparameters.

    A scorer is no module, so what it holds (an output layer for CTC, a language model) has no path otherwise.
    """
    scorer = getattr(interface.mods["decoder"], "scorer", None)
    if scorer is None:
        return
    named = {id(part) for part in interface.mods.modules()}
    names = {id(value): key for key, value in vars(interface.hparams).items() if isinstance(value, nn.Module)}
    for kind, held in {**scorer.full_scorers, **scorer.partial_scorers}.items():
        for key, part in vars(held).items():
            # Softmax and the like have nothing that could be quantized or saved.
            if isinstance(part, nn.Module) and id(part) not in named and any(True for _ in part.parameters()):
                interface.mods[names.get(id(part), f"{kind}_{key}")] = part.eval().requires_grad_(False)
                named |= {id(inner) for inner in part.modules()}


def _shortest(graph: AttentionGraph, frontend: Frontend, where: str) -> int:
    """Samples of the shortest wave for which the encoder gives frames and the search takes a step."""
    for seconds in _SHORTEST_SECONDS:
        samples = round(seconds * frontend.sample_rate)
        try:
            graph(torch.from_numpy(frontend(noise(frontend, samples)))[None])
        # UnboundLocalError is what a search of no steps at all raises.
        except (AudioError, RuntimeError, ValueError, IndexError, UnboundLocalError) as error:
            problem = error
            continue
        return samples
    raise ModelLoadError(f"{where}: cannot transcribe {seconds} s of noise: {problem}") from problem
