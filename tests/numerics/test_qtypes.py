"""Formats: their ranges, and combinations that do not exist."""

import pytest

from quantasr.errors import RecipeError
from quantasr.numerics.qtypes import BITS, QType


@pytest.mark.parametrize(
    ("bits", "symmetric", "low", "high", "storage"),
    [
        (2, True, -1, 1, "int4"),
        (2, False, 0, 3, "uint4"),
        (3, True, -3, 3, "int4"),
        (4, True, -7, 7, "int4"),
        (4, False, 0, 15, "uint4"),
        (5, True, -15, 15, "int8"),
        (7, False, 0, 127, "uint8"),
        (8, True, -127, 127, "int8"),
        (8, False, 0, 255, "uint8"),
        (16, True, -32767, 32767, "int16"),
        (16, False, 0, 65535, "uint16"),
    ],
)
def test_ranges(bits: int, symmetric: bool, low: int, high: int, storage: str) -> None:
    qtype = QType(bits, symmetric)
    assert (qtype.quant_min, qtype.quant_max, qtype.storage) == (low, high, storage)


@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_range_is_symmetric_and_an_affine_one_uses_every_level(bits: int) -> None:
    assert QType(bits, True).quant_min == -QType(bits, True).quant_max
    assert QType(bits, False).quant_max - QType(bits, False).quant_min + 1 == 2**bits


@pytest.mark.parametrize("bits", [0, 1, 17, 32, -8, 8.0, "8", None, True])
def test_bits_that_do_not_exist(bits: object) -> None:
    with pytest.raises(RecipeError, match="bits = "):
        QType(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"symmetric": "no"}, "symmetric = 'no'"),
        ({"symmetric": 1}, "symmetric = 1"),
        ({"granularity": "per_row"}, "granularity = 'per_row'"),
        ({"granularity": "per_group"}, "needs group_size"),
        ({"granularity": "per_group", "group_size": 1}, "2 or more"),
        ({"granularity": "per_group", "group_size": 32.0}, "2 or more"),
        ({"group_size": 32}, "only for granularity per_group"),
        ({"granularity": "per_channel", "group_size": 32}, "only for granularity per_group"),
    ],
)
def test_combinations_that_do_not_exist(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        QType(8, **{"symmetric": True, **changes})  # type: ignore[arg-type]


def test_reduced_takes_one_bit_from_8_alone() -> None:
    assert QType(8, True, "per_channel").reduced == QType(7, True, "per_channel")
    assert QType(4, True, "per_group", 32).reduced == QType(4, True, "per_group", 32)
    assert QType(16, True).reduced == QType(16, True)


def test_dictionary_and_words() -> None:
    grouped = QType(4, False, "per_group", 32)
    assert QType(**grouped.to_dict()) == grouped
    assert QType(**QType(8).to_dict()) == QType(8)
    assert str(grouped) == "int4 affine per_group(32)"
    assert str(QType(8, True, "per_channel")) == "int8 symmetric per_channel"
