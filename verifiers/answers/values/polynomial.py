"""One normal form for sums of products of rationals, square roots, pi, e, i and variables.

It proves most equalities of school mathematics exactly and in microseconds: two expressions that both have the form
are equal if and only if their forms are (square roots of different square-free numbers are independent over the
rationals; pi and e are taken as independent of everything, which a numerical look would confirm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from verifiers.answers.notation.trees import Node

Monomial = tuple[tuple[str | int, int], ...]
"""Sorted (atom, power) pairs: names of variables and constants, or a square-free integer for its square root."""

Polynomial = dict[Monomial, Fraction]

MOST_TERMS = 120
MOST_PRODUCTS = 5_000
"""Products of two terms in one expression: a bound on the time of a normal form, some 50 ms."""
MOST_PRODUCTS_ALTOGETHER = 30_000
"""The same for all expressions of a reading or comparison: `a = a = a = ...` has a hundred of them."""
LARGEST_POWER = 12
LARGEST_RADICAND = 1_000_000
MOST_BITS = 2_048


class NoForm(Exception):
    """The expression is outside this form or beyond its caps."""


@dataclass
class _Budget:
    left: int


_WORK: ContextVar[_Budget] = ContextVar("term products left for the current expression")
_ALTOGETHER: ContextVar[_Budget | None] = ContextVar("term products left for all expressions", default=None)


@contextmanager
def bounded() -> Iterator[None]:
    """Let all normal forms within cost at most `MOST_PRODUCTS_ALTOGETHER`; those beyond have none."""
    token = _ALTOGETHER.set(_Budget(MOST_PRODUCTS_ALTOGETHER))
    try:
        yield
    finally:
        _ALTOGETHER.reset(token)


def normal_form(node: Node) -> Polynomial | None:
    """The normal form of an expression.

    Args:
        node: an expression tree.

    Returns:
        Monomials with their non-zero coefficients, or None when the expression has no such form (other functions,
        sums in denominators, caps). Never raises on a tree of `grammar.parse`.
    """
    altogether = _ALTOGETHER.get() or _Budget(MOST_PRODUCTS)
    allowed = min(MOST_PRODUCTS, altogether.left)
    budget = _Budget(allowed)
    token = _WORK.set(budget)
    try:
        return _form(node)
    except (NoForm, ZeroDivisionError):
        return None
    finally:
        altogether.left -= allowed - budget.left
        _WORK.reset(token)


def _form(node: Node) -> Polynomial:
    rule = _RULES.get(node[0])
    if rule is None:
        raise NoForm
    return rule(node)


def _checked(form: Polynomial) -> Polynomial:
    kept = {key: value for key, value in form.items() if value}
    if len(kept) > MOST_TERMS or any(_bits(value) > MOST_BITS for value in kept.values()):
        raise NoForm
    return kept


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _constant(value: Fraction) -> Polynomial:
    return _checked({(): value})


def _add(forms: list[Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for form in forms:
        for key, value in form.items():
            total[key] = total.get(key, Fraction(0)) + value
    return _checked(total)


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    budget = _WORK.get()
    budget.left -= len(a) * len(b)
    if budget.left < 0:
        raise NoForm
    total: Polynomial = {}
    for left, p in a.items():
        for right, q in b.items():
            key, factor = _times(left, right)
            total[key] = total.get(key, Fraction(0)) + p * q * factor
    return _checked(total)


def _times(left: Monomial, right: Monomial) -> tuple[Monomial, Fraction]:
    """Product of two monomials; roots join under one radical and i squared becomes -1."""
    powers: dict[str | int, int] = {}
    factor, radicand = Fraction(1), 1
    for atom, power in left + right:
        if isinstance(atom, int):
            shared = math.gcd(radicand, atom)  # both are square-free
            factor *= shared
            radicand = (radicand // shared) * (atom // shared)
        else:
            powers[atom] = powers.get(atom, 0) + power
    turns = powers.pop("const i", 0) % 4
    if turns in (2, 3):
        factor = -factor
    if turns % 2:
        powers["const i"] = 1
    if radicand != 1:
        powers[radicand] = 1
    return tuple(sorted(((a, p) for a, p in powers.items() if p), key=_order)), factor


def _order(pair: tuple[str | int, int]) -> str:
    return str(pair[0])


@lru_cache(maxsize=4096)
def square_free(value: int) -> tuple[int, int]:
    """Write a positive integer as outside^2 * inside with `inside` square-free.

    Raises:
        NoForm: beyond `LARGEST_RADICAND`, where trial division would cost too much.
    """
    if value > LARGEST_RADICAND:
        raise NoForm
    outside, inside, divisor = 1, value, 2
    while divisor * divisor <= inside:
        while inside % (divisor * divisor) == 0:
            inside //= divisor * divisor
            outside *= divisor
        divisor += 1
    return outside, inside


def _inverse(form: Polynomial) -> Polynomial:
    if len(form) != 1:
        raise NoForm
    ((key, value),) = form.items()
    inverse: Polynomial = {(): 1 / value}
    for atom, power in key:
        if isinstance(atom, int):
            piece: Polynomial = {((atom, 1),): Fraction(1, atom)}
        elif atom == "const i":
            piece = {((atom, 1),): Fraction(-1)}
        else:
            piece = {((atom, -power),): Fraction(1)}
        inverse = _multiply(inverse, piece)
    return inverse


def _power(node: Node) -> Polynomial:
    exponent = _form(node[2])
    value = exponent.get((), Fraction(0))
    if len(exponent) > 1 or (exponent and () not in exponent):
        raise NoForm
    if value == Fraction(1, 2):
        return _square_root(_form(node[1]))
    if value.denominator != 1 or abs(value) > LARGEST_POWER:
        return _large_power(node, value)
    base = _form(node[1])
    if value <= 0 and not base:
        raise NoForm
    if value < 0:
        base, value = _inverse(base), -value
    total = _constant(Fraction(1))
    for _ in range(int(value)):
        total = _multiply(total, base)
    return total


def _large_power(node: Node, value: Fraction) -> Polynomial:
    """x^100 for a single variable; anything else this large is left to others."""
    if node[1][0] == "sym" and value.denominator == 1 and abs(value) < 10**4:
        return {((node[1][1], int(value)),): Fraction(1)}
    raise NoForm


def _root(node: Node) -> Polynomial:
    index = _form(node[1])
    if index != {(): Fraction(2)}:
        raise NoForm
    return _square_root(_form(node[2]))


def _square_root(radicand: Polynomial) -> Polynomial:
    """Square root of a rational number; of a negative one, the principal (upper) root."""
    if not radicand:
        return {}
    if set(radicand) != {()}:
        raise NoForm
    value = radicand[()]
    size = abs(value)
    outside, inside = square_free(size.numerator * size.denominator)
    key: Monomial = ((inside, 1),) if inside != 1 else ()
    form: Polynomial = {key: Fraction(outside, size.denominator)}
    return form if value > 0 else _multiply(form, {(("const i", 1),): Fraction(1)})


def _symbol(node: Node) -> Polynomial:
    return {((node[1], 1),): Fraction(1)}


def _named_constant(node: Node) -> Polynomial:
    if node[1] == "inf":
        raise NoForm
    return {((f"const {node[1]}", 1),): Fraction(1)}


def _product(node: Node) -> Polynomial:
    total = _constant(Fraction(1))
    for factor in node[1:]:
        total = _multiply(total, _form(factor))
    return total


_RULES: dict[str, Callable[[Node], Polynomial]] = {
    "num": lambda node: _constant(node[1]),
    "sym": _symbol,
    "const": _named_constant,
    "add": lambda node: _add([_form(term) for term in node[1:]]),
    "neg": lambda node: {key: -value for key, value in _form(node[1]).items()},
    "mul": _product,
    "div": lambda node: _multiply(_form(node[1]), _inverse(_form(node[2]))),
    "pow": _power,
    "root": _root,
}
