"""An LSTM as linear layers, which can be quantized, in the place of PyTorch's, which can not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class LinearLstm(nn.Module):
    """What ``lstm`` computes, without dropout (Hochreiter and Schmidhuber, 1997; gates in PyTorch's order).

    A step of one recording reads every weight for a single row: its time is that of moving them, and in 8 bits they
    are a quarter as many bytes. Each layer has two linear layers, ``input`` and ``hidden``, so that what they read has
    scales of its own.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.hidden_size = lstm.hidden_size
        self.layers = nn.ModuleList(_layer(lstm, index) for index in range(lstm.num_layers))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``[time, batch, size]``, states ``[layers, batch, size]`` -> the same of the last layer, next states."""
        if state is None:
            zeros = x.new_zeros(len(self.layers), x.shape[1], self.hidden_size)
            state = (zeros, zeros)
        # Three axes throughout: of two, a linear layer becomes a Gemm, which ONNX Runtime 1.31 runs in float, with its
        # weights made floats in every call.
        hidden, cells = list(torch.split(state[0], 1)), list(torch.split(state[1], 1))
        found = []
        for row in torch.split(x, 1):
            for index, layer in enumerate(self.layers):
                row, cells[index] = _step(layer, row, hidden[index], cells[index])
                hidden[index] = row
            found.append(row)
        return torch.cat(found), (torch.cat(hidden), torch.cat(cells))


def _layer(lstm: nn.LSTM, index: int) -> nn.ModuleDict:
    """The two linear layers of one layer of ``lstm``; both biases are in the first."""
    weights = {name: getattr(lstm, f"weight_{name}_l{index}") for name in ("ih", "hh")}
    made = nn.ModuleDict()
    for name, weight in (("input", weights["ih"]), ("hidden", weights["hh"])):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=name == "input" and lstm.bias)
        linear.weight = weight
        made[name] = linear
    if lstm.bias:
        bias = getattr(lstm, f"bias_ih_l{index}") + getattr(lstm, f"bias_hh_l{index}")
        made["input"].bias = nn.Parameter(bias.detach())
    return made.train(lstm.training)


def _step(layer: nn.Module, x: Tensor, hidden: Tensor, cell: Tensor) -> State:
    assert isinstance(layer, nn.ModuleDict)
    gates: Tensor = layer["input"](x) + layer["hidden"](hidden)
    take, keep, new, give = gates.chunk(4, -1)
    cell = torch.sigmoid(keep) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(cell), cell
