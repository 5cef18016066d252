"""Recognisers whose answers and times are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quantasr.speech.transcript import Transcript, Waveform


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Parrot:
    """Says for each wave what ``say`` finds in its first sample, and takes ``seconds`` a wave."""

    def __init__(
        self,
        name: str,
        say: Callable[[int], str],
        clock: Clock | None = None,
        seconds: Callable[[], float] = lambda: 0.0,
        log: list[str] | None = None,
        sample_rate: int = 1000,
    ) -> None:
        self.name, self.sample_rate = name, sample_rate
        self._say, self._clock, self._seconds = say, clock, seconds
        self._log = [] if log is None else log

    def transcribe(self, waves: Sequence[Waveform]) -> list[Transcript]:
        self._log.append(f"{self.name}{len(waves)}")
        if self._clock is not None:
            self._clock.now += sum(self._seconds() for _ in waves)
        return [Transcript(self._say(round(float(w[0]) * 100)), len(w) / self.sample_rate) for w in waves]

    def encoder_call(self, wave: Waveform) -> Callable[[], object]:
        return lambda: self.transcribe([wave])
