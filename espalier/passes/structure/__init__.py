"""Passes that change how large a model is: units lose indices, or get more of them."""

PASSES = (
    "deepen",
    "expansion",
    "mixture",
    "prune",
    "separate",
    "sparsity",
    "thin",
    "widen",
)
"""The modules here that declare passes; none of them imports torch before it runs."""
