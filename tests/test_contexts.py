"""What a role sees: laws over every context, and what is said when something is missing."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.verdict import Verdict
from workbench.errors import InputError, UsageError
from workbench.parts.contexts import (
    PRIVILEGED,
    ShownWrong,
    concise,
    concise_of,
    concise_percent,
    concise_v2,
    concise_words,
    missing,
    privileged,
    question,
    question_boxed,
    required,
    with_answer,
    with_feedback,
    with_solution,
    with_solution_of_another,
    with_wrong_answer,
    without_reference,
)
from workbench.parts.phrases import CONTEXTS, named
from workbench.records import Case, Judged, Problem, Rollout

ALL = [
    *CONTEXTS.values(),
    concise_percent(50),
    concise_words(30),
    concise_of(question_boxed, concise_percent(20)),
    concise_of(with_solution),
    replace(with_solution, thinking=False),
    replace(with_feedback, thinking=True),
]
STUDENTS = ["question", "question_boxed", "question_v1", "question_answer_line", "question_answer_line_short"]
TEXTS = ("question", "answer", "solution", "document", "demonstration", "feedback", "difficulty")
SURROUND = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)


@st.composite
def marked_problems(draw):
    """A problem and its other, with a marker in every field that occurs nowhere else."""

    def problem(owner, **more):
        texts = {field: f"{draw(SURROUND)}<<{owner}{field}>>{draw(SURROUND)}" for field in TEXTS}
        return Problem(id=f"<<{owner}id>>", tests=(f"<<{owner}tests>>",), **texts, **more)

    return problem("", other=problem("other."))


@pytest.mark.parametrize("context", ALL, ids=repr)
@settings(max_examples=30)
@given(problem=marked_problems())
def test_a_field_is_shown_iff_it_is_in_needs(context, problem):
    shown = "\n".join(message["content"] for message in context(Case(problem)))
    for owner in ("", "other."):
        for field in (*TEXTS, "tests"):
            assert (f"<<{owner}{field}>>" in shown) == (f"{owner}{field}" in context.needs)
    assert problem.id not in shown


@pytest.mark.parametrize("name", STUDENTS)
@given(problem=marked_problems())
def test_a_student_sees_the_question_and_nothing_privileged(name, problem):
    context = CONTEXTS[name]
    assert context.template.startswith("student/")
    assert privileged(context) == frozenset()
    (message,) = context(Case(problem))
    assert message["role"] == "user"
    assert problem.question in message["content"]
    # Whatever is privileged may change without the student seeing it.
    bare = Problem(id="other-id", question=problem.question)
    assert context(Case(bare)) == [message]


def test_every_student_wording_is_among_the_students():
    wordings = {c.template for c in CONTEXTS.values() if getattr(c, "template", "").startswith("student/")}
    assert wordings == {CONTEXTS[name].template for name in STUDENTS}


@pytest.mark.parametrize("context", ALL, ids=repr)
@settings(max_examples=30)
@given(problem=marked_problems())
def test_values_arrive_verbatim_and_calls_have_no_memory(context, problem):
    shown = context(Case(problem))
    text = "\n".join(message["content"] for message in shown)
    assert problem.question in text
    for path in context.needs:
        owner, _, field = path.rpartition(".")
        assert getattr(problem.other if owner else problem, field) in text
    assert context(Case(problem)) == shown


@pytest.mark.parametrize("context", ALL, ids=repr)
def test_a_context_is_a_frozen_value_that_prints_as_a_phrase(context):
    assert is_dataclass(context)
    assert type(context).__dataclass_params__.frozen
    assert named(repr(context)) == context
    assert hash(named(repr(context))) == hash(context)
    assert repr(named(repr(context))) == repr(context)
    assert "0x" not in repr(context)
    assert pickle.loads(pickle.dumps(context)) == context
    assert isinstance(context.needs, frozenset)
    assert context.thinking in (None, True, False)
    assert required(context) <= context.needs
    assert {path.removeprefix("other.") for path in context.needs} <= {field.name for field in fields(Problem)}


def test_contexts_are_found_by_name():
    assert all(repr(context) == name for name, context in CONTEXTS.items())
    assert named("with_solution_v1") is CONTEXTS["with_solution_v1"]
    assert named(" concise_percent( 50 ) ") == concise_percent(50)
    assert named("concise_of(question, concise_v2)") == concise_of(question, concise_v2)
    assert named("question_boxed(thinking=False)") == replace(question_boxed, thinking=False)
    assert repr(concise_of(question)) == "concise_of(question)"
    assert repr(concise_percent(50)) == "concise_percent(50)"
    assert repr(with_solution) == "with_solution"


@pytest.mark.parametrize(
    "phrase",
    ["with_solutions", "", "concise_percent", "concise_percent(x)", "__import__('os')", "question()", "question(1)",
     "concise_of()", "concise_of(question, question_boxed, concise)", "concise_of(question, with_feedback)",
     "question(thinking=1)", "question.name", "a" * 10_000, "(" * 5000, "question\0"],
)  # fmt: skip
def test_a_wrong_name_is_refused_with_the_valid_ones(phrase):
    with pytest.raises(UsageError, match=r"no context is called .*Valid: .*with_solution") as refused:
        named(phrase)
    assert refused.value.exit_code == 2
    assert len(str(refused.value)) < 900


def test_the_nearest_context_is_suggested():
    with pytest.raises(UsageError, match="Did you mean 'with_solution'"):
        named("with_solutoin")


@pytest.mark.parametrize("phrase", ["concise_percent(0)", "concise_percent(100)", "concise_words(0)"])
def test_impossible_budgets_are_refused(phrase):
    with pytest.raises(UsageError, match="Give"):
        named(phrase)


def test_concise_of_takes_only_instructions():
    with pytest.raises(UsageError, match="takes its instruction from a concise context, not from with_answer"):
        concise_of(question, with_answer)


# What is missing


@pytest.mark.parametrize("context", ALL, ids=repr)
@settings(max_examples=30)
@given(problem=marked_problems(), data=st.data())
def test_a_missing_field_is_named_by_missing_and_by_the_error(context, problem, data):
    own = [field for field in TEXTS if field != "question"]
    gone = data.draw(st.sets(st.sampled_from(own)), label="gone")
    blank = data.draw(st.sampled_from([None, "", " \n"]), label="blank")
    problem = replace(problem, **dict.fromkeys(gone, blank))
    lacking = missing(context, Case(problem))
    expected = gone & context.needs | (gone & {"answer"} if isinstance(context, ShownWrong) else set())
    assert set(lacking) == expected
    if not lacking:
        context(Case(problem))
        return
    with pytest.raises(InputError, match="needs {" + "|".join(lacking)) as refused:
        context(Case(problem))
    assert refused.value.exit_code == 3
    assert problem.id in str(refused.value)


def test_the_message_says_what_why_and_what_to_do():
    with pytest.raises(InputError) as refused:
        with_solution(Case(Problem(id="math-0412", question="q")))
    assert str(refused.value) == (
        "prompt 'teacher/opsd' needs {solution}, but problem 'math-0412' has none. "
        "Drop the problem (--require solution) or choose another context."
    )


def test_the_other_problem_must_be_paired_and_complete():
    alone = Problem(id="a", question="q", solution="s", answer="1")
    with pytest.raises(InputError, match=r"'a' is paired with no other\. Pair the set first"):
        with_solution_of_another(Case(alone))
    bare = replace(alone, other=Problem(id="b", question="r", answer="2"))
    with pytest.raises(InputError, match=r"an other 'b' without it\. .*--require solution"):
        with_solution_of_another(Case(bare))


# The controls


@pytest.mark.parametrize(
    ("mine", "others"), [("5", "5"), ("66.0", "66"), ("$1,200$", "1200"), ("1/2", "0.5"), ("Yes", " yes. ")]
)
def test_a_right_answer_is_no_wrong_answer(mine, others):
    problem = Problem(id="a", question="q", answer=mine, other=Problem(id="b", question="r", answer=others))
    assert missing(with_wrong_answer, Case(problem)) == ("other.answer",)
    with pytest.raises(InputError, match=r"'a' and its other 'b' have the same answer .*not wrong"):
        with_wrong_answer(Case(problem))


def test_a_wrong_answer_is_shown_in_the_place_of_the_right_one():
    problem = Problem(id="a", question="q", answer="5", other=Problem(id="b", question="r", answer="6"))
    right, wrong = with_answer(Case(problem))[0]["content"], with_wrong_answer(Case(problem))[0]["content"]
    assert right.replace(r"\boxed{5}", r"\boxed{6}") == wrong
    assert r"The final answer is \boxed{6}." in wrong


def test_without_an_own_answer_no_other_can_be_called_wrong():
    problem = Problem(id="a", question="q", other=Problem(id="b", question="r", answer="6"))
    with pytest.raises(InputError, match=r"needs \{answer\}"):
        with_wrong_answer(Case(problem))


def test_controls_differ_from_the_method_in_the_reference_alone():
    other = Problem(id="b", question="r", solution="theirs")
    problem = Problem(id="a", question="q", solution="mine", other=other)
    shown = with_solution(Case(problem))[0]["content"]
    assert with_solution_of_another(Case(problem))[0]["content"] == shown.replace("mine", "theirs")
    assert with_solution_of_another.thinking == with_solution.thinking == without_reference.thinking


# Instructions and peers


@given(problem=marked_problems())
def test_an_instruction_leaves_the_message_it_precedes_as_it_is(problem):
    for base in (question, question_boxed, with_solution):
        (plain,), (instructed,) = base(Case(problem)), concise_of(base)(Case(problem))
        assert instructed["content"].endswith("\n\n" + plain["content"])
        assert concise_of(base).needs == base.needs


def judged(text: str, status: str, index: int = 0, problem: Problem | None = None) -> Judged:
    problem = problem or Problem(id="a", question="q")
    rollout = Rollout(problem, "student", (1,), text, (0.0,), "stop", index=index)
    return Judged(rollout, Verdict(status))


def test_feedback_quotes_a_successful_peer_but_never_itself():
    problem = Problem(id="a", question="q")
    mine, wrong = judged("<think>x</think>\n own", "correct"), judged("bad", "wrong", 1)
    peer = judged("<think>hidden</think>\n\nsum is 5", "correct", 2)
    case = Case(problem, rollout=mine.rollout, peers=(mine, wrong, peer))
    assert with_feedback(case)[0]["content"] == (
        "q\nCorrect solution:\n\nsum is 5\n\n\n\nCorrectly solve the original question."
    )
    assert "hidden" in replace(with_feedback, strip_thought=False)(case)[0]["content"]
    alone = Case(problem, rollout=mine.rollout, peers=(mine, wrong))
    assert missing(with_feedback, alone) == ("feedback",)
    with pytest.raises(InputError, match=r"needs \{feedback\} or a successful peer, but problem 'a' has neither"):
        with_feedback(alone)


def test_feedback_of_the_problem_stands_in_for_a_peer():
    case = Case(Problem(id="a", question="q", feedback="sign error"))
    assert with_feedback(case)[0]["content"] == (
        "q\nThe following is feedback from your unsuccessful earlier attempt:\n\nsign error\n\n\n\n"
        "Correctly solve the original question."
    )
    assert required(with_feedback) == {"question"}


def test_helpers_take_any_context():
    class Own:
        needs = frozenset({"question", "document"})
        thinking = None

        def __call__(self, case):
            return [{"role": "user", "content": case.problem.question}]

    assert required(Own()) == {"question", "document"}
    assert missing(Own(), Case(Problem(id="a", question="q"))) == ("document",)
    assert privileged(Own()) == {"document"}
    assert missing(concise_of(Own()), Case(Problem(id="a", question="q"))) == ("document",)


def test_what_is_privileged():
    assert privileged(with_solution_of_another) == {"other.solution"}
    assert privileged(concise) == frozenset()
    assert {path.rpartition(".")[2] for context in ALL for path in privileged(context)} < PRIVILEGED
    assert CONTEXTS.keys() >= set(STUDENTS)
