"""Prepare a model for quantization, calibrate it, and fix the integers."""

from quantasr.quantize.calibrate import calibrate
from quantasr.quantize.convert import convert
from quantasr.quantize.prepare import LayerPlan, Prepared, prepare

__all__ = ["LayerPlan", "Prepared", "calibrate", "convert", "prepare"]
