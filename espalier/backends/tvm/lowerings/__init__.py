"""Operators whose lowering is better than their reference run on tensors."""
