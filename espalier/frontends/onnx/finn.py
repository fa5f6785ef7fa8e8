"""FINN's hardware operators that are a matrix product and thresholds; how they are folded onto a device is dropped.

The meaning is that of `execute_node` in FINN's `finn.custom_op.fpgadataflow` (MVAU and Thresholding). Its other
hardware operators stay opaque.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espalier.frontends.onnx.site import Refused, Site, adapter
from espalier.ir.graph import Value

FINN = "finn.custom_op.fpgadataflow"
_CHANNELS_LAST = {2: "NC", 4: "NHWC"}


def matrix_vector_activation(site: Site) -> Sequence[Value]:
    """x (…, MW) · weights (MW, MH), then as many thresholds (MH, steps) as are reached, unless `noActivation`.

    Bits and bipolar numbers are counted rather than multiplied: the product is how many of the MW pairs are equal.
    """
    build, x, weights = site.build, site.required(0), site.required(1)
    width, kinds = site.get("MW"), (site.get("inputDataType"), site.get("weightDataType"))
    if weights.shape != (width, site.get("MH")) or site.shape(0)[-1] != width:
        raise Refused(f"{site.op_type} of MW={width}, MH={site.get('MH')} on {x.type} and {weights.type}", fatal=True)
    counted = bool(site.get("binaryXnorMode", 0))
    if counted:
        x, weights = (build.sub(build.mul(v, np.float32(2)), np.float32(1)) for v in (x, weights))
    product = build.matmul(x, weights)
    if counted or kinds == ("BIPOLAR", "BIPOLAR"):
        product = build.mul(build.add(product, np.float32(width)), np.float32(0.5))
    if site.get("noActivation", 0):
        return [product]
    return [_thresholds(site, product, site.required(2))]


def thresholding(site: Site) -> Sequence[Value]:
    """How many thresholds (channels, steps) each number of x (…, channels) reaches."""
    return [_thresholds(site, site.required(0), site.required(1))]


def _thresholds(site: Site, x: Value, thresholds: Value) -> Value:
    layout = _CHANNELS_LAST.get(x.rank or 0)
    if layout is None:
        raise Refused(f"{site.op_type} with thresholds on a tensor of rank {x.rank}")
    start, bipolar = site.get("ActVal", 0), site.get("outputDataType") == "BIPOLAR"
    scale, bias = (2.0, -1.0) if bipolar else (1.0, float(start))
    if bipolar and start:
        raise Refused(f"{site.op_type} with bipolar results that start at {start}")
    found: Value = site.build.multi_threshold(x, thresholds, out_scale=scale, out_bias=bias, data_layout=layout)
    return found


for _kind in ("", "hls", "rtl"):
    _domain, _suffix = f"{FINN}.{_kind}".rstrip("."), f"_{_kind}" if _kind else ""
    adapter(f"MVAU{_suffix}", domain=_domain)(matrix_vector_activation)
    adapter(f"Thresholding{_suffix}", domain=_domain)(thresholding)
