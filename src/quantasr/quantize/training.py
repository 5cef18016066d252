"""Quantization-aware training (QAT): a calibrated model whose quantizers round while it learns.

The order is ``prepare`` → ``calibrate`` → :class:`QatState` → training → :meth:`QatState.settle` → ``convert``. What is
trained is what is exported: the same layers, formats and arithmetic (Jacob et al., arXiv 1712.05877).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantasr.errors import TrainingError
from quantasr.numerics.quantizers import InputQuantizer, Phase
from quantasr.numerics.training import InputTraining
from quantasr.quantize.prepare import Prepared
from quantasr.sources.asr_model import evaluating

SCALES = ("learned", "observed")


@dataclass(frozen=True)
class QatOptions:
    """How quantizers behave in training.

    ``scales``: ``learned`` by gradients (LSQ), or ``observed``: weights' scales follow the weights, inputs' are moving
    averages. Either way they stand still after ``freeze_scales_after`` steps (None: never).

    Raises :class:`TrainingError` for values that do not exist.
    """

    scales: str = "learned"
    freeze_scales_after: int | None = None

    def __post_init__(self) -> None:
        if self.scales not in SCALES:
            raise TrainingError(f"scales = {self.scales!r}: choose one of {', '.join(SCALES)}")
        limit = self.freeze_scales_after
        if limit is not None and (type(limit) is not int or limit < 0):
            raise TrainingError(f"freeze_scales_after = {limit!r}: give a number of steps, 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


class QatState(nn.Module):
    """What quantizers have of their own in training, as a module: parameters to learn, buffers to keep.

    ``prepared`` is calibrated. Scales of inputs lie in here, one for each tensor that layers read; those of weights at
    their layers.
    """

    def __init__(self, prepared: Prepared, options: QatOptions) -> None:
        super().__init__()
        self.options = options
        self._prepared = prepared
        self._norms = prepared.norms
        learned = options.scales == "learned"
        self.inputs = nn.ModuleList()
        for group in _groups(prepared):
            first = group[0]
            shared = InputTraining(first.scale, first.zero_point, first.qtype, learned=learned)
            self.inputs.append(shared)
            for quantizer in group:
                quantizer.train_like(shared)
        module = prepared.model.module
        for path, weight in prepared.weights.items():
            weight.start_training(module.get_submodule(path).weight, learned=learned)  # type: ignore[arg-type]

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Round, with gradients, for as long as the block lasts."""
        prepared = self._prepared
        prepared.set_phase(Phase.TRAIN)
        try:
            with prepared.products or nullcontext():
                yield
        finally:
            prepared.set_phase(Phase.FLOAT)
            for shared in self._inputs():
                shared.forget()

    def after_step(self) -> None:
        """To be called after each optimizer step, in every process: ranges follow what has passed."""
        following = [shared for shared in self._inputs() if shared.following]
        if following:
            seen = torch.stack([shared.range_seen() for shared in following])
            for shared, row in zip(following, _over_processes(seen), strict=True):
                shared.follow(row)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the quantizers the scales and the integers of now: :attr:`Phase.SIMULATE` then is what was trained."""
        module = self._prepared.model.module
        for quantizer in self._inputs_of_layers():
            quantizer.freeze()
        for path, weight in self._prepared.weights.items():
            weight.freeze(module.get_submodule(path).weight)  # type: ignore[arg-type]

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Simulate what would be exported now, for as long as the block lasts."""
        self.settle()
        try:
            with self._norms.as_in_inference(), self._prepared.active(Phase.SIMULATE):
                yield
        finally:
            # Only the main process validates: the state of the model must be the same in all of them.
            for weight in self._prepared.weights.values():
                weight.thaw()

    def finish(self) -> None:
        """End training: batch norms go into their layers, and the scales are what they are."""
        self._prepared.folded += self._norms.fold(self._prepared.model.module)
        self.settle()

    def freeze_due(self, steps: int) -> None:
        """Let the scales stand still if that is due after so many steps."""
        limit = self.options.freeze_scales_after
        if limit is None or steps < limit:
            return
        for trained in self._scales():
            trained.following = trained.learned = False
            trained.log_scale.requires_grad_(False)

    def freeze_norms(self) -> None:
        """From now on batch norms that will be folded are as in inference."""
        self._norms.freeze()

    def _inputs(self) -> Iterator[InputTraining]:
        for module in self.inputs:
            assert isinstance(module, InputTraining)
            yield module

    def _scales(self) -> Iterator[Any]:
        yield from self._inputs()
        yield from (weight.trained for weight in self._prepared.weights.values())

    def _inputs_of_layers(self) -> Iterator[InputQuantizer]:
        return (q for q in self._prepared.quantizers() if isinstance(q, InputQuantizer))


def _groups(prepared: Prepared) -> list[list[InputQuantizer]]:
    """Quantizers of inputs, those together that read the same tensor with the same format and range."""
    quantizers = [q for q in prepared.quantizers() if isinstance(q, InputQuantizer) and q.seen]
    for quantizer in quantizers:
        quantizer.freeze()
    readers: dict[tuple[Any, ...], list[InputQuantizer]] = {}
    kept: list[Tensor] = []  # keeping a tensor keeps its id from being used again

    def seen(quantizer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(quantizer, InputQuantizer)
        kept.append(args[0])
        scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
        key = (id(args[0]), args[0]._version, quantizer.qtype, scale, zero_point)
        readers.setdefault(key, []).append(quantizer)

    handles = [quantizer.register_forward_pre_hook(seen) for quantizer in quantizers]
    model = prepared.model
    try:
        with evaluating(model.module), torch.no_grad(), prepared.products or nullcontext():
            model.graph(*model.probe())
    finally:
        for handle in handles:
            handle.remove()
    groups: list[list[InputQuantizer]] = []
    grouped: set[int] = set()
    for found in readers.values():
        new = [q for q in dict.fromkeys(found) if id(q) not in grouped]
        grouped.update(id(q) for q in new)
        if new:
            groups.append(new)
    return groups + [[q] for q in quantizers if id(q) not in grouped]


def _over_processes(seen: Tensor) -> Tensor:
    """``[inputs, 2]``: the smallest and the largest values over all processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return seen
    # One reduction for both ends.
    ends = torch.stack([seen[:, 0], -seen[:, 1]])
    distributed.all_reduce(ends, op=distributed.ReduceOp.MIN)
    return torch.stack([ends[0], -ends[1]], dim=1)
