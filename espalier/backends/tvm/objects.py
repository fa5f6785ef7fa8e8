"""Compiles the functions of a static graph to object files, each kernel on its own, and links them to a library.

So the code of a kernel depends on nothing but the kernel, the target and the compiler, and what was compiled before
(`espalier.backends.cache`) is the same as what is compiled now. Kernels find each other by name: that of a kernel is
the digest of all that it is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import tvm
from tvm import tirx
from tvm.support import cc

from espalier.backends.cache import Cache

Linker: TypeAlias = Callable[..., None]
FORMAT = 1
"""Of what the cache keeps; another one for each change that the digests don't show."""
PREFIX = "kernel_"
HIDDEN = f"{{ local: {PREFIX}*; }};\n"
"""For the linker: the library's own functions call kernels, nobody else does."""


@cache
def compiler() -> str:
    """A digest of what turns a choice into code: this package's sources, and TVM."""
    found = hashlib.sha256(version("apache-tvm").encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(path.relative_to(Path(__file__).parent).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:32]


def digest(function: tirx.PrimFunc) -> str:
    """Of all that a function is: of its whole serialization, which holds what TVM's own hash leaves to chance."""
    return hashlib.sha256(tvm.ir.save_json(function).encode()).hexdigest()


def kernel_name(function: tirx.PrimFunc) -> str:
    """The symbol of a kernel, which says all of what it is."""
    return PREFIX + digest(function)


def kernel_pipeline() -> Any:
    """TVM's default pipeline for loops, without the simplifications that LLVM does in a fraction of the time."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]  # TVM has no types
    def lowered(functions: Any, _: Any) -> Any:
        steps = tirx.transform
        return tvm.transform.Sequential([
            steps.FlattenBuffer(), steps.NarrowDataType(32), steps.VectorizeLoop(True), steps.UnrollLoop(),
            steps.VerifyMemory(), steps.SplitHostDevice(), steps.MakePackedAPI(),
        ])(functions)  # fmt: skip

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]  # TVM has no types
    def named(functions: Any, _: Any) -> Any:
        """Kernels by their symbols, for other object files: only now, as what has one before takes packed arguments."""
        found = {
            variable: function.with_attr("global_symbol", variable.name_hint)
            if variable.name_hint.startswith(PREFIX)
            else function
            for variable, function in functions.functions.items()
        }
        return tvm.IRModule(found, attrs=functions.attrs)

    def host() -> Any:
        return tvm.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin(), named])

    return lowered, host, lambda: tvm.transform.Sequential([])


PIPELINE = "espalier"
tirx.register_tir_pipeline(PIPELINE, kernel_pipeline)


def link(functions: tvm.IRModule, target: Any, path: Path, linker: Linker | None, kept: Cache | None) -> None:
    """Write the library of functions that call kernels by name; the same ones give the same bytes.

    Object files are taken from the cache and put there. Without a linker (`cross.linker`), TVM's own links.
    """
    named = {str(variable.name_hint): function for variable, function in functions.functions.items()}
    entries = [name for name in sorted(named) if not name.startswith(PREFIX)]
    units = [entries, *([name] for name in sorted(named) if name.startswith(PREFIX))]
    with tempfile.TemporaryDirectory(prefix="espalier-") as folder:
        files = []
        for number, names in enumerate(units):
            files.append(str(Path(folder, f"{number}.o")))
            _write({name: named[name] for name in names}, target, Path(files[-1]), kept)
        script = Path(folder, "symbols")
        script.write_text(HIDDEN)
        options = ["-Wl,--gc-sections", f"-Wl,--version-script={script}"]  # each file has the same helpers
        (linker or cc.create_shared)(str(path), files, options)


def _write(functions: Mapping[str, tirx.PrimFunc], target: Any, path: Path, kept: Cache | None) -> None:
    """The object file of some functions."""
    key = "" if kept is None else _key(functions, target)
    content = None if kept is None else kept.get(key)
    if content is not None:
        path.write_bytes(content)
        return
    with target:
        module = tvm.IRModule({tvm.ir.GlobalVar(name): function for name, function in functions.items()})
        tirx.build(module, target, pipeline=PIPELINE).write_to_file(str(path))
    if kept is not None:
        kept.put(key, path.read_bytes())


def _key(functions: Mapping[str, tirx.PrimFunc], target: Any) -> str:
    """A digest of all that decides what an object file holds."""
    context = tvm.transform.PassContext.current()
    options = [f"{name}={value}" for name, value in context.config.items()]
    switched = [int(context.opt_level), sorted(options), *map(list, (context.required_pass, context.disabled_pass))]
    content = [name if name.startswith(PREFIX) else digest(function) for name, function in functions.items()]
    made_by = [FORMAT, compiler(), _tvm(), str(target), switched]
    return hashlib.sha256(json.dumps([*made_by, content], default=str).encode()).hexdigest()


@cache
def _tvm() -> list[str]:
    """Which TVM this is, and with which LLVM: what has one version may have been built differently."""
    found = [f"llvm {tvm.get_global_func('target.llvm_version_major')()}"]
    for path in sorted(Path(tvm.__file__).parent.glob("lib*/libtvm_*.so")):
        about = path.stat()
        found.append(f"{path.name} {about.st_size} {about.st_mtime_ns}")
    return found
