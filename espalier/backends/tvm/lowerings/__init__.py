"""Operators whose lowering is better than their reference run on tensors."""

from espalier.backends.tvm.lowerings import control, convolution, indexing, pooling, quantization, recurrent, reduction

__all__ = ["control", "convolution", "indexing", "pooling", "quantization", "recurrent", "reduction"]
