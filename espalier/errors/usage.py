"""Codes of usage, options, data, plug-ins and graphs that are wrong."""

from __future__ import annotations

from espalier.errors.kinds import InputError
from espalier.runtime.errors import declare

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
    "A specification is a name and options, each once, as in `prune:ratio=0.5,criterion=taylor`.",
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
    "An accuracy gate, calibration or evaluation was asked for without data, or with data that leave nothing to see.",
    "Pass `--data`. Random data take their place only where a pass says so.",
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
    "E233",
    "something for compiling for another architecture is missing",
    "Code for an architecture other than this machine's takes a linker for it, and TVM's runtime library for it.",
    "The message says what to install or to download.",
)
declare(
    InputError,
    "E234",
    "this device cannot be measured here",
    "Choices are measured by running kernels, on the very machine that the artifact is for.",
    "Leave `--tune` out, or compile for the device `cpu` on such a machine.",
)
declare(
    InputError,
    "E235",
    "the database of measured choices cannot be used",
    "The file is damaged, is something else, is not there, or cannot be read or written.",
    "Remove it, which loses what was measured, or name another one with `--choices`.",
)
declare(
    InputError,
    "E236",
    "compiled kernels cannot be kept where they should be",
    "The folder that ESPALIER_KERNELS names cannot be made or read, or others could put code there.",
    "Name a folder that is yours and that nobody else may write to, or set ESPALIER_KERNELS=off.",
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
