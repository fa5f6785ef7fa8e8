"""Every command and program in the README and in docs/ is run, in the order of the page, in a folder with a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.artifact import network
from tests.documents import FILE, ROOT, blocks, files, lay_out

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
NOT_RUN = ("make ", "pip install ")
"""Commands that set up environments; continuous integration runs them."""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_that_is_run(page: str) -> None:
    known = {"sh", "python", "toml", "json", "text"}
    assert [language for language, _ in blocks(page) if language not in known] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(kind in ("sh", "python") for kind, _ in blocks(page))])
def test_documented_blocks_run(page: str, tmp_path: Path) -> None:
    onnx.save(network(seed=0), tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", image=np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype("f4"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(tmp_path)
    lay_out(files(page), tmp_path)
    if page != "README.md":
        compile_model = ["espalier", "compile", "model.onnx", "-o", "artifact"]
        subprocess.run(compile_model, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for language, text in blocks(page):
        commands = []
        if FILE.match(text):
            continue
        if language == "python":
            commands = [[sys.executable, "-c", text]]
        elif language == "sh":
            lines = [line.partition("  #")[0].strip() for line in text.splitlines()]
            commands = [["bash", "-ec", line] for line in lines if line and not line.startswith(NOT_RUN)]
        for command in commands:
            run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert run.returncode == 0, f"{command[-1]}\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []
