"""Programs vote with what they do: alike in everything means one key, a difference on one input means two."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import Behaviour, Verdict, consensus
from verifiers.programs import (
    Raised,
    Ran,
    Returned,
    built_in,
    check_votes,
    extract_program,
    judge_program,
    parse_tests,
    verify_program,
)
from verifiers.programs.link import Jail
from verifiers.programs.output import same_output, stated_output
from verifiers.sandbox import equal, read, stated, write

from .conftest import jail
from .plain import PlainBox, column_of
from .test_built_in import suite_of
from .test_corpus import column
from .test_forgeries import ROWS
from .test_forgeries import TESTS as FORGED

MEAN = column_of(
    {"call": "mean", "args": [[1, 2, 6]], "expected": 3},
    {"call": "mean", "args": [[0.1, 0.2]], "expected": 0.15},
    {"call": "mean", "args": [[]], "expected": 0},
    {"call": "mean", "args": [[9]], "expected": 9, "hidden": True},
)
ALIKE = [
    "def mean(x):\n    return sum(x) / len(x) if x else 0",
    "def mean(numbers):  # another name, another layout\n    total = 0.0\n    for n in reversed(numbers): total += n\n"
    "    return total / max(1, len(numbers))",
    "import statistics\nmean = lambda x: statistics.fmean(x) if len(x) > 0 else False",
]
OTHERS = [
    "def mean(x): return sum(x) / len(x)",  # raises on the last one
    "def mean(x): return sum(x) / len(x) if x else 1",
    "def mean(x): return sum(x) // len(x) if x else 0",
    "def mean(x): return str(sum(x) / len(x)) if x else 0",
    "def mean(x): return [sum(x) / len(x)] if x else 0",
    "import os\ndef mean(x): return sum(x) / len(x) if x else os._exit(0)",
    "def mean(x): return sum(x) / len(x) if x else float('nan')",
    "def mean(x): return sum(x) / len(x) if x else object()",
]
SILENT = [
    "def mean(x): pass",
    "def mean(x): print(sum(x))",
    "def mean(x): return 1 / 0",
    "def mean(x: return 1",
    "import sys; sys.exit(0)",
    "import os; os._exit(0)",
    "def mean(x): return object()",
    "def mean(x): return float('nan')",
    "def average(x): return sum(x)",
]


@pytest.fixture(params=["bwrap", "landlock"])
def jailed(request) -> Jail:
    found = jail(request.param)
    return pytest.skip(found) if isinstance(found, str) else found


def soon(tests: list[str]) -> list[str]:
    """With a deadline for programs that miss any."""
    return column_of(*(json.loads(test) | {"seconds": 1} for test in tests))


def key_of(tests, program, box) -> str:
    return judge_program(parse_tests(tests), program, box).behaviour


def test_same_behaviour_is_one_key_and_another_outcome_on_one_input_another(jailed):
    alike = {key_of(MEAN, program, jailed) for program in ALIKE}
    assert len(alike) == 1
    others = [key_of(MEAN, program, jailed) for program in OTHERS]
    others += [key_of(soon(MEAN), "def mean(x):\n    while not x: pass\n    return sum(x) / len(x)", jailed)]
    assert "" not in others
    # The last two of the list end the same way: with no plain value on the last input.
    assert len(set(others)) == len(others) - 1
    assert not alike & set(others)
    assert {key_of(MEAN, program, jailed) for program in SILENT} == {""}


def test_keys_do_not_depend_on_the_level():
    boxes = [found for level in ("bwrap", "landlock") if not isinstance(found := jail(level), str)]
    for program in (*ALIKE, OTHERS[0], OTHERS[4]):
        assert len({key_of(MEAN, program, box) for box in (PlainBox(), *boxes)}) == 1


LINES = column_of(*({"stdin": f"{n} 2\n", "stdout": f"{n + 2}\n"} for n in (1, 5, 7)))
READ = "a, b = map(int, input().split())\n"


def test_outputs_vote_as_they_are_compared_and_after_the_first_wrong_one_too(jailed):
    right = key_of(LINES, READ + "print(a + b)", jailed)
    assert right == key_of(LINES, "print(sum(map(int, input().split())) / 1, end=' ')", jailed)
    wrong = [READ + f"print(a + b if a < 6 else {n})" for n in (0, 1)]
    both = [READ + f"print(0 if a < 6 else {n})" for n in (0, 1)]
    fails = [READ + "print(a + b)\nif a > 6: 1 / 0", READ + "if a < 6: 1 / 0\nprint(a + b)"]
    keys = [right, *(key_of(LINES, program, jailed) for program in (*wrong, *both, *fails))]
    assert "" not in keys
    assert len(set(keys)) == len(keys)
    assert key_of(LINES, READ + "print(a + b); 1 / 0", PlainBox()) == "", "a box that tells a status, and no ending"
    assert {key_of(LINES, text, jailed) for text in ("pass", "print()", "1 / 0")} == {""}
    assert key_of(soon(LINES), READ + "while True: pass", jailed) == ""


def test_in_place_tasks_vote_with_what_they_leave(box):
    tests = column_of({"call": "f", "args": [[3, 1, 2]], "args_after": [[1, 2, 3]]})
    sort = key_of(tests, "def f(x): x.sort()", box)
    assert sort == key_of(tests, "def f(x): x[:] = sorted(x); return 'whatever'", box) != ""
    assert key_of(tests, "def f(x): return sorted(x)", box) not in (sort, "")


def test_hidden_tests_and_what_is_expected_play_no_part():
    program = ALIKE[0]
    expected = column_of(*(json.loads(row) | {"expected": 7} for row in MEAN))
    assert key_of(MEAN, program, PlainBox()) == key_of(expected, program, PlainBox()) != ""
    assert key_of(MEAN[:3], program, PlainBox()) == key_of(MEAN, program, PlainBox())
    assert key_of(MEAN[3:], program, PlainBox()) == "", "all hidden"
    by_heart = "def mean(x): return {3: 3, 2: 0.15, 0: 0}.get(len(x))"
    assert key_of(MEAN, by_heart, PlainBox()) == key_of(MEAN, program, PlainBox()), "what docs/programs.md warns of"


def test_where_programs_cannot_vote_it_is_said():
    check = column_of({"check": "def check(candidate):\n    assert candidate(1) == 1\n", "call": "f"})
    assert "checks" in (check_votes(check) or "")
    assert "hidden" in (check_votes(MEAN[3:]) or "")
    assert check_votes(MEAN) is None is check_votes(LINES)
    assert check_votes(()) is None, "an answer votes by itself"
    assert key_of(check, "def f(x): return x", PlainBox()) == ""


@dataclass
class Scripted(PlainBox):
    """A box that says what it is told to, run after run."""

    says: list[Ran] = field(default_factory=list)

    def call(self, *_: Any, **__: Any) -> Ran:
        return self.says.pop(0)

    script = call


def test_a_failed_jail_gives_no_vote_whenever_it_fails():
    good, failed = Ran("returned", "x", tuple(map(Returned, (3, 0.15, 0)))), Ran("infra_error", "x")
    part = Ran("died", "x", (Returned(3),))
    for says in ([failed], [part, failed], [good, failed]):
        outcome = judge_program(parse_tests(MEAN), "", Scripted(says=[*says]))
        assert outcome.behaviour == "", says
    whole = judge_program(parse_tests(MEAN), "", Scripted(says=[good, Ran("returned", "x", (Returned(9),))]))
    assert whole.result == "pass"
    assert whole.behaviour
    # All values, and then a bad end, or an end that was well without all values: never the honest key.
    for bad in (Ran("died", "x", good.values), Ran("timeout", "x", good.values), Ran("protocol", "x", good.values)):
        assert judge_program(parse_tests(MEAN), "", Scripted(says=[bad])).behaviour not in ("", whole.behaviour)
    short = [Ran("returned", "x", (Returned(3),)), Ran("timeout", "x", (Raised("E"),))]
    assert judge_program(parse_tests(MEAN), "", Scripted(says=short)).behaviour not in ("", whole.behaviour)


def test_votes_of_programs_are_their_behaviour_and_never_meet_an_answer():
    def verdict(program):
        return verify_program(MEAN, f"```python\n{program}\n```", box=PlainBox())

    verdicts = [verdict(program) for program in (*ALIKE, OTHERS[0], SILENT[0], SILENT[0])]
    vote = consensus([v.vote for v in verdicts])
    assert (vote.members, vote.n_voters, vote.total) == ((0, 1, 2), 4, 6)
    assert [v.vote for v in verdicts[4:]] == [None, None], "the same text twice is no agreement on anything"
    assert verify_program(MEAN, "no program", box=PlainBox()).vote is None
    assert verify_program(["{}"], "```python\nx = 1\n```").vote is None
    key = verdicts[0].behaviour or ""
    assert len(consensus([key, Behaviour(key), "7", Verdict("wrong", "7").vote]).clusters) == 3


def test_wrong_solutions_agree_with_the_reference_only_where_the_visible_tests_do(fast_box):
    """All 61: a program that fails a visible test never votes with the reference, one that passes them always does."""

    def surprises(row):
        suite = suite_of(row)
        reference, *wrong = (
            judge_program(suite, extract_program(text).answer or "", fast_box)
            for text in (row["solution"], *row["wrong"])
        )
        passed = [outcome.failure is not None and outcome.failure.hidden for outcome in wrong]
        agrees = [outcome.behaviour == reference.behaviour for outcome in wrong]
        return (row["id"], passed, agrees) if passed != agrees or not reference.behaviour else None

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(surprises, built_in()) if found] == []


@pytest.mark.parametrize("kind", ["call", "after", "stdin", "cplx", "fl", "st", "dc", "boolt"])
def test_no_forgery_votes_with_an_honest_program(kind, fast_box):
    honest = {
        "call": "def f(a, b): return a + b", "after": "def f(x): x.sort()", "cplx": "def f(n): return 2j",
        "stdin": "print(sum(map(int, input().split())))", "fl": "def f(n): return 1 / n",
        "st": "def f(n): return {1, 2, 3}", "dc": "def f(n): return {1: 2, 3: 4}", "boolt": "def f(n): return n == 2",
    }  # fmt: skip
    key = key_of(column_of(*FORGED[kind]), honest[kind], fast_box)
    tests = soon(column_of(*FORGED[kind]))
    assert key
    rows = [row for row in ROWS if row["tests"] == kind]
    assert rows
    agreeing = [
        row["id"] for row in rows if judge_program(parse_tests(tests), row["source"], fast_box).behaviour == key
    ]
    assert agreeing == []


def test_no_hostile_program_of_the_corpus_votes_with_an_honest_one(shared, fast_box):
    if isinstance(fast_box, PlainBox):
        pytest.skip("hostile programs run in a jail or not at all")
    rows = [row for row in shared("hostile-code.jsonl.gz") if row["category"] == "verdict_forging"]
    adds = [
        row for row in rows if row["kind"] == "function" and row["task"].startswith("def add(a, b): return the sum")
    ]
    assert len(adds) > 15
    honest = key_of(column(adds[0]), "def add(a, b): return a + b", fast_box)
    assert [r["id"] for r in adds if key_of(column(r), r["candidate_code"], fast_box) == honest != ""] == []


numbers = st.integers(-(10**12), 10**12) | st.floats() | st.booleans() | st.complex_numbers()
plain = st.recursive(
    numbers | st.none() | st.text(max_size=3) | st.binary(max_size=3),
    lambda x: st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=2), x),
    max_leaves=6,
)


@given(plain, plain)
@settings(deadline=None)
def test_what_is_stated_alike_is_equal_and_what_is_equal_exactly_is_stated_alike(a, b):
    one, two = stated(read(write(a))), stated(read(write(b)))
    if one == two and one is not None:
        assert equal(read(write(a)), b)
    assert (one is None) == (not equal(read(write(a)), a))


def test_noise_of_floats_is_no_difference_and_size_is_no_statement():
    for x, y in ((0.1 + 0.2, 0.3), (1e15 / 3, 1e15 / 3 + 0.125), (5.000000000000001, 5), (-0.0, 0), ({1.0}, {True})):
        assert stated(read(write(x))) == stated(read(write(y)))
    for x, y in (
        (1e-7, 1.00001e-7),
        (10**20, 10**20 + 1),
        ("5", 5),
        (None, 0),
        ([], {}),
        (b"a", "a"),
        (1e10, 1e10 + 1),
    ):
        assert stated(read(write(x))) != stated(read(write(y)))
    for huge in ("x" * 200_001, [0] * 200_001, 1 << 900_000, float("nan"), [object()], {float("nan")}):
        assert stated(read(write(huge))) is None


tokens = st.lists(st.integers().map(str) | st.floats(allow_nan=False).map(repr) | st.sampled_from("ab"), max_size=4)


@settings(deadline=None)
@given(tokens, st.sampled_from([" ", "  ", "\n", "\r\n"]))
def test_an_output_states_itself_however_it_is_laid_out(parts, gap):
    text = gap.join(parts)
    assert stated_output(text + " \n") == stated_output(text)
    assert (stated_output(text) is None) == (not text.strip())
    if (found := stated_output(text)) is not None:
        assert stated_output(found) == found
        assert same_output(found, text)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("0.50", "0.5", True), ("5.0", "5", True), ("1e3", "1000", True), ("-0.0", "0", True), ("007", "7", True),
        ("0.1 0.30000000000000004", "0.1 0.3", True), ("a  b\n\n", "a b", True), ("1e-12", "0", True),
        (str(10**20), str(10**20 + 1), False), ("a b", "b a", False), ("1\n2", "1 2", False), ("x", "X", False),
        ("0.333", "0.3333", False), ("12345678901.0", "12345678901", True), ("nan", "nan", True),
    ],
)  # fmt: skip
def test_known_outputs(one, two, same):
    assert (stated_output(one) == stated_output(two)) == same


def test_the_first_inputs_are_enough() -> None:
    """However many there are: a program that fails on each of them costs no more runs."""
    tests = column_of(*({"stdin": f"{n}\n", "stdout": f"{n}\n"} for n in range(40)))
    box = Counting()
    assert judge_program(parse_tests(tests), "import sys; sys.exit(1)", box).behaviour == ""
    assert box.runs == 8
    late = "n = int(input())\nprint(n if n < {} else 0)"
    assert key_of(tests, late.format(8), PlainBox()) == key_of(tests, late.format(40), PlainBox())
    assert key_of(tests, late.format(7), PlainBox()) != key_of(tests, late.format(40), PlainBox())


class Counting(PlainBox):
    runs = 0

    def script(self, *asked: Any) -> Ran:
        self.runs += 1
        return super().script(*asked)
