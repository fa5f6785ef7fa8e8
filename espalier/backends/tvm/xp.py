"""The primitives over tensors: what operators' references are run with while a graph is lowered.

Names that are not here, or calls without a tensor among the arguments, are numpy's.
"""

from __future__ import annotations

from typing import Any

from espalier.ir.xp import numpy as numpy_xp
from espalier.backends.tvm import arithmetic, contraction, fourier, movement, programs, reduction
from espalier.backends.tvm.arithmetic import PRIMITIVES, primitive

_MODULES = (arithmetic, contraction, fourier, movement, programs, reduction)


def __getattr__(name: str) -> Any:
    if name in PRIMITIVES:
        return PRIMITIVES[name]
    own = getattr(numpy_xp, name)
    if not callable(own):
        return own

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise NotImplementedError(f"{name} has no TVM form")

    refuse.__name__ = name
    return primitive(refuse)
