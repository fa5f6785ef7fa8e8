"""Codes of model files that are wrong."""

from __future__ import annotations

from espalier.errors.kinds import InputError
from espalier.runtime.errors import declare

declare(
    InputError,
    "E101",
    "the model cannot be opened",
    "The file does not exist, is a directory, or cannot be read.",
    "Check the path and its permissions.",
)
declare(
    InputError,
    "E102",
    "the kind of model is not recognised",
    "No frontend reads files or objects of this kind.",
    "Give an .onnx file, a torch.nn.Module with example inputs, an ExportedProgram, a .pt2 file, or an "
    "onnx_graphsurgeon.Graph; a plug-in can add more (entry-point group espalier.frontends).",
)
declare(
    InputError,
    "E103",
    "the model file is broken",
    "The file is truncated or its bytes do not parse as the format that it claims to be.",
    "Export or copy the model again.",
)
declare(
    InputError,
    "E104",
    "external data is missing",
    "A weight is stored in another file, which is not beside the model.",
    "Copy the data files together with the model; they must keep their names.",
)
declare(
    InputError,
    "E105",
    "external data leads out of the model's folder",
    "A weight's location is absolute, holds `..`, or goes through a link. Such a model could read any file.",
    "Export the model again with its data beside it. Do not use a model from a source that you do not trust.",
)
declare(
    InputError,
    "E106",
    "external data does not fit",
    "A weight's offset or length is negative, lies beyond the end of its file, or differs from its type's size; or the "
    "file was changed after the model was loaded.",
    "Export the model again; the data file may be truncated or belong to another version of the model.",
)
declare(
    InputError,
    "E107",
    "the operator set version is not supported",
    "The model needs an ONNX operator set that is older than 7 or newer than the newest one known here.",
    "Export with a supported version, or convert the model with onnx.version_converter.",
)
declare(
    InputError,
    "E108",
    "the graph has a cycle, or is not in order",
    "A node uses a value that is computed only after it.",
    "The exporter that wrote the model is at fault: graphs must be sorted and free of cycles.",
)
declare(
    InputError,
    "E109",
    "a name is undefined or defined twice",
    "A node uses a value that nothing defines, or two nodes define one value.",
    "The tool that wrote the model is at fault; names must be unique within a graph.",
)
declare(
    InputError,
    "E110",
    "types or shapes contradict each other",
    "A value's declared type differs from what its node computes, or operands do not fit together.",
    "Check the named node in the model that you exported.",
)
declare(
    InputError,
    "E111",
    "a weight's data does not fit its type",
    "The number of bytes differs from what shape and element type need, or the element type is unknown.",
    "Export the model again.",
)
declare(
    InputError,
    "E112",
    "text in the model is not UTF-8",
    "A name or a string of the model cannot be decoded.",
    "Rename it in the model; ONNX requires UTF-8.",
)
declare(
    InputError,
    "E113",
    "the file could run code while it is loaded",
    "Files of this kind may hold pickled objects, which execute code when they are read.",
    "If you trust where the file comes from, pass `--trust` (or `trust=True`); otherwise use ONNX or safetensors.",
)
declare(
    InputError,
    "E114",
    "torch.export refused the module",
    "PyTorch could not trace the module into a graph with these example inputs; its own message follows.",
    "Make the control flow traceable, give other example inputs, or declare the dynamic dimensions.",
)
declare(
    InputError,
    "E115",
    "the example inputs do not fit the module",
    "Calling the module with the example inputs failed, or none were given.",
    "Pass `example_inputs` as you would pass them to the module.",
)
declare(
    InputError,
    "E116",
    "an attribute is missing or invalid",
    "A node lacks an attribute that its operator requires, or the attribute has a value outside its domain.",
    "Check the named node in the model that you exported.",
)
declare(
    InputError,
    "E117",
    "the model asks for too much memory",
    "A declared size (a shape, a repetition, a recursion) exceeds what a model of this file size can need.",
    "The model is broken or hostile. If it is neither, please report it.",
)
declare(
    InputError,
    "E118",
    "the model has no outputs",
    "Nothing would be computed.",
    "Mark the values that you want as graph outputs before exporting.",
)
declare(
    InputError,
    "E119",
    "a local function is missing, recursive, or called wrongly",
    "A node calls a function of the model that is absent, calls itself, or takes other operands.",
    "The tool that wrote the model is at fault.",
)
