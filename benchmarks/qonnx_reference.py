"""Reference outputs of QONNX models, by qonnx's own executor; runs in the environment that `make venv-qonnx` makes.

    .venv-qonnx/bin/python benchmarks/qonnx_reference.py MODEL INPUTS.npz OUTPUTS.npz

The inputs are arrays by name with one more axis in front: one entry per run.
"""

import sys

import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes


def main(model_path, inputs_path, outputs_path):
    model = ModelWrapper(model_path).transform(InferShapes())
    with np.load(inputs_path) as archive:
        inputs = {name: archive[name] for name in archive.files}
    count = len(next(iter(inputs.values())))
    runs = [execute_onnx(model, {name: array[k] for name, array in inputs.items()}) for k in range(count)]
    np.savez(outputs_path, **{name: np.stack([run[name] for run in runs]) for name in runs[0]})


if __name__ == "__main__":
    main(*sys.argv[1:])
