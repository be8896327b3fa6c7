"""Rational values of expressions, exactly, within caps: the part of arithmetic that needs no approximation."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from verifiers.answers.notation.trees import Node

MOST_BITS = 16_384
"""Size of any numerator or denominator on the way; beyond it a value counts as not known."""

LARGEST_EXPONENT = 9_999
LARGEST_FACTORIAL = 1_000


class NoValue(Exception):
    """The expression has no rational value here: it is irrational, symbolic, undefined or beyond the caps."""


def rational(node: Node) -> Fraction | None:
    """The value of an expression when it is rational and its sizes are within the caps.

    Args:
        node: an expression tree.

    Returns:
        The exact value, or None. Never raises on a tree of `grammar.parse`.
    """
    try:
        return _value(node)
    except (NoValue, ZeroDivisionError):
        return None


def _value(node: Node) -> Fraction:
    rule = _RULES.get(node[0])
    if rule is None:
        raise NoValue
    value = rule(node)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise NoValue
    return value


def _sum(node: Node) -> Fraction:
    total = Fraction(0)
    for term in node[1:]:
        total += _value(term)
        if total.denominator.bit_length() > MOST_BITS:
            raise NoValue
    return total


def _product(node: Node) -> Fraction:
    total = Fraction(1)
    for factor in node[1:]:
        total *= _value(factor)
        if total.numerator.bit_length() + total.denominator.bit_length() > 2 * MOST_BITS:
            raise NoValue
    return total


def _power(node: Node) -> Fraction:
    base, exponent = _value(node[1]), _value(node[2])
    if exponent.denominator != 1:
        if base < 0:
            raise NoValue  # the principal value is not real
        return _power_of(_root_of(base, exponent.denominator), exponent.numerator)
    return _power_of(base, exponent.numerator)


def _power_of(base: Fraction, exponent: int) -> Fraction:
    if abs(exponent) > LARGEST_EXPONENT or (base == 0 and exponent <= 0):
        raise NoValue
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and bits * abs(exponent) > MOST_BITS and abs(base) != 1:
        raise NoValue
    return Fraction(base**exponent)


def _root(node: Node) -> Fraction:
    index, radicand = _value(node[1]), _value(node[2])
    if index.denominator != 1 or not 2 <= index <= 64:
        raise NoValue
    n = index.numerator
    if radicand < 0:
        if n % 2 == 0:
            raise NoValue
        return -_root_of(-radicand, n)  # school's convention: odd roots of negative numbers are real
    return _root_of(radicand, n)


def _root_of(value: Fraction, n: int) -> Fraction:
    return Fraction(_integer_root(value.numerator, n), _integer_root(value.denominator, n))


def _integer_root(value: int, n: int) -> int:
    if n > 64:
        raise NoValue
    if n == 2:
        guess = math.isqrt(value)
    else:
        guess = 1 << -(-value.bit_length() // n)
        while (smaller := ((n - 1) * guess + value // guess ** (n - 1)) // n) < guess:
            guess = smaller
    if guess**n != value:
        raise NoValue
    return guess


def _factorial(node: Node) -> Fraction:
    value = _value(node[1])
    if value.denominator != 1 or not 0 <= value <= LARGEST_FACTORIAL:
        raise NoValue
    return Fraction(math.factorial(value.numerator))


def _binomial(node: Node) -> Fraction:
    top, bottom = _value(node[1]), _value(node[2])
    if top.denominator != 1 or bottom.denominator != 1 or not 0 <= top <= LARGEST_FACTORIAL or bottom < 0:
        raise NoValue
    return Fraction(math.comb(top.numerator, bottom.numerator))


_RULES: dict[str, Callable[[Node], Fraction]] = {
    "num": lambda node: node[1],
    "add": _sum,
    "mul": _product,
    "neg": lambda node: -_value(node[1]),
    "div": lambda node: _value(node[1]) / _value(node[2]),
    "pow": _power,
    "root": _root,
    "fact": _factorial,
    "binom": _binomial,
    "abs": lambda node: abs(_value(node[1])),
    "floor": lambda node: Fraction(math.floor(_value(node[1]))),
    "ceil": lambda node: Fraction(math.ceil(_value(node[1]))),
}


def terminates(value: Fraction) -> bool:
    """Whether a rational number has a finite decimal expansion."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def last_place(value: Fraction, digits: int) -> Fraction:
    """One unit in the last of `digits` significant decimal places of a non-zero value."""
    size = abs(value)
    exponent = len(str(size.numerator)) - len(str(size.denominator))
    while Fraction(10) ** exponent > size:
        exponent -= 1
    while Fraction(10) ** (exponent + 1) <= size:
        exponent += 1
    return Fraction(10) ** (exponent - digits + 1)
