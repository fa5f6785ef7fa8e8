"""Recurrent layers: RNN, GRU, LSTM, in one or both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from espalier.ir import elements
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension
from espalier.ir.op import In, Op, OperandError, Out, TypeContext, op
from espalier.ir.terms import pin
from espalier.ir.zeros import States

Activation = Callable[[Any, Any, float, float], Any]
Step = Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]
"""(the input of one time, states) → the next states, hidden first."""
ACTIVATIONS: dict[str, tuple[float, float, Activation]] = {
    "relu": (0.0, 0.0, lambda xp, x, a, b: xp.maximum(x, xp.zeros_like(x))),
    "tanh": (0.0, 0.0, lambda xp, x, a, b: xp.tanh(x)),
    "sigmoid": (0.0, 0.0, lambda xp, x, a, b: xp.sigmoid(x)),
    "affine": (1.0, 0.0, lambda xp, x, a, b: a * x + b),
    "leakyrelu": (0.01, 0.0, lambda xp, x, a, b: xp.where(x >= 0, x, a * x)),
    "thresholdedrelu": (1.0, 0.0, lambda xp, x, a, b: xp.where(x >= a, x, xp.zeros_like(x))),
    "scaledtanh": (1.0, 1.0, lambda xp, x, a, b: a * xp.tanh(b * x)),
    "hardsigmoid": (0.2, 0.5, lambda xp, x, a, b: xp.clip(a * x + b, 0, 1)),
    "elu": (1.0, 0.0, lambda xp, x, a, b: xp.where(x >= 0, x, a * xp.expm1(x))),
    "softsign": (0.0, 0.0, lambda xp, x, a, b: x / (1 + xp.abs(x))),
    "softplus": (0.0, 0.0, lambda xp, x, a, b: xp.logsumexp(xp.stack([x, xp.zeros_like(x)], axis=0), 0)),
}
"""ONNX's activations by lower-case name: default alpha, default beta, function (xp, x, alpha, beta)."""
ZERO_AT_ZERO = frozenset({"relu", "tanh", "leakyrelu", "scaledtanh", "elu", "softsign"})


class Recurrent(Op):
    """Base of the recurrent layers.

    x (time, batch, input), w (directions, gates·hidden, input), r (directions, gates·hidden, hidden), b (directions,
    2·gates·hidden): those of w, then those of r; sequence_lens (batch); initial states (directions, batch, hidden).
    y (time, directions, batch, hidden), last states (directions, batch, hidden). With `layout` 1, batch comes first
    in x, y, and states. `clip` limits what goes into the activations. `activations` are those of one direction after
    the other, `activation_alpha` and `activation_beta` for those of them that have one, in order.
    """

    x: In
    w: In
    r: In
    b: In | None
    sequence_lens: In | None
    initial_h: In | None
    activation_alpha: tuple[float, ...] = ()
    activation_beta: tuple[float, ...] = ()
    activations: tuple[str, ...] = ()
    clip: float | None = None
    direction: str = "forward"
    hidden_size: int | None = None
    layout: int = 0

    gates: ClassVar[int]
    default_activations: ClassVar[tuple[str, ...]]
    silent_without: ClassVar[tuple[int, ...]] = (0,)
    """The positions of the activations that must keep zero at zero so that a silent unit stays silent."""
    contracts = True

    def zero_at(self, ctx: TypeContext, states: States) -> bool:
        """A unit stays at zero if its weights, biases and initial states are zero and its activations keep it there."""
        if states[1] is not True or states[2] is not True or any(state is False for state in states[3:]):
            return False
        return all(entries[k][0] in ZERO_AT_ZERO for entries in self.named() for k in self.silent_without)

    def macs(self, ctx: TypeContext) -> Dimension | None:
        """One product with each weight for each time and batch, whatever the lengths of the sequences."""
        x, w, r = ctx.shape("x"), ctx.shape("w"), ctx.shape("r")
        if x is None or w is None or r is None:
            return None
        return x[0] * x[1] * w[0] * w[1] * (w[2] + r[2])

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def equation(self, ctx: TypeContext) -> Equation | None:
        batch_first = self.layout == 1
        state = "b n h" if batch_first else "n b h"
        parts = ["b t i" if batch_first else "t b i", "n (q h) i", "n (q h) h", "n (two q h)", "b", state, state]
        parts.append("n (peepholes h)")
        y = "b t n h" if batch_first else "t n b h"
        known = {"q": self.gates, "n": self.directions, "two": 2, "peepholes": 3}
        if self.hidden_size is not None:
            known["h"] = self.hidden_size
        text = ", ".join(parts[: len(self.operands)])
        found = self.declared(ctx, f"{text} -> {', '.join([y, state, state][: len(self.results)])}", known)
        if found is None:
            return None
        if found.letters["h"][0].extent == 0:
            ctx.fail("there are no hidden units")
        for letter, reason in (("q", "gates"), ("two", "two biases"), ("peepholes", "peepholes"), ("n", "directions")):
            for variable in found.letters.get(letter, []):
                pin(variable, reason)
        pin(found.letters["t"][0], "time")
        self.named(ctx)
        if self.hidden_size is not None:
            found.bound["hidden_size"] = found.letters["h"][0]
        return found

    def named(self, ctx: TypeContext | None = None) -> list[list[tuple[str, float, float]]]:
        """The activations of each direction, with alpha and beta."""
        names = [name.lower() for name in self.activations or self.default_activations * self.directions]
        if names == [name.lower() for name in self.default_activations] * 2:  # ONNX's defaults are for both directions
            names = names[: len(self.default_activations) * self.directions]
        if len(names) != len(self.default_activations) * self.directions or any(n not in ACTIVATIONS for n in names):
            message = f"{self.name} in {self.directions} directions can't use the activations {list(self.activations)}"
            if ctx is not None:
                ctx.fail(message)
            raise OperandError(message)
        alphas, betas = list(self.activation_alpha), list(self.activation_beta)
        found = []
        for name in names:
            alpha, beta, _ = ACTIVATIONS[name]
            if alpha and alphas:
                alpha = alphas.pop(0)
            if name in ("affine", "scaledtanh", "hardsigmoid") and betas:
                beta = betas.pop(0)
            found.append((name, alpha, beta))
        per = len(self.default_activations)
        return [found[k * per : (k + 1) * per] for k in range(self.directions)]

    def functions(self, xp: Any, direction: int) -> list[Callable[[Any], Any]]:
        """The activations of a direction as functions, clipping included."""

        def bind(name: str, alpha: float, beta: float) -> Callable[[Any], Any]:
            function = ACTIVATIONS[name][2]
            if self.clip is None:
                return lambda x: function(xp, x, alpha, beta)
            limit = self.clip
            return lambda x: function(xp, xp.clip(x, -limit, limit), alpha, beta)

        return [bind(*entry) for entry in self.named()[direction]]

    def initial(self, xp: Any, given: Any, x: Any, hidden: int, direction: int) -> Any:
        """The initial state of a direction: batch × hidden."""
        if given is None:
            return xp.zeros((x.shape[1], hidden), xp.element(x))
        return given[:, direction] if self.layout == 1 else given[direction]

    def run(
        self,
        xp: Any,
        x: Any,
        sequence_lens: Any,
        states: Callable[[int], tuple[Any, ...]],
        cell: Callable[[int], Step],
    ) -> tuple[Any, ...]:
        """All directions over time. `states(direction)` are the initial ones, hidden first; cells make the next.

        After the end of a sequence, outputs are zero and states stay; sequences of length 0 leave states of zero, as
        onnxruntime has it (ONNX does not say). x is (time, batch, input).
        """
        kind, length = xp.element(x), x.shape[0]
        inner = xp.wide(x)
        ends = None if sequence_lens is None else xp.reshape(xp.astype(sequence_lens, elements.I64), (-1, 1))
        outputs, finals = [], []
        for direction in range(self.directions):
            current = tuple(xp.wide(state) for state in states(direction))
            if ends is not None:
                current = tuple(xp.where(ends > 0, state, xp.zeros_like(state)) for state in current)
            step, backwards = cell(direction), direction == 1 or self.direction == "reverse"
            steps: dict[int, Any] = {}
            for time in reversed(range(length)) if backwards else range(length):
                following = step(inner[time], current)
                shown = following[0]
                if ends is not None:
                    live = ends > time
                    shown = xp.where(live, shown, xp.zeros_like(shown))
                    following = tuple(xp.where(live, new, old) for new, old in zip(following, current, strict=True))
                steps[time], current = shown, following
            rows = [steps[time] for time in range(length)]
            outputs.append(xp.stack(rows, axis=0) if rows else xp.zeros((0, *current[0].shape), xp.element(current[0])))
            finals.append(current)
        batch_first = self.layout == 1
        y = xp.stack(outputs, axis=2 if batch_first else 1)  # (time, batch, directions, …) or (time, directions, …)
        y = xp.transpose(y, (1, 0, 2, 3)) if batch_first else y
        last = [xp.stack([final[k] for final in finals], axis=int(batch_first)) for k in range(len(finals[0]))]
        return tuple(xp.astype(array, kind) for array in (y, *last))


def _time_first(xp: Any, x: Any, layout: int) -> Any:
    return xp.transpose(x, (1, 0, 2)) if layout == 1 else x


def _weights(xp: Any, w: Any, r: Any, b: Any, direction: int) -> tuple[Any, Any, Any, Any]:
    """Of a direction, with all gates side by side: weights of input and state, biases of the one and of the other."""
    wt, rt = (xp.transpose(xp.wide(weights[direction]), (1, 0)) for weights in (w, r))
    rows = wt.shape[1]
    row = xp.zeros((2 * rows,), xp.element(wt)) if b is None else xp.wide(b[direction])
    return wt, rt, row[:rows], row[rows:]


def _by_gate(rows: Any, hidden: int) -> list[Any]:
    """What lies side by side for all gates, apart."""
    return [rows[:, start : start + hidden] for start in range(0, rows.shape[1], hidden)]


@op("rnn", onnx="RNN")
class Rnn(Recurrent):
    """H' = f(x·Wᵀ + H·Rᵀ + biases); ONNX RNN."""

    y: Out
    y_h: Out | None

    gates = 1
    default_activations = ("Tanh",)

    def reference(
        self, xp: Any, x: Any, w: Any, r: Any, b: Any = None, sequence_lens: Any = None, initial_h: Any = None
    ) -> Any:
        x, hidden = _time_first(xp, x, self.layout), r.shape[2]

        def cell(direction: int) -> Step:
            (f,) = self.functions(xp, direction)
            wi, ri, wb, rb = _weights(xp, w, r, b, direction)
            return lambda now, states: (f(xp.matmul(now, wi) + xp.matmul(states[0], ri) + wb + rb),)

        return self.run(xp, x, sequence_lens, lambda d: (self.initial(xp, initial_h, x, hidden, d),), cell)


@op("gru", onnx="GRU")
class Gru(Recurrent):
    """Gated recurrent units, gates in the order update, reset, hidden; ONNX GRU.

    z = f(x·Wz + H·Rz), r = f(x·Wr + H·Rr), h = g(x·Wh + (r⊙H)·Rh), H' = (1−z)⊙h + z⊙H, all with biases.
    `linear_before_reset` multiplies by r after the product with Rh and its bias.
    """

    y: Out
    y_h: Out | None
    linear_before_reset: int = 0

    gates = 3
    default_activations = ("Sigmoid", "Tanh")
    silent_without = (1,)

    def reference(
        self, xp: Any, x: Any, w: Any, r: Any, b: Any = None, sequence_lens: Any = None, initial_h: Any = None
    ) -> Any:
        x, hidden = _time_first(xp, x, self.layout), r.shape[2]

        def cell(direction: int) -> Step:
            f, g = self.functions(xp, direction)
            wi, ri, wb, rb = _weights(xp, w, r, b, direction)
            first = 2 * hidden  # the rows of update and reset, then those of the hidden gate

            def step(now: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
                (h,) = states
                given = xp.matmul(now, wi) + wb
                update, reset = _by_gate(f(given[:, :first] + (xp.matmul(h, ri[:, :first]) + rb[:first])), hidden)
                if self.linear_before_reset:
                    recalled = reset * (xp.matmul(h, ri[:, first:]) + rb[first:])
                else:
                    recalled = xp.matmul(reset * h, ri[:, first:]) + rb[first:]
                return ((1 - update) * g(given[:, first:] + recalled) + update * h,)

            return step

        return self.run(xp, x, sequence_lens, lambda d: (self.initial(xp, initial_h, x, hidden, d),), cell)


@op("lstm", onnx="LSTM")
class Lstm(Recurrent):
    """Long short-term memory, gates in the order input, output, forget, cell; ONNX LSTM.

    i = f(x·Wi + H·Ri + Pi⊙C), o likewise with the new C, f = f(… + Pf⊙C), c = g(x·Wc + H·Rc), C' = f⊙C + i⊙c,
    H' = o⊙h(C'), all with biases. Peepholes p (directions, 3·hidden): those of i, o, f. `input_forget` makes f = 1 − i.
    `clip` is for the gates; the cell goes into h unclipped, as in onnxruntime.
    """

    initial_c: In | None
    p: In | None
    y: Out
    y_h: Out | None
    y_c: Out | None
    input_forget: int = 0

    gates = 4
    default_activations = ("Sigmoid", "Tanh", "Tanh")
    silent_without = (1, 2)

    def reference(
        self,
        xp: Any,
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        sequence_lens: Any = None,
        initial_h: Any = None,
        initial_c: Any = None,
        p: Any = None,
    ) -> Any:
        x, hidden = _time_first(xp, x, self.layout), r.shape[2]

        def cell(direction: int) -> Step:
            (f, g), (h,) = self.functions(xp, direction)[:2], self.replace(clip=None).functions(xp, direction)[2:]
            wi, ri, wb, rb = _weights(xp, w, r, b, direction)
            peep = [0 if p is None else xp.wide(p[direction, k * hidden : (k + 1) * hidden]) for k in range(3)]

            def step(now: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
                before, held = states
                rows = xp.matmul(now, wi) + xp.matmul(before, ri) + wb + rb
                taken, shown, kept, new = _by_gate(rows, hidden)
                taken = f(taken + peep[0] * held)
                kept = 1 - taken if self.input_forget else f(kept + peep[2] * held)
                held = kept * held + taken * g(new)
                return f(shown + peep[1] * held) * h(held), held

            return step

        def start(direction: int) -> tuple[Any, ...]:
            return tuple(self.initial(xp, given, x, hidden, direction) for given in (initial_h, initial_c))

        return self.run(xp, x, sequence_lens, start, cell)
