"""Reference outputs of QONNX models, by qonnx's own executor; runs in the environment that `make venv-qonnx` makes.

    .venv-qonnx/bin/python benchmarks/qonnx_reference.py MODEL INPUTS.npz OUTPUTS.npz

The inputs are arrays by name with one more axis in front: one entry per run. Many runs of a model whose batch is one
are put together into batches, if the model then gives the same for the first.
"""

import sys

import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.channels_last.base_wrapped_op import ChannelsLastWrappedOp
from qonnx.transformation.infer_shapes import InferShapes

BATCH = 500


def give_channels_last_the_opset(version):
    """qonnx 1.0.0 runs its channels-last operators with their own version, 1, for that of ai.onnx: no MaxPool fits."""
    plain = ChannelsLastWrappedOp.execute_node

    def execute_node(self, context, graph):
        self.onnx_opset_version = version
        return plain(self, context, graph)

    ChannelsLastWrappedOp.execute_node = execute_node


def with_shapes(model):
    return model if model.check_all_tensor_shapes_specified() else model.transform(InferShapes())


def of_batch(path, names, count):
    """The model with another batch."""
    model = ModelWrapper(path)
    for value in model.graph.input:
        if value.name in names:
            value.type.tensor_type.shape.dim[0].dim_value = count
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model.transform(InferShapes())


def together(path, inputs, first):
    """All runs as batches; None if the model does not take them, or not with the same result."""
    runs = {name: array[:, 0] for name, array in inputs.items()}
    count, parts = len(next(iter(runs.values()))), []
    try:
        for start in range(0, count, BATCH):
            part = {name: array[start : start + BATCH] for name, array in runs.items()}
            size = len(next(iter(part.values())))
            parts.append(execute_onnx(of_batch(path, set(part), size), part))
            if any(len(array) != size for array in parts[-1].values()):
                return None
    except Exception:
        return None
    outputs = {name: np.concatenate([part[name] for part in parts])[:, None] for name in first}
    same = all(np.allclose(outputs[name][0], first[name], rtol=1e-5, atol=1e-5) for name in first)
    return outputs if same else None


def main(model_path, inputs_path, outputs_path):
    model = ModelWrapper(model_path)
    give_channels_last_the_opset(model.get_opset_imports().get("", 1))
    model = with_shapes(model)
    with np.load(inputs_path) as archive:
        inputs = {name: archive[name] for name in archive.files}
    count = len(next(iter(inputs.values())))
    first = execute_onnx(model, {name: array[0] for name, array in inputs.items()})
    single = all(array.ndim > 1 and array.shape[1] == 1 for array in inputs.values())
    outputs = together(model_path, inputs, first) if count > 20 and single else None
    if outputs is None:
        rest = [execute_onnx(model, {name: array[k] for name, array in inputs.items()}) for k in range(1, count)]
        outputs = {name: np.stack([run[name] for run in [first, *rest]]) for name in first}
    np.savez(outputs_path, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
