"""Fourier transforms."""

from __future__ import annotations

from typing import Any

import numpy as np

from espalier.ir import elements, zeros
from espalier.ir.axes import Equation
from espalier.ir.dims import Dimension, Shape, floor_divide
from espalier.ir.op import In, Op, TypeContext, op
from espalier.ir.terms import Term, Variable

PARTS = "parts of a complex number"


@op("dft", onnx="DFT")
class Dft(Op):
    """The discrete Fourier transform along `axis` (−2 by default), cut or padded to `dft_length`; ONNX DFT.

    The last axis holds real and imaginary part, or the real part only. `onesided` gives the first half of the spectrum
    of a real signal, and, `inverse`, makes the real signal from it.
    """

    x: In
    dft_length: In | None
    axis: In | None
    inverse: int = 0
    onesided: int = 0

    zero = zeros.passed

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("x")
        if shape is None:
            return None
        if len(shape) < 2 or (isinstance(shape[-1], int) and shape[-1] not in (1, 2)):
            ctx.fail("the last axis of a Fourier transform holds the real part, or both parts")
        rank, parts = len(shape), 1 if self.onesided and self.inverse else 2
        given = ctx.numbers("axis") if ctx.has("axis") else np.int64(-2)
        if given is None:
            frozen: list[Term] = [Variable(extent, "transformed") for extent in shape]
            result: list[Term] = [Variable(ctx.fresh(), "transformed") for _ in shape[:-1]]
            return Equation([frozen, *self._rest(ctx)], [[*result, Variable(parts, PARTS)]])
        axis = int(given.reshape(())) + (rank if given < 0 else 0)
        if not 0 <= axis < rank - 1:
            ctx.fail(f"there is no axis {int(given.reshape(()))} to transform")
        operand: list[Term] = [Variable(extent) for extent in shape]
        operand[axis], operand[-1] = Variable(shape[axis], "transformed"), Variable(shape[-1], PARTS)
        spectrum = list(operand)
        spectrum[axis] = Variable(self._extent(ctx, shape, axis), "transformed")
        spectrum[-1] = Variable(parts, PARTS)
        return Equation([operand, *self._rest(ctx)], [spectrum])

    @staticmethod
    def _rest(ctx: TypeContext) -> list[list[Term] | None]:
        return [None] * (len(ctx.types) - 1)

    def _extent(self, ctx: TypeContext, shape: Shape, axis: int) -> Dimension:
        """The extent of the transformed axis in the result."""
        length = ctx.dimensions("dft_length") if ctx.has("dft_length") else (self.default_length(shape[axis]),)
        if length is None:
            return ctx.fresh()
        return floor_divide(length[0], 2) + 1 if self.onesided and not self.inverse else length[0]

    def default_length(self, extent: Dimension) -> Dimension:
        return 2 * (extent - 1) if self.onesided and self.inverse else extent

    def reference(self, xp: Any, x: Any, dft_length: Any = None, axis: Any = None) -> Any:
        kind, along = xp.element(x), -2 if axis is None else int(xp.to_numpy(axis).reshape(()))
        along += x.ndim if along < 0 else 0
        length = self.default_length(x.shape[along]) if dft_length is None else int(xp.to_numpy(dft_length).reshape(()))
        wide = xp.wide(x)
        imaginary = wide[..., 1] if x.shape[-1] == 2 else xp.zeros_like(wide[..., 0])
        signal = xp.complex_of(wide[..., 0], imaginary)
        if self.onesided and self.inverse:
            signal = _whole_spectrum(xp, signal, along, length)
        found = xp.fft(signal, along, length, inverse=bool(self.inverse))
        if self.onesided and self.inverse:
            return xp.astype(xp.expand_dims(xp.real(found), -1), kind)
        if self.onesided:
            found = found[(slice(None),) * along + (slice(0, length // 2 + 1),)]
        return xp.astype(parts_of(xp, found), kind)


def _whole_spectrum(xp: Any, half: Any, axis: int, length: Any) -> Any:
    """The spectrum of a real signal of this length from the half that is not redundant."""
    lead = (slice(None),) * axis
    missing = length // 2 + 1 - half.shape[axis]
    if missing > 0:
        gap = [extent if k != axis else missing for k, extent in enumerate(half.shape)]
        filler = xp.zeros(gap, elements.F64 if xp.element(half) == elements.C128 else elements.F32)
        half = xp.concat([half, xp.complex_of(filler, filler)], axis=axis)
    half = half[(*lead, slice(0, length // 2 + 1))]
    mirrored = xp.flip(half[(*lead, slice(1, length - length // 2))], axis=axis)
    return xp.concat([half, xp.conj(mirrored)], axis=axis)


def parts_of(xp: Any, array: Any) -> Any:
    """Complex numbers as a last axis of real and imaginary part."""
    return xp.stack([xp.real(array), xp.imag(array)], axis=-1)


@op("stft", onnx="STFT")
class Stft(Op):
    """Fourier transforms of windows of a signal (batch, length, parts), `frame_step` apart; ONNX STFT.

    The result is (batch, frames, frequencies, 2). A frame is as long as `frame_length` or `window` says, else as the
    signal. `onesided` leaves out what follows from conjugate symmetry, and takes real signals only.
    """

    signal: In
    frame_step: In
    window: In | None
    frame_length: In | None
    onesided: int = 1

    def equation(self, ctx: TypeContext) -> Equation | None:
        shape = ctx.shape("signal")
        if shape is None:
            return None
        if len(shape) != 3:
            ctx.fail(f"a signal has rank 3, not {len(shape)}")
        if self.onesided and shape[2] == 2:
            ctx.fail("the spectrum of a complex signal has no redundant half; set onesided=0")
        step, length = ctx.dimensions("frame_step"), self._frame(ctx, shape)
        frames = ctx.fresh() if step is None or length is None else floor_divide(shape[1] - length, step[0]) + 1
        bins = ctx.fresh() if length is None else floor_divide(length, 2) + 1 if self.onesided else length
        batch = Variable(shape[0])
        signal: list[Term] = [batch, Variable(shape[1], "windows slide over it"), Variable(shape[2], PARTS)]
        result: list[Term] = [batch, Variable(frames, "frames"), Variable(bins, "frequencies"), Variable(2, PARTS)]
        rest: list[list[Term] | None] = [None] * (len(ctx.types) - 1)
        return Equation([signal, *rest], [result])

    def _frame(self, ctx: TypeContext, shape: Shape) -> Dimension | None:
        """The length of a frame, if known."""
        window = ctx.shape("window") if ctx.has("window") else None
        if not ctx.has("frame_length"):
            return shape[1] if not ctx.has("window") else None if window is None else window[0]
        known = ctx.dimensions("frame_length")
        if known is None or window is None or window[0] == known[0]:
            return None if known is None else known[0]
        if isinstance(window[0], int) and isinstance(known[0], int):
            ctx.fail(f"a window of {window[0]} samples for frames of {known[0]}")
        return known[0]

    def reference(self, xp: Any, signal: Any, frame_step: Any, window: Any = None, frame_length: Any = None) -> Any:
        kind, wide = xp.element(signal), xp.wide(signal)
        step = int(xp.to_numpy(frame_step).reshape(()))
        length = signal.shape[1] if window is None else window.shape[0]
        if frame_length is not None:
            length = int(xp.to_numpy(frame_length).reshape(()))
        count = (signal.shape[1] - length) // step + 1
        parts = []
        for part in range(signal.shape[2]):
            frames = xp.windows(wide[:, :, part], (length,), (step,), (1,), (count,))
            parts.append(frames if window is None else frames * xp.wide(window))
        imaginary = parts[1] if len(parts) > 1 else xp.zeros_like(parts[0])
        found = xp.fft(xp.complex_of(parts[0], imaginary), 2, length)
        return xp.astype(parts_of(xp, found[:, :, : length // 2 + 1] if self.onesided else found), kind)
