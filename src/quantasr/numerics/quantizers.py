"""Quantizers: small modules that attach to a layer and are the only thing that changes it.

An :class:`InputQuantizer` sits in a forward pre-hook, a :class:`WeightQuantizer` is a parametrization. The layer
itself is never rewritten, so subclasses with their own ``forward`` keep working.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn

from quantasr.errors import CalibrationError, RecipeError
from quantasr.numerics.fake_quantize import (
    dequantize_weight,
    dynamic_fake_quantize,
    fake_quantize,
    quantize,
    scale_and_zero_point,
)
from quantasr.numerics.histogram import Sample
from quantasr.numerics.observers import Observer
from quantasr.numerics.qtypes import QType
from quantasr.numerics.training import InputTraining, WeightTraining

_ROWS = 512


class Phase(StrEnum):
    """What a quantizer does with the tensor that passes."""

    FLOAT = "float"  # nothing: the layer is the original
    OBSERVE = "observe"  # watches inputs; weights pass unchanged
    SIMULATE = "simulate"  # rounds, as the exported graph will
    TRAIN = "train"  # rounds likewise, with gradients, by scales that are still moving


class Samples:
    """Samples of tensors for the observers of one model; layers that read the same tensor get the same sample."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Sample] | None = None

    def of(self, x: Tensor) -> Sample:
        """The values of ``x`` as ``[1, values]``."""
        # An operation in place leaves the object but changes its version; inference tensors have none.
        version = -1 if x.is_inference() else x._version
        if self._last is None or self._last[0] is not x or self._last[1] != version or version < 0:
            self._last = x, version, Sample(x.reshape(1, -1))
        return self._last[2]

    def clear(self) -> None:
        """Let go of the last tensor."""
        self._last = None


class InputQuantizer(nn.Module):
    """Static quantizer of a layer's input: one scale, fixed after calibration.

    ``label`` is what its node in an exported graph goes by.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qtype: QType, observer: Callable[[int], Observer], samples: Samples | None = None) -> None:
        """``samples`` is what the quantizers of one model share."""
        super().__init__()
        if qtype.granularity != "per_tensor":
            raise RecipeError(
                f"input granularity = {qtype.granularity!r}: inputs of a layer have one scale, per_tensor"
            )
        self.qtype = qtype
        self.observer: Observer = observer(1)
        self.samples = samples or Samples()
        self.label = ""
        self.phase = Phase.FLOAT
        self.trained: InputTraining | None = None
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.phase is Phase.OBSERVE:
            self.observer.observe(self.samples.of(x))
            return x
        if self.phase is Phase.SIMULATE:
            return fake_quantize(x, self.scale, self.zero_point, self.qtype, self.label)
        if self.phase is Phase.TRAIN and self.trained is not None:
            out: Tensor = self.trained(x)
            return out
        return x

    @property
    def seen(self) -> bool:
        """Whether calibration gave it anything."""
        return self.observer.count > 0

    def train_like(self, trained: InputTraining) -> None:
        """From now on the scale is that of ``trained``, which several quantizers of one tensor share."""
        # Not as a submodule: whoever trains holds it once, under a name of its own.
        self.__dict__["trained"] = trained

    def freeze(self) -> None:
        """Fix the scale, as trained or from what was observed; :class:`CalibrationError` when nothing was."""
        if self.trained is not None:
            self.scale.copy_(self.trained.scale.detach())
            self.zero_point.copy_(self.trained.zero_point)
            return
        low, high = self.observer.range(self.qtype)
        scale, zero_point = scale_and_zero_point(low, high, self.qtype)
        self.scale.copy_(scale[0])
        self.zero_point.copy_(zero_point[0])


class OperandQuantizer(InputQuantizer):
    """Static quantizer of an operand of an attention product: symmetric, or affine where nothing is negative.

    Engines' integer attention has no zero points; the probabilities behind a softmax need none either, because
    their affine range starts at zero. ``signed`` keeps it symmetric all the same: 7 bits cannot saturate only if they
    are signed.
    """

    signed = False

    def freeze(self) -> None:
        """Choose the format from what was observed, then fix the scale."""
        if self.seen and self.trained is None:
            signed = self.signed or bool(self.observer.low.min() < 0)
            self.qtype = QType(self.qtype.bits, symmetric=signed)
        super().freeze()


class DynamicInputQuantizer(nn.Module):
    """Dynamic quantizer: each call takes its scale from the tensor at hand (8 bits, affine, per tensor)."""

    def __init__(self, qtype: QType) -> None:
        super().__init__()
        if (qtype.bits, qtype.symmetric, qtype.granularity) != (8, False, "per_tensor"):
            raise RecipeError(f"mode dynamic quantizes inputs as int8 affine per_tensor, not {qtype}")
        self.qtype = qtype
        self.label = ""
        self.phase = Phase.FLOAT
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.phase is Phase.OBSERVE:
            self.calls += 1
        if self.phase in (Phase.SIMULATE, Phase.TRAIN):
            return dynamic_fake_quantize(x, self.label)
        return x

    @property
    def seen(self) -> bool:
        """Whether the layer was called during calibration."""
        return self.calls > 0

    def freeze(self) -> None:
        """Nothing to fix; raises :class:`CalibrationError` when the layer was never called."""
        if not self.seen:
            raise CalibrationError("the layer was never called during calibration")


class WeightQuantizer(nn.Module):
    """Parametrization that rounds a weight; after :meth:`freeze` it holds the integers themselves."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, qtype: QType, observer: Callable[[int], Observer], axis: int) -> None:
        """``axis`` is the output-channel axis of the weight, for ``per_channel``."""
        super().__init__()
        self.qtype = qtype
        self.observer = observer
        self.axis = axis
        self.label = ""
        self.phase = Phase.FLOAT
        self.calls = 0
        self.frozen = False
        self.trained: WeightTraining | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if self.phase is Phase.OBSERVE:
            self.calls += 1
        if self.phase is Phase.TRAIN and self.trained is not None:
            return self._from_rows(self.trained(self._rows(weight)), weight)
        if self.phase is not Phase.SIMULATE:
            return weight
        if not self.frozen:
            self.freeze(weight)
        return dequantize_weight(self.integers, self.scale, self.zero_point, self.qtype, self.axis, self.label)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to the weight stores it as it is."""
        return weight

    def check(self, weight: Tensor, path: str) -> None:
        """Raise :class:`RecipeError` when the format does not fit the weight of the layer at ``path``."""
        if self.qtype.granularity == "per_group" and weight.ndim != 2:
            raise RecipeError(f"{path}: granularity per_group is for matrices (linear, embedding), not convolutions")

    @torch.no_grad()
    def start_training(self, weight: Tensor, *, learned: bool) -> WeightTraining:
        """Round ``weight`` in training from now on, by scales that start as :meth:`freeze` would choose them."""
        rows = self._rows(weight)
        scale, zero_point = self._row_scales(rows)
        self.trained = WeightTraining(rows, scale, zero_point, self.qtype, learned=learned)
        return self.trained

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> None:
        """Fix the scales for ``weight``, as trained or chosen now, and store its integers (int8, or int16 if wider)."""
        qtype = self.qtype
        rows = self._rows(weight)
        if self.trained is not None:
            scale, zero_point = self.trained.scale.detach(), self.trained.zero_point.int()
        else:
            scale, zero_point = self._row_scales(rows)
        integers = self._from_rows(quantize(rows.float(), scale[:, None], zero_point[:, None], qtype), weight)
        if qtype.granularity == "per_group":
            scale, zero_point = (values.reshape(weight.shape[0], -1) for values in (scale, zero_point))
        elif qtype.granularity == "per_tensor":
            scale, zero_point = scale[0], zero_point[0]
        # Persistent: a trace names only such buffers after their layer.
        self.register_buffer("integers", integers.to(torch.int16 if qtype.bits <= 8 else torch.int32))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.frozen = True

    def thaw(self) -> None:
        """Undo :meth:`freeze`: the weight may change again."""
        for name in ("integers", "scale", "zero_point") if self.frozen else ():
            delattr(self, name)
        self.frozen = False

    def _row_scales(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of each row."""
        # A block of rows at a time: an observer may keep a histogram of each row.
        parts = [self._scales(block) for block in torch.split(rows, _ROWS)]
        scale, zero_point = (torch.cat(values) for values in zip(*parts, strict=True))
        return scale, zero_point

    def _scales(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        observer = self.observer(len(rows))
        observer.observe(rows)
        return scale_and_zero_point(*observer.range(self.qtype), self.qtype)

    def _rows(self, weight: Tensor) -> Tensor:
        """The weight as ``[scales, values]``."""
        if self.qtype.granularity == "per_tensor":
            return weight.reshape(1, -1)
        if self.qtype.granularity == "per_channel":
            return weight.transpose(0, self.axis).reshape(weight.shape[self.axis], -1)
        size = self.qtype.group_size or 1
        # Zeros at the end of the last group change no range: every range holds zero.
        padded = nn.functional.pad(weight, (0, -weight.shape[1] % size))
        return padded.reshape(-1, size)

    def _from_rows(self, rows: Tensor, weight: Tensor) -> Tensor:
        """The inverse of :meth:`_rows`, for a weight of the shape of ``weight``."""
        if self.qtype.granularity == "per_group":
            return rows.reshape(len(weight), -1)[:, : weight.shape[1]]
        if self.qtype.granularity == "per_tensor":
            return rows.reshape(weight.shape)
        moved = weight.transpose(0, self.axis).shape
        return rows.reshape(moved).transpose(0, self.axis)


Quantizer = InputQuantizer | DynamicInputQuantizer | WeightQuantizer
