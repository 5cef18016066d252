"""Error rates of a model at several bit widths: the result of ``quantasr.bit_widths``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantasr.measure.evaluate import EvalResult
from quantasr.speech.scoring import PairedComparison, Score, Unit, compare_scores

WIDTHS = (16, 8, 7, 6, 5, 4, 3, 2)
"""The widths of the paper's tables (arXiv 2006.09054) and those between them."""

WEIGHTS, ACTIVATIONS = "weights", "weights + activations"


@dataclass(frozen=True)
class Row:
    """One width of what is ``quantized`` (:data:`WEIGHTS` or :data:`ACTIVATIONS`).

    ``granularity`` is that of the weights' scales; ``size`` the bytes of all parameters, weights packed and with their
    scales.
    """

    bits: int
    quantized: str
    granularity: str
    size: int
    result: EvalResult


@dataclass(frozen=True)
class Beside:
    """Another system on the same utterances: an artifact on its engine, with the size of its folder in bytes."""

    result: EvalResult
    size: int | None = None


@dataclass(frozen=True)
class BitWidths:
    """A model at several widths against itself in float, on the same utterances.

    ``rows`` are simulated, so they have error rates and no times; ``original`` and ``beside`` have both. ``unit`` is
    what is compared, words or characters. ``ranges`` says where those of activations come from: ``per_utterance`` or
    ``calibrated``. ``layers`` of ``candidates`` are quantized; ``notes`` are what the reader should know.
    """

    model: str
    original: EvalResult
    size: int
    rows: tuple[Row, ...]
    beside: tuple[Beside, ...] = ()
    unit: Unit = "word"
    ranges: str = "per_utterance"
    layers: int = 0
    candidates: int = 0
    notes: tuple[str, ...] = field(default=())

    def score(self, result: EvalResult) -> Score:
        """The error rate in :attr:`unit`."""
        return result.wer if self.unit == "word" else result.cer

    @property
    def rate_name(self) -> str:
        """What the error rate is called."""
        return "WER" if self.unit == "word" else "CER"

    def against_float(self, result: EvalResult) -> PairedComparison:
        """The difference to the float model, pair by pair of utterances."""
        return compare_scores(self.score(self.original), self.score(result))

    @property
    def failures(self) -> Mapping[str, str]:
        """Recordings that could not be read, by the utterance's id, and why."""
        return self.original.failures

    @property
    def warnings(self) -> Mapping[str, str]:
        """Recordings that are suspicious but were used, by the utterance's id."""
        return self.original.warnings

    def curves(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by (``quantized``, ``granularity``), the widest first."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: -row.bits):
            found.setdefault((row.quantized, row.granularity), []).append(row)
        return found

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; simulated rows have no times."""
        return {
            "model": self.model,
            "unit": self.unit,
            "ranges": self.ranges,
            "layers": self.layers,
            "candidates": self.candidates,
            "float": {**self.original.to_dict(), "size": self.size},
            "widths": [self._row(row) for row in self.rows],
            "beside": [{**one.result.to_dict(), "size": one.size, **self._compared(one.result)} for one in self.beside],
            "notes": list(self.notes),
            "failures": dict(self.failures),
            "warnings": dict(self.warnings),
        }

    def _row(self, row: Row) -> dict[str, Any]:
        figures = row.result.to_dict()
        return {
            "bits": row.bits,
            "quantized": row.quantized,
            "granularity": row.granularity,
            "size": row.size,
            "wer": figures["wer"],
            "cer": figures["cer"],
            **self._compared(row.result),
        }

    def _compared(self, result: EvalResult) -> dict[str, Any]:
        pair = self.against_float(result).to_dict()
        return {"against_float": {key: value for key, value in pair.items() if key not in ("a", "b")}}
