"""Recordings that look wrong, block by block."""

from __future__ import annotations

import numpy as np
import pytest

from quantasr.measure.faults import FaultWatch, advise
from quantasr.speech.transcript import Waveform

SPEECH = (0.3 * np.sin(np.arange(8000))).astype(np.float32)
SILENCE = np.zeros(8000, np.float32)
CLIPPED = np.sign(SPEECH)


@pytest.mark.parametrize(
    ("blocks", "first_words"),
    [
        ([SPEECH], []),
        ([SPEECH, SILENCE, SPEECH], []),  # a pause
        ([SILENCE, SILENCE], ["silent:"]),
        ([SPEECH, CLIPPED, CLIPPED], ["clipped"]),
        ([SILENCE, CLIPPED], ["clipped"]),
        ([SPEECH * 30000], ["louder"]),
        ([], []),
    ],
)
def test_faults_of_a_whole_recording(blocks: list[Waveform], first_words: list[str]) -> None:
    watch = FaultWatch()
    passed = list(watch.watch(iter(blocks)))
    assert all(a is b for a, b in zip(passed, blocks, strict=True))
    assert [fault.split()[0] for fault in watch.faults] == first_words or blocks == []


def test_every_fault_has_a_remedy() -> None:
    assert advise("silent") == "silent: check the microphone or the channel, or leave it out"
    assert "at a lower level" in advise("clipped (3.0 % of samples at full scale)")
    assert advise("something new") == "something new"
