from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from espalier.runtime.files import write_artifact


def _helpers() -> ModuleType:
    path = Path(__file__).with_name("artifacts.py")
    spec = importlib.util.spec_from_file_location("runtime_test_artifacts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = _helpers()


@pytest.fixture(scope="session")
def artifacts() -> ModuleType:
    """The functions of artifacts.py."""
    return make


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled two-layer network."""
    return make.tvm_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def artifact(tmp_path: Path, library: Path) -> Path:
    """A TVM artifact of its own for each test, to be damaged."""
    path = tmp_path / "network"
    write_artifact(path, make.tvm_manifest(), make.tvm_files(tmp_path, library))
    return path
