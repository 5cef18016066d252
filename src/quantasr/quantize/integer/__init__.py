"""Layers computed in integers of 2 to 16 bits, exactly, and the simulation that agrees with them to the bit."""

from quantasr.quantize.integer.arithmetic import Form, Product, Quantized, layer
from quantasr.quantize.integer.products import KINDS, IntegerProducts, integer_products

__all__ = ["KINDS", "Form", "IntegerProducts", "Product", "Quantized", "integer_products", "layer"]
