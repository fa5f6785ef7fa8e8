"""The verbs, each with a line that works in the folder of `call`; and processes that run them."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = {
    "compile": "compile model.onnx -o other --backend onnx --data labelled.npz --max-drop 5",
    "prune": "prune model.onnx --ratio 0.5 --data labelled.npz -o small.onnx",
    "grow": "grow model.onnx --factor 2 --count 1 --data labelled.npz -o grown.onnx",
    "recover": "recover model.onnx --steps 2 --data labelled.npz -o recovered.onnx",
    "run": "run artifact --inputs inputs.npz -o outputs.npz",
    "bench": "bench artifact model.onnx --rounds 1",
    "verify": "verify model.onnx artifact",
    "inspect": "inspect model.onnx",
    "passes": "passes",
    "devices": "devices",
    "explain": "explain E604",
}


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "espalier", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
