"""Values of expressions with error bounds, over floats here and over many digits in the worker.

Every value carries a first-order bound of its rounding error, so a difference beyond the bounds shows that two
expressions differ, and `e^{-1000}` is told from 0 although both are small.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from verifiers.answers.notation.trees import Node

LARGEST = 1e300
"""No value may be larger on the way."""

LARGEST_EXPONENT = 1e6
"""Bound on |exponent * log(base)| of any power, in either arithmetic."""


LARGEST_EXACT = 1 << 50
"""Integers up to here are numbers of every field, without an error."""


class Undefined(Exception):
    """No number here: a pole, an overflow, infinity, or a size beyond the caps."""


@dataclass(frozen=True)
class Field:
    """Numbers to evaluate over, complex throughout.

    `rounding` is the relative error of one operation, `least` the absolute one (underflow), `largest` the size from
    which a value counts as undefined, `trust` the largest relative error with which two values may be said to agree.
    """

    number: Callable[[Fraction], Any]
    real: Callable[[Any], Any]
    """A value without its imaginary part."""
    floor: Callable[[Any], int]
    constants: Mapping[str, Any]
    functions: Mapping[str, Callable[[Any], Any]]
    rounding: Any
    least: Any
    largest: Any
    trust: Any


def _float_gamma(z: complex) -> complex:
    if z.imag or abs(z.real) > 170:
        raise Undefined("gamma beyond floats")
    return complex(math.gamma(z.real))


FLOATS = Field(
    number=lambda value: complex(float(value)),
    real=lambda value: complex(value.real),
    floor=math.floor,
    constants={"pi": complex(math.pi), "e": complex(math.e), "i": 1j},
    functions={
        "sin": cmath.sin,
        "cos": cmath.cos,
        "tan": cmath.tan,
        "asin": cmath.asin,
        "acos": cmath.acos,
        "atan": cmath.atan,
        "sinh": cmath.sinh,
        "cosh": cmath.cosh,
        "tanh": cmath.tanh,
        "ln": cmath.log,
        "gamma": _float_gamma,
    },
    rounding=4.5e-16,
    least=1e-290,
    largest=LARGEST,
    trust=1e-6,
)
"""Complex floats: quick, good for showing that two expressions differ."""

Value = tuple[Any, Any]
"""A number and the bound of its error."""


class Evaluation:
    """Values of expressions at one point."""

    def __init__(self, field: Field, point: Mapping[str, Fraction]) -> None:
        self.field, self.point = field, point
        self.scale: Any = 0
        """The largest size met on the way."""

    def of(self, node: Node) -> Value:
        """The value of a tree.

        Raises:
            Undefined: where it has none, or none of a bearable size.
        """
        try:
            value, error = self._of(node)
        except (ArithmeticError, ValueError, KeyError, TypeError) as reason:
            raise Undefined(str(reason)) from None
        size = abs(value)
        if not size < self.field.largest or not error < self.field.largest:  # also not a number
            raise Undefined("not finite")
        self.scale = max(self.scale, size)
        return value, error

    def _of(self, node: Node) -> Value:
        head = node[0]
        if head == "num":
            value = self.field.number(node[1])
            if node[1].denominator == 1 and abs(node[1]) <= LARGEST_EXACT:
                return value, 0  # arcsin(1) stands on the edge of its domain, not somewhere near
            return self._rounded(value, 0)
        if head == "sym":
            return self._rounded(self.field.number(self.point[node[1]]), 0)
        if head == "const":
            return self._rounded(self.field.constants[node[1]], 0)
        if head == "fn":
            return self._function(node[1], self.of(node[2]))
        return _OPERATIONS[head](self, *[self.of(part) for part in node[1:]])

    def _rounded(self, value: Any, error: Any) -> Value:
        return value, error + self.field.rounding * abs(value) + self.field.least

    def add(self, *terms: Value) -> Value:
        total, error = terms[0]
        for value, bound in terms[1:]:
            total, error = self._rounded(total + value, error + bound)
        return total, error

    def multiply(self, *factors: Value) -> Value:
        total, error = factors[0]
        for value, bound in factors[1:]:
            total, error = self._rounded(total * value, abs(total) * bound + abs(value) * error + error * bound)
        return total, error

    def divide(self, a: Value, b: Value) -> Value:
        if abs(b[0]) <= b[1]:
            raise Undefined("division by what may be zero")
        value = a[0] / b[0]
        return self._rounded(value, (a[1] + abs(value) * b[1]) / (abs(b[0]) - b[1]))

    def power(self, base: Value, exponent: Value) -> Value:
        """The principal power, where its size is bearable."""
        (a, error_a), (b, error_b) = self._settled(base), exponent
        if abs(a) <= error_a:
            if a == 0 and abs(b) > error_b and b.real > 0:
                return base
            raise Undefined("a power of what may be zero")
        logarithm = self.field.functions["ln"](a)
        if abs(b * logarithm) > LARGEST_EXPONENT:
            raise Undefined("a power beyond all bounds")
        value = a**b
        growth = abs(b) * error_a / abs(a) + abs(logarithm) * error_b + self.field.rounding * abs(b * logarithm)
        return self._rounded(value, abs(value) * growth)

    def root(self, index: Value, radicand: Value) -> Value:
        """The n-th root: real for odd n and a real negative value (school's convention), else principal."""
        n, (value, error) = index[0].real, radicand
        exponent = self.divide((self.field.number(Fraction(1)), 0), index)
        if value == 0 and error <= self.field.least:
            return radicand
        if value.imag == 0 and value.real < 0 and n == int(n) and int(n) % 2:
            found, bound = self.power((-value, error), exponent)
            return -found, bound
        return self.power(radicand, exponent)

    def _settled(self, argument: Value) -> Value:
        """Without an imaginary part that is only rounding: it would choose the side of a branch cut at random."""
        value, error = argument
        return (self.field.real(value), error) if abs(value.imag) <= error else argument

    def _function(self, name: str, argument: Value) -> Value:
        one = (self.field.number(Fraction(1)), 0)
        if name in _BY_RECIPROCAL:
            inner, of_argument = _BY_RECIPROCAL[name]
            if of_argument:
                return self._function(inner, self.divide(one, argument))
            return self.divide(one, self._function(inner, argument))
        return self.through(self.field.functions[name], argument)

    def through(self, function: Callable[[Any], Any], argument: Value) -> Value:
        """A smooth function, its slope taken from the ends of the argument's error."""
        x, error = self._settled(argument)
        value = function(x)
        spread = max(abs(function(x + error) - value), abs(function(x - error) - value))
        return self._rounded(value, 2 * spread)

    def gamma(self, argument: Value) -> Value:
        """Gamma, for factorials of a bearable size."""
        if abs(argument[0]) > 1_000:
            raise Undefined("a factorial beyond all bounds")
        return self.through(self.field.functions["gamma"], argument)

    def magnitude(self, argument: Value) -> Value:
        return self.field.number(Fraction(0)) + abs(argument[0]), argument[1]

    def step(self, argument: Value, up: bool) -> Value:
        """Floor or ceiling; within rounding of an integer it is that integer, as in floor(sqrt(16))."""
        x, error = argument[0].real, argument[1]
        if abs(argument[0].imag) > error or abs(x) > 1e12 or error > 1e-3:
            raise Undefined("a step of a number that is not real, too large or not well known")
        below, above = self.field.floor(x - error), self.field.floor(x + error)
        return self.field.number(Fraction(above if below != above else below + up)), 0


def _binomial(at: Evaluation, n: Value, k: Value) -> Value:
    one = (at.field.number(Fraction(1)), 0)
    below = at.add(n, (-k[0], k[1]), one)
    return at.divide(at.gamma(at.add(n, one)), at.multiply(at.gamma(at.add(k, one)), at.gamma(below)))


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": Evaluation.add,
    "mul": Evaluation.multiply,
    "neg": lambda _, a: (-a[0], a[1]),
    "div": Evaluation.divide,
    "pow": Evaluation.power,
    "root": Evaluation.root,
    "log": lambda at, base, a: at.divide(
        at.through(at.field.functions["ln"], a), at.through(at.field.functions["ln"], base)
    ),
    "abs": Evaluation.magnitude,
    "floor": lambda at, a: at.step(a, up=False),
    "ceil": lambda at, a: at.step(a, up=True),
    "fact": lambda at, a: at.gamma(at.add(a, (at.field.number(Fraction(1)), 0))),
    "binom": _binomial,
    "deg": lambda at, a: at.multiply(a, at.divide(at.of(("const", "pi")), at.of(("num", Fraction(180), 0)))),
}
_BY_RECIPROCAL = {"cot": ("tan", False), "sec": ("cos", False), "csc": ("sin", False), "acot": ("atan", True)}
