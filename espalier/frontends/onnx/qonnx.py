"""The dialects of QONNX, Brevitas and FINN: quantizers under several domains, and channels-last operators."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.frontends.onnx.site import Refused, Site, adapter
from espalier.ir.graph import Value
from espalier.ir.ops.quantization import QONNX

SYNONYMS = ("onnx.brevitas", "finn.custom_op.general")
CHANNELS_LAST = "qonnx.custom_op.channels_last"


def _under_other_names(op_type: str, now: str) -> None:
    def convert(site: Site) -> Sequence[Value]:
        return site.importer.convert_as(site, QONNX, now)

    for domain in (*SYNONYMS, *((QONNX,) if op_type != now else ())):
        adapter(op_type, domain=domain)(convert)


for _then, _now in {
    "Quant": "Quant", "IntQuant": "Quant", "BipolarQuant": "BipolarQuant", "MultiThreshold": "MultiThreshold",
    "FloatQuant": "FloatQuant",
}.items():  # fmt: skip
    _under_other_names(_then, _now)


def trunc(site: Site) -> Sequence[Value] | None:
    """Version 1 (five operands) drops low bits and keeps the scale; version 2 is an operator of the IR."""
    if len(site.operands) == 6:
        return site.importer.convert_as(site, QONNX, "Trunc") if site.domain != QONNX else None
    build, mode = site.build, str(site.get("rounding_mode", "FLOOR")).upper()
    rounding = {"FLOOR": build.floor, "CEIL": build.ceil, "ROUND": build.round}.get(mode)
    if rounding is None:
        raise Refused(f"Trunc with the rounding mode {mode}")
    x, scale, zero, bits, left = (site.required(k) for k in range(5))
    integers = build.round(build.add(build.div(x, scale), zero))
    step = build.pow(2.0, build.sub(bits, left))
    return [build.mul(build.sub(rounding(build.div(integers, step)), zero), scale)]


for _domain in (QONNX, *SYNONYMS):
    adapter("Trunc", domain=_domain)(trunc)


@adapter("Conv", "MaxPool", "AveragePool", domain=CHANNELS_LAST)
def channels_last(site: Site) -> Sequence[Value]:
    """The plain operator between two transposes; kernels are channels-last too."""
    rank, build = len(site.shape(0)), site.build
    operands, first = site.operands, (0, rank - 1, *range(1, rank - 1))
    site.operands = [
        build.transpose(operand, perm=first) if operand is not None and operand.rank == rank else operand
        for operand in operands
    ]
    y = site.importer.convert_as(site, "", site.op_type)[0]
    site.operands = operands
    return [build.transpose(y, perm=(0, *range(2, rank), 1))]


@adapter("BatchNormalization", domain=CHANNELS_LAST)
def channels_last_batch_norm(site: Site) -> Sequence[Value]:
    rank, build = len(site.shape(0)), site.build
    first = build.transpose(site.required(0), perm=(0, rank - 1, *range(1, rank - 1)))
    y = build.batch_norm(first, *site.operands[1:], epsilon=site.get("epsilon", 1e-5))
    return [build.transpose(y, perm=(0, *range(2, rank), 1))]
