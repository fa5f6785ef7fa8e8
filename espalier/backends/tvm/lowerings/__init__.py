"""Operators whose lowering is better than their reference run on tensors."""

from espalier.backends.tvm.lowerings import control, indexing

__all__ = ["control", "indexing"]
