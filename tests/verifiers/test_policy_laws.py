"""What each policy says of all values, not of chosen ones."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from verifiers.answers.equivalence import judge

INTEGERS = st.integers(-(10**6), 10**6)
SMALL = st.integers(-40, 40)
FRACTIONS = st.builds(Fraction, st.integers(-999, 999), st.integers(1, 99))
laws = settings(max_examples=150, deadline=None)


def tex(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def says(gold: str, answer: str) -> bool:
    """Whether two texts state the same, either way round."""
    forth, back = judge(gold, answer), judge(answer, gold)
    assert forth.status == back.status, (gold, answer, forth, back)
    assert forth.status != "error", forth
    return forth.status == "correct"


@given(a=FRACTIONS, b=FRACTIONS)
@laws
def test_fractions_are_the_same_exactly_when_their_values_are(a, b):
    assert says(tex(a), tex(b)) == (a == b)
    assert says(tex(a), f"{a.numerator}/{a.denominator}")


@given(whole=st.integers(1, 99), top=st.integers(1, 20), bottom=st.integers(2, 20))
@laws
def test_a_mixed_number_is_its_sum_and_an_improper_one_is_nothing(whole, top, bottom):
    value = tex(whole + Fraction(top, bottom))
    for mixed in (f"{whole}\\frac{{{top}}}{{{bottom}}}", f"{whole} {top}/{bottom}"):
        assert says(value, mixed) == (top < bottom)
        assert not says(tex(Fraction(whole * top, bottom)), mixed) or whole * top == whole * bottom + top


@given(fixed=st.text("0123456789", max_size=4), period=st.text("0123456789", min_size=1, max_size=6), rest=INTEGERS)
@laws
def test_a_repeating_decimal_is_the_fraction_it_converges_to(fixed, period, rest):
    value = Fraction(int(fixed or "0"), 10 ** len(fixed)) + Fraction(
        int(period), 10 ** len(fixed) * (10 ** len(period) - 1)
    )
    spelled = f"0.{fixed}\\overline{{{period}}}"
    assert says(tex(value), spelled)
    assert says(spelled, f"0.{fixed}{period}\\overline{{{period}}}")
    assert not says(spelled, tex(value + Fraction(1, 10 ** (len(fixed) + len(period) + 2))))


@given(value=FRACTIONS, digits=st.integers(1, 9))
@laws
def test_a_rounded_decimal_counts_from_six_digits_on_and_only_for_values_without_an_end(value, digits):
    assume(value != 0)
    size = abs(value)
    shift = 0
    while size * 10**shift < 10 ** (digits - 1):
        shift += 1
    rounded = round(size * 10**shift)
    assume(len(str(rounded)) == digits)
    assume(shift > 0)
    text = f"{'-' * (value < 0)}{rounded // 10**shift}.{rounded % 10**shift:0{shift}d}"
    rest = value.denominator
    while rest % 2 == 0 or rest % 5 == 0:
        rest //= 2 if rest % 2 == 0 else 5
    exact = Fraction(rounded, 10**shift) == size
    assert says(tex(value), text) == (exact or (digits >= 6 and rest > 1))


@given(value=st.integers(1, 10**9))
@laws
def test_thousands_may_be_set_apart_and_nothing_else(value):
    grouped = f"{value:,}"
    for mark in (",", "{,}", "\\,", " ", "\\!", "~"):
        assert says(str(value), grouped.replace(",", mark))
    if value >= 1000:
        assert not says(str(value), grouped.replace(",", "."))
        assert not says(str(value), f"({grouped})"), "inside brackets a comma separates"


@given(value=INTEGERS, other=INTEGERS, units=st.permutations(["cm", "m", "kg", "cm^2", "cm^3", "seconds", "dollars"]))
@laws
def test_units_may_be_missing_but_not_differ(value, other, units):
    one, two = (f"{value}\\text{{ {unit}}}" for unit in units[:2])
    assert says(one, str(value))
    assert not says(one, two)
    assert says(one, f"{other}\\text{{ {units[0]}}}") == (value == other)


@given(value=FRACTIONS)
@laws
def test_per_cent_is_a_hundredth_or_a_unit(value):
    assume(value.denominator != 1 and value != 0)
    percent = f"{tex(value)}\\%"
    assert says(percent, tex(value / 100))
    assert says(percent, tex(value))
    assert not says(percent, tex(value / 10))
    assert not says(percent, f"{tex(value / 100)}\\%")


@given(value=st.integers(1, 10**5), base=st.integers(2, 16), other=st.integers(2, 16))
@laws
def test_bases_may_be_missing_but_not_differ(value, base, other):
    digits, rest = "", value
    while rest:
        digits, rest = "0123456789ABCDEF"[rest % base] + digits, rest // base
    assume(any(digit.isdigit() for digit in digits))
    gold = f"{digits}_{{{base}}}"
    assert says(gold, f"({digits})_{{{base}}}")
    if digits.isdigit():
        assert says(gold, digits)
    if base != other:
        assert not says(gold, f"{digits}_{{{other}}}")


@given(items=st.lists(SMALL, min_size=2, max_size=5), data=st.data())
@laws
def test_lists_and_sets_have_no_order_and_tuples_have_one(items, data):
    mixed = data.draw(st.permutations(items))
    inside, shuffled = ", ".join(map(str, items)), ", ".join(map(str, mixed))
    assert says(inside, shuffled)
    assert says(f"\\{{{inside}\\}}", f"\\{{{shuffled}\\}}")
    assert says(f"({inside})", f"({shuffled})") == (items == mixed)
    assert not says(f"({inside})", f"\\{{{shuffled}\\}}")
    assert not says(inside, f"{shuffled}, 41"), "one more"
    assert not says(inside, ", ".join(map(str, mixed[1:]))), "one less"


@given(table=st.lists(st.lists(SMALL, min_size=3, max_size=3), min_size=2, max_size=3), row=st.integers(0, 1))
@laws
def test_matrices_are_entry_by_entry(table, row):
    def written(rows, kind="pmatrix"):
        return f"\\begin{{{kind}}}" + "\\\\".join("&".join(map(str, r)) for r in rows) + f"\\end{{{kind}}}"

    assert says(written(table), written(table, "bmatrix"))
    changed = [list(r) for r in table]
    changed[row][row] += 1
    assert not says(written(table), written(changed))
    transposed = [list(r) for r in zip(*table, strict=True)]
    assert says(written(table), written(transposed)) == (transposed == table)


@given(
    low=SMALL, high=SMALL, closed_low=st.booleans(), closed_high=st.booleans(), flip=st.sampled_from(["low", "high"])
)
@laws
def test_an_interval_is_its_inequality_and_no_interval_with_other_ends(low, high, closed_low, closed_high, flip):
    assume(low < high)
    interval = f"{'(['[closed_low]}{low},{high}{')]'[closed_high]}"
    inequality = (
        f"{low} {'<' if not closed_low else chr(92) + 'le'} x {'<' if not closed_high else chr(92) + 'le'} {high}"
    )
    assert says(interval, inequality)
    assert says(interval, f"x\\in {interval}")
    opened, closed = (not closed_low, closed_high) if flip == "low" else (closed_low, not closed_high)
    assert not says(interval, f"{'(['[opened]}{low},{high}{')]'[closed]}")
    assert not says(interval, f"{'(['[closed_low]}{low},{high + 1}{')]'[closed_high]}")
    middle = tex(Fraction(low + high, 2))
    left, right = f"{'(['[closed_low]}{low},{middle}", f"{middle},{high}{')]'[closed_high]}"
    assert says(interval, f"{left}]\\cup({right}")
    assert not says(interval, f"{left})\\cup({right}"), "the point in the middle is missing"


@given(name=st.sampled_from("xyzabkmn"), other=st.sampled_from("xyzabkmn"), value=FRACTIONS)
@laws
def test_a_name_may_be_missing_but_not_differ(name, other, value):
    assert says(tex(value), f"{name} = {tex(value)}")
    assert says(f"{name} = {tex(value)}", f"{other} = {tex(value)}") == (name == other)


@given(a=SMALL, b=SMALL, c=SMALL, k=st.integers(2, 9))
@laws
def test_an_equation_is_its_multiples_and_not_its_neighbours(a, b, c, k):
    assume(a and b)
    gold = f"{a}x + {b}y = {c}"
    assert says(gold, f"{k * a}x + {k * b}y = {k * c}")
    assert says(gold, f"{a}x = {c} - {b}y".replace("- -", "+ "))
    assert not says(gold, f"{a}x + {b}y = {c + 1}")
    assert not says(gold, f"{a}x + {b}z = {c}")


@given(letter=st.sampled_from("ABCDE"), other=st.sampled_from("ABCDE"), value=INTEGERS)
@laws
def test_a_choice_is_its_letter(letter, other, value):
    alone = (f"({letter})", f"\\text{{({letter})}}", f"{letter}.")
    for spelled in (*alone, f"\\textbf{{({letter}) }}{value}", f"({letter})\\ {value}"):
        assert says(letter, spelled)
        assert says(other, spelled) == (letter == other)
    assert not says(letter, f"\\text{{{letter} or {other}}}")


@given(text=st.text(max_size=60), value=INTEGERS)
@laws
def test_a_number_with_anything_behind_it_is_that_number_or_nothing(text, value):
    verdict = judge(str(value), f"{value + 1} {text}")
    assert verdict.status != "correct" or any(sign in text for sign in "+-−–—‒―﹣－‐‑⁃=:/%!^°*,;|\\0123456789()[]"), (
        verdict
    )
