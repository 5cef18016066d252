"""What quantizing costs: log-probs and texts of the quantized model against those of the float one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import AudioError, QuantasrError
from quantasr.measure.sensitivity import Harm
from quantasr.progress import track
from quantasr.sources.asr_model import AsrModel, CtcModel, Paths
from quantasr.speech.decoding import decode
from quantasr.speech.manifest import Utterance, require_texts
from quantasr.speech.scoring import Score, compare_scores, score
from quantasr.speech.text import normalizer as find_normalizer
from quantasr.speech.transcript import Waveform

WINDOW_SECONDS = 30.0
"""Log-probs are compared on this much of a recording at most, so that memory does not grow with its length."""

LogProbs = NDArray[np.float32]


@dataclass
class _Tally:
    """Sums over the frames that were heard so far, and the texts."""

    frames: int = 0
    kl: float = 0.0
    same: int = 0
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """What became of each variant; ``used`` are the utterances that could be read, ``failures`` says why others not."""

    harms: dict[str, Harm]
    used: list[Utterance]
    failures: dict[str, str]


def compare(
    model: AsrModel,
    utterances: Sequence[Utterance],
    variants: Mapping[str, Callable[[], AbstractContextManager[None]]],
    *,
    texts: bool,
    normalizer: str = "basic",
    progress: bool = False,
) -> Compared:
    """Compare each variant of ``model`` (a context in which it is quantized) with the model as it is now.

    A recording at a time, so that memory grows with neither their number nor that of variants. With ``texts``, the
    error rates of the texts are compared as well. Raises :class:`AudioError` when no recording can be read.
    """
    tallies = {name: _Tally() for name in variants}
    original: list[str] = []
    used: list[Utterance] = []
    failures: dict[str, str] = {}
    for utterance in track(utterances, "comparing", total=len(utterances), show=progress):
        try:
            wave = utterance.load(model.sample_rate)
        except AudioError as error:
            failures[utterance.id] = str(error)
            continue
        used.append(utterance)
        start = wave[: round(WINDOW_SECONDS * model.sample_rate)]
        paths = model.paths([start])
        expected, text = _hear(model, wave, start, paths, texts)
        original.append(text)
        for name, quantized in variants.items():
            with quantized():
                found, text = _hear(model, wave, start, paths, texts)
            tally = tallies[name]
            tally.texts.append(text)
            tally.frames += len(expected)
            tally.kl += float(divergences(expected, found).sum())
            tally.same += int((expected.argmax(-1) == found.argmax(-1)).sum())
    if not used:
        first = next(iter(failures.values()))
        raise AudioError(f"none of {len(failures)} recordings can be read; the first: {first}")
    normalize = find_normalizer(normalizer)
    references = [normalize(text) for text in require_texts(used)] if texts else []

    def scored(hypotheses: Sequence[str]) -> Score:
        return score(references, [normalize(text) for text in hypotheses])

    harms = {}
    for name, tally in tallies.items():
        wer = compare_scores(scored(original), scored(tally.texts)) if texts else None
        harms[name] = Harm(tally.frames, tally.kl / tally.frames, tally.same / tally.frames, wer)
    return Compared(harms, used, failures)


def divergences(expected: LogProbs, found: LogProbs) -> NDArray[np.float64]:
    """KL divergence of each row of ``found`` from that of ``expected``, in nats: ``[frames, vocabulary]`` both.

    ``sum p (log p - log q)``, S. Kullback and R. A. Leibler, 1951; what ``p`` has no mass on does not count. Rows of
    log-likelihoods that are not normalised, as chain models give them, are normalised first.
    """
    if expected.shape != found.shape:
        raise QuantasrError(f"the quantized model gives {found.shape} for {expected.shape}: they cannot be compared")
    p, q = (_normalised(rows.astype(np.float64)) for rows in (expected, found))
    mass = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(mass > 0, mass * (p - q), 0.0)
    # Rows that sum to one up to float32 may come out a hair below zero.
    rows: NDArray[np.float64] = np.maximum(terms.sum(axis=-1), 0.0)
    return rows


def _normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.logaddexp.reduce(rows, axis=-1, keepdims=True)
    return np.where(np.isfinite(total), rows - total, rows)


def _hear(model: AsrModel, wave: Waveform, start: Waveform, paths: Paths, texts: bool) -> tuple[LogProbs, str]:
    """Log-probs of the start of a recording, and the text of the whole of it."""
    (logprobs,) = model.logprobs([start], paths)
    if not texts:
        return logprobs, ""
    if isinstance(model, CtcModel) and len(start) == len(wave):
        return logprobs, decode(model.transcriber().decoder, model.tokenizer, logprobs).text
    return logprobs, model.transcriber().transcribe([wave])[0].text
