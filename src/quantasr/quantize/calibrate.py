"""Calibrate: run recordings through the float model while observers watch."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from quantasr.errors import CalibrationError
from quantasr.numerics.quantizers import Phase
from quantasr.progress import track
from quantasr.quantize.prepare import Prepared
from quantasr.speech.transcript import Waveform


def calibrate(prepared: Prepared, waves: Iterable[Waveform], *, progress: bool = False) -> int:
    """Observe every quantized input on ``waves``, one at a time; how many there were.

    The waves are mono and at the model's sample rate; long ones are cut in the windows that a transcriber would cut.
    One pass, in bounded memory. Weights stay float meanwhile, so that every input is what the original would see.
    Layers that are never called are left float. Raises :class:`CalibrationError` when there are no recordings or a
    layer gives NaN, and :class:`quantasr.errors.AudioError` when a recording is empty or not finite.
    """
    count = 0
    total = len(waves) if isinstance(waves, Sized) else None
    with prepared.active(Phase.OBSERVE):
        for wave in track(waves, "calibrating", total=total, show=progress):
            prepared.model.run(wave)
            count += 1
    if count == 0:
        raise CalibrationError("no calibration recordings: static scales need some speech")
    for path in prepared.never_called():
        prepared.leave_float(path, "it is never called when transcribing")
    return count
