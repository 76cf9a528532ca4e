"""Mathematical functions as arithmetic that LLVM can vectorize, within 4 units in the last place.

The methods are from Muller, Elementary Functions, 3rd ed. 2016, ch. 4 and 11: the argument is
reduced with Cody and Waite's two-part constant, and a short series computes the function.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

from llvmlite import ir

Value = Any
"""A value of llvmlite, or a Python number, which becomes a constant."""


# A product and a sum may be one instruction, which rounds once.
_FUSED = ("contract",)
_LN2 = Fraction("0.693147180559945309417232121458176568")


class _Format(NamedTuple):
    """Constants of a floating-point dtype."""

    integer: ir.IntType
    digits: int  # of the significand after the point
    bias: int  # of the exponent
    overflow: float  # exp(x) is infinite above, and 0 below -underflow
    underflow: float
    exp_terms: int  # (ln(2) / 2)**n / n! is below half a unit in the last place
    log_terms: int  # 0.1716**(2 * n) / (2 * n + 1) likewise


_FORMATS = {
    ir.FloatType(): _Format(ir.IntType(32), 23, 127, 89.0, 104.0, 8, 6),
    ir.DoubleType(): _Format(ir.IntType(64), 52, 1023, 710.0, 746.0, 14, 12),
}


class Arithmetic:
    """Emits instructions on values of one floating type.

    Parameters
    ----------
    builder : IRBuilder
    kind : FloatType or DoubleType
    """

    def __init__(self, builder: ir.IRBuilder, kind: ir.Type) -> None:
        self.builder, self.kind = builder, kind
        self._format = _FORMATS[kind]
        digits = self._format.digits
        # Adding it rounds a number to an integer, which is then in the last bits.
        self._rounder = 1.5 * 2.0**digits
        part = 2.0 ** -(digits - 8 if digits < 30 else digits - 12)
        self._ln2_high = math.floor(math.log(2) / part) * part  # exact when multiplied by exponents
        self._ln2_low = float(_LN2 - Fraction(self._ln2_high))

    def constant(self, x: Value) -> ir.Value:
        """Return a Python number as a constant."""
        return ir.Constant(self.kind, x) if isinstance(x, (int, float)) else x

    def integer(self, x: int) -> ir.Constant:
        """Return an integer as wide as the floating type."""
        return ir.Constant(self._format.integer, x)

    def add(self, x: Value, y: Value) -> ir.Value:
        """Return ``x + y``."""
        return self.builder.fadd(self.constant(x), self.constant(y), flags=_FUSED)

    def sub(self, x: Value, y: Value) -> ir.Value:
        """Return ``x - y``."""
        return self.builder.fsub(self.constant(x), self.constant(y), flags=_FUSED)

    def mul(self, x: Value, y: Value) -> ir.Value:
        """Return ``x * y``."""
        return self.builder.fmul(self.constant(x), self.constant(y), flags=_FUSED)

    def div(self, x: Value, y: Value) -> ir.Value:
        """Return ``x / y``."""
        return self.builder.fdiv(self.constant(x), self.constant(y))

    def less(self, x: Value, y: Value) -> ir.Value:
        """Return whether ``x < y``; false for NaN."""
        return self.builder.fcmp_ordered("<", self.constant(x), self.constant(y))

    def select(self, condition: ir.Value, x: Value, y: Value) -> ir.Value:
        """Return ``x if condition else y``."""
        return self.builder.select(condition, self.constant(x), self.constant(y))

    def clamp(self, x: Value, low: float, high: float) -> ir.Value:
        """Return `x` limited to the range from `low` to `high`; NaN stays."""
        x = self.select(self.less(x, low), low, x)
        return self.select(self.less(high, x), high, x)

    def polynomial(self, x: Value, coefficients: list[float]) -> ir.Value:
        """Return the sum of ``coefficients[i] * x**i``."""
        total: Value = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            total = self.add(self.mul(total, x), coefficient)
        return total

    def power_of_two(self, exponent: ir.Value) -> ir.Value:
        """Return 2 to the power of an integer, which must be the exponent of a normal number."""
        biased = self.builder.add(exponent, self.integer(self._format.bias))
        bits = self.builder.shl(biased, self.integer(self._format.digits))
        return self.builder.bitcast(bits, self.kind)

    def _reduce(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return an integer n and ``x - n * ln(2)``, at most ``ln(2) / 2``."""
        shifted = self.add(self.mul(x, 1 / math.log(2)), self._rounder)
        rounder = self.builder.bitcast(self.constant(self._rounder), self._format.integer)
        n = self.builder.sub(self.builder.bitcast(shifted, self._format.integer), rounder)
        rounded = self.sub(shifted, self._rounder)
        rest = self.sub(x, self.mul(rounded, self._ln2_high))
        return n, self.sub(rest, self.mul(rounded, self._ln2_low))

    def exp(self, x: ir.Value) -> ir.Value:
        """Return the exponential: ``2**n`` times the series of the remainder."""
        x = self.clamp(x, -self._format.underflow, self._format.overflow)
        n, rest = self._reduce(x)
        series = [1 / math.factorial(i) for i in range(self._format.exp_terms)]
        y = self.polynomial(rest, series)
        # In two steps, since 2**n itself may be too large or too small.
        half = self.builder.ashr(n, self.integer(1))
        y = self.mul(y, self.power_of_two(half))
        return self.mul(y, self.power_of_two(self.builder.sub(n, half)))

    def tanh(self, x: ir.Value) -> ir.Value:
        """Return ``e / (e + 2)`` with ``e = exp(2 x) - 1``, which is accurate near 0."""
        bound = float(self._format.digits)  # tanh(bound) is 1
        n, rest = self._reduce(self.clamp(self.mul(x, 2.0), -bound, bound))
        series = [1 / math.factorial(i) for i in range(1, self._format.exp_terms + 1)]
        power = self.power_of_two(n)
        e = self.mul(self.mul(self.polynomial(rest, series), rest), power)
        e = self.add(e, self.sub(power, 1.0))
        return self.div(e, self.add(e, 2.0))

    def log(self, x: ir.Value) -> ir.Value:
        """Return the logarithm, from the exponent and the series of atanh for the significand m.

        ``log(m) = 2 * atanh((m - 1) / (m + 1))``, with m between sqrt(1/2) and sqrt(2).
        """
        digits, bias = self._format.digits, self._format.bias
        smallest = 2.0 ** (1 - bias)
        tiny = self.less(x, smallest)
        normal = self.select(tiny, self.mul(x, 2.0 ** (digits + 1)), x)
        bits = self.builder.bitcast(normal, self._format.integer)
        root = self.builder.bitcast(self.constant(math.sqrt(0.5)), self._format.integer)
        exponent = self.builder.ashr(self.builder.sub(bits, root), self.integer(digits))
        m = self.builder.sub(bits, self.builder.shl(exponent, self.integer(digits)))
        m = self.builder.bitcast(m, self.kind)
        correction = self.builder.select(tiny, self.integer(digits + 1), self.integer(0))
        n = self.builder.sitofp(self.builder.sub(exponent, correction), self.kind)
        s = self.div(self.sub(m, 1.0), self.add(m, 1.0))
        square = self.mul(s, s)
        series = [2 / (2 * i + 1) for i in range(1, self._format.log_terms)]
        rest = self.mul(self.mul(s, square), self.polynomial(square, series))
        low = self.add(rest, self.mul(n, self._ln2_low))
        y = self.add(self.mul(n, self._ln2_high), self.add(self.mul(s, 2.0), low))
        finite = self.builder.fcmp_ordered("<", x, self.constant(math.inf))
        y = self.select(finite, y, x)  # infinity and NaN
        y = self.select(self.less(x, 0.0), math.nan, y)
        zero = self.builder.fcmp_ordered("==", x, self.constant(0.0))
        return self.select(zero, -math.inf, y)

    def log1p(self, x: ir.Value) -> ir.Value:
        """Return ``log(1 + x)``, corrected for the rounding error of the sum."""
        total = self.add(x, 1.0)
        y = self.log(total)
        error = self.div(self.sub(x, self.sub(total, 1.0)), total)
        finite = self.less(total, math.inf)
        corrected = self.builder.and_(finite, self.less(0.0, total))
        return self.select(corrected, self.add(y, error), y)
