"""What training makes smaller: CTC, distillation from the float original, and both together."""

from quantasr.training.losses.ctc import CtcLoss
from quantasr.training.losses.distillation import Distillation
from quantasr.training.losses.weighted import Weighted

__all__ = ["CtcLoss", "Distillation", "Weighted"]
