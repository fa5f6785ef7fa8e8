"""Errors of the compiler: each has a code, a place in the user's model, advice, and an exit code.

    raise InputError("E104", "…", node=node.name, source=node.location, hint="…")

A code is declared once, below the class that is raised with it. `espalier explain CODE` prints the declaration.
The hundreds go by area: 1 model files, 2 usage, 3 the graph, 4 what isn't supported, 5 budgets, 6 verification,
7 artifacts (in `espalier.runtime.errors`), 8 interruptions, 9 faults of ours.
"""

from __future__ import annotations

from espalier.runtime.errors import CATALOGUE, ArtifactError, EspalierError, Explanation, declare

__all__ = [
    "CATALOGUE",
    "ArtifactError",
    "BudgetError",
    "EspalierError",
    "Explanation",
    "InputError",
    "InternalError",
    "Interruption",
    "UnsupportedError",
    "VerificationError",
    "declare",
]


class InputError(EspalierError):
    """A model, a file, an option or data that is wrong. Exit code 2."""

    exit_code = 2


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
declare(
    InputError,
    "E201",
    "an option has an invalid value",
    "The value of an option or argument cannot be used.",
    "See `--help` of the command, or the docstring of the function.",
)
declare(
    InputError,
    "E202",
    "an unknown name",
    "There is no pass, device, backend, pipeline or error code of this name.",
    "`espalier passes` and `espalier devices` list what there is; plug-ins must be installed in this environment.",
)
declare(
    InputError,
    "E203",
    "a pass specification cannot be parsed",
    "A specification is a name and options, as in `prune:ratio=0.5,criterion=taylor`.",
    "`espalier passes NAME` lists a pass's options, their types and defaults.",
)
declare(
    InputError,
    "E204",
    "two plug-ins claim one name",
    "Two installed packages register the same operator, pass, frontend, backend or device.",
    "Uninstall one of them; a built-in name cannot be replaced.",
)
declare(
    InputError,
    "E205",
    "an optional package is needed",
    "This step uses a package that is not installed.",
    "Install the extra that the message names, for example `pip install 'espalier[torch]'`.",
)
declare(
    InputError,
    "E206",
    "the data cannot be used",
    "The data file cannot be read, or lacks an input of the model, or its arrays do not fit the model's inputs.",
    "Give an .npz with one array per input name (or input_0, input_1, …), and optionally `labels`.",
)
declare(
    InputError,
    "E207",
    "inputs do not fit the model",
    "An input is missing, unknown, or has another shape or element type than the model says.",
    "`espalier inspect MODEL` lists the inputs.",
)
declare(
    InputError,
    "E208",
    "a plug-in cannot be loaded",
    "Importing a plug-in failed; its own message follows.",
    "Repair or uninstall the package that the message names.",
)
declare(
    InputError,
    "E209",
    "the output cannot be written",
    "The output path is not writable, or holds something that this command did not make.",
    "Choose another path with `-o`.",
)
declare(
    InputError,
    "E210",
    "the passes cannot be put in an order",
    "A pass requires something that nothing before it establishes, or two passes contradict each other.",
    "Add the pass that establishes it, or leave one out; the message names both.",
)
declare(
    InputError,
    "E211",
    "a budget needs a planner",
    "A budget was given for a pipeline that nothing chooses or adapts.",
    "Drop `--budget`, or use a pipeline that is planned.",
)
declare(
    InputError,
    "E212",
    "data are needed",
    "An accuracy gate, calibration or evaluation was asked for without data.",
    "Pass `--data`; random data are never used in their place.",
)
declare(
    InputError,
    "E213",
    "a device description is invalid",
    "The TOML file of a device lacks a field, or has an unknown one or a wrong value.",
    "Compare with the devices that `espalier devices` lists.",
)
declare(
    InputError,
    "E214",
    "the data cannot feed an input",
    "An input of the model is a sequence, an optional or another value that arrays cannot express.",
    "Leave out what needs data, or put the part of the model with such inputs elsewhere.",
)
declare(
    InputError,
    "E215",
    "a plug-in failed",
    "A pass or a rule of an installed package raised an exception, or built nodes that cannot be typed.",
    "The message names the package and the line; repair it, or leave the pass out.",
)
declare(
    InputError,
    "E221",
    "a unit may not be changed",
    "The indices of a frozen unit can't be removed or repeated: an input, an output or an operator depends on them.",
    "`espalier inspect --units` says why each unit is frozen; leave this one out with `--ignore`.",
)
declare(
    InputError,
    "E222",
    "a unit has no such indices",
    "The indices chosen for a unit lie outside of it, or none would be left.",
    "`espalier inspect --units` lists units and their extents.",
)
declare(
    InputError,
    "E223",
    "a weight holds NaN or infinite numbers",
    "Scores, and whatever rests on them, would mean nothing.",
    "Train or export the model again; the message names the weight.",
)
declare(
    InputError,
    "E224",
    "nothing can be pruned",
    "No unit is left after `only`, `ignore` and `exact_only`, or the criterion has nothing to say about any of them.",
    "`espalier inspect --units` lists units; another criterion may score them.",
)
declare(
    InputError,
    "E226",
    "there is no gradient",
    "Gradients were asked for, but no output is a float that depends on the weights by differentiable operators.",
    "Use a criterion that needs no gradients, such as magnitude.",
)
declare(
    InputError,
    "E231",
    "the training diverged",
    "The loss became infinite or NaN.",
    "Use a smaller learning rate, or limit the norm of the gradients.",
)
declare(
    InputError,
    "E232",
    "the checkpoint cannot be used",
    "It is damaged, or of a run with another model, other data or other options.",
    "Give each run a folder of its own; remove the checkpoint to begin anew.",
)
declare(
    InputError,
    "E301",
    "the text form of a graph cannot be parsed",
    "The text is not what the printer writes.",
    "The message names the line and what was expected there.",
)
declare(
    InputError,
    "E302",
    "an operator was built wrongly",
    "An operator was given operands or attributes that its declaration does not allow.",
    "See the operator's class; the message names the operand or attribute.",
)


class UnsupportedError(EspalierError):
    """Something valid that espalier, a backend or a device cannot do, refused by name. Exit code 2."""

    exit_code = 2


declare(
    UnsupportedError,
    "E401",
    "the backend cannot emit an operator",
    "The graph is understood, but the chosen backend has no code for this operator.",
    "Use another backend (`--backend onnx` keeps every ONNX operator), or replace the operator in the model.",
)
declare(
    UnsupportedError,
    "E402",
    "a variant of an operator is not supported",
    "The operator is known, but not with these attributes, ranks or element types.",
    "The message names the attribute; another setting or backend may do.",
)
declare(
    UnsupportedError,
    "E403",
    "an unknown operator is in the way",
    "The step needs an operator's meaning, and this one is not known: it is carried through unchanged only.",
    "Install the plug-in that declares it, or leave that part of the model out.",
)
declare(
    UnsupportedError,
    "E404",
    "an element type is not supported",
    "The backend, device or operator does not compute in this element type.",
    "Cast in the model, or choose another backend or device.",
)
declare(
    UnsupportedError,
    "E405",
    "a dynamic dimension is not supported here",
    "The step needs a size that is known when compiling.",
    "Export the model with static shapes, or choose another backend.",
)
declare(
    UnsupportedError,
    "E406",
    "a form of quantization is not supported",
    "The quantized values' width, granularity, or rounding cannot be expressed by the backend or format.",
    "The message names the tensor; another backend or quantization may do.",
)
declare(
    UnsupportedError,
    "E407",
    "control flow is not supported here",
    "The step cannot look into If, Loop or Scan.",
    "Unroll it in the model, or choose another backend.",
)
declare(
    UnsupportedError,
    "E408",
    "a PyTorch operator is not supported",
    "torch.export gave an operator for which there is no translation.",
    "Replace it in the module, or export to ONNX with a translation of your own.",
)
declare(
    UnsupportedError,
    "E409",
    "the device is not supported by the backend",
    "The backend makes no code for this kind of device.",
    "`espalier devices` lists each device's backends.",
)
declare(
    UnsupportedError,
    "E410",
    "the values are not tensors",
    "Sequences, optionals, maps or strings are not supported by this step.",
    "Keep them out of the part that is compiled, or use `--backend onnx`.",
)


class BudgetError(EspalierError):
    """No artifact meets the budget. Exit code 3."""

    exit_code = 3


declare(
    BudgetError,
    "E501",
    "the budget cannot be met",
    "The best artifact that was found exceeds the latency, size or memory that was asked for.",
    "Relax the budget or the allowed drop in accuracy; the message gives the best figures that were reached.",
)


class VerificationError(EspalierError):
    """A check of the graph, of a rewrite or of accuracy failed: nothing was written. Exit code 4."""

    exit_code = 4


declare(
    VerificationError,
    "E601",
    "the graph is malformed",
    "A rule of the graph is broken: uses, order, types or owners do not agree.",
    "If a pass of your own ran before, it is at fault; otherwise please report it with the dump that was written.",
)
declare(
    VerificationError,
    "E602",
    "a rewrite changed the result",
    "Replaying a rewritten region gave other outputs than the region that it replaced, beyond what its semantics "
    "class allows.",
    "`--stop-after K` stops before the rewrite that the message numbers; please report it with the dump.",
)
declare(
    VerificationError,
    "E603",
    "the compiled model disagrees with the original",
    "The outputs of the artifact, or of the graph after all passes, differ from the original's beyond the tolerance.",
    "Find the rewrite with `--stop-after K`, or compile with `--verify all`; please report it.",
)
declare(
    VerificationError,
    "E604",
    "accuracy dropped too far",
    "The measured drop exceeds `--max-drop`. No artifact was written.",
    "Allow a larger drop, compress less, or train after compressing.",
)
declare(
    VerificationError,
    "E605",
    "two models disagree",
    "`espalier verify` found outputs that differ beyond the tolerance.",
    "The message names the output and the largest difference.",
)
declare(
    VerificationError,
    "E606",
    "a pass broke its promise",
    "After the pass, something that it says it establishes or keeps does not hold.",
    "The pass is at fault; leave it out with `--passes`.",
)


class Interruption(EspalierError):
    """Stopped from outside. Exit code 130."""

    exit_code = 130


declare(
    Interruption,
    "E801",
    "interrupted",
    "The command was stopped, by Ctrl-C for one, before it was done.",
    "Run it again; outputs are written whole or not at all.",
)


class InternalError(EspalierError):
    """A fault of ours. Exit code 1."""

    exit_code = 1


declare(
    InternalError,
    "E901",
    "an unexpected fault",
    "Something happened that should not be possible. The traceback is in the file that the message names.",
    "Please report it with the model or its minimal reproducer.",
)
declare(
    InternalError,
    "E903",
    "a rewrite rule is wrong",
    "A rule built nodes that cannot be typed, gave a replacement that does not fit, or never comes to an end.",
    "The rule that the message names is at fault; leave it out with `--passes`.",
)
declare(
    InternalError,
    "E902",
    "a tool failed",
    "A compiler or a tool that espalier calls failed on input that espalier made for it.",
    "Please report it with the tool's output.",
)
