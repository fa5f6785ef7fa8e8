"""What is promised about the distribution: few dependencies, all of them locked, and imports that cost little."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import espalier

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def closure(requirements: list[str]) -> set[str]:
    """Names of everything that installing these brings, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                waiting.append(needed)
    return found


def test_the_core_has_few_dependencies() -> None:
    core = closure(PROJECT["dependencies"])
    assert len(core) <= 22, sorted(core)
    assert not core & {"torch", "apache-tvm", "onnxruntime"}


def test_every_core_dependency_is_imported_somewhere() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "espalier").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE))
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert sorted(names - imported) == []


def test_the_lock_pins_what_development_needs() -> None:
    locks = [ROOT / "requirements" / f"{name}.lock" for name in ("development", "emulation")]
    lines = [line for lock in locks for line in lock.read_text(encoding="utf-8").splitlines()]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        if requirement.name == "espalier":
            continue
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} is locked to {version}"
    assert pins["torch"] == "2.13.0"


def test_the_version_is_one() -> None:
    assert importlib.metadata.version("espalier") == espalier.__version__


def test_importing_espalier_imports_nothing_heavy() -> None:
    program = "import sys, espalier; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"numpy", "torch", "onnx", "tvm", "networkx", "pydantic", "rich"} & set(run.stdout.split())
