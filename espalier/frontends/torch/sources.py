"""Where a node of an exported program comes from in the user's code."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path
from typing import Any

import torch

from espalier.ir.graph import Location

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY = (str(Path(torch.__file__).parent), sysconfig.get_path("stdlib"), "torch/", "<")


def location(node: torch.fx.Node) -> Location:
    """Module path and name of the node; the last line of its stack that is the user's."""
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if "metadata_hook" not in path]
    path = str(modules[-1]) if modules else ""
    name = f"{path}/{node.name}" if path else node.name
    line = source_line(node.meta)
    return Location(names=(name,), lines=(line,) if line else ())


def source_line(meta: dict[str, Any]) -> str:
    """FILE:LINE of the last frame outside of torch, the path cut to its last two parts; empty if there is none."""
    frames = _FRAME.findall(meta.get("stack_trace") or "")
    for file, line in reversed(frames):
        if not file.startswith(_LIBRARY):
            return f"{'/'.join(Path(file).parts[-2:])}:{line}"
    return ""
