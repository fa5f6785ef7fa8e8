"""The TVM backend: graphs to Relax and TIR, compiled for CPUs."""

from espalier.runtime.ffi import import_without_torch

import_without_torch("tvm")
