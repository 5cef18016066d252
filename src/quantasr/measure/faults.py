"""Recordings that can be used but look wrong: silent, clipped, or far too loud."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quantasr.speech.audio import describe_faults
from quantasr.speech.transcript import Waveform

_REMEDIES = {
    "silent": "check the microphone or the channel, or leave it out",
    "clipped": "record it again at a lower level, or leave it out",
    "louder": "divide integers by their full scale before writing them as fractions",
}
"""What to do, by the first word of the fault."""


def advise(fault: str) -> str:
    """A fault that :func:`describe_faults` found, and what to do about it."""
    remedy = _REMEDIES.get(fault.split()[0])
    return f"{fault}: {remedy}" if remedy else fault


class FaultWatch:
    """Looks at a recording while it passes block by block; memory does not grow with its length."""

    def __init__(self) -> None:
        self._silent = True
        self._loud: dict[str, str] = {}

    def watch(self, blocks: Iterable[Waveform]) -> Iterator[Waveform]:
        """Pass the blocks on."""
        for block in blocks:
            faults = describe_faults(block)
            self._silent = self._silent and "silent" in faults
            for fault in faults:
                self._loud.setdefault(fault.split()[0], fault)  # the first block of a kind speaks for all
            yield block

    @property
    def faults(self) -> tuple[str, ...]:
        """What was wrong with what has passed, each with its remedy; one silent block among others is just a pause."""
        found = [fault for kind, fault in self._loud.items() if self._silent or kind != "silent"]
        return tuple(advise(fault) for fault in found)
