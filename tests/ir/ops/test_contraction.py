"""Matrix products, recurrent layers, attention and transforms against other implementations, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from espalier.cost.count import macs
from espalier.ir.build import Builder
from espalier.ir.dims import symbol
from espalier.ir.graph import Graph, Value
from espalier.ir.inference import type_context
from espalier.ir.op import TypeInferenceError
from espalier.ir.ops.attention import Attention
from espalier.ir.ops.contraction import Einsum, Gemm, MatMulInteger
from espalier.ir.ops.recurrent import ACTIVATIONS, Gru, Lstm, Recurrent, Rnn
from espalier.ir.ops.signal import Dft, Stft
from espalier.ir.ops.text import TfIdfVectorizer
from espalier.ir.terms import leaves, unify
from espalier.ir.types import parse
from espalier.ir.xp import numpy as xp
from tests.ir.ops.test_windows import by_onnxruntime, close, random

Array = np.ndarray[Any, Any]


def values(*types: str) -> tuple[Builder, list[Value]]:
    graph = Graph()
    return Builder(graph), [graph.add_input(parse(text), f"x{k}") for k, text in enumerate(types)]


def test_shapes_of_matrix_products() -> None:
    cases = [
        ("f32[n, 1, 3, 4]", "f32[5, 4, k]", "f32[n, 5, 3, k]"),
        ("f32[4]", "f32[4]", "f32[]"),
        ("f32[4]", "f32[b, 4, 2]", "f32[b, 2]"),
        ("f32[b, 3, 4]", "f32[4]", "f32[b, 3]"),
        ("f32[*]", "f32[4, 2]", "f32[*]"),
    ]
    for a, b, y in cases:
        build, operands = values(a, b)
        assert str(build.matmul(*operands).type) == y
    build, operands = values("f32[2, 3]", "f32[4, 5]")
    with pytest.raises(TypeInferenceError, match="3"):
        build.matmul(*operands)


def test_gemm_of_integers_wraps_and_scales() -> None:
    a, b = np.array([[2**30, 3]], np.int32), np.array([[4], [5]], np.int32)
    assert Gemm().reference(xp, a, b).tolist() == [[15]]
    assert Gemm(alpha=3.0).reference(xp, np.array([[2]], np.int32), np.array([[7]], np.int32)).tolist() == [[42]]


def test_gemm_summand_of_symbolic_shape() -> None:
    build, operands = values("f32[n, 4]", "f32[5, 4]", "f32[5]")
    assert str(build.gemm(*operands, transB=1).type) == "f32[n, 5]"


@pytest.mark.parametrize(
    ("text", "shapes", "result"),
    [
        ("ij,jk", ["f32[2, 3]", "f32[3, 4]"], "f32[2, 4]"),
        ("ji", ["f32[2, 3]"], "f32[3, 2]"),
        ("...ii->...i", ["f32[b, 3, 3]"], "f32[b, 3]"),
        ("bhqd,bhkd->bhqk", ["f32[b, 8, q, 64]", "f32[b, 8, k, 64]"], "f32[b, 8, q, k]"),
        ("B d, d -> B", ["f32[n, 3]", "f32[3]"], "f32[n]"),
        ("ij,ij->ij", ["f32[2, 3]", "f32[2, 1]"], "f32[2, 3]"),
    ],
)
def test_einsum_shapes(text: str, shapes: list[str], result: str) -> None:
    build, operands = values(*shapes)
    assert str(build.einsum(*operands, subscripts=text).type) == result


def test_einsum_refuses_what_does_not_fit() -> None:
    cases = [("ij->i", ["f32[2]"]), ("ij,jk->ik", ["f32[2, 3]"]), ("ij,jk->ik", ["f32[2, 3]", "f32[4, 2]"])]
    for text, shapes in cases:
        build, operands = values(*shapes)
        with pytest.raises(TypeInferenceError):
            build.einsum(*operands, subscripts=text)


def test_einsum_in_implicit_form_sums_repeated_letters() -> None:
    a, b = random(3, 4), random(4, 5)
    close(Einsum(subscripts="kj, ji").reference(xp, a, b), np.einsum("kj,ji->ik", a, b))


def test_matmul_integer_wraps_around_like_32_bits() -> None:
    a = np.full((1, 2**16), 255, np.uint8)
    found = MatMulInteger().reference(xp, a, a.T)
    assert found.dtype == np.int32 and found.item() == np.int64(255 * 255 * 2**16).astype(np.int32)


def layer(kind: type[Recurrent], n: int, states: int) -> list[Any]:
    rows = kind.gates * 5
    operands = [random(7, 3, 4), random(n, rows, 4), random(n, rows, 5) / 2, random(n, 2 * rows)]
    return [*operands, np.array([7, 2, 5], np.int32), *(random(n, 3, 5) for _ in range(states))]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("clip", [None, 0.4])
def test_recurrent_layers(direction: str, clip: float | None) -> None:
    n = 2 if direction == "bidirectional" else 1
    options: dict[str, Any] = {"direction": direction, "hidden_size": 5} | ({"clip": clip} if clip else {})
    lstm = layer(Lstm, n, 2)
    cases: list[tuple[Recurrent, list[Any]]] = [(Rnn(**options), layer(Rnn, n, 1)), (Lstm(**options), lstm)]
    cases += [(Gru(**options, linear_before_reset=k), layer(Gru, n, 1)) for k in (0, 1)]
    cases.append((Lstm(**options), [*lstm, random(n, 15)]))
    for op, operands in cases:
        close(op.reference(xp, *operands)[0], by_onnxruntime(op, *operands, **options), 1e-4)


def test_layout_moves_the_batch_to_the_front() -> None:
    for kind, states in ((Rnn, 1), (Gru, 1), (Lstm, 2)):
        x, w, r, b, ends, *initial = layer(kind, 2, states)
        plain = kind(direction="bidirectional").reference(xp, x, w, r, b, ends, *initial)
        swapped = [np.swapaxes(state, 0, 1) for state in initial]
        found = kind(direction="bidirectional", layout=1).reference(xp, np.swapaxes(x, 0, 1), w, r, b, ends, *swapped)
        close(found[0], np.transpose(plain[0], (2, 0, 1, 3)))
        for a, e in zip(found[1:], plain[1:], strict=True):
            close(a, np.swapaxes(e, 0, 1))


def test_activations() -> None:
    x = torch.linspace(-3, 3, 30)
    expected = {
        "relu": F.relu(x), "tanh": torch.tanh(x), "sigmoid": torch.sigmoid(x), "affine": x,
        "leakyrelu": F.leaky_relu(x, 0.01), "thresholdedrelu": F.threshold(x, 1.0, 0.0), "scaledtanh": torch.tanh(x),
        "hardsigmoid": torch.clamp(0.2 * x + 0.5, 0, 1), "elu": F.elu(x), "softsign": F.softsign(x),
        "softplus": F.softplus(x),
    }  # fmt: skip
    assert expected.keys() == ACTIVATIONS.keys()
    for name, (alpha, beta, function) in ACTIVATIONS.items():
        close(function(xp, x.numpy(), alpha, beta), expected[name].numpy())


def test_activations_with_their_own_parameters() -> None:
    options: dict[str, Any] = {
        "activations": ["HardSigmoid", "ScaledTanh"], "activation_alpha": [0.3, 1.2], "activation_beta": [0.4, 0.7],
        "hidden_size": 5,
    }  # fmt: skip
    operands = layer(Gru, 1, 1)
    close(Gru(**options).reference(xp, *operands)[0], by_onnxruntime(Gru(**options), *operands, **options), 1e-4)


def test_defaults_for_both_directions_do_for_one() -> None:
    """ONNX gives RNN two activations by default, in every direction; files that spell defaults out hold both."""
    operands = layer(Rnn, 1, 1)
    plain, spelt = Rnn(hidden_size=5), Rnn(hidden_size=5, activations=("Tanh", "Tanh"))
    close(spelt.reference(xp, *operands)[0], plain.reference(xp, *operands)[0])
    build, symbols = values("f32[7, 3, 4]", "f32[1, 5, 4]", "f32[1, 5, 5]")
    with pytest.raises(TypeInferenceError, match="1 directions"):
        build.rnn(*symbols, activations=["Tanh", "Relu"])


def test_recurrent_layers_refuse_unknown_activations() -> None:
    build, operands = values("f32[7, 3, 4]", "f32[1, 5, 4]", "f32[1, 5, 5]")
    with pytest.raises(TypeInferenceError, match="Swish"):
        build.rnn(*operands, activations=["Swish"])


def test_hidden_units_are_one_axis_everywhere() -> None:
    build, operands = values("f32[t, b, 4]", "f32[1, 20, 4]", "f32[1, 20, 5]", "f32[1, 40]")
    y = build.lstm(*operands, hidden_size=5)
    assert str(y.type) == "f32[t, 1, b, 5]"
    node = y.producer
    found = node.op.equation(type_context(build.graph, node))
    (unit,) = found.letters["h"]
    for terms, axis in ((found.operands[1], 1), (found.operands[2], 1), (found.operands[2], 2), (found.operands[3], 1)):
        assert unit in list(leaves(terms[axis]))
    assert found.bound == {"hidden_size": unit}
    assert str(macs(node)) == "180*b*t"


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("share", [1, 3])
def test_attention(causal: int, share: int) -> None:
    q, k, v = random(2, 6, 5, 8), random(2, 6 // share, 5, 8), random(2, 6 // share, 5, 4)
    tensors = (torch.from_numpy(a) for a in (q, k, v))
    expected = F.scaled_dot_product_attention(*tensors, is_causal=bool(causal), enable_gqa=share > 1)
    op = Attention(is_causal=causal)
    close(op.reference(xp, q, k, v)[0], expected)
    flat = [np.transpose(a, (0, 2, 1, 3)).reshape(2, 5, -1) for a in (q, k, v)]
    y = op.replace(q_num_heads=6, kv_num_heads=6 // share).reference(xp, *flat)[0]
    close(y, np.transpose(expected.numpy(), (0, 2, 1, 3)).reshape(2, 5, -1))


def test_attention_in_steps_is_attention_at_once() -> None:
    q, k, v = random(1, 2, 6, 4), random(1, 2, 6, 4), random(1, 2, 6, 4)
    op = Attention(is_causal=1, left_window_size=2)
    whole = op.reference(xp, q, k, v)[0]
    head = [a[:, :, :4] for a in (q, k, v)]
    first, keys, values_, _ = op.reference(xp, *head)
    tail = [a[:, :, 4:] for a in (q, k, v)]
    second = op.reference(xp, *tail, None, keys, values_)[0]
    close(np.concatenate([first, second], axis=2), whole)


def test_a_query_that_sees_no_key_gives_zero() -> None:
    q = random(1, 1, 2, 4)
    mask = np.array([[True, True], [False, False]])
    y, _, _, weights = Attention(qk_matmul_output_mode=3).reference(xp, q, q, q, mask)
    assert np.isfinite(y).all() and not y[:, :, 1].any() and not weights[:, :, 1].any()


def test_heads_of_attention_are_shared() -> None:
    build, (q, k, v) = values("f32[b, s, 64]", "f32[b, t, 32]", "f32[b, t, 32]")
    y, keys = build.attention(q, k, v, q_num_heads=8, kv_num_heads=4, scale=0.5, results=2)
    assert str(y.type) == "f32[b, s, 64]" and str(keys.type) == "f32[b, 4, t, 8]"
    node = y.producer
    found = node.op.equation(type_context(build.graph, node))
    for a, b in found.equal:
        unify(a, b)
    heads = found.letters["g"][0]
    assert all(heads in list(leaves(terms[2])) for terms in (*found.operands, found.results[0]))
    assert macs(node) == 8 * 16 * symbol("b") * symbol("s") * symbol("t")


def test_attention_refuses_unequal_heads() -> None:
    build, operands = values("f32[1, 3, 64]", "f32[1, 3, 32]", "f32[1, 3, 32]")
    with pytest.raises(TypeInferenceError, match="can't share"):
        build.attention(*operands, q_num_heads=8, kv_num_heads=3)


@pytest.mark.parametrize("length", [None, 3, 4, 7, 8])
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_fourier_transforms(length: int | None, axis: int) -> None:
    x = random(5, 6, 1).astype(np.float64)
    operands = None if length is None else np.array(length), np.array(axis)
    expected = np.fft.fft(x[..., 0], length, axis=axis + (axis < 0))
    close(Dft().reference(xp, x, *operands), np.stack([expected.real, expected.imag], -1), 1e-9)
    half = np.fft.rfft(x[..., 0], length, axis=axis + (axis < 0))
    found = Dft(onesided=1).reference(xp, x, *operands)
    close(found, np.stack([half.real, half.imag], -1), 1e-9)
    parts = random(5, 6, 2).astype(np.float64)
    back = np.fft.irfft(parts[..., 0] + 1j * parts[..., 1], length, axis=axis + (axis < 0))
    close(Dft(onesided=1, inverse=1).reference(xp, parts, *operands)[..., 0], back, 1e-9)


def test_short_time_transform() -> None:
    signal, window = random(2, 20), np.hanning(8).astype(np.float32)
    tensors, options = (torch.from_numpy(signal), 8, 3), {"window": torch.from_numpy(window), "center": False}
    expected = torch.view_as_real(torch.stft(*tensors, **options, return_complex=True).transpose(1, 2)).numpy()
    close(Stft().reference(xp, signal[..., None], np.array(3), window), expected, 1e-4)


def test_transform_of_a_complex_signal_is_not_one_sided() -> None:
    build, (signal,) = values("f32[2, 20, 2]")
    with pytest.raises(TypeInferenceError, match="onesided=0"):
        build.stft(signal, np.array(4), None, np.array(8))


def test_ngrams_of_text() -> None:
    op = TfIdfVectorizer(
        mode="TFIDF", min_gram_length=1, max_gram_length=2, max_skip_count=1, ngram_counts=[0, 2],
        ngram_indexes=[2, 0, 1], pool_strings=["a", "b", "a", "c"], weights=[1.0, 2.0, 0.5],
    )  # fmt: skip
    found = op.reference(xp, np.array([["a", "b", "c"], ["a", "c", "a"]], object))
    assert found.tolist() == [[2.0, 0.5, 1.0], [0.0, 0.5, 2.0]]
    build, (x,) = values("string[n, 3]")
    assert str(build.node(op, [x]).results[0].type) == "f32[n, 3]"
