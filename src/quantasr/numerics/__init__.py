"""Number formats and the arithmetic of quantization.

``qtypes`` is plain Python, so that a runtime without PyTorch can read a recipe; ``observers``,
``fake_quantize`` and ``quantizers`` need PyTorch.
"""
