"""Searching as the speech comes in, so that i-vectors can leave out what the search takes for silence.

Vosk, and Kaldi's online decoders with it, take a recording in pieces of 0.2 s. Before each, the best path so far tells
which frames are silence (``OnlineSilenceWeighting`` of ``online2/online-ivector-feature.cc``); these weigh next to
nothing in the i-vector of the next chunk. So features, i-vectors, network and search take turns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.ivector_online import OnlineIvectors
from quantasr.speech.frames import AcousticModel
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.lattice.decoder import LatticeDecoder, Search
from quantasr.speech.lattice.lattice import Lattice

_LOOKS_BACK = 100
"""Frames of the search, before the newest that had a weight, whose weights may still change."""


def search_online(
    wave: NDArray[np.float32],
    frontend: KaldiFrontend,
    acoustic: AcousticModel,
    decoder: LatticeDecoder,
    silent: NDArray[np.bool_],
    subsampling: int,
) -> Lattice:
    """The lattice of a recording whose i-vectors leave out silence, as Vosk finds it.

    ``silent`` [transition-ids + 1]: those of silence. ``subsampling``: frames of features to one of the network's.
    Raises AudioError where the wave is too short for one frame, ModelLoadError where the model gives NaN.
    """
    assert frontend.extractor is not None
    features = frontend.features(wave)
    frames, chunk = len(features), frontend.chunk
    context = frontend.left_context + frontend.right_context
    rows = frontend.rows(features)
    chunk_of_row = frontend.chunk_of_frames(frames)
    ivectors = OnlineIvectors(frontend.extractor, features)
    with decoder.graph.lock:
        search = Search(decoder)
        silence = SilenceWeights(search, silent, frontend.silence_weight, subsampling)
        applied = np.zeros(frames, np.float32)
        begin, taken = 0, 0
        for ready, known in frontend.arrivals(frames, len(wave)):
            if known == 0:
                continue
            weights = silence.at(known)
            while begin < frames and (ready == frames == known or begin + chunk + frontend.right_context <= ready):
                if known > taken:
                    taken = known
                    change = weights[:known] - applied[:known]
                    applied[:known] = weights[:known]
                    ivectors.add(np.flatnonzero(change), change[change != 0])
                    estimate = ivectors.ivector()
                rows[chunk_of_row == begin // chunk, frontend.feature_dim :] = estimate
                part = rows[begin : begin + min(chunk, frames - begin) + context]
                scores, counts = acoustic(part[None], np.array([len(part)]))
                if np.isnan(scores[0, : counts[0]]).any():
                    raise ModelLoadError("the model gives NaN log-likelihoods; its weights or scales are damaged")
                search.advance(scores[0, : counts[0]])
                begin += chunk
        return search.finish()


class SilenceWeights:
    """What each frame weighs, by the best path of a search that is under way."""

    def __init__(self, search: Search, silent: NDArray[np.bool_], weight: float, subsampling: int) -> None:
        """``silent`` [transition-ids + 1]; ``subsampling``: frames of features to a frame of the search."""
        self._search, self._silent, self._subsampling = search, silent, subsampling
        self._weight = np.float32(weight)
        self._weights = np.zeros(0, np.float32)
        self._tids = np.zeros(0, np.int32)
        self._states = np.zeros(0, np.int32)

    def at(self, frames: int) -> NDArray[np.float32]:
        """The weights of the first ``frames`` frames of features, or some more."""
        decoded = self._search.frames
        before = max(decoded, len(self._weights))
        self._weights = _longer(self._weights, max(before, -(-frames // self._subsampling)))
        self._tids, self._states = _longer(self._tids, decoded), _longer(self._states, decoded, -1)
        self._search.trace_back(self._tids, self._states)
        begin = max(0, before - _LOOKS_BACK)
        if begin < decoded:
            self._weights[begin:decoded] = np.where(self._silent[self._tids[begin:]], self._weight, np.float32(1))
            newest = self._weights[decoded - 1]
        else:  # nothing is decoded of what may change: as before
            newest = self._weights[begin - 1] if begin else self._weight
        self._weights[max(begin, decoded) :] = newest
        return np.repeat(self._weights, self._subsampling)


def _longer(values: NDArray[Any], size: int, filling: int = 0) -> NDArray[Any]:
    return np.concatenate([values, np.full(max(0, size - len(values)), filling, values.dtype)])
