"""Is removing an index of a unit the same as zeros there? One sweep along the graph tells for all units at once.

Let the slices of all weights that have a unit be zero: `judge` follows at which units every value is known to vanish
then, by the operators' zero rules. Where a node sums over products, one vanishing factor makes the
term vanish, and removal is exact; where it computes statistics, or where no factor vanishes, it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

from espalier.analysis.coupling import Coupling, Unit
from espalier.analysis.parameters import parametric
from espalier.ir import Node, Value
from espalier.ir.axes import Equation
from espalier.ir.inference import type_context
from espalier.ir.op import Op
from espalier.ir.terms import Term, Variable, leaves, letters, resolve
from espalier.ir.zeros import States


def judge(coupling: Coupling) -> None:
    """Set `reasons`, `readers`, `silenced` and `silent` of every unit that is not frozen."""
    live = {v: unit for v, unit in coupling.by_variable.items() if unit.verdict != "frozen"}
    if live:
        _Judge(coupling, live).run()


class _Judge:
    def __init__(self, coupling: Coupling, live: dict[Variable, Unit]) -> None:
        self.coupling, self.live = coupling, live
        self.zero = coupling.vanishing
        self.parametric = parametric(coupling.graph)

    def run(self) -> None:
        for node in self.coupling.graph:
            equation = self.coupling.equations.get(node)
            if equation is not None:
                self.node(node, equation)

    def units(self, term: Term) -> list[Variable]:
        if type(term) is Variable:
            if term.link is not None:
                term = resolve(term)
            if type(term) is Variable:
                return [term] if term in self.live else []
        return [v for v in leaves(term) if v in self.live]

    def vanishes(self, value: Value | None, variable: Variable) -> bool:
        """Whether a value is zero wherever this unit's index is gone. Weights are: their slices are taken away."""
        if value is None:
            return False
        return value.constant is not None or variable in self.zero.get(value, ())

    def node(self, node: Node, equation: Equation) -> None:
        operands = [(value, terms) for value, terms in zip(node.operands, equation.operands, strict=False)]
        sides = itertools.chain((terms for _, terms in operands), equation.results)
        if not any(self.units(term) for terms in sides for term in terms or ()):
            return
        having = [{id(v): v for term in terms or () for v in letters(term)} for _, terms in operands]
        made = {id(v): v for terms in equation.results for term in terms or () for v in letters(term)}
        if type(node.op).zero_at is not Op.zero_at or node.op.zero.decide is not _NEVER:
            self.results(node, equation, having)
        if node.op.contracts:
            self.contracted(node, [value for value, _ in operands], having, made)
            self.fed_back(node, equation)
        for term in equation.normalized:
            for variable in self.units(term):
                self.live[variable].reasons.setdefault(f"{node.op.name} computes statistics over it", node)

    def results(self, node: Node, equation: Equation, having: list[dict[int, Variable]]) -> None:
        """Where the results vanish. Verdicts go by letter: two letters may have one unit, and both must agree."""
        decide: Callable[[States], bool] = node.op.zero.decide
        if type(node.op).zero_at is not Op.zero_at:  # attributes or other operands decide
            decide = partial(node.op.zero_at, type_context(self.coupling.graph, node, lambda: "unknown"))
        described = [terms is not None for terms in equation.operands]
        through = None
        if equation.equal:  # letters of operands and results differ there: what counts is the unit
            through = [{v for term in terms or () for v in leaves(term)} for terms in equation.operands]
        for result, terms in zip(node.results, equation.results, strict=False):
            if not any(self.units(term) for term in terms or ()):
                continue
            verdicts: dict[Variable, bool] = {}
            for letter in {id(v): v for term in terms or () for v in letters(term)}.values():
                for variable in self.units(letter):
                    states: list[bool | None] = []
                    for k, operand in enumerate(node.operands[: len(described)]):
                        has = described[k] and (id(letter) in having[k] if through is None else variable in through[k])
                        states.append(self.vanishes(operand, variable) if has and operand is not None else None)
                    zero = decide(states)
                    verdicts[variable] = verdicts.get(variable, True) and zero
            vanishing = {variable for variable, zero in verdicts.items() if zero}
            if vanishing:
                self.zero[result] = vanishing

    def fed_back(self, node: Node, equation: Equation) -> None:
        """A recurrent weight has a unit on two axes: it makes the unit's next state, and reads the last one."""
        for value, terms in zip(node.operands, equation.operands, strict=False):
            declared = [letter for term in terms or () for letter in letters(term)]
            for letter in {id(v): v for v in declared if declared.count(v) > 1}.values():
                for variable in self.units(letter):
                    if value is not None and value.constant is not None:
                        self.live[variable].readers[value] = None
                    elif value is not None and self.vanishes(value, variable):
                        self.live[variable].silenced[value] = None
                    else:
                        self.live[variable].reasons.setdefault(f"{node.op.name} feeds it back", node)

    def contracted(
        self, node: Node, operands: list[Value | None], having: list[dict[int, Variable]], made: dict[int, Variable]
    ) -> None:
        """Units over which products are summed: some factor must vanish; if only weights do, reading must change."""
        summed = {key: letter for letters_ in having for key, letter in letters_.items() if key not in made}
        for key, letter in summed.items():
            for variable in self.units(letter):
                factors = [value for value, own in zip(operands, having, strict=True) if key in own]
                vanishing = [value for value in factors if self.vanishes(value, variable)]
                unit = self.live[variable]
                if not vanishing:
                    unit.reasons.setdefault(f"{node.op.name} sums over it where no factor vanishes", node)
                    continue
                weights = {value: None for value in vanishing if value is not None and value.constant is not None}
                computed = {value: None for value in vanishing if value is not None and value not in weights}
                unit.readers.update(weights)
                if not computed:
                    unit.silent = False
                elif not weights:
                    unit.silenced.update({value: None for value in computed if value in self.parametric} or computed)


_NEVER = Op.zero.decide
