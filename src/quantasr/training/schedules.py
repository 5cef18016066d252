"""Learning rates over the steps of a run. They need nothing but the step, so a resumed run has nothing to restore."""

from __future__ import annotations

import math

from quantasr.training.options import TrainOptions


def rate_factor(options: TrainOptions, step: int, total: int) -> float:
    """What ``options.rate`` is multiplied by in ``step`` (from 0) of ``total``.

    The warm-up is linear: ``(step + 1) / (warm_up + 1)``. After it, ``p`` goes from 0 to 1 at the last step and the
    factor from 1 to ``final_rate``: on half a cosine, linearly, by ``final_rate ** p``, or not at all.
    """
    if step < options.warm_up:
        return (step + 1) / (options.warm_up + 1)
    p = (step - options.warm_up) / max(1, total - 1 - options.warm_up)
    end = options.final_rate
    match options.schedule:
        case "cosine":
            return end + (1 - end) * (1 + math.cos(math.pi * p)) / 2
        case "linear":
            return 1 + (end - 1) * p
        case "exponential":
            return float(end**p)
        case _:
            return 1.0
