"""Log-likelihoods of recordings as Kaldi's archives, for its ``latgen-faster-mapped``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantasr.errors import AudioError, ManifestError
from quantasr.kaldi.archive import archive_writer
from quantasr.progress import track
from quantasr.speech.frames import FrameTranscriber
from quantasr.speech.manifest import Utterance

_OUTPUT = re.compile(r"(?P<kinds>(?:ark|scp|t|b)(?:,(?:ark|scp|t|b))*):(?P<paths>.+)", re.DOTALL)


@dataclass(frozen=True)
class ArchiveOutput:
    """Where an archive is written, and the list of places in it, if any."""

    ark: Path
    scp: Path | None = None
    binary: bool = True

    @classmethod
    def parse(cls, text: str) -> ArchiveOutput:
        """From a path, or as Kaldi writes it: ``ark:FILE``, ``ark,t:FILE`` (text), ``ark,scp:FILE,FILE``.

        Raises ManifestError.
        """
        found = _OUTPUT.fullmatch(text)
        if found is None:
            return cls(Path(text))
        kinds = found["kinds"].split(",")
        tables = [kind for kind in kinds if kind in ("ark", "scp")]
        paths = found["paths"].split(",") if len(tables) > 1 else [found["paths"]]
        if sorted(tables) not in (["ark"], ["ark", "scp"]) or len(paths) != len(tables) or {"t", "b"} <= set(kinds):
            raise ManifestError(f"{text}: write ark:FILE, ark,t:FILE for text, or ark,scp:FILE,FILE")
        places = {kind: Path(path) for kind, path in zip(tables, paths, strict=True)}
        return cls(places["ark"], places.get("scp"), "t" not in kinds)


@dataclass(frozen=True)
class WrittenLoglikes:
    """What was written: recordings, frames, columns; and why others were not, by their ids."""

    utterances: int
    frames: int
    dim: int
    failures: Mapping[str, str] = field(default_factory=dict)


def write_loglikes(
    recogniser: FrameTranscriber, utterances: Sequence[Utterance], out: ArchiveOutput, *, progress: bool = False
) -> WrittenLoglikes:
    """Write ``[frames, columns]``, float32, of each recording under its id; nothing is left behind on an error.

    What they are is the model's: log-likelihoods of pdfs, without an acoustic scale, for a hybrid model,
    log-probabilities of tokens for CTC. A recording that cannot be read is left out; AudioError when all cannot.
    """
    failures: dict[str, str] = {}
    count = frames = dim = 0
    with archive_writer(out.ark, out.scp, binary=out.binary) as put:
        for utterance in track(utterances, "computing", total=len(utterances), show=progress):
            if utterance.id.split() != [utterance.id]:
                raise ManifestError(f"{utterance.source or utterance.audio}: the id '{utterance.id}' has a space")
            try:
                wave = utterance.load(recogniser.sample_rate)
            except AudioError as error:
                failures[utterance.id] = str(error)
                continue
            (found,) = recogniser.logprobs([wave])
            put(utterance.id, np.ascontiguousarray(found, np.float32))
            count, frames, dim = count + 1, frames + len(found), found.shape[1]
        if not count:
            raise AudioError(f"none of {len(utterances)} recordings can be read: {next(iter(failures.values()), '')}")
    return WrittenLoglikes(count, frames, dim, failures)
