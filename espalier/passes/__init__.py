"""Passes: graph in, graph out, with a promise that is checked.

`base` says what a pass is, `rewrite` how a local rewrite is declared, `manager` runs passes and holds them to their
promises, `pipelines` names the usual sequences. The rules themselves are in `rules`, found by import; those of other
packages by the entry-point group `espalier.passes`.
"""

from espalier.passes.base import (
    BITEXACT,
    GROWS,
    REASSOCIATES,
    Context,
    Pass,
    Predicate,
    Semantics,
    approximates,
    graph_pass,
    parse_spec,
)  # fmt: skip
from espalier.passes.manager import PassManager, PassReport, Report
from espalier.passes.rewrite import Rewriter, group, rewrite

__all__ = [
    "BITEXACT", "GROWS", "REASSOCIATES", "Context", "Pass", "PassManager", "PassReport", "Predicate", "Report",
    "Rewriter", "Semantics", "approximates", "graph_pass", "group", "parse_spec", "rewrite",
]  # fmt: skip
