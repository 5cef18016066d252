"""From a live model to one ONNX graph with QuantizeLinear/DequantizeLinear (QDQ) pairs."""

from quantasr.export.graph import export_float, export_quantized, save_graph

__all__ = ["export_float", "export_quantized", "save_graph"]
