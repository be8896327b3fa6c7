from __future__ import annotations

import math
from collections import Counter, OrderedDict, namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.sandbox import DataError, equal, read, show, write
from verifiers.sandbox.data import DEPTH, NODES, build

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_a_value_survives_the_journey_and_equals_itself(value):
    node = read(write(value))
    assert build(node) == value
    assert equal(node, value)
    assert show(node).isascii()


@given(VALUES, VALUES)
def test_plain_equality_without_floats_is_python_s(left, right):
    def floats(value):
        return "float" in str(read(write(value))) or "complex" in str(read(write(value)))

    def listed(value):
        if isinstance(value, list | tuple):
            return [listed(v) for v in value]
        return {k: listed(v) for k, v in value.items()} if isinstance(value, dict) else value

    if not floats(left) and not floats(right):
        assert equal(read(write(left)), right) == (listed(left) == listed(right))


@given(st.binary(max_size=200) | st.text(alphabet='intlisdcfoapqe 0123456789\n"', max_size=200).map(str.encode))
def test_whatever_bytes_give_data_or_a_refusal(text):
    try:
        node = read(text)
    except DataError:
        return
    show(node)
    equal(node, [1])


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (True, 1, True),
        (5.0, 5, True),
        ([1, 2], (1, 2), True),
        (1 + 5e-7, 1.0, True),
        (1 + 5e-6, 1.0, False),
        ("5", 5, False),
        (5, "5", False),
        (b"5", "5", False),
        (math.nan, math.nan, False),
        (math.inf, math.inf, True),
        (10**400, 1.5, False),
        (10**400, 10**400, True),
        ({1.0, 2}, {1, 2}, True),
        ({1: [2.0000001]}, {True: (2,)}, True),
        ({1, 2}, [1, 2], False),
        (range(3), [0, 1, 2], True),
        ((x * x for x in (1, 2)), [1, 4], True),
        (None, False, False),
        (object(), object(), False),
        ([object()], [object()], False),
        (Counter("ab"), {"a": 1, "b": 1}, True),
        (OrderedDict(a=1), {"a": 1}, True),
        (namedtuple("Point", "x y")(1, 2), (1, 2), True),
        (frozenset({1}), {1}, True),
    ],
)
def test_the_policy_of_comparison(found, expected, same):
    assert equal(read(write(found)), expected) is same


def test_subclasses_cannot_speak_for_themselves():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

        def __format__(self, how):
            return "5"

    assert not equal(read(write(Liar(3))), 5)
    assert equal(read(write(Liar(3))), 3)


def test_equal_hashes_and_doubled_keys_cost_and_win_nothing():
    step = (1 << 61) - 1
    keys = "\n".join(f"int {i * step:x}\nnone" for i in range(60_000)).encode()
    node = read(b"dict 120000\n" + keys)
    assert not equal(node, {})
    assert not equal(read(b"dict 4\nint 1\nint 2\nint 1\nint 3"), {1: 2})
    assert not equal(read(b"set 2\nint 1\nint 1"), {1})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"list 2\nint 1",
        b"int 1\nint 2",
        b"list -1",
        b"dict 1\nint 1",
        b"list 99999999999999",
        b"int zz",
        b"none\n",
        b"str [1]",
        b"object 1",
        b"list 1\n" * (DEPTH + 2) + b"none",
        b"\n" * NODES,
    ],
)
def test_malformed_data_is_refused(text):
    with pytest.raises(DataError):
        read(text)


def test_what_is_too_much_is_refused_where_it_is_written():
    import itertools

    endless = itertools.count()
    nested: list = []
    for _ in range(DEPTH + 5):
        nested = [nested]
    for value in (endless, nested, "x" * (9 << 20)):
        with pytest.raises(DataError):
            write(value)


def test_show_is_short_and_safe():
    assert show(read(write([1, "a\x1b[0m", {"k": (2,)}, {3}]))) == "[1, 'a\\x1b[0m', {'k': (2,)}, {3}]"
    assert len(show(read(write(["x" * 1000] * 1000)), 100)) < 300
    assert show(read(write(10**5000))).startswith("<an int")


@pytest.mark.parametrize("expected", [0.5, 2j, complex(-1.7e308, 1), 3, "2", [2j]])
def test_what_is_beyond_every_float_is_unequal_and_no_failure_of_the_judge(expected):
    for found in (complex(1.7e308, 1.7e308), 10**5000, complex("nan"), -(10**400), float("inf"), [1.7e308]):
        assert equal(read(write(found)), expected) is False
