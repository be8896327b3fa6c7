"""Which text is the program: the policy table, row by row, and laws over arbitrary text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.programs import extract_program
from verifiers.programs.extract import LONGEST_PROGRAM

ONE, TWO = "```python\nfirst = 1\n```", "```python\nsecond = 2\n```"
SOURCE = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="`~\r"), max_size=60)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (ONE, "first = 1\n"),
        (f"{ONE}\nBetter:\n{TWO}\nDone.", "second = 2\n"),
        (f"<think>{ONE}</think>\n{TWO}", "second = 2\n"),
        ("```\n\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("~~~python\nx = '```'\n```\ny = 2\n~~~", "x = '```'\n```\ny = 2\n"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("1. So:\n   ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1\n"),
        (f"{ONE}\nIt prints:\n```text\n1\n```", "first = 1\n"),
        (f"{ONE}\nRun it:\n```bash\npython x.py\n```\n", "first = 1\n"),
        (f"{ONE}\n```\n1\n```", "first = 1\n"),
        ("```python\ntags = '<think>'\n```", "tags = '<think>'\n"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
    ],
)
def test_the_last_whole_block_of_python_is_the_program(text, program):
    assert extract_program(text).answer == program
    assert extract_program(text, truncated=True).answer == program


@pytest.mark.parametrize(
    ("text", "why", "cut"),
    [
        ("", "no block", False),
        ("The answer is 4.", "no block", False),
        ("```python\nx = 1\n", "cut before its end", True),
        (f"{ONE}\nNo, rather:\n```python\nx = ", "cut before its end", True),
        (f"<think>{ONE}", "think tag", True),
        (f"<think>a</think> <think> {ONE}", "think tag", True),
        (f"<think>{ONE}</think>", "no block", False),
        ("```python\n\n```", "empty", False),
        ("```\nx = 1\n```", "no block", False),
        ("```javascript\nx = 1\n```", "no block", False),
        ("def f():\n    return 1\n", "no block", False),
        ("so ```python x = 1``` it is", "no block", False),
        ("```python\n" + "x" * (LONGEST_PROGRAM + 1) + "\n```", "longer", False),
    ],
)
def test_anything_else_is_no_program(text, why, cut):
    found = extract_program(text)
    assert found.answer is None
    assert why in found.rule
    assert found.cut is cut


def test_lenient_also_reads_blocks_without_a_language_and_text_without_a_block():
    assert extract_program("```\nx = 1\n```", "lenient").answer == "x = 1\n"
    bare = "Sure, here it is:\nimport math\n\ndef f():\n    return math.pi\n"
    assert extract_program(bare, "lenient").answer == bare.partition(":\n")[2]
    assert extract_program(bare, "lenient", truncated=True).answer is None
    assert extract_program("important: define nothing", "lenient").answer is None
    assert extract_program("```bash\nls\n```\nimport os\n", "lenient").answer is None


def test_an_unknown_profile_is_the_callers_mistake():
    with pytest.raises(ValueError, match="unknown verifier profile"):
        extract_program(ONE, "generous")


@given(before=SOURCE, source=SOURCE.filter(str.strip), after=SOURCE)
def test_a_block_comes_back_as_it_was_written(before, source, after):
    text = f"{before.replace('<', '')}\n```python\n{source}\n```\n{after.replace('<', '')}"
    assert extract_program(text).answer == f"{source}\n"


@given(
    text=st.lists(st.sampled_from(["```", "~~~", "python", "\n", " ", "x", "<think>", "</think>", "import f"])).map(
        "".join
    ),
    cut=st.booleans(),
)
def test_what_is_extracted_was_written_in_strict_and_lenient(text, cut):
    for profile in ("strict", "lenient", "last_number"):
        found = extract_program(text, profile, truncated=cut)
        assert (found.answer is None) or (found.answer.strip() and not found.cut)


@pytest.mark.parametrize("piece", ["```python\n", "```", "`", "<think>", " ", "~~~ \n", "def "])
def test_a_megabyte_of_anything_is_read(piece):
    for profile in ("strict", "lenient"):
        assert extract_program(piece * (1_000_000 // len(piece)), profile).answer is None or profile == "lenient"
