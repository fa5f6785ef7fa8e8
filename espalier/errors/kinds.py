"""The classes of errors, by what a caller can do about them. Each has an exit code of its own."""

from __future__ import annotations

from espalier.runtime.errors import EspalierError


class InputError(EspalierError):
    """A model, a file, an option or data that is wrong. Exit code 2."""

    exit_code = 2


class UnsupportedError(EspalierError):
    """Something valid that espalier, a backend or a device cannot do, refused by name. Exit code 2."""

    exit_code = 2


class BudgetError(EspalierError):
    """No artifact meets the budget. Exit code 3."""

    exit_code = 3


class VerificationError(EspalierError):
    """A check of the graph, of a rewrite or of accuracy failed: nothing was written. Exit code 4."""

    exit_code = 4


class Interruption(EspalierError):
    """Stopped from outside. Exit code 130."""

    exit_code = 130


class InternalError(EspalierError):
    """A fault of ours. Exit code 1."""

    exit_code = 1
