"""Element types: one object for each name."""

from __future__ import annotations

import copy
import pickle

import pytest

from espalier.ir.elements import BF16, F4E2M1, I4, Element, Quantized, integer, parse, quantized


@pytest.mark.parametrize("element", [BF16, F4E2M1, I4, integer(3, signed=False), quantized(I4, 1, 32)], ids=str)
def test_there_is_one_object_for_each_name(element: Element) -> None:
    assert parse(element.name) is element
    assert copy.deepcopy(element) is element and pickle.loads(pickle.dumps(element)) is element


def test_however_it_is_asked_for() -> None:
    assert integer(8) is integer(8, True) is integer(bits=8, signed=True) is parse("i8")
    assert quantized(I4) is quantized(I4, None) is quantized(I4, block=0) is parse("q(i4)")
    assert isinstance(parse("q(i4, axis=1)"), Quantized) and parse("q(i4, axis=1)") is not quantized(I4)


def test_no_second_one_can_be_made() -> None:
    with pytest.raises(ValueError, match="already"):
        Element("f32", "float", 32)
