"""What every error of espalier looks like, and the errors that an artifact can cause.

The base class lives here because the runtime stands alone: it imports nothing else of the package, and everything
else may import it. The compiler's own errors are in `espalier.errors`, which is where callers should look first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class EspalierError(Exception):
    """An error with a stable code, a place, and advice.

    Args:
        code: A key of `CATALOGUE`, such as "E103"; `espalier explain E103` prints what it means.
        message: What is wrong, in one sentence, naming the value at fault.
        node: The graph node, tensor or file entry that it concerns, if any.
        source: Where that comes from in the user's model: a source line or the name of an ONNX node.
        hint: What to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        node: object | None = None,
        source: object | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.node = None if node is None else str(node)
        self.source = None if source is None else str(source)
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.message}"]
        if self.node is not None:
            lines.append(f"  at {self.node}")
        if self.source is not None and not (self.node or "").endswith(f" from {self.source}"):
            lines.append(f"  from {self.source}")
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries in worker pools; keyword-only arguments need their own way back.
        places = {"node": self.node, "source": self.source, "hint": self.hint}
        return _rebuild, (type(self), self.code, self.message, places)

    def to_json(self) -> dict[str, str | int | None]:
        """The error as the `--json` output of the command line shows it."""
        return {
            "code": self.code,
            "kind": type(self).__name__,
            "message": self.message,
            "node": self.node,
            "source": self.source,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


def _rebuild(kind: type[EspalierError], code: str, message: str, places: dict[str, str | None]) -> EspalierError:
    return kind(code, message, **places)


@dataclass(frozen=True)
class Explanation:
    """What a code means and what to do about it, for `espalier explain`."""

    code: str
    kind: type[EspalierError]
    title: str
    meaning: str
    advice: str


CATALOGUE: dict[str, Explanation] = {}


def declare(kind: type[EspalierError], code: str, title: str, meaning: str, advice: str) -> None:
    """Declare a code once, beside the class that is raised with it.

    Raises:
        ValueError: The code is declared already.
    """
    if code in CATALOGUE:
        raise ValueError(f"the error code {code} is declared twice: “{CATALOGUE[code].title}” and “{title}”")
    CATALOGUE[code] = Explanation(code, kind, title, meaning, advice)


class ArtifactError(EspalierError):
    """An artifact, or an input given to one, that the runtime refuses. Exit code 2."""

    exit_code = 2


REFUSAL = "the input is refused: "
"""How what compiled code says begins where it refuses an input; whatever else it says is a failure."""

declare(
    ArtifactError,
    "E701",
    "not an artifact",
    "The path is neither a directory nor a zip file with a manifest.json in it.",
    "Give the directory (or zip) that `espalier compile … -o` wrote.",
)
declare(
    ArtifactError,
    "E702",
    "the manifest is broken",
    "manifest.json is not valid JSON, or a field is missing, unknown, of the wrong type, or contradicts another.",
    "Compile the model again; if the file came over a network, copy it again.",
)
declare(
    ArtifactError,
    "E703",
    "the artifact's format is newer than this runtime",
    "The artifact was written by a later version of espalier, in a format that this version cannot read safely.",
    "Install a newer espalier where the artifact runs, or compile the model with this version.",
)
declare(
    ArtifactError,
    "E704",
    "a file of the artifact is missing",
    "The manifest lists a file that is not there, or that is not a plain file.",
    "Copy the whole directory, or compile the model again.",
)
declare(
    ArtifactError,
    "E705",
    "a file of the artifact was changed",
    "The size or the SHA-256 of a file differs from the manifest's. Nothing of it was loaded or run.",
    "Copy the artifact again from where it was made. If it was meant to change, compile the model again.",
)
declare(
    ArtifactError,
    "E706",
    "a path leads out of the artifact",
    "The manifest or the zip names a file that is absolute, holds `..`, or is a link.",
    "Do not use this artifact: a compiler does not write such paths.",
)
declare(
    ArtifactError,
    "E707",
    "this machine cannot run the artifact",
    "The artifact was compiled for a processor with instructions that this one lacks, or for another architecture "
    "or operating system; running it would end in an illegal instruction.",
    "Compile the model for this machine (`--device`), or run it on the device named in the manifest.",
)
declare(
    ArtifactError,
    "E708",
    "a package that runs this kind of artifact is not installed",
    "The artifact's engine needs a Python package that cannot be imported here.",
    "Install the package that the message names.",
)
declare(
    ArtifactError,
    "E709",
    "an input does not fit the model",
    "An input is missing, unknown, or has another shape or element type than the manifest says, or extents or indices "
    "with which an operator of the model, which the message then names, cannot compute.",
    "Compare with `model.inputs`, or `espalier explain ARTIFACT`; cast explicitly where the element type differs.",
)
declare(
    ArtifactError,
    "E710",
    "a file is used that the manifest does not list",
    "The backend's section names a file that has no entry, and so no SHA-256, in the manifest.",
    "Do not use this artifact; compile the model again.",
)
declare(
    ArtifactError,
    "E711",
    "the weights do not fit the manifest",
    "A tensor of the weights file is missing, or differs in element type, shape or size from the manifest.",
    "Compile the model again.",
)
declare(
    ArtifactError,
    "E712",
    "the engine failed while loading or running the model",
    "The compiled code or its engine reported an error of its own; the message carries its words.",
    "Run `espalier verify` on the artifact and report the model if it fails there too.",
)
declare(
    ArtifactError,
    "E713",
    "the model is closed",
    "`close()` was called on the model before this call.",
    "Load the artifact again.",
)
declare(
    ArtifactError,
    "E714",
    "the artifact could not be written",
    "The output path exists and is not an artifact, or the disk refused it. What was there before is unchanged.",
    "Choose another output path, or remove what is there.",
)
declare(
    ArtifactError,
    "E715",
    "another version of the engine is in use",
    "The engine's library can be loaded once per process, and another version of it is there already.",
    "Run the artifact in a process of its own, or compile both models with one version.",
)
declare(
    ArtifactError,
    "E716",
    "the artifact cannot be profiled",
    "Only artifacts of the TVM backend whose shapes are numbers tell what each of their kernels takes and computes.",
    "Fix the extents that vary in the model, and compile it with the TVM backend.",
)
