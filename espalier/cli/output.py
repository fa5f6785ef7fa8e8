"""What verbs print: lines for people, or one JSON object."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from espalier.errors import InputError


def show(found: Any, as_json: bool, lines: Sequence[str]) -> None:
    """Print an object, or what it says in lines."""
    write((as_text(found) if as_json else "\n".join(map(plain, lines))) + "\n")


def as_text(found: Any) -> str:
    """An object as JSON, which has no numbers that are not finite: null stands for them."""
    return json.dumps(_finite(found), default=str, allow_nan=False)


def _finite(found: Any) -> Any:
    if isinstance(found, Real) and not isinstance(found, Integral):  # numpy's floats, too
        return float(found) if math.isfinite(found) else None
    if isinstance(found, Mapping):
        return {str(key): _finite(value) for key, value in found.items()}
    return [_finite(value) for value in found] if isinstance(found, list | tuple) else found


def write(text: str) -> None:
    """Write to standard output now. Raises InputError E209 where it takes no more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        message = f"standard output cannot be written: {error.strerror}"
        hint = "What the command wrote to files is complete."
        raise InputError("E209", message, hint=hint) from None


def plain(text: str) -> str:
    """Without control characters: names of a model may hold any, and terminals obey them."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in str(text))
