"""One utterance of a manifest, whatever form the manifest had."""

from __future__ import annotations

import io
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantasr.errors import AudioError, ManifestError
from quantasr.speech.audio import load_audio, stream_audio
from quantasr.speech.audio_file import AudioSource
from quantasr.speech.prepared import Archived, PreparedWave
from quantasr.speech.transcript import Waveform

FRAME_SECONDS = 0.01
"""From a frame of Kaldi's features to the next; of features from elsewhere only lengths in seconds depend on it."""


@dataclass(frozen=True)
class Utterance:
    """A recording, or a part of one, and what was said in it.

    ``id`` is unique in its manifest. ``start`` and ``duration`` are in seconds; without ``duration`` the
    utterance lasts to the end of the recording. ``text`` is None where the manifest gives none (calibration
    needs none), and empty where nobody speaks. ``source`` is the 'file:line' that errors name. ``command`` is
    a trusted shell command that writes the recording to its standard output; ``audio`` is then the wav.scp that
    holds it, so use :meth:`load` or :meth:`stream` rather than ``audio``. ``features`` and ``ivectors`` were computed
    before, for Kaldi models; with features there is no sound, and ``audio`` is the feats.scp.

    Raises:
        ManifestError: the id is empty, or the times are not those of a segment.
    """

    id: str
    audio: Path
    text: str | None
    start: float = 0.0
    duration: float | None = None
    speaker: str | None = None
    language: str | None = None
    source: str = ""
    command: str | None = None
    features: Archived | None = None
    ivectors: Archived | None = None

    def __post_init__(self) -> None:
        where = self.source or str(self.audio)
        if not self.id:
            raise ManifestError(f"{where}: the utterance has no id: name it")
        if not (math.isfinite(self.start) and self.start >= 0):
            raise ManifestError(f"{where}: starts at {self.start} s: give 0 or more seconds")
        if self.duration is not None and not (math.isfinite(self.duration) and self.duration > 0):
            raise ManifestError(f"{where}: lasts {self.duration} s: give more than 0 seconds")

    @property
    def is_file(self) -> bool:
        """Whether its sound is in the file ``audio``."""
        return self.command is None and self.features is None

    def load(self, sample_rate: int) -> Waveform:
        """Its samples, mono ``[time]``, at ``sample_rate``; AudioError names the manifest's line too.

        With features or i-vectors it is a :class:`PreparedWave`.
        """
        try:
            if self.features is None and self.ivectors is None:
                return self._samples(sample_rate)
            features = None if self.features is None else self.features.load()
            if features is None:
                samples: Waveform | int = self._samples(sample_rate)
            else:
                samples = round(len(features) * FRAME_SECONDS * sample_rate)
            if self.ivectors is None:
                return PreparedWave.of(samples, features)
            return PreparedWave.of(samples, features, self.ivectors.load(), self.ivectors.period)
        except AudioError as error:
            raise self._named(error) from error

    def _samples(self, sample_rate: int) -> Waveform:
        return load_audio(self._open(), sample_rate, start=self.start, duration=self.duration)

    def stream(self, sample_rate: int, block_seconds: float) -> Iterator[Waveform]:
        """Its samples in blocks, for long recordings, as :func:`quantasr.speech.audio.stream_audio` gives them."""
        try:
            if self.features is not None:
                raise AudioError(f"{self.audio}: holds features and no sound: a Kaldi model reads them whole")
            yield from stream_audio(self._open(), sample_rate, block_seconds, start=self.start, duration=self.duration)
        except AudioError as error:
            raise self._named(error) from error

    def _named(self, error: AudioError) -> AudioError:
        return AudioError(f"{error} (listed in {self.source})" if self.source else str(error))

    def _open(self) -> AudioSource:
        return self.audio if self.command is None else _run(self.command)


class _Output(io.BytesIO):
    """What a command wrote; ``name`` is what errors call it."""

    name = ""


def _run(command: str) -> io.BytesIO:
    """Run a trusted command of a wav.scp and keep what it writes, a whole recording."""
    # A shell, because these commands are pipelines themselves: 'sph2pipe ... | sox ... |'.
    done = subprocess.run(command, shell=True, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said[-1] if said else "it said nothing"
        raise AudioError(f"the command '{command}' failed with exit code {done.returncode} ({reason}): mend it")
    if not done.stdout:
        raise AudioError(f"the command '{command}' wrote nothing: mend it")
    output = _Output(done.stdout)
    output.name = f"the output of '{command}'"
    return output


def require_texts(utterances: Sequence[Utterance]) -> list[str]:
    """The reference texts, in order.

    Raises:
        ManifestError: an utterance has none; the first is named.
    """
    without = [u for u in utterances if u.text is None]
    if without:
        first = without[0]
        raise ManifestError(
            f"{first.source or first.id}: no text, so there is nothing to score against "
            f"({len(without)} of {len(utterances)} utterances lack one): add the texts"
        )
    return [u.text for u in utterances if u.text is not None]
