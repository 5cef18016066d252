"""Calibrate: run recordings through the float model while observers watch."""

from __future__ import annotations

from collections.abc import Iterable, Sized

import torch

from quantasr.errors import CalibrationError
from quantasr.numerics.quantizers import DynamicInputQuantizer, Phase
from quantasr.progress import track
from quantasr.quantize.prepare import Prepared
from quantasr.speech.transcript import Waveform


def calibrate(prepared: Prepared, waves: Iterable[Waveform], *, progress: bool = False) -> int:
    """Observe every quantized input on ``waves`` (mono, at the model's sample rate), one at a time; how many there were.

    One pass, in bounded memory; raises :class:`CalibrationError` when there are no recordings or a layer gives NaN.
    Weights stay float meanwhile, so that every input is what the original would see.
    """
    model, count = prepared.model, 0
    total = len(waves) if isinstance(waves, Sized) else None
    with prepared.active(Phase.OBSERVE), torch.inference_mode():
        for wave in track(waves, "calibrating", total=total, show=progress):
            if len(wave) < model.min_samples:
                continue
            model.graph(*model.inputs([wave]))
            count += 1
    if count == 0:
        raise CalibrationError("no calibration recording is long enough to use: static scales need some speech")
    for path, quantizer in list(prepared.inputs.items()):
        seen = quantizer.calls if isinstance(quantizer, DynamicInputQuantizer) else quantizer.observer.count
        if not seen:
            prepared.leave_float(path, "it is never called when transcribing")
    return count
