"""Folding of batch norms: exact where it is allowed, and left alone where it would change the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quantasr.quantize.fold import bake_parametrizations, fold_batch_norms


def _norm(norm: nn.Module) -> nn.Module:
    """Statistics and parameters that are not the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*norm.named_buffers(), *norm.named_parameters()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0) if name in ("running_var", "weight") else tensor.normal_()
    return norm


class Chain(nn.Module):
    """Layer, then norm, then a nonlinearity, by calls that Sequential would not make."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, _norm(norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        assert out.size(0) > 0 and len(out) > 0  # asking for the shape is no use of the values
        return torch.relu(self.norm(out))


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda: nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 20)),
        (lambda: nn.Conv1d(6, 8, 3, bias=False, stride=2, padding=1), nn.BatchNorm1d(8), (2, 6, 20)),
        (lambda: nn.Conv1d(6, 8, 3, groups=2), nn.BatchNorm1d(8, affine=False), (2, 6, 20)),
        (lambda: nn.Conv1d(8, 8, 3, groups=8), nn.BatchNorm1d(8, eps=0.1), (2, 8, 20)),
        (lambda: nn.Conv2d(3, 8, (3, 2)), nn.BatchNorm2d(8), (2, 3, 9, 7)),
        (lambda: nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 4, 5, 6)),
        (lambda: nn.ConvTranspose1d(6, 8, 3, stride=2), nn.BatchNorm1d(8), (2, 6, 20)),
        (lambda: nn.ConvTranspose1d(6, 8, 3, groups=2), nn.BatchNorm1d(8), (2, 6, 20)),
        (lambda: nn.ConvTranspose1d(8, 8, 4, groups=8, bias=False), nn.BatchNorm1d(8), (2, 8, 20)),
        (lambda: nn.Linear(6, 8), nn.BatchNorm1d(8), (5, 6)),
        (lambda: nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), (5, 6)),
    ],
)
def test_folded_where_the_norm_reads_the_layer(
    layer: Callable[[], nn.Module], norm: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = Chain(layer(), norm).eval()
    x = torch.randn(shape)
    before = model(x)
    assert fold_batch_norms(model, model, [x]) == [("layer", "norm")]
    assert isinstance(model.norm, nn.Identity)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


class Flat(nn.Conv1d):
    """A 1-d convolution computed as a 2-d one of height 1, as sources do for speed."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight[:, :, None], self.bias, groups=self.groups)


@pytest.mark.parametrize("groups", [1, 8])
def test_folded_where_1d_is_computed_in_2d(groups: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    norm._check_input_dim = lambda _: None  # type: ignore[method-assign]
    model = Chain(Flat(8, 8, 3, groups=groups), norm).eval()
    x = torch.randn(2, 8, 1, 20)
    before = model(x)
    assert fold_batch_norms(model, model, [x]) == [("layer", "norm")]
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


class Wrapped(Chain):
    """SpeechBrain's norms: the channels are brought to axis 1 and back, or time is put to the batch."""

    def __init__(self, layer: nn.Module, norm: nn.Module, flat: bool) -> None:
        super().__init__(layer, norm)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        if self.flat:
            return self.norm(out.reshape(-1, out.shape[-1])).reshape(out.shape)
        return self.norm(out.transpose(-1, 1)).transpose(1, -1)


@pytest.mark.parametrize("flat", [True, False])
def test_folded_behind_a_linear_layer_over_time(flat: bool) -> None:
    torch.manual_seed(0)
    model = Wrapped(nn.Linear(6, 8), nn.BatchNorm1d(8), flat)
    x = torch.randn(2, 5, 6)
    model.train()(torch.randn(4, 9, 6))  # statistics that are not 0 and 1
    before = model.eval()(x)
    assert fold_batch_norms(model, model, [x]) == [("layer", "norm")]
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


class OverTime(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))  # axis 1 is time here


class MovedAndUsed(Chain):
    def forward(self, x: Tensor) -> Tensor:
        moved = self.layer(x).transpose(1, 2)
        return self.norm(moved) + moved


@pytest.mark.parametrize("kind", [OverTime, MovedAndUsed])
def test_not_folded_over_time_nor_when_something_else_reads_what_was_moved(kind: type[Chain]) -> None:
    model = kind(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    assert fold_batch_norms(model, model, [torch.randn(2, 8, 6)]) == []


class UsedTwice(Chain):
    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return self.norm(out) + out


class GivenAway(Chain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = self.layer(x)
        return out, self.norm(out)


class NormFirst(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


class CalledTwice(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) + self.layer(2 * x).mean()


class OneNormForTwo(Chain):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer, norm)
        self.other = nn.Conv1d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) + self.norm(self.other(x))


class Between(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x).tanh())


class Tied(Chain):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__(layer, norm)
        self.other = nn.Conv1d(6, 6, 3)
        self.other.weight = layer.weight  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) + self.other(x)


class NotCalled(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    "kind", [UsedTwice, GivenAway, NormFirst, CalledTwice, OneNormForTwo, Between, Tied, NotCalled]
)
def test_not_folded_where_that_would_change_something(kind: type[Chain]) -> None:
    torch.manual_seed(0)
    model = kind(nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6)).eval()
    x = torch.randn(2, 6, 20)
    before = model(x)
    assert fold_batch_norms(model, model, [x]) == []
    assert isinstance(model.norm, nn.BatchNorm1d)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_not_folded_without_statistics() -> None:
    model = Chain(nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6, track_running_stats=False)).eval()
    assert fold_batch_norms(model, model, [torch.randn(2, 6, 20)]) == []


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        # [batch, 8, 8]: the norm is over axis 1, the linear layer's channels are on axis 2; the sizes alone agree.
        (lambda: nn.Linear(6, 8), (2, 8, 6)),
        # [8, 8]: a convolution without batch axis gives [channels, time], where the norm takes axis 0 for the batch.
        (lambda: nn.Conv1d(6, 8, 3, padding=1), (6, 8)),
    ],
)
def test_not_folded_where_the_norm_takes_another_axis(layer: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = Chain(layer(), nn.BatchNorm1d(8)).eval()
    x = torch.randn(shape)
    before = model(x)
    assert fold_batch_norms(model, model, [x]) == []
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_a_norm_with_two_names_is_replaced_under_both() -> None:
    class Named(Chain):
        def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
            super().__init__(layer, norm)
            self.parts = nn.ModuleList([norm])

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](self.layer(x))

    model = Named(nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6)).eval()
    x = torch.randn(2, 6, 20)
    before = model(x)
    assert len(fold_batch_norms(model, model, [x])) == 1
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 2])
def test_both_weight_norms_are_baked(norm: Callable[..., nn.Module], dim: int) -> None:
    torch.manual_seed(0)
    model = Chain(norm(nn.Conv1d(6, 8, 3), name="weight", dim=dim), nn.BatchNorm1d(8)).eval()
    x = torch.randn(2, 6, 20)
    before = model(x)
    assert bake_parametrizations(model) == ["layer"]
    assert isinstance(model.layer._parameters["weight"], nn.Parameter)
    assert [name for name, _ in model.layer.named_parameters()] in (["bias", "weight"], ["weight", "bias"])
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    assert len(fold_batch_norms(model, model, [x])) == 1
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_spectral_norm_is_baked() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))).eval()
    x = torch.randn(3, 6)
    before = model(x)
    assert bake_parametrizations(model) == ["0"]
    torch.testing.assert_close(model(x), before)
