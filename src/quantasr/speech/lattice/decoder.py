"""Log-likelihoods to lattices: the search, its options, and the room that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import KaldiFileError
from quantasr.kaldi.fst import SymbolTable
from quantasr.speech.lattice.graph import DecodingGraph
from quantasr.speech.lattice.lattice import Lattice
from quantasr.speech.lattice.work import DONE, FRAMES, NO_TOKENS, STATE, TABLE_FULL, TOKENS, Work

ANY = 2**31 - 1
"""No limit to the number of active tokens."""
TEXTS = ("mbr", "best_path")


@dataclass(frozen=True)
class LatticeOptions:
    """Options of Kaldi's lattice decoders, with Kaldi's names and values (``LatticeFasterDecoderConfig``).

    Costs of ``beam`` and ``lattice_beam`` are of log-likelihoods times ``acoustic_scale``. ``text`` is read off the
    lattice as ``mbr``, minimum Bayes risk with confidences, or as its ``best_path``, with costs of the graph times
    ``lm_scale`` (Vosk: mbr, 0.9). Raises ValueError.
    """

    beam: float = 16.0
    max_active: int = ANY
    min_active: int = 200
    lattice_beam: float = 10.0
    acoustic_scale: float = 0.1
    prune_interval: int = 25
    beam_delta: float = 0.5
    prune_scale: float = 0.1
    text: str = "mbr"
    lm_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beam", "lattice_beam", "acoustic_scale", "beam_delta", "prune_scale", "lm_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.text not in TEXTS:
            raise ValueError(f"text must be one of {', '.join(TEXTS)}, not {self.text!r}")
        if self.prune_scale >= 1:
            raise ValueError(f"prune_scale must be below 1, not {self.prune_scale}")
        if self.prune_interval < 1 or self.max_active < 2 or not 0 <= self.min_active <= self.max_active:
            raise ValueError("prune_interval must be 1 or more, max_active 2 or more, min_active at most max_active")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatticeOptions:
        """From ``to_dict``. Raises ValueError for names that are unknown."""
        kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(kinds))
        if unknown:
            raise ValueError(f"unknown lattice options: {', '.join(unknown)}")
        return cls(**{name: kinds[name](value) for name, value in values.items()})


class LatticeDecoder:
    """Log-likelihoods [frames, pdfs] to a ``Lattice``, by beam search in a decoding graph.

    ``pdf_of_tid``, int32: the column of each transition-id, index 0 unused. ``words``: the words of the graph. One
    recording is searched at a time; calls from several threads wait for each other. Raises KaldiFileError where the
    graph has transition-ids that the model lacks.
    """

    def __init__(
        self,
        graph: DecodingGraph,
        pdf_of_tid: NDArray[np.int32],
        words: SymbolTable | None = None,
        options: LatticeOptions | None = None,
    ) -> None:
        if graph.input_labels >= len(pdf_of_tid):
            raise KaldiFileError(
                f"the decoding graph has transition-id {graph.input_labels}, the model ends at {len(pdf_of_tid) - 1}:"
                " they are not of one model"
            )
        if words is not None and graph.words >= len(words):
            raise KaldiFileError(f"the decoding graph has word {graph.words}, the table ends at {len(words) - 1}")
        self.graph, self.words = graph, words
        self.options = options or LatticeOptions()
        self.pdf_of_tid = np.ascontiguousarray(pdf_of_tid, np.int32).copy()
        self.pdf_of_tid[0] = 0
        if self.pdf_of_tid.min() < 0:
            raise KaldiFileError("the model maps a transition-id to a negative pdf")
        self.pdfs = int(self.pdf_of_tid.max()) + 1
        self._work: Work | None = None

    def __call__(self, logprobs: NDArray[np.float32]) -> Lattice:
        """The lattice of one recording. Raises ValueError for an array of another shape, or with NaN."""
        with self.graph.lock:
            search = Search(self)
            search.advance(logprobs)
            return search.finish()


class Search:
    """One recording, which may come in pieces: ``advance`` with each, then ``finish``.

    A decoder runs one search at a time: a new one ends the one before.
    """

    def __init__(self, decoder: LatticeDecoder) -> None:
        from quantasr.speech.lattice.search import begin_search

        self.decoder = decoder
        self.graph = decoder.graph
        self.work = decoder._work or _new_work(decoder.options, 1 << 16, 512)
        decoder._work = self.work
        self.alive = True
        graph = self.graph
        while status := begin_search(graph.left, graph.right, graph.table, self.work, graph.start):
            self._make_room(status)

    def advance(self, logprobs: NDArray[np.float32]) -> None:
        """Search the next frames: log-likelihoods [frames, pdfs], unscaled."""
        from quantasr.speech.lattice.search import advance

        scores = np.ascontiguousarray(logprobs, np.float32)
        if scores.ndim != 2 or scores.shape[1] < self.decoder.pdfs:
            raise ValueError(f"expected log-likelihoods [frames, {self.decoder.pdfs} pdfs], got {scores.shape}")
        if np.isnan(scores).any():
            raise ValueError("log-likelihoods contain NaN")
        begin = int(self.work.counts[FRAMES])
        self._reserve_frames(begin + len(scores))
        graph = self.graph
        while self.alive:
            status = advance(graph.left, graph.right, graph.table, self.work, scores, self.decoder.pdf_of_tid, begin)
            if status == DONE:
                break
            if status == NO_TOKENS:  # as in Kaldi: the recording has no words
                self.alive = False
            else:
                self._make_room(status)

    @property
    def frames(self) -> int:
        """Frames that were searched."""
        return int(self.work.counts[FRAMES])

    def trace_back(self, tids: NDArray[np.int32], states: NDArray[np.int32]) -> None:
        """The best path so far: transition-ids, and graph states before them, of each frame that was searched.

        Both arrays hold the result of an earlier call, or states of -1: only what has changed is written.
        """
        from quantasr.speech.lattice.traceback import trace_back

        trace_back(self.work, tids, states)

    def finish(self) -> Lattice:
        """The lattice of what was searched."""
        from quantasr.speech.lattice.pruning import finish, lattice_arrays

        work, graph = self.work, self.graph
        frames = int(work.counts[FRAMES])
        if not self.alive or frames == 0:
            return Lattice.empty(frames, self.decoder.words)
        final, reached = finish(graph.left, graph.right, graph.table, work)
        states = int(work.counts[TOKENS])
        frame_of, order = np.zeros(states, np.int32), np.zeros(states, np.int32)
        circle = np.zeros(1, np.int32)
        names, costs = lattice_arrays(work, frame_of, order, circle)
        if circle[0]:
            raise KaldiFileError("the decoding graph has a cycle of arcs without transition-ids")
        at_end = np.full(states, np.inf, np.float32)
        at_end[order[int(work.frame[frames]) : states]] = final
        in_order = np.argsort(names[:, 0], kind="stable")
        names, costs = names[in_order], costs[in_order]
        scale = np.float32(self.decoder.options.acoustic_scale)
        return Lattice(
            source=names[:, 0].copy(), target=names[:, 1].copy(),
            transition_id=names[:, 2].copy(), word=names[:, 3].copy(),
            graph_cost=costs[:, 0].copy(), acoustic_cost=costs[:, 1] / scale,
            final_cost=at_end, frame=frame_of, frames=frames, acoustic_scale=float(scale),
            reached_final=bool(reached), words=self.decoder.words,
        )  # fmt: skip

    def _reserve_frames(self, frames: int) -> None:
        size = len(self.work.offset)
        if frames + 3 > size:
            longer = max(frames + 3, 2 * size)
            work = self.work
            self._replace(
                frame=_longer(work.frame, longer), links_of=_longer(work.links_of, longer),
                dirty=_longer(work.dirty, longer), offset=_longer(work.offset, longer),
            )  # fmt: skip

    def _replace(self, **arrays: NDArray[Any]) -> None:
        self.work = self.decoder._work = self.work._replace(**arrays)

    def _make_room(self, status: int) -> None:
        work = self.work
        if status == TABLE_FULL:
            frame = int(work.counts[FRAMES])
            now = slice(int(work.frame[frame]), int(work.frame[frame + 1])) if work.counts[0] else slice(0, 0)
            if self.graph.table.counts[0] <= now.stop - now.start + 1:
                raise KaldiFileError("the decoding graph does not fit into the memory that it may take")
            work.token[now, STATE] = self.graph.forget(work.token[now, STATE])
            return
        size = 2 * len(work.cost)
        self._replace(
            token=_longer(work.token, size), cost=_longer(work.cost, size), extra=_longer(work.extra, size),
            link=_longer(work.link, 4 * size), link_cost=_longer(work.link_cost, 4 * size),
            stack=np.empty(4 * size, np.int32), scratch=np.empty(size, np.float32),
            order=_longer(work.order, size), following=np.empty(size, np.int32), occupied=np.empty(size, np.int32),
            bucket=_longer(work.bucket, 2 * size),
        )  # fmt: skip


def _longer(array: NDArray[Any], size: int) -> NDArray[Any]:
    longer = np.zeros((size, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def _new_work(options: LatticeOptions, tokens: int, frames: int) -> Work:
    beams = (options.beam, options.lattice_beam, options.beam_delta, options.lattice_beam * options.prune_scale)
    return Work(
        counts=np.zeros(6, np.int64),
        token=np.zeros((tokens, 6), np.int32),
        cost=np.zeros(tokens, np.float32),
        extra=np.zeros(tokens, np.float32),
        link=np.zeros((4 * tokens, 3), np.int32),
        link_cost=np.zeros((4 * tokens, 2), np.float32),
        frame=np.zeros(frames, np.int64),
        links_of=np.zeros(frames, np.int64),
        dirty=np.zeros(frames, np.uint8),
        offset=np.zeros(frames, np.float32),
        stack=np.empty(4 * tokens, np.int32),
        scratch=np.empty(tokens, np.float32),
        beams=np.array([*beams, options.acoustic_scale], np.float32),
        limits=np.array([options.max_active, options.min_active, options.prune_interval], np.int64),
        order=np.zeros(tokens, np.int32),
        following=np.empty(tokens, np.int32),
        bucket=np.zeros((2 * tokens, 3), np.int32),
        occupied=np.empty(tokens, np.int32),
    )
