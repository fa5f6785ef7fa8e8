"""Torch logs every step of its tracing for debugging; captured by pytest, that takes most of a test's time."""

from __future__ import annotations

import logging

logging.getLogger("torch.__trace").propagate = False
