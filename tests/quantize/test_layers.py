"""Which kind a layer is of."""

from __future__ import annotations

import pytest
from torch import nn

from quantasr.quantize.layers import kind_of


class Causal(nn.Conv1d):
    """A framework's own convolution."""


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Linear(4, 4), "linear"),
        (nn.Conv1d(4, 8, 3), "conv1d"),
        (Causal(4, 8, 3), "conv1d"),
        (nn.Conv1d(4, 8, 3, groups=2), "conv1d"),
        (nn.Conv1d(1, 8, 3), "conv1d"),
        (Causal(4, 4, 3, groups=4), "depthwise_conv1d"),
        (nn.Conv1d(4, 8, 3, groups=4), "depthwise_conv1d"),
        (nn.Conv2d(1, 8, 3), "conv2d"),
        (nn.Conv2d(4, 4, 3, groups=4), "depthwise_conv2d"),
        (nn.BatchNorm1d(4), None),
    ],
)
def test_kinds(layer: nn.Module, kind: str | None) -> None:
    assert kind_of(layer) == kind
