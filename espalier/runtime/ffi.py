"""tvm_ffi without torch.

tvm_ffi imports torch if it is installed, which takes seconds and hundreds of megabytes, to know torch's types in its
own conversions; there is no switch for it. Here it is imported as if torch were not installed, unless torch is
imported already. Other threads see torch all the while, and it can be imported later; tensors still cross by DLPack.
Only `tvm_ffi.convert` and its like then don't know a `torch.dtype`: who needs that imports torch, or tvm_ffi, first.
The same goes for TVM's compiler, which the backend imports.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Absent:
    """A finder that finds no torch, for the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in ("torch", "torch_c_dlpack_ext") and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def import_tvm_ffi() -> Any:
    """The module tvm_ffi. Raises ImportError if it is not installed."""
    return import_without_torch("tvm_ffi")


def import_without_torch(name: str) -> Any:
    """A module, which does not import torch if nobody has yet. Raises ImportError if it is not installed."""
    if name in sys.modules or "torch" in sys.modules:
        return importlib.import_module(name)
    absent = _Absent()
    sys.meta_path.insert(0, absent)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(absent)


_settling = threading.Lock()


@contextmanager
def permitted_threads(count: int) -> Iterator[None]:
    """Let a pool of TVM's that starts inside have so many threads, unless TVM_NUM_THREADS is set.

    TVM would have as many as OMP_NUM_THREADS says, or one for each two processors; a calling thread's pool keeps the
    size that it starts with. The variable is gone afterwards, so that child processes do not take it for the user's.
    """
    with _settling:
        if "TVM_NUM_THREADS" in os.environ:
            yield
            return
        os.environ["TVM_NUM_THREADS"] = str(count)
        try:
            yield
        finally:
            del os.environ["TVM_NUM_THREADS"]
