"""The losses of the transducers' training script, against every alignment written out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("nemo.collections.asr")
EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMES, COUNTS = torch.tensor([4, 3]), torch.tensor([2, 1])
TARGETS = torch.tensor([[1, 0], [2, 0]])


@pytest.fixture(scope="module")
def training() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        before = set(sys.modules)
        yield importlib.import_module("train_nemo_transducer_digits")
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
                del sys.modules[name]


def _joint(outputs: int) -> Tensor:
    return torch.randn(2, 4, 3, outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _all_paths(arcs: Any, frames: int, count: int, t: int = 0, u: int = 0) -> list[Tensor]:
    """Log-probs of all paths from frame ``t`` with ``u`` tokens said; ``arcs``: (frames on, token?, log-prob)."""
    if t == frames:
        return []  # only a blank may end it
    found = []
    for on, token, score in arcs(t, u):
        if token and u < count and t + on < frames:
            found += [score + rest for rest in _all_paths(arcs, frames, count, t + on, u + 1)]
        elif not token and t + on == frames and u == count:
            found.append(score)
        elif not token and on and t + on < frames:
            found += [score + rest for rest in _all_paths(arcs, frames, count, t + on, u)]
    return found


def test_rnnt_is_the_sum_over_all_alignments(training: Any) -> None:
    joint = _joint(4)
    found = training.rnnt_loss(joint, TARGETS, FRAMES, COUNTS)
    scores = joint.log_softmax(-1)
    for row in range(2):

        def arcs(t: int, u: int, row: int = row) -> list[tuple[int, bool, Tensor]]:
            said = [(0, True, scores[row, t, u, TARGETS[row, u]])] if u < COUNTS[row] else []
            return [(1, False, scores[row, t, u, -1]), *said]

        paths = _all_paths(arcs, int(FRAMES[row]), int(COUNTS[row]))
        assert len(paths) == (10, 3)[row]  # tokens and frames in any order that ends with a blank
        assert found[row].item() == pytest.approx(-torch.logsumexp(torch.stack(paths), 0).item(), rel=1e-9)


def test_tdt_is_the_sum_over_all_alignments_and_durations(training: Any) -> None:
    durations, sigma = (0, 1, 2), 0.05
    joint = _joint(4 + len(durations))
    found = training.tdt_loss(joint, TARGETS, FRAMES, COUNTS, durations, sigma)
    scores, lasting = joint[..., :4].log_softmax(-1) - sigma, joint[..., 4:].log_softmax(-1)
    for row in range(2):

        def arcs(t: int, u: int, row: int = row) -> list[tuple[int, bool, Tensor]]:
            ways = []
            for i, on in enumerate(durations):
                if on:
                    ways.append((on, False, scores[row, t, u, -1] + lasting[row, t, u, i]))
                if u < COUNTS[row]:
                    ways.append((on, True, scores[row, t, u, TARGETS[row, u]] + lasting[row, t, u, i]))
            return ways

        paths = _all_paths(arcs, int(FRAMES[row]), int(COUNTS[row]))
        assert len(paths) > 10
        assert found[row].item() == pytest.approx(-torch.logsumexp(torch.stack(paths), 0).item(), rel=1e-9)
