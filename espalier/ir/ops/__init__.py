"""The operators, one class each, in files by what they do. See `espalier.ir.op` for what a class declares.

Every class can be imported from here by its name: `from espalier.ir.ops import Conv, Relu`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:
    if name[:1].isupper():
        for module in pkgutil.iter_modules(__path__):
            found = getattr(importlib.import_module(f"{__name__}.{module.name}"), name, None)
            if found is not None and found.__module__ == f"{__name__}.{module.name}":
                return found
    raise AttributeError(f"no operator class is called {name!r}")
