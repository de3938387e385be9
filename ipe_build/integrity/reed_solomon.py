"""Reed-Solomon over GF(2^8), many codewords at once: byte i of every row belongs to codeword i.

The field's polynomial is 0x11d, the generator's roots are alpha^0 … alpha^(roots-1) with alpha = 2, as Phil Karn's library has them
with the parameters (8, 0x11d, 0, 1, roots); cryptsetup and the kernel (lib/reed_solomon, drivers/md/dm-verity-fec.c) use the same.
A row is a `bytes`; multiplying it by a constant is `bytes.translate` with a table of 256 products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

CODEWORD = 255
_POLYNOMIAL = 0x11D


def _powers() -> tuple[bytes, bytes]:
    """Returns alpha^0 … alpha^254 twice over, and the logarithm of each element (that of 0 is unused)."""
    exponentials = bytearray()
    logarithms = bytearray(256)
    value = 1
    for power in range(255):
        exponentials.append(value)
        logarithms[value] = power
        value = value << 1 ^ (_POLYNOMIAL if value & 0x80 else 0)
    return bytes(exponentials * 2), bytes(logarithms)


_EXP, _LOG = _powers()


def multiply(one: int, other: int) -> int:
    """Returns the product of two field elements."""
    return _EXP[_LOG[one] + _LOG[other]] if one and other else 0


def inverse(element: int) -> int:
    """Returns the element whose product with `element` (not 0) is 1."""
    return _EXP[255 - _LOG[element]]


def power(exponent: int) -> int:
    """Returns alpha to the power `exponent`."""
    return _EXP[exponent % 255]


@cache
def product_table(factor: int) -> bytes:
    """Returns the 256 products of `factor` with 0 … 255, for `bytes.translate`."""
    return bytes(multiply(factor, other) for other in range(256))


@cache
def generator(roots: int) -> tuple[int, ...]:
    """Returns the generator polynomial's coefficients, that of x^0 first, the leading 1 last."""
    polynomial = [1]
    for root in range(roots):
        raised = [0, *polynomial]
        for index, coefficient in enumerate(polynomial):
            raised[index] ^= multiply(coefficient, power(root))
        polynomial = raised
    return tuple(polynomial)


def parity(rows: Sequence[bytes], roots: int) -> tuple[bytes, ...]:
    """Returns the `roots` parity rows of 255 - roots data rows of one length."""
    size = len(rows[0])
    tables = [product_table(coefficient) for coefficient in reversed(generator(roots)[:-1])]
    state = [0] * roots
    for row in rows:
        feedback = (int.from_bytes(row, "little") ^ state[0]).to_bytes(size, "little")
        state = [*state[1:], 0]
        if feedback.count(0) == size:
            continue
        for index, table in enumerate(tables):
            state[index] ^= int.from_bytes(feedback.translate(table), "little")
    return tuple(value.to_bytes(size, "little") for value in state)


def syndromes(rows: Sequence[bytes], count: int) -> tuple[int, ...]:
    """Returns the first `count` syndromes of 255 rows (data, then parity), each as the little-endian number of its bytes."""
    size = len(rows[0])
    found = []
    for root in range(count):
        table = product_table(power(root))
        value = 0
        for row in rows:
            value = int.from_bytes(value.to_bytes(size, "little").translate(table), "little") ^ int.from_bytes(row, "little")
        found.append(value)
    return tuple(found)


def fill_erasures(rows: Sequence[bytes], erased: Sequence[int]) -> dict[int, bytes] | None:
    """Returns what the rows numbered `erased` (at most as many as there are roots) must hold, given all the others.

    Solves sum over erased j of error_j * alpha^(k * (254 - j)) = syndrome_k for k = 0 …; None for more rows than can be solved.
    """
    size = len(rows[0])
    count = len(erased)
    matrix = [[power(k * (CODEWORD - 1 - row)) for row in erased] for k in range(count)]
    right = [value.to_bytes(size, "little") for value in syndromes(rows, count)]
    for column in range(count):
        pivot = next((index for index in range(column, count) if matrix[index][column]), None)
        if pivot is None:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        right[column], right[pivot] = right[pivot], right[column]
        scale = inverse(matrix[column][column])
        matrix[column] = [multiply(scale, value) for value in matrix[column]]
        right[column] = right[column].translate(product_table(scale))
        for index in range(count):
            factor = matrix[index][column]
            if index == column or not factor:
                continue
            matrix[index] = [value ^ multiply(factor, other) for value, other in zip(matrix[index], matrix[column], strict=True)]
            right[index] = _xor(right[index], right[column].translate(product_table(factor)))
    return {row: _xor(rows[row], error) for row, error in zip(erased, right, strict=True)}


def _xor(one: bytes, other: bytes) -> bytes:
    """Returns the bytes of two rows, added in the field."""
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")
