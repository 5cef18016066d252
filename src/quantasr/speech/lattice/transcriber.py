"""A hybrid recogniser: log-likelihoods of states, and the best path through a graph of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, ModelLoadError, RecipeError
from quantasr.speech.frames import AcousticModel, FrameTranscriber, check_waves
from quantasr.speech.frontend import Frontend
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.lattice.align import align_words
from quantasr.speech.lattice.decoder import LatticeDecoder, LatticeOptions
from quantasr.speech.lattice.determinize import determinize
from quantasr.speech.lattice.files import DecodingFiles
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.lattice.mbr import BayesPath, minimum_bayes_risk
from quantasr.speech.lattice.online import search_online
from quantasr.speech.pauses import PauseCutter
from quantasr.speech.prepared import PreparedWave
from quantasr.speech.transcript import Transcript, Waveform, Word

CHUNK_SECONDS = 60.0
"""The longest piece that is searched at once, unless asked otherwise: lattices of hours would fill the memory."""


class LatticeTranscriber(FrameTranscriber):
    """A :class:`~quantasr.speech.transcript.Transcriber` around an acoustic model and a decoding graph.

    Recordings longer than ``chunk_seconds`` are cut where they are quietest in the second half of each piece, and each
    piece is searched alone: 0 never cuts. Recordings shorter than ``min_samples`` are filled up with zeros.
    """

    def __init__(
        self,
        acoustic: AcousticModel,
        frontend: Frontend,
        *,
        name: str,
        frame_seconds: float,
        min_samples: int,
        decoder: DecodingFiles | LatticeDecoder | None,
        grammar: Sequence[str] | None = None,
        chunk_seconds: float = CHUNK_SECONDS,
        batch_size: int = 1,
    ) -> None:
        """``decoder``: None where only log-likelihoods are wanted; of files, the graph is read when it is needed.

        ``grammar``: phrases of which alone recordings are made up, instead of the model's language model, as Vosk's
        recognisers take them; see ``unknown_words``.
        """
        super().__init__(
            acoustic,
            frontend,
            name=name,
            frame_seconds=frame_seconds,
            min_samples=min_samples,
            batch_size=batch_size,
        )
        if decoder is not None and not isinstance(decoder, DecodingFiles | LatticeDecoder):
            raise RecipeError(f"{name}: searches a graph of words: --greedy, --lm and --beam-width are for CTC models")
        if isinstance(grammar, str):
            raise RecipeError(f"{name}: a grammar is a list of phrases, such as ['{grammar[:40]}']")
        if grammar is not None and decoder is not None:
            if not isinstance(decoder, DecodingFiles):
                raise RecipeError(f"{name}: takes a grammar only with the graph in its folder, not with a live decoder")
            decoder = replace(decoder, grammar=tuple(grammar))
        self._decoder = decoder
        self._cutter = PauseCutter(chunk_seconds, frontend.sample_rate)

    @property
    def decoder(self) -> LatticeDecoder:
        """The search; its graph is read when this is first asked for."""
        if self._decoder is None:
            raise ModelLoadError(
                f"{self.name}: has no decoding graph beside it: make one with 'quantasr compile-graph', or copy "
                f"HCLG.fst and words.txt into its folder 'graph'"
            )
        return self._decoder.decoder if isinstance(self._decoder, DecodingFiles) else self._decoder

    @property
    def unknown_words(self) -> tuple[str, ...]:
        """Words of the grammar that the model does not know: they are left out of it. Reads the graph."""
        return () if self.files is None else self.files.unknown_words

    @property
    def files(self) -> DecodingFiles | None:
        """Where the graph lies; None for a decoder that came as such, and where there is none."""
        return self._decoder if isinstance(self._decoder, DecodingFiles) else None

    @property
    def options(self) -> LatticeOptions:
        """What the search goes by, without reading the graph."""
        return self.decoder.options if self.files is None else self.files.options

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        """Transcribe a batch; the text of each is the same as when it is transcribed alone.

        Raises AudioError, naming the wave by its index, when one is empty, not mono, or holds NaN.
        """
        check_waves(waves, prepared=True)
        pieces = [[wave] if isinstance(wave, PreparedWave) else list(self._cutter([wave])) for wave in waves]
        flat = [piece for parts in pieces for piece in parts]
        heard = iter(self.lattices(flat))
        return [self._joined([next(heard) for _ in parts], [p.size for p in parts]) for parts in pieces]

    def transcribe_stream(self, blocks: Iterable[Waveform]) -> Transcript:
        """Transcribe one recording that comes in blocks of any size; one piece of it is held at a time."""
        lattices, sizes = [], []
        for piece in self._cutter(blocks):
            check_waves([piece])
            sizes.append(piece.size)
            lattices.extend(self.lattices([piece]))
        if not sizes:
            raise AudioError("recording has no samples")
        return self._joined(lattices, sizes)

    def logprobs(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """What the acoustic model says of each wave, ``[frames, pdfs]``, whole."""
        check_waves(waves, prepared=True)
        found: dict[int, NDArray[np.float32]] = {}
        order = sorted(range(len(waves)), key=lambda i: waves[i].size)
        for batch in self._batches(order, waves):
            found.update(zip(batch, self._run([waves[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(waves))]

    def lattices(self, waves: Sequence[Waveform]) -> list[Lattice]:
        """The lattice of each wave, searched whole.

        Where i-vectors leave out what the search takes for silence, both take turns; in ``logprobs``, without a search,
        quiet frames count as silence.
        """
        silent = None if self.files is None else self.files.silent
        front = self.frontend
        prepared = any(isinstance(wave, PreparedWave) for wave in waves)
        if not prepared and silent is not None and isinstance(front, KaldiFrontend) and front.silence_weight != 1.0:
            subsampling = round(self.frame_seconds * front.sample_rate / front.features.shift)
            return [
                search_online(self._filled(wave), front, self.acoustic, self.decoder, silent, subsampling)
                for wave in waves
            ]
        return [self.decoder(logprobs) for logprobs in self.logprobs(waves)]

    def _joined(self, lattices: Sequence[Lattice], sizes: Sequence[int]) -> Transcript:
        """The words of a recording's pieces, one after the other."""
        words: list[Word] = []
        texts, frames, cost, start = [], 0, 0.0, 0
        duration = sum(sizes) / self.sample_rate
        for lattice, size in zip(lattices, sizes, strict=True):
            best = self._read(lattice)
            texts.append(lattice.text(best.words))
            frames += lattice.frames
            cost += lattice.best_path().total
            at = start / self.sample_rate
            confidences = best.confidences or (None,) * len(best.words)
            for word, begin, end, share in zip(best.words, best.begin, best.end, confidences, strict=True):
                first, last = (min(at + frame * self.frame_seconds, duration) for frame in (begin, end))
                words.append(Word(lattice.text((word,)), first, last, share))
            start += size
        score = -cost / max(1, frames)
        return Transcript(
            " ".join(t for t in texts if t), duration, tuple(words), score if np.isfinite(score) else None
        )

    def _read(self, lattice: Lattice) -> BayesPath:
        """The words of a lattice as the options say."""
        options = self.options
        if options.text == "best_path":
            best = lattice.best_path(options.lm_scale)
            return BayesPath(best.words, (), best.begin, best.end, 0.0)
        compact = determinize(lattice, options.lattice_beam)
        boundaries = None if self.files is None else self.files.boundaries
        if boundaries is not None:
            compact = align_words(compact, boundaries)
        return minimum_bayes_risk(compact, options.lm_scale)
