"""Codes of what isn't supported, exceeds budgets, fails verification, is interrupted, or is a fault of ours."""

from __future__ import annotations

from espalier.errors.kinds import BudgetError, InternalError, Interruption, UnsupportedError, VerificationError
from espalier.runtime.errors import declare

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
declare(
    UnsupportedError,
    "E411",
    "too much for reference execution",
    "A check would run a loop too often, make a tensor of many gigabytes, or take too long.",
    "Without a check: `--verify none`. If the model is right, reduce what the node does.",
)
declare(
    UnsupportedError,
    "E412",
    "the model cannot be pruned in rounds",
    "After a round of pruning, what can be pruned is not what was left of it.",
    "Prune it at once, without `--rounds`, and train afterwards.",
)
declare(
    BudgetError,
    "E501",
    "the budget cannot be met",
    "The best artifact that was found exceeds the latency, size or memory that was asked for.",
    "Relax the budget or the allowed drop in accuracy; the message gives the best figures that were reached.",
)
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
declare(
    Interruption,
    "E801",
    "interrupted",
    "The command was stopped, by Ctrl-C for one, before it was done.",
    "Run it again; outputs are written whole or not at all.",
)
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
