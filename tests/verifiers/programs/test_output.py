"""What a program wrote against what was expected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.programs import same_output


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("6\n", "6", True),
        ("6 \n\n", "6\n", True),
        ("1  2\n", "1 2\n", True),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("0.5\n", "0.50\n", True),
        ("0.3333333\n", "0.33333333\n", True),
        ("1e3\n", "1000.0\n", True),
        ("007\n", "7\n", True),
        ("6\n", "7\n", False),
        ("6\n7\n", "6\n", False),
        ("6\n", "6\n7\n", False),
        ("\n6\n", "6\n", False),
        ("12\n", "1 2\n", False),
        ("0.333\n", "0.3333\n", False),
        ("100000000000000000001\n", "100000000000000000000\n", False),
        ("9" * 40 + "\n", "9" * 39 + "8\n", False),
        ("nan\n", "nan\n", True),
        ("nan\n", "1\n", False),
        ("inf\n", "1e999\n", False),
        ("YES\n", "yes\n", False),
        ("", "", True),
        ("1_0\n", "10\n", False),
    ],
)
def test_known_pairs(found, expected, same):
    assert same_output(found, expected) is same


@given(text=st.text(max_size=60))
def test_every_text_is_its_own_and_a_further_line_is_not(text):
    assert same_output(text, text)
    assert not same_output(f"{text.rstrip()}\nx", text) or not text.strip()


@given(text=st.text("0123456789.e+- \n", max_size=40), other=st.text("0123456789.e+- \n", max_size=40))
def test_numbers_never_break_it(text, other):
    assert same_output(text, other) in (True, False)
