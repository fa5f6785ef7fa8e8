"""The primitives over tensors: what operators' references are run with while a graph is lowered.

Names that are not here, or calls without a tensor among the arguments, are numpy's.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from espalier.backends.tvm import (
    arithmetic,
    contraction,
    conversion,
    elementary,
    fourier,
    movement,
    programs,
    reduction,
    selection,
)
from espalier.backends.tvm.arithmetic import PRIMITIVES, primitive
from espalier.backends.tvm.tensor import Untraceable
from espalier.ir.xp import numpy as numpy_xp
from espalier.ir.xp.formulas import FORMULAS

_MODULES = (arithmetic, contraction, conversion, elementary, fourier, movement, programs, reduction, selection)


RANDOM = ("random_generator", "random_normal", "random_uniform")


def __getattr__(name: str) -> Any:
    if name in RANDOM:  # drawn once when compiling, they would be the same in every run
        raise Untraceable("the TVM backend draws no random numbers")
    if name in PRIMITIVES:
        return PRIMITIVES[name]
    if name in FORMULAS:
        return functools.partial(FORMULAS[name], sys.modules[__name__])
    own = getattr(numpy_xp, name)
    if not callable(own):
        return own

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise Untraceable(f"{name} has no TVM form")

    refuse.__name__ = name
    return primitive(refuse)
