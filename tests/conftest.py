"""One thread per test process, repeatable examples, and the real models and data that some tests run on."""

from __future__ import annotations

import os

# Before numpy, torch or onnxruntime start their pools.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ["ESPALIER_KERNELS"] = "off"  # nothing is taken from what other runs compiled; tests of the cache name one

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The fast tests draw the same examples every time; `make test-all` draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Paths below the folder that ESPALIER_DATA names.

    Without the variable a test skips and says why; with it, a file that is missing fails the test.
    """

    def find(name: str) -> Path:
        folder = os.environ.get("ESPALIER_DATA")
        if not folder:
            pytest.skip("ESPALIER_DATA is not set: the real models and data are not here")
        path = Path(folder, name)
        if not path.exists():
            pytest.fail(f"ESPALIER_DATA is set, but {name} is not in it")
        return path

    return find
