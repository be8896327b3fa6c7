"""Who sees what: the only place that decides what a role may see. A context maps a case to chat messages.

The student sees the question; the teacher, the same checkpoint, sees more (OPSD, arXiv:2601.18734; OPSDC,
arXiv:2603.05433; GATES, arXiv:2602.20574; SDFT, arXiv:2601.19897; SDPO, arXiv:2601.20802). The controls
(`without_reference`, `with_solution_of_another`, `with_wrong_answer`) say whether the reference teaches or
any context does (arXiv:2609.20612, 2608.18271, 2608.09228).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import prompts
from workbench.errors import InputError, UsageError
from workbench.problems.wording import same_answer
from workbench.records import Case, Context, Judged, Message, Problem

PRIVILEGED = frozenset({"answer", "solution", "document", "demonstration", "feedback", "tests"})
"""Fields of a `Problem` that a student never sees; `other.` and one of them likewise."""


def _user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def _phrase(name: str, thinking: bool | None, usual: bool | None) -> str:
    return name if thinking == usual else f"{name}(thinking={thinking})"


@dataclass(frozen=True, repr=False)
class Shown:
    """One user message, perhaps after a system message: templates filled from the problem."""

    name: str
    template: str
    fills: tuple[tuple[str, str], ...]
    """Placeholder and the `Problem` field that fills it."""
    constants: tuple[tuple[str, str], ...] = ()
    """Placeholders filled with the same text for every problem."""
    system: str = ""
    """A template for a system message before it, filled from the same fields."""
    thinking: bool | None = None
    usual: bool | None = field(default=None, compare=False)
    """The `thinking` of the published setting, so that a changed one is seen in the repr."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the fields it shows."""
        return frozenset(path for _, path in self.fills)

    @property
    def required(self) -> frozenset[str]:
        """Names of the fields without which it cannot be built: what a data set must have in every row."""
        return self.needs

    def missing(self, case: Case) -> tuple[str, ...]:
        """Fields the case lacks, sorted; empty: the context can be built."""
        return tuple(sorted(path for path in self.needs if _look_up(case.problem, path) is None))

    def __call__(self, case: Case) -> list[Message]:
        """The chat; raises InputError naming the field that is missing."""
        if lacking := self.missing(case):
            raise InputError(_refusal(self.system or self.template, lacking[0], case.problem))
        values = {hole: _look_up(case.problem, path) or "" for hole, path in self.fills} | dict(self.constants)

        def fill(name: str) -> str:
            template = prompts.load(name)
            return template.render(**{hole: values[hole] for hole in template.placeholders})

        before = [Message(role="system", content=fill(self.system))] if self.system else []
        return [*before, *_user(fill(self.template))]

    def __repr__(self) -> str:
        return _phrase(self.name, self.thinking, self.usual)


@dataclass(frozen=True, repr=False)
class ShownWrong(Shown):
    """As `Shown`, for a control that is one only where the other problem's answer is wrong for this one."""

    def missing(self, case: Case) -> tuple[str, ...]:
        """Also an own answer to differ from, and an other answer that equals it, count as missing."""
        own, other = _look_up(case.problem, "answer"), _look_up(case.problem, "other.answer")
        if own is None:
            return (*super().missing(case), "answer")
        if other is not None and same_answer(own, other):
            return ("other.answer",)
        return super().missing(case)


@dataclass(frozen=True, repr=False)
class Instructed:
    """A concise context's instruction before another context's message, which is shown as it is."""

    base: Context
    instruction: Shown
    thinking: bool | None = None
    usual: bool | None = field(default=None, compare=False)

    @property
    def needs(self) -> frozenset[str]:
        """What the base needs."""
        return self.base.needs

    @property
    def required(self) -> frozenset[str]:
        """What the base requires."""
        return required(self.base)

    def missing(self, case: Case) -> tuple[str, ...]:
        """What the base misses."""
        return missing(self.base, case)

    def __call__(self, case: Case) -> list[Message]:
        """The base's chat with the instruction before its last message."""
        *before, last = self.base(case)
        instruction = dict(self.instruction.constants)["instruction"]
        text = prompts.load("teacher/concise_before").render(instruction=instruction, prompt=last["content"])
        return [*before, Message(role=last["role"], content=text)]

    def __repr__(self) -> str:
        how = "" if self.instruction == concise else f", {self.instruction!r}"
        return _phrase(f"concise_of({self.base!r}{how})", self.thinking, self.usual)


@dataclass(frozen=True, repr=False)
class WithFeedback:
    """SDPO's self-teacher: a successful attempt of the same group, or else the problem's feedback."""

    name: str = "with_feedback"
    strip_thought: bool = True
    """Leave out what the peer wrote up to `</think>`."""
    thinking: bool | None = None
    usual: bool | None = field(default=None, compare=False)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the fields it may show."""
        return frozenset({"question", "feedback"})

    @property
    def required(self) -> frozenset[str]:
        """Feedback may be absent where a peer succeeded."""
        return frozenset({"question"})

    def missing(self, case: Case) -> tuple[str, ...]:
        """`feedback` where there is neither a successful peer nor feedback: nothing to learn from."""
        return () if self._peer(case) or _look_up(case.problem, "feedback") else ("feedback",)

    def __call__(self, case: Case) -> list[Message]:
        """The chat; raises InputError where there is nothing to quote."""
        problem = case.problem
        if peer := self._peer(case):
            text = peer.rollout.text
            attempt = text.rpartition("</think>")[2].strip() if self.strip_thought else text
            template = prompts.load("teacher/with_peer_solution")
            return _user(template.render(problem=problem.question, solution=attempt))
        feedback = _look_up(problem, "feedback")
        if feedback is None:
            raise InputError(
                f"prompt 'teacher/with_feedback' needs {{feedback}} or a successful peer, but problem "
                f"'{problem.id}' has neither. Leave such rollouts out with a gate, raise the group, or "
                "choose another context."
            )
        return _user(prompts.load("teacher/with_feedback").render(problem=problem.question, feedback=feedback))

    def __repr__(self) -> str:
        return _phrase(self.name, self.thinking, self.usual)

    @staticmethod
    def _peer(case: Case) -> Judged | None:
        # A rollout never quotes itself: the teacher would copy what it is asked to judge.
        others = (peer for peer in case.peers if peer.rollout != case.rollout)
        return next((peer for peer in others if peer.verdict.correct), None)


def _shown(name: str, template: str, thinking: bool | None = None, system: str = "", /, **fills: str) -> Shown:
    shown = (("problem", "question"), *fills.items())
    return Shown(name, template, shown, system=system, thinking=thinking, usual=thinking)


question = _shown("question", "student/question")
"""The question as it is."""
question_boxed = _shown("question_boxed", "student/boxed")
"""OPSD's student; its latest code samples without thinking: `replace(question_boxed, thinking=False)`."""
question_v1 = _shown("question_v1", "student/opsd_v1")
question_answer_line = _shown("question_answer_line", "student/answer_line", True)
"""OPSDC's student; thinking pinned on for both roles."""
question_answer_line_short = _shown("question_answer_line_short", "student/answer_line_short", True)

with_solution = _shown("with_solution", "teacher/opsd", True, solution="solution")
"""OPSD's teacher in its latest wording."""
with_solution_v1 = _shown("with_solution_v1", "teacher/opsd_v1", solution="solution")
with_solution_2026_03_10 = _shown("with_solution_2026_03_10", "teacher/opsd_2026_03_10", solution="solution")
told_solution = _shown("told_solution", "student/opsd_v1", None, "system/told", told="solution")
"""`question_v1` after a system message with the solution: the style stays the student's, the knowledge is added."""
with_answer = _shown("with_answer", "teacher/with_answer", True, answer="answer")
with_document = _shown("with_document", "teacher/with_document", document="document")
"""GATES' tutor."""
with_demonstration = _shown("with_demonstration", "teacher/with_demonstration", demonstration="demonstration")
"""SDFT's teacher."""
with_feedback = WithFeedback()

without_reference = _shown("without_reference", "teacher/opsd_no_reference", True)
without_reference_v1 = _shown("without_reference_v1", "teacher/opsd_v1_no_reference")
without_reference_2026_03_10 = _shown("without_reference_2026_03_10", "teacher/opsd_2026_03_10_no_reference")
with_solution_of_another = _shown("with_solution_of_another", "teacher/opsd", True, solution="other.solution")
told_solution_of_another = _shown(
    "told_solution_of_another", "student/opsd_v1", None, "system/told", told="other.solution"
)
told_wrong_answer = ShownWrong(
    "told_wrong_answer",
    "student/opsd_v1",
    (("problem", "question"), ("told", "other.answer")),
    system="system/told_answer",
)
with_wrong_answer = ShownWrong(
    "with_wrong_answer",
    "teacher/with_answer",
    (("problem", "question"), ("answer", "other.answer")),
    thinking=True,
    usual=True,
)


def _concise(name: str, instruction: str, **constants: str) -> Shown:
    text = prompts.load(instruction).render(**constants)
    return Shown(
        name,
        "teacher/concise_answer_line",
        (("problem", "question"),),
        (("instruction", text),),
        thinking=True,
        usual=True,
    )


concise = _concise("concise", "teacher/opsdc_v1")
"""OPSDC's teacher: the student's `question_answer_line` with its first sentence replaced."""
concise_v2 = _concise("concise_v2", "teacher/opsdc_v2")


def concise_percent(percent: int) -> Shown:
    """OPSDC's soft budget: `percent` fewer tokens than usual. Raises UsageError outside 1 to 99."""
    if not 1 <= percent <= 99:
        raise UsageError(f"concise_percent({percent}) cannot be. Give 1 to 99; the paper used 20, 50 and 80.")
    return _concise(f"concise_percent({percent})", "teacher/opsdc_percent", percent=str(percent))


def concise_words(word_limit: int) -> Shown:
    """OPSDC's hard budget in words. Raises UsageError below 1."""
    if word_limit < 1:
        raise UsageError(f"concise_words({word_limit}) leaves no word. Give at least 1.")
    return _concise(f"concise_words({word_limit})", "teacher/opsdc_word_limit", word_limit=str(word_limit))


def concise_of(base: Context, instruction: Shown = concise) -> Instructed:
    """The instruction of a concise context before `base` as it is: for questions that say how to answer.

    Raises UsageError where `instruction` is not one of the concise contexts.
    """
    if "instruction" not in dict(instruction.constants):
        raise UsageError(f"concise_of takes its instruction from a concise context, not from {instruction!r}.")
    return Instructed(base, instruction, thinking=base.thinking, usual=base.thinking)


def missing(context: Context, case: Case) -> tuple[str, ...]:
    """Fields that `context` would show and the case lacks; empty: it can be built."""
    own = getattr(context, "missing", None)
    if own is not None:
        return tuple(own(case))
    return tuple(sorted(path for path in context.needs if _look_up(case.problem, path) is None))


def required(context: Context) -> frozenset[str]:
    """Fields that every problem must have for `context`; differs from `needs` where a peer may stand in."""
    return frozenset(getattr(context, "required", context.needs))


def privileged(context: Context) -> frozenset[str]:
    """The privileged fields that `context` shows; empty for everything a student may see."""
    return frozenset(path for path in context.needs if path.rpartition(".")[2] in PRIVILEGED)


def shown_to_teacher(teacher: Context | None, problems: Mapping[str, Problem]) -> dict[str, str]:
    """Problem -> every privileged text that the context shows of it, joined; problems without any are left out."""
    paths = sorted(privileged(teacher)) if teacher is not None else []
    found = {key: [_look_up(problem, path) or "" for path in paths] for key, problem in problems.items()}
    return {key: "\n".join(filter(None, texts)) for key, texts in found.items() if any(texts)}


def _look_up(problem: Problem, path: str) -> str | None:
    """The text of a field, dotted through `other`; None where it is absent or blank."""
    found: object = problem
    for step in path.split("."):
        found = None if found is None else getattr(found, step)
    return found if isinstance(found, str) and found.strip() else None


def _refusal(template: str, path: str, problem: Problem) -> str:
    start = f"prompt '{template}' needs {{{path}}}, but problem '{problem.id}' "
    if path.startswith("other."):
        if problem.other is None:
            return f"{start}is paired with no other. Pair the set first: problems.pair_with_others."
        if path == "other.answer" and _look_up(problem, path) is not None:
            return (
                f"{start}and its other '{problem.other.id}' have the same answer {problem.answer}, which is "
                "not wrong. Drop the problem, pair with another seed, or choose another context."
            )
        path, start = path.removeprefix("other."), f"{start}has an other '{problem.other.id}' without it. "
        return f"{start}Drop such problems (--require {path}) or choose another context."
    return f"{start}has none. Drop the problem (--require {path}) or choose another context."
