"""The processes that train together, through Hugging Face Accelerate; alone, everything here does nothing.

Gradients are summed here, once a step, and not by PyTorch's ``DistributedDataParallel``. That one takes the mean of the
processes, wants each of them to run the model equally often, and every parameter to be used in each run; but here the
divisor is known before (the weight of the whole batch), a share may be empty, and layers may be dropped at random.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantasr.errors import MissingExtraError, TrainingError
from quantasr.training.average import averages

if TYPE_CHECKING:
    from accelerate import Accelerator

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where torchrun, Accelerate and the kinds of MPI say which process this is."""
_TOGETHER = 25_000_000
"""Values that are sent in one go."""
_PATIENCE = timedelta(hours=6)
"""For how long processes wait for one that validates."""


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks, also before training has begun."""
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), "0")) == 0


def started_alone() -> str:
    """What to say when ``accelerate launch --cpu`` was asked for several processes, of which it starts but one."""
    alone = "MASTER_ADDR" in os.environ and not any(name in os.environ for name in _RANKS)
    if not alone or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return ""
    return "accelerate launch --cpu starts one process: for several take --multi_gpu instead (or torchrun)"


class Processes:
    """This process (``rank`` of ``count``), its ``device``, and what all of them do together.

    Every method but the properties must be called by all processes in the same order.
    """

    def __init__(self, precision: str = "fp32") -> None:
        self.accelerator = _accelerator(precision)
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number's sum over the processes."""
        if self.count == 1:
            return list(numbers)
        return self._sum(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which an error of one process ends all of them, instead of leaving the others to wait."""
        try:
            yield
        except BaseException:
            self.sum(1.0)
            raise
        if self.sum(0.0)[0]:
            raise TrainingError("another process has stopped: its own message says why")

    def share(self, value: Any) -> Any:
        """What the main process has here."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give all processes the sum of their gradients; one that has none counts as zero, unless none has any."""
        if self.count == 1:
            return
        used = self._sum(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device))
        trained = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
        for part in _parts(trained):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in part]
            flat = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter, values in zip(part, torch.split(flat, [p.numel() for p in part]), strict=True):
                parameter.grad = values.view_as(parameter).to(parameter.dtype)

    def send_out(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with the main process's."""
        if self.count == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            for part in _parts([tensor for tensor in tensors if tensor.dtype == dtype]):
                flat = torch.cat([tensor.detach().flatten() for tensor in part])
                flat = flat.to(torch.uint8) if dtype == torch.bool else flat
                torch.distributed.broadcast(flat, src=0)
                _copy(flat, part)

    @torch.no_grad()
    def average(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each tensor over the processes that have it; of whole numbers, the first process's that does."""
        if self.count == 1:
            return dict(tensors)
        layouts: list[Any] = [None] * self.count
        mine = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        torch.distributed.all_gather_object(layouts, mine)
        means = {}
        for name in dict.fromkeys(name for layout in layouts for name in layout):
            owners = [rank for rank, layout in enumerate(layouts) if name in layout]
            shape, dtype = layouts[owners[0]][name]
            speaks = name in tensors and (averages(name, tensors[name]) or self.rank == owners[0])
            value = tensors[name] if speaks else torch.zeros(shape, dtype=dtype)
            # In float64 three equal values have that value for a mean, and whole numbers stay what they are.
            total = self._sum(value.to(self.device, torch.float64, copy=True))
            means[name] = (total / (len(owners) if averages(name, value) else 1)).to(dtype)
        return means

    def _sum(self, tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor


def _parts(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    """Tensors in groups of some millions of values: few messages, little memory."""
    part: list[Any] = []
    for tensor in tensors:
        if part and sum(other.numel() for other in part) + tensor.numel() > _TOGETHER:
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part


@torch.no_grad()
def _copy(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, values in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def _accelerator(precision: str) -> Accelerator:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise MissingExtraError("training needs accelerate: pip install 'quantasr[train]'") from None
    mixed = {"fp32": "no"}.get(precision, precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # it is one for the whole process: an earlier training had another precision
    # Said here, because started as several processes without a GPU, Accelerate would let each run alone. And Apple's
    # GPU has no CTC loss.
    device = torch.accelerator.current_accelerator(check_available=True)
    on_cpu = device is None or device.type == "mps"
    if precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError("precision = 'fp16' needs a GPU: on the CPU take bf16 or fp32")
    accelerator = Accelerator(
        mixed_precision=mixed, cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)]
    )
    accelerator.gradient_accumulation_steps = 1  # `accelerate launch` may set it; our losses are divided already
    return accelerator
