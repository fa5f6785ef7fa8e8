"""Recurrent layers: torch's stacks as one ONNX operator per layer, gates reordered by views of the weights."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from espalier.frontends.torch.registry import lowers
from espalier.frontends.torch.scope import Scope
from espalier.ir import dims
from espalier.ir.graph import Value, constant_value

_LSTM_GATES = (0, 3, 1, 2)
"""Torch has input, forget, cell, output; ONNX input, output, forget, cell."""
_GRU_GATES = (1, 0, 2)
"""Torch has reset, update, new; ONNX update, reset, hidden."""


def _gates(s: Scope, w: Value, order: Sequence[int]) -> Value:
    """The blocks of the first axis in another order."""
    if tuple(order) == tuple(range(len(order))):
        return w
    rows = s.shape_of(w)[0]
    assert isinstance(rows, int)
    size = rows // len(order)
    if w.constant is not None:
        taken = w.constant.take(0, [gate * size + k for gate in order for k in range(size)])
        return constant_value(taken, name=w.name)
    return s.concat([s.slice(w, 0, gate * size, (gate + 1) * size) for gate in order], 0)


def _stacked(s: Scope, weights: Sequence[Value]) -> Value:
    """With the axis of directions in front."""
    rows = []
    for w in weights:
        if w.constant is not None:
            rows.append(constant_value(w.constant.reshape((1, *w.constant.shape)), name=w.name))
        else:
            rows.append(s.unsqueeze(w, 0))
    return s.concat(rows, 0)


def _initial(s: Scope, state: Value, first: int, count: int) -> Value:
    """The states of one layer's directions, of those of all layers.

    If they are one number everywhere, each layer gets its own: by slices of one tensor all layers would have the same
    hidden coordinate, and could be pruned and widened together only.
    """
    maker = state.producer
    filled = None if maker is None or maker.op.name != "expand" else maker.operand(0)
    if filled is None or filled.constant is None or filled.constant.size != 1:
        return s.slice(state, 0, first, first + count)
    return s.expand(constant_value(filled.constant), (count, *s.shape_of(state)[1:]))


def _is_used(s: Scope, result: int) -> bool:
    """Whether anything reads one of the results."""
    reading = [user for user in s.node.users if user.target is not operator.getitem or user.args[1] == result]
    return any(user.users or user.target is not operator.getitem for user in reading)


def stack(
    s: Scope, name: str, gates: Sequence[int], x: Value, states: Sequence[Value], weights: Sequence[Value],
    has_biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    **attributes: Any,
) -> tuple[Value | None, ...]:  # fmt: skip
    """Run all layers; results: the sequence, then the final states (layers·directions, batch, hidden) if used."""
    if train and dropout > 0:
        s.refuse("dropout between layers is active; call module.eval() first")
    directions = 2 if bidirectional else 1
    per = 4 if has_biases else 2
    if len(weights) != layers * directions * per:
        s.refuse("projected states")
    if batch_first:
        x = s.swap(x, 0, 1)
    length, batch = s.shape_of(x)[:2]
    finals: list[list[Value]] = [[] for _ in states]
    for layer in range(layers):
        first = layer * directions
        own = [weights[k * per : (k + 1) * per] for k in range(first, first + directions)]
        w, r = (_stacked(s, [_gates(s, entry[k], gates) for entry in own]) for k in (0, 1))
        b = None
        if has_biases:
            b = s.concat([_stacked(s, [_gates(s, entry[k], gates) for entry in own]) for k in (2, 3)], 1)
        hidden = s.shape_of(r)[2]
        initial = [_initial(s, state, first, directions) for state in states]
        found = getattr(s.many, name)(
            x, w, r, b, None, *initial, hidden_size=hidden,
            direction="bidirectional" if bidirectional else "forward", results=1 + len(states), **attributes,
        )  # fmt: skip
        y = found[0]  # length, directions, batch, hidden
        for collected, final in zip(finals, found[1:], strict=True):
            collected.append(final)
        if directions == 1:
            x = s.squeeze(y, 1)
        else:
            x = s.reshape(s.transpose(y, (0, 2, 1, 3)), (length, batch, dims.product([hidden, directions])))
    if batch_first:
        x = s.swap(x, 0, 1)
    states_out = [s.concat(each, 0) if _is_used(s, k) else None for k, each in enumerate(finals, 1)]
    return (x, *states_out)


@lowers("aten.lstm.input")
def lstm(
    s: Scope, x: Value, states: Sequence[Value], weights: Sequence[Value], has_biases: bool, layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value | None, ...]:  # fmt: skip
    return stack(
        s, "lstm", _LSTM_GATES, x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first
    )


@lowers("aten.gru.input")
def gru(
    s: Scope, x: Value, state: Value, weights: Sequence[Value], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value | None, ...]:  # fmt: skip
    return stack(
        s, "gru", _GRU_GATES, x, [state], weights, has_biases, layers, dropout, train, bidirectional, batch_first,
        linear_before_reset=1,
    )  # fmt: skip


@lowers("aten.rnn_tanh.input", "aten.rnn_relu.input")
def rnn(
    s: Scope, x: Value, state: Value, weights: Sequence[Value], has_biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> tuple[Value | None, ...]:  # fmt: skip
    activation = "Tanh" if "tanh" in str(s.node.target) else "Relu"
    return stack(
        s, "rnn", (0,), x, [state], weights, has_biases, layers, dropout, train, bidirectional, batch_first,
        activations=(activation,) * (2 if bidirectional else 1),
    )  # fmt: skip
