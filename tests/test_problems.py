"""Columns and rows made into problems; what counts as the same; real problem sets."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import workbench
from workbench import problems as room
from workbench.errors import InputError, UsageError
from workbench.problems import load, pair_with_others, parse_columns
from workbench.problems.chats import plain_text
from workbench.problems.columns import last_boxed
from workbench.problems.wording import exact, normalised, reordering_key, same_answer
from workbench.records import Problem


@pytest.fixture
def write(tmp_path):
    """Writes rows, text or bytes to a file and gives its path as text."""

    def to(name: str, content) -> str:
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return str(path)

    return to


def refused(source, *, exit_code=3, **options) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        load(source, **options)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


# Column mapping: known answers


def test_gsm8k(write):
    rows = [
        {"question": "2+3?", "answer": "Two and three.\n2+3=<<2+3=5>>5\n#### 5"},
        {"question": "1000+80?", "answer": "It is 1,080.\n#### 1,080"},
    ]
    found = load(write("gsm8k.jsonl", rows))
    assert found.train[0].question == "2+3?"
    assert found.train[0].solution == "Two and three.\n2+3=<<2+3=5>>5"
    assert [p.answer for p in found.train] == ["5", "1,080"]
    assert found.mapping == "problem=question solution=answer (before ####) answer=answer (after ####)"
    assert [p.id for p in found.train] == ["gsm8k-00000", "gsm8k-00001"]


def test_math(write):
    solution = r"So \boxed{1}, no, $\boxed{\frac{1}{2}}$."
    rows = [{"problem": "x?", "level": "Level 5", "type": "Algebra", "solution": solution}]
    found = load(write("math.jsonl", rows))
    assert found.train[0].answer == r"\frac{1}{2}"
    assert found.train[0].solution == rows[0]["solution"]
    assert found.mapping == r"problem=problem solution=solution answer=solution (last \boxed); not used: level, type"


def test_open_thoughts(write):
    solution = r"<think>...</think> \boxed{7}"
    rows = [{"problem": "x?", "solution": solution, "deepseek_reasoning": "long", "domain": "math"}]
    found = load(write("ot.jsonl", rows))
    assert (found.train[0].answer, found.train[0].solution) == ("7", rows[0]["solution"])
    assert "not used: deepseek_reasoning, domain" in found.mapping


def test_dapo(write):
    asked = "Solve the following math problem step by step.\n\nWhat is $a$?\n\nRemember to put your answer ..."
    chat = [{"role": "user", "content": asked}]
    rows = [{"prompt": chat, "reward_model": {"ground_truth": "34"}, "ability": "MATH"}]
    source = write("dapo.jsonl", rows)
    assert load(source).train[0].answer is None
    found = load(source, columns={"answer": "reward_model.ground_truth"})
    assert (found.train[0].question, found.train[0].answer) == (asked, "34")
    assert found.mapping == "problem=prompt answer=reward_model.ground_truth; not used: ability"


def test_chat_columns_give_the_last_user_turn(write):
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
        {"role": "assistant", "content": "the answer"},
    ]
    found = load(write("chat.jsonl", [{"messages": turns}, {"messages": [{"role": "user", "content": "only"}]}]))
    assert [p.question for p in found.train] == ["second", "only"]
    assert [p.solution for p in found.train] == ["the answer", None]
    shown = "problem=messages solution=messages (the reply); the other turns of 1 chats are not shown"
    assert found.mapping == shown


def test_first_match_where_columns_agree(write):
    chat = [{"role": "user", "content": "q"}]
    row = {"question": "q", "messages": chat, "problem": "q", "final_answer": 3, "answer": "3"}
    found = load(write("both.jsonl", [row]))
    assert found.mapping.startswith("problem=problem answer=answer")


@pytest.mark.parametrize(
    ("row", "field", "first", "second"),
    [
        ({"problem": "a", "question": "b"}, "problem", "problem", "question"),
        ({"prompt": "a", "input": "b"}, "problem", "prompt", "input"),
        ({"problem": "a", "solution": "s", "rationale": "t"}, "solution", "solution", "rationale"),
        ({"problem": "a", "answer": "1", "final_answer": "2"}, "answer", "answer", "final_answer"),
    ],
)
def test_ambiguity_is_an_error_that_a_flag_settles(write, row, field, first, second):
    source = write("data.jsonl", [row])
    message = refused(source)
    assert message == (
        f"data.jsonl: {field} could be {first} or {second}, which differ (first: line 1). "
        f"Say which: --columns {field}={first}."
    )
    for column in (first, second):
        assert f"{field}={column}" in load(source, columns=parse_columns(f"{field}={column}")).mapping


def test_every_field_by_its_name(write):
    row = {
        "id": 7, "question": "q", "solution": "s", "answer": 66.0, "document": "d", "demonstration": "m",
        "feedback": "f", "difficulty": 3, "tests": ["assert x", {"in": 1}],
        "chat_template_kwargs": {"enable_thinking": False, "x": None},
    }  # fmt: skip
    (problem,) = load(write("all.jsonl", [row])).train
    assert problem == Problem(
        id="7", question="q", solution="s", answer="66.0", document="d", demonstration="m",
        feedback="f", difficulty="3", tests=("assert x", '{"in": 1}'), template_kwargs=(("enable_thinking", False),),
    )  # fmt: skip


def test_columns_can_be_given_nested_or_left_out(write):
    rows = [{"id": 1, "question": "q", "answer": "no", "metadata": {"answer_cot": "s", "all": ["x", "y"]}}]
    source = write("rg.jsonl", rows)
    said = ["problem=question solution=metadata.answer_cot", "answer=metadata.all.1"]
    found = load(source, columns=parse_columns(said))
    assert (found.train[0].solution, found.train[0].answer) == ("s", "y")
    found = load(source, columns=parse_columns("answer= id="))
    assert (found.train[0].answer, found.train[0].id) == (None, "rg-00000")
    assert found.mapping == "problem=question; not used: id, answer, metadata"
    assert load(source, columns={"question": "answer"}).train[0].question == "no"


@pytest.mark.parametrize(
    ("rows", "columns", "read"),
    [
        ([{"solution": "so\n#### 5"}], {}, [("so\n#### 5", "5")]),
        ([{"solution": "so", "answer": r"$\boxed{5}$"}], {}, [("so", "5")]),
        ([{"answer": "so\n#### 5"}, {"answer": "no mark"}], {}, [("so", "5"), ("no mark", None)]),
        ([{"solution": "s", "answer": "x #### 5"}, {"answer": "6"}], {}, [("s", "5"), (None, "6")]),
        ([{"answer": "so\n#### 5"}], {"solution": "answer"}, [("so", "5")]),
        ([{"answer": "so\n#### 5"}], {"solution": ""}, [(None, "5")]),
        ([{"solution": r"\boxed{5}"}], {"answer": ""}, [(r"\boxed{5}", None)]),
        ([{"solution": r"\boxed{5}"}, {"solution": "none"}], {}, [(r"\boxed{5}", "5"), ("none", None)]),
        ([{"rationale": "why", "final_answer": "####"}], {}, [("why", "####")]),
    ],
)
def test_where_the_answer_stands_in_a_text(write, rows, columns, read):
    source = write("a.jsonl", [{"question": f"q{at}", **row} for at, row in enumerate(rows)])
    assert [(p.solution, p.answer) for p in load(source, columns=columns).train] == read


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "x"), (66, "66"), (66.0, "66.0"), (0.1, "0.1"), (1e22, "10000000000000000000000"), (1e-7, "0.0000001"),
     (True, "true"), (None, None), (math.nan, None), (math.inf, None), (["5"], "5"), (-0.0, "-0.0")],
)  # fmt: skip
def test_scalars_as_text(value, text):
    assert plain_text(value, "here") == text


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_stay_numerically_comparable(number):
    text = plain_text(number, "here")
    assert float(text) == float(number)
    assert same_answer(text, str(number)) or "e" in str(number) or len(text) > 60


@pytest.mark.parametrize(
    ("text", "held"),
    [(r"\boxed{5}", "5"), (r"\boxed{a}\boxed{b}", "b"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), ("none", None),
     (r"\boxed{5", None), (r"\boxed{7} then \boxed{5", "7"), (r"\boxed{\{1\}}", r"\{1\}"),
     (r"\boxed{}", ""), ("", None)],
)  # fmt: skip
def test_last_boxed(text, held):
    assert last_boxed(text) == held


@given(st.text(max_size=30))
def test_what_is_boxed_is_found_whatever_stands_before(text):
    assume("\\" not in text and text.count("{") == 0 and text.count("}") == 0)
    assert last_boxed(f"x {{ {text} " + r"\boxed{" + text + "} y") == text.strip()


# What is the same


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [("66.0", "66", True), ("1,200", "1200", True), ("$5", "5", True), ("1/2", "0.5", True), (" Yes.", "yes", True),
     ("12%", "12", True), ("+3", "3.", True), ("5", "6", False), ("1,2", "12", False), ("x", "y", False),
     ("1/0", "1/0", True), ("1/0", "2", False), ("", "0", False), ("9" * 70, "9" * 70, True), ("1 200", "1200", True)],
)  # fmt: skip
def test_same_answer(one, two, same):
    assert same_answer(one, two) is same
    assert same_answer(two, one) is same


@given(st.text(max_size=20), st.text(max_size=20))
def test_same_answer_is_total_reflexive_and_symmetric(one, two):
    assert same_answer(one, one)
    assert same_answer(one, two) == same_answer(two, one)


@given(st.text(max_size=40))
def test_keys_agree_with_each_other(text):
    assert normalised(f" {text}\n") == normalised(text) == normalised(normalised(text))
    assert exact(f"\t{text} ") == exact(text)
    assert reordering_key(normalised(text)) == reordering_key(text)
    assert reordering_key(" ".join(reversed(reordering_key(text).split()))) == reordering_key(text)


# The room


def test_importing_the_room_is_quick_and_loads_no_library():
    code = (
        "import sys, time; import workbench.records; start = time.perf_counter();"
        "import workbench.problems, workbench.parts.contexts; spent = time.perf_counter() - start;"
        "heavy = {'torch', 'datasets', 'pyarrow', 'transformers', 'reasoning_gym', 'numpy'};"
        "print(spent, sorted(heavy & set(sys.modules)))"
    )
    root = Path(workbench.__file__).parent.parent
    command = [sys.executable, "-c", code]
    said = [subprocess.check_output(command, cwd=root, text=True).split(maxsplit=1) for _ in range(2)]
    assert all(loaded.strip() == "[]" for _, loaded in said)
    # The promise is 0.1 s; the better of two on a busy machine gets twice that.
    assert min(float(spent) for spent, _ in said) < 0.2


def test_the_room_exports_what_it_promises():
    assert all(hasattr(room, name) for name in room.__all__)


# Real problem sets, where the environment says where they are


@pytest.mark.parametrize(
    ("name", "n", "mapping", "with_solution"),
    [
        ("gsm8k-train", 7473, "problem=problem solution=solution answer=answer", True),
        (
            "math500-public",
            250,
            "problem=problem solution=solution answer=answer id=id; not used: subject, level",
            True,
        ),
        ("svamp-train", 700, "problem=problem answer=answer; not used: equation, type", False),
        ("mawps-multiarith", 580, "problem=problem answer=answer", False),
        ("tooluse", 68, "problem=prompt answer=answer; not used: description, idx, dataset, kind, elo", False),
    ],
)
def test_real_problem_sets(corpora, name, n, mapping, with_solution):
    found = load(str(corpora / f"{name}.jsonl.gz"))
    assert len(found.train) == n
    assert found.mapping == mapping
    assert all(p.answer for p in found.train)
    assert all(p.solution for p in found.train) == with_solution
    paired = pair_with_others(found.train)
    assert len({p.other.id for p in paired}) == n
    assert not any(same_answer(p.answer, p.other.answer) for p in paired)
    gaps = sorted(abs(len(p.solution or "") - len(p.other.solution or "")) for p in paired)
    assert gaps[len(gaps) // 2] <= 10
    split = found.with_held_out(0.1)
    assert 0.05 * n < len(split.held_out) < 0.2 * n
