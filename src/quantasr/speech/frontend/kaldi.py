"""What Kaldi's neural networks read: features, normalised if wanted, with an i-vector beside each frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ArtifactError, AudioError, ModelLoadError
from quantasr.kaldi.cmvn import OnlineCmvn, apply_cmvn, cmvn_stats
from quantasr.kaldi.ivector import IvectorExtractor
from quantasr.kaldi.ivector_online import ivectors_at
from quantasr.speech.frontend.kaldi_features import KaldiFeatures
from quantasr.speech.prepared import PreparedWave

CMVN = ("none", "online", "global", "utterance")
IVECTORS = ("none", "looped", "periodic", "given")


@dataclass(frozen=True)
class KaldiFrontend:
    """Kaldi's features for a whole recording, with the context that the network wants on both sides.

    A row is a frame: the features, then, if the network has i-vectors, the i-vector that Kaldi's decoder would give the
    network at that frame. The first frame is repeated ``left_context`` times before, the last one ``right_context``
    times behind.

    ``cmvn``: none; ``online`` as ``apply-cmvn-online`` (``online_cmvn``, with the statistics ``cmvn_stats``);
    ``global``, with ``cmvn_stats``; ``utterance``, each recording with its own. ``norm_vars`` is for the latter two.
    The i-vectors come from the features before it.

    ``ivector_mode``: none, or where they come from:

    - ``looped``, as in Vosk and Kaldi's ``online2`` decoders: the wave comes in pieces of ``piece`` seconds. As soon as
      the features of a chunk of ``chunk`` frames and ``right_context`` more are there, the network computes the chunk,
      with one i-vector from all frames that are there by then. Kaldi rounds the time at which a layer reads the
      i-vector down to chunks, and the first chunk to need a time decides: so frames from ``chunk`` on have the i-vector
      of the chunk before theirs, if the network has a right context (:meth:`chunk_of_frames`).
    - ``periodic``, as ``nnet3-latgen-faster`` with ``--online-ivectors``: an i-vector every ``ivector_period`` frames,
      from all frames up to it; each chunk of ``chunk`` frames takes that of its middle. There Kaldi gives the context
      of a chunk the chunk's i-vector as well, and here it has its own chunk's.
    - ``given``: as in ``periodic``, but from elsewhere; see :meth:`from_features`.

    Vosk weighs frames that its decoder takes for silence with 0.001 (``silence_weight``; 1: no weighing). To follow it,
    features, network and search take turns (:mod:`quantasr.speech.lattice.online`). Here, without a search, frames
    30 dB below the loud ones count as silence, unless ``speech`` tells better.
    """

    kind: ClassVar[str] = "kaldi"

    features: KaldiFeatures = field(default_factory=KaldiFeatures)
    left_context: int = 0
    right_context: int = 0
    cmvn: str = "none"
    online_cmvn: OnlineCmvn = field(default_factory=OnlineCmvn)
    norm_vars: bool = False
    cmvn_stats: NDArray[np.float64] | None = field(default=None, compare=False)
    ivector_mode: str = "none"
    extractor: IvectorExtractor | None = None
    given_dim: int = 0
    chunk: int = 24
    piece: float = 0.2
    silence_weight: float = 1.0
    padding_value: float = 0.0

    silence_depth: ClassVar[float] = 7.0
    """Nepers of power below the loud frames where silence begins: 30 dB."""

    def __post_init__(self) -> None:
        for name, choices in (("cmvn", CMVN), ("ivector_mode", IVECTORS)):
            if getattr(self, name) not in choices:
                raise ArtifactError(
                    f"frontend 'kaldi': {name} {getattr(self, name)!r} is unknown: {', '.join(choices)}"
                )
        if self.cmvn in ("online", "global"):
            stats = self.cmvn_stats
            if stats is None or stats.shape != (2, self.features.dim + 1):
                shape = "none" if stats is None else list(stats.shape)
                raise ModelLoadError(
                    f"frontend 'kaldi': cmvn {self.cmvn!r} of {self.features.dim} features needs statistics of shape "
                    f"[2, {self.features.dim + 1}], got {shape}"
                )
        if min(self.left_context, self.right_context) < 0 or self.chunk < 1 or not self.piece > 0:
            raise ArtifactError("frontend 'kaldi': contexts cannot be negative; chunk and piece must be positive")
        if not 0 <= self.silence_weight <= 1:
            raise ArtifactError(f"frontend 'kaldi': silence_weight is {self.silence_weight:g}; it must be in 0 to 1")
        if (self.ivector_mode in ("looped", "periodic")) != (self.extractor is not None):
            raise ModelLoadError(
                f"frontend 'kaldi': i-vectors {self.ivector_mode!r} and the extractor do not go together"
            )
        if self.extractor is not None and self.extractor.feature_dim != self.features.dim:
            raise ModelLoadError(
                f"the i-vector extractor was made for {self.extractor.feature_dim} features a frame, "
                f"the feature configuration gives {self.features.dim}"
            )

    @property
    def sample_rate(self) -> int:
        """Samples per second of the waves it takes."""
        return int(self.features.sample_rate)

    @property
    def feature_dim(self) -> int:
        """Columns before the i-vector."""
        return self.features.dim

    @property
    def ivector_dim(self) -> int:
        """Length of the i-vector, 0 without."""
        return self.extractor.ivector_dim if self.extractor else self.given_dim if self.ivector_mode == "given" else 0

    @property
    def min_samples(self) -> int:
        """The shortest wave that gives one frame."""
        return self.features.min_samples

    def __call__(self, wave: NDArray[np.float32], speech: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """``[samples]`` -> ``[left_context + frames + right_context, feature_dim + ivector_dim]``.

        ``speech`` ``[frames]`` is what a decoder found. What a :class:`PreparedWave` has is not computed. Raises
        AudioError when the wave is too short for one frame, or what it has is not what the network reads.
        """
        if isinstance(wave, PreparedWave) and (wave.features is not None or wave.ivectors is not None):
            found = self.features(np.asarray(wave)) if wave.features is None else wave.features
            return self.from_features(found, wave.ivectors, wave.ivector_period)
        found = self.features(wave)
        return self._assembled(found, self.ivectors(found, samples=len(wave), speech=speech))

    def from_features(
        self, features: NDArray[np.float32], ivectors: NDArray[np.float32] | None = None, period: int = 10
    ) -> NDArray[np.float32]:
        """As calling it, from features ``[frames, feature_dim]`` that were computed before, as in ``feats.ark``.

        ``ivectors``: ``[rows, ivector_dim]``, one every ``period`` frames, or ``[ivector_dim]`` for all frames;
        without, they are estimated. Raises AudioError when something has the wrong shape.
        """
        features = np.asarray(features, np.float32)
        if features.ndim != 2 or features.shape[1] != self.feature_dim or not len(features):
            raise AudioError(
                f"features of shape {list(features.shape)}: the model reads {self.feature_dim} a frame; "
                f"were they made with another configuration?"
            )
        if ivectors is None:
            return self._assembled(features, self.ivectors(features))
        rows = np.atleast_2d(np.asarray(ivectors, np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.ivector_dim or not len(rows):
            wanted = f"{self.ivector_dim} values" if self.ivector_dim else "none"
            raise AudioError(f"i-vectors of shape {list(rows.shape)}: the model reads {wanted}")
        return self._assembled(features, self._by_chunk(rows, len(features), period), given=True)

    def ivectors(
        self, features: NDArray[np.float32], *, samples: int | None = None, speech: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32] | None:
        """The i-vector of each chunk, ``[chunks, ivector_dim]``, of features before CMVN; None without i-vectors.

        ``samples``, if known, tells when which features came in.
        """
        if self.ivector_mode == "given":
            raise AudioError("the model reads i-vectors, and none are given: name an archive of them (--ivectors)")
        if self.extractor is None:
            return None
        if self.ivector_mode == "periodic":
            counts = np.arange(0, len(features), self.extractor.options.ivector_period) + 1
            period = self.extractor.options.ivector_period
            return self._by_chunk(ivectors_at(self.extractor, features, counts), len(features), period)
        counts = self.frames_known(len(features), samples)
        if self.silence_weight == 1.0:
            return ivectors_at(self.extractor, features, counts)
        if speech is None:
            speech = self.speech_frames(features)
        weights = np.where(speech, np.float32(1.0), np.float32(self.silence_weight))
        before = np.concatenate([[np.float32(self.silence_weight)], weights])

        def known(chunk: int, count: int) -> NDArray[np.float32]:
            """The weights when a chunk is computed: what is decoded by its path, the rest as the last that is."""
            decoded = min(chunk * self.chunk, len(weights))
            found = np.full(count, before[decoded], np.float32)
            found[:decoded] = weights[: min(decoded, count)]
            return found

        return ivectors_at(self.extractor, features, counts, known)

    def speech_frames(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which frames are loud, ``[frames]``, by the mean of their logarithmic energies."""
        if self.features.type == "mfcc":
            level = features[:, -1 if self.features.htk_compat else 0]
            scale = 1.0 if self.features.use_energy else float(np.sqrt(self.features.num_mel_bins))
            level = level / scale
        else:
            level = features.mean(axis=1)
        loud: NDArray[np.bool_] = level > np.percentile(level, 95) - self.silence_depth
        return loud

    def arrivals(self, frames: int, samples: int | None = None) -> NDArray[np.int64]:
        """The wave comes in pieces: frames that are there after each, and frames that i-vectors know, ``[times, 2]``.

        After the last piece comes the news that it was the last: only then the end of the features is known.
        """
        shift, right = self.features.shift, self.extractor.options.splice_right if self.extractor else 0
        if samples is None:
            samples = (frames - 1) * shift + (self.features.window_size if self.features.snip_edges else shift)
        piece = int(self.sample_rate * self.piece)
        ends = np.minimum(np.arange(1, -(-samples // piece) + 1) * piece, samples)
        ready = np.array([self.features.frames_of(int(end), finished=False) for end in ends], np.int64)
        return np.append(np.stack((ready, np.maximum(ready - right, 0)), 1), [[frames, frames]], axis=0)

    def frames_known(self, frames: int, samples: int | None = None) -> NDArray[np.int64]:
        """How many frames the i-vector of each chunk knows, ``[chunks]``, when the wave comes in pieces."""
        ready, known = self.arrivals(frames, samples).T
        chunks = -(-frames // self.chunk)
        needed = (np.arange(chunks) + 1) * self.chunk + self.right_context
        at = np.searchsorted(ready[:-1], needed)  # the first piece with so many frames, or the end
        found: NDArray[np.int64] = known[at]
        return found

    def chunk_of_frames(self, frames: int, *, given: bool = False) -> NDArray[np.int64]:
        """The chunk whose i-vector each row has, ``[left_context + frames + right_context]``."""
        times = np.arange(-self.left_context, frames + self.right_context)
        lag = -(-self.right_context // self.chunk) if self.ivector_mode == "looped" and not given else 0
        last = -(-frames // self.chunk) - 1
        chunks: NDArray[np.int64] = np.clip(times // self.chunk - lag, 0, last)
        return chunks

    def _by_chunk(self, rows: NDArray[np.float32], frames: int, period: int) -> NDArray[np.float32]:
        """I-vectors of each period -> of each chunk, that at its middle."""
        starts = np.arange(0, frames, self.chunk)
        lengths = np.minimum(self.chunk, frames - starts)
        found: NDArray[np.float32] = rows[np.minimum((starts + (lengths - 1) // 2) // period, len(rows) - 1)]
        return found

    def _assembled(
        self, features: NDArray[np.float32], ivectors: NDArray[np.float32] | None, *, given: bool = False
    ) -> NDArray[np.float32]:
        found = self.rows(features)
        if ivectors is not None:
            found[:, self.feature_dim :] = ivectors[self.chunk_of_frames(len(features), given=given)]
        return found

    def rows(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features ``[frames, feature_dim]`` as the network reads them, with i-vectors of zeros."""
        frames = len(features)
        found = np.zeros(
            (self.left_context + frames + self.right_context, self.feature_dim + self.ivector_dim), np.float32
        )
        normal = self._normalized(features)
        inner = found[:, : self.feature_dim]
        inner[self.left_context : self.left_context + frames] = normal
        inner[: self.left_context] = normal[0]
        inner[self.left_context + frames :] = normal[-1]
        return found

    def _normalized(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.cmvn == "none":
            return features
        if self.cmvn == "online":
            assert self.cmvn_stats is not None
            return self.online_cmvn(features, self.cmvn_stats)
        stats = cmvn_stats(features) if self.cmvn == "utterance" else self.cmvn_stats
        assert stats is not None
        return apply_cmvn(features, stats, norm_vars=self.norm_vars)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without :meth:`arrays`."""
        plain = ("left_context", "right_context", "cmvn", "norm_vars", "ivector_mode", "given_dim", "chunk", "piece")
        return {
            "kind": self.kind,
            **{name: getattr(self, name) for name in (*plain, "silence_weight", "padding_value")},
            "features": self.features.to_dict(),
            "online_cmvn": asdict(self.online_cmvn),
            "extractor": self.extractor.to_dict() if self.extractor else None,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that ``to_dict`` leaves out, by name."""
        found = {} if self.cmvn_stats is None else {"cmvn_stats": self.cmvn_stats}
        if self.extractor:
            found |= {f"ivector_{name}": array for name, array in self.extractor.arrays().items()}
        return found

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> KaldiFrontend:
        """What ``to_dict`` and ``arrays`` gave; raises KeyError for an array that is missing."""
        parameters = dict(row)
        extractor = parameters.pop("extractor", None)
        if extractor is not None:
            own = {name[len("ivector_") :]: array for name, array in arrays.items() if name.startswith("ivector_")}
            extractor = IvectorExtractor.from_dict(extractor, own)
        return cls(
            **{
                **parameters,
                "features": KaldiFeatures(**parameters.get("features", {})),
                "online_cmvn": OnlineCmvn(**parameters.get("online_cmvn", {})),
                "extractor": extractor,
                "cmvn_stats": arrays.get("cmvn_stats"),
            }
        )
