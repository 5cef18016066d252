"""PyTorch's own int8: a live model converted in place, running in its framework's own code.

The only engine that imports PyTorch, and the only package that touches its quantized kernels.
"""

# Registers what each operation does with int8 activations.
from quantasr.engines.torch_native import operations as operations
