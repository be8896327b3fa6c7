"""Laws of templates, and the published wordings word by word."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import prompts

TEXT = st.text(max_size=60) | st.sampled_from(
    [r"\boxed{}", "{problem}", "{solution}", "{}", r"\1 \g<0>", "%s", "{{x}}"]
)
NAMES = prompts.names()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_render_puts_in_every_value_verbatim_and_changes_nothing_else(name, data):
    template = prompts.load(name)
    values = {hole: data.draw(TEXT, label=hole) for hole in template.placeholders}
    rendered = template.render(**values)
    # Walk the body's fixed pieces and the values in turn: they are the whole of the rendered text.
    pieces = re.split(r"\{([a-z][a-z0-9_]*)\}", template.body)
    expected = "".join(values[piece] if at % 2 else piece for at, piece in enumerate(pieces))
    assert rendered == expected
    assert all(value in rendered for value in values.values())


@pytest.mark.parametrize("name", NAMES)
def test_each_text_has_a_source_that_no_model_sees(name):
    template = prompts.load(name)
    first, _, rest = (Path(prompts.__file__).parent / f"{name}.txt").read_text(encoding="utf-8").partition("\n")
    assert template.source == first.strip() != ""
    assert template.body == rest.removesuffix("\n")
    assert template.source not in template.body
    assert template.body == template.body.strip()
    assert {"problem", "prompt"} & set(template.placeholders) or name.startswith(
        ("teacher/opsdc_", "system/", "probe/")
    )


def test_a_literal_boxed_is_no_placeholder():
    template = prompts.Template("x", "here", r"{problem} \boxed{} \boxed{{answer}} {Problem} { problem } {}")
    assert template.placeholders == ("problem", "answer")
    assert template.render(problem="P", answer="A") == r"P \boxed{} \boxed{A} {Problem} { problem } {}"


def test_values_are_never_scanned_again():
    template = prompts.Template("x", "here", "{problem}|{solution}")
    assert template.render(problem="{solution}", solution="{problem}") == "{solution}|{problem}"


def test_missing_value_is_refused():
    with pytest.raises(prompts.PromptError, match=re.escape("prompt 'teacher/opsd' needs {solution}")) as refused:
        prompts.load("teacher/opsd").render(problem="x")
    assert refused.value.exit_code == 2
    assert isinstance(refused.value, ValueError)


def test_unknown_value_is_refused():
    with pytest.raises(prompts.PromptError, match=re.escape("has no {document}, so that text would be lost")):
        prompts.load("student/question").render(problem="x", document="y")


@pytest.mark.parametrize("name", ["teacher/opsdd", "../prompts/__init__", "teacher/../teacher/opsd", "", "opsd"])
def test_unknown_name_is_refused_with_the_valid_ones(name):
    with pytest.raises(prompts.PromptError, match=r"no prompt is called .* Valid: .*teacher/opsd"):
        prompts.load(name)


def test_the_nearest_name_is_suggested():
    with pytest.raises(prompts.PromptError, match="Did you mean 'teacher/opsd'"):
        prompts.load("teacher/opsdd")


def test_importing_prompts_loads_nothing_but_the_standard_library():
    code = (
        "import sys; import prompts; prompts.load('teacher/opsd');"
        "names = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names);"
        "print(sorted(n for n in names if n in ('workbench', 'verifiers', 'torch', 'numpy', 'datasets')))"
    )
    root = Path(prompts.__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# The wordings below are the papers' and their released code's: a change here changes results.


def test_opsd_student():
    assert prompts.load("student/boxed").render(problem="Q") == (
        "Problem: Q\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


def test_opsd_teacher_latest():
    assert prompts.load("teacher/opsd").render(problem="Q", solution="S") == (
        "Problem: Q\n\nHere is a reference solution to this problem:\n=== Reference Solution Begin ===\nS\n"
        "=== Reference Solution End ===\n\n\n"
        "After reading the reference solution above, make sure you truly understand the reasoning behind each "
        "step — do not copy or paraphrase it. Now, using your own words and independent reasoning, derive the same "
        "final answer to the problem above. Think step by step, explore different approaches, and "
        "don't be afraid to backtrack or reconsider if something doesn't work out:\n\n"
        "Please reason step by step, and put your final answer within \\boxed{}."
    )


def test_opsd_teacher_of_march_10():
    assert prompts.load("teacher/opsd_2026_03_10").render(problem="Q", solution="S") == (
        "Q\n\nHere is a reference solution to this problem:\nS\n\n\nAfter understanding the reference solution and the "
        "rationale behind each step, now articulate your own step-by-step reasoning that derives the same final answer "
        "to the problem below:\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


def test_opsd_teacher_of_the_paper():
    assert prompts.load("teacher/opsd_v1").render(problem="Q", solution="S") == (
        "Problem: Q\n\nHere is a reference solution:\nS\n\nAfter understanding the reference solution, please try to "
        "solve this problem using your own approach below:\nAnswer:"
    )


def test_opsdc_teacher_is_its_student_with_the_first_sentence_replaced():
    student = prompts.load("student/answer_line").render(problem="Q")
    first = "Solve the following math problem step by step. "
    assert student.startswith(first)
    instruction = prompts.load("teacher/opsdc_v1").body
    assert instruction == (
        "Solve the following math problem concisely and correctly. Be direct — avoid unnecessary elaboration, "
        "redundant steps, or restating the problem. Focus only on the key reasoning steps needed to reach the answer."
    )
    teacher = prompts.load("teacher/concise_answer_line").render(instruction=instruction, problem="Q")
    assert teacher == instruction + "\n\n" + student.removeprefix(first)
    assert teacher.endswith('\n\nQ\n\nRemember to put your answer on its own line after "Answer:".')
    assert "should be of the form Answer: $Answer (without quotes) where $Answer is the answer" in student


def test_sdft_teacher():
    assert prompts.load("teacher/with_demonstration").render(problem="Q", demonstration="D") == (
        "Q\n\nThis is an example for a response to the question:\nD\n\n"
        "Now answer with a response of your own, including the thinking process."
    )


def test_budgets_name_their_number():
    assert "using 50% fewer tokens than you normally would" in prompts.load("teacher/opsdc_percent").render(
        percent="50"
    )
    assert "at most 30 words" in prompts.load("teacher/opsdc_word_limit").render(word_limit="30")


@pytest.mark.parametrize("version", ["opsd", "opsd_v1", "opsd_2026_03_10"])
def test_without_reference_speaks_of_no_reference(version):
    control = prompts.load(f"teacher/{version}_no_reference")
    assert control.placeholders == ("problem",)
    assert not re.search("reference|solution|copy|same final", control.body)
    # Nothing is added: what remains of the wording stands in the original, sentence openings aside.
    kept = set(re.findall(r"\w+", control.body.casefold()))
    assert kept <= set(re.findall(r"\w+", prompts.load(f"teacher/{version}").body.casefold()))
