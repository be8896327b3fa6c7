r"""Every policy by which answers are found, read and compared: one table, each row with its reason and its evidence.

The room's code follows these rows; `docs/verifiers.md` prints them and a test runs the examples of each, so that a
change of policy is a change here. An example is a completion, the gold it is judged against and the status it gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifiers.verdict import Status

Part = Literal["finding", "reading", "comparing", "bounds"]


@dataclass(frozen=True)
class Example:
    """A completion and what becomes of it."""

    text: str
    gold: str
    status: Status
    profile: str = "strict"
    truncated: bool = False


@dataclass(frozen=True)
class Policy:
    """One choice that could have been made otherwise."""

    part: Part
    rule: str
    reason: str
    examples: tuple[Example, ...]


def _boxed(answer: str, gold: str, status: Status) -> Example:
    return Example(f"\\boxed{{{answer}}}", gold, status)


POLICIES: tuple[Policy, ...] = (
    # which text is the answer
    Policy(
        "finding",
        "only what follows the last closing think tag is read",
        "a thought is not a statement",
        (
            Example("<think>\\boxed{42}</think> so it is", "42", "no_answer"),
            Example("<Thinking>\\boxed{41}</Thinking>\\boxed{42}", "42", "correct"),
            Example("◁think▷\\boxed{42}", "42", "no_answer"),
        ),
    ),
    Policy(
        "finding",
        "a think tag that never closes: no answer",
        "the completion was still thinking, whatever it wrote on the way",
        (
            Example("<think>\\boxed{42}", "42", "no_answer"),
            Example("<think>\\boxed{42}", "42", "truncated", truncated=True),
        ),
    ),
    Policy(
        "finding",
        "strict: a box, a line `Answer:`, `####` or `<answer>`",
        "marks that instructions ask for by name",
        (
            Example("\\fbox{42}", "42", "correct"),
            Example("Answer: 42", "42", "correct"),
            Example("#### 42", "42", "correct"),
            Example("<answer>42</answer>", "42", "correct"),
            Example("The answer is 42.", "42", "no_answer"),
        ),
    ),
    Policy(
        "finding",
        "lenient: also the phrase `answer is`",
        "models use it unasked",
        (Example("The answer is 42.", "42", "correct", "lenient"), Example("it is 42", "42", "no_answer", "lenient")),
    ),
    Policy(
        "finding",
        "last_number: also the last number, if it stands alone, where nothing is marked",
        "for numeric problems and models that mark nothing; elsewhere a number in passing is no answer",
        (
            Example("40 + 2 = 42", "42", "correct", "last_number"),
            Example("it is 1/42", "42", "no_answer", "last_number"),
            Example("I tried 42 but it fails", "42", "no_answer", "lenient"),
        ),
    ),
    Policy(
        "finding",
        "crisp: the last `Answer:` line, then the last box or number of the whole text; one right is enough",
        "to reproduce figures graded that way (arXiv:2603.05433); no judge to train on",
        (
            Example("Answer: 41\nso \\boxed{42}", "42", "correct", "crisp"),
            Example("Answer: 42\nso \\boxed{41}", "42", "correct", "crisp"),
            Example("<think>\\boxed{42}", "42", "correct", "crisp"),
        ),
    ),
    Policy(
        "finding",
        "the last mark decides, whichever kind it is",
        "a later statement corrects an earlier one",
        (
            Example("\\boxed{42} Answer: no.\nAnswer: 41", "42", "wrong"),
            Example("#### 41\n\\boxed{42}", "42", "correct"),
        ),
    ),
    Policy(
        "finding",
        "boxes are never merged, an earlier box never counts",
        "listing candidates must not be a way to be right",
        (Example("\\boxed{42} or \\boxed{41}", "42", "wrong"),),
    ),
    Policy(
        "finding",
        "a box inside a box counts as the outer one",
        "`\\boxed{\\boxed{42}}` is one statement",
        (Example("\\boxed{\\boxed{42}}", "42", "correct"),),
    ),
    Policy(
        "finding",
        "a last box that never closes: no answer",
        "its content was cut, and a prefix of an answer is another answer",
        (Example("\\boxed{42} \\boxed{4", "42", "no_answer"),),
    ),
    Policy(
        "finding",
        "an empty last box: no answer",
        "it states nothing, and going back would be guessing",
        (Example("\\boxed{42} \\boxed{}", "42", "no_answer"),),
    ),
    Policy(
        "finding",
        "under truncation a line mark needs its line end",
        "`Answer: 12` may be the start of `Answer: 1234`",
        (
            Example("Answer: 12", "12", "truncated", truncated=True),
            Example("Answer: 12\n", "12", "correct", truncated=True),
        ),
    ),
    Policy(
        "finding",
        "a mark in a code fence counts like any other",
        "models fence their last line",
        (Example("```\nAnswer: 42\n```", "42", "correct"), Example("```latex\n\\boxed{42}\n```", "42", "correct")),
    ),
    # what a text states
    Policy(
        "reading",
        "`1,234` outside brackets is a number, and a list should the other side be one; no comma is a decimal sign",
        "thousands are commoner",
        (_boxed("1,234", "1234", "correct"), _boxed("1,23", "123", "wrong"), _boxed("1,234", "1.234", "wrong")),
    ),
    Policy(
        "reading",
        "`4 2`, `x3`, `2\\frac{5}{3}`, `0.8(3)`, `0.333...`: nothing",
        "two readings, both plausible",
        (_boxed("4 2", "42", "unparsed"), _boxed("0.8(3)", "2.4", "unparsed")),
    ),
    Policy(
        "reading",
        "`1\\frac{1}{2}` and `1 1/2` are 3/2",
        "a mixed number is a proper fraction behind an integer",
        (_boxed("1\\frac{1}{2}", "3/2", "correct"), _boxed("11/2", "3/2", "wrong")),
    ),
    Policy(
        "reading",
        "`0.\\overline{3}`, `0.\\bar3`, `0.(3)` are 1/3 exactly",
        "a repeating decimal is a rational number",
        (_boxed("0.\\overline{3}", "1/3", "correct"), _boxed("0.\\overline{34}", "1/3", "wrong")),
    ),
    Policy(
        "reading",
        "`8 apples` is 8 with a unit; words that change the number (`dozen`, `or more`) make it nothing",
        "a noun says what is counted",
        (
            _boxed("8 apples", "8", "correct"),
            _boxed("8\\text{ dozen}", "8", "unparsed"),
            _boxed("8\\text{ tenths}", "8", "unparsed"),
            _boxed("8\\text{ millions}", "8000000", "correct"),
        ),
    ),
    Policy(
        "reading",
        "`7:30 p.m.` is 7:30 with the half of the day as its unit",
        "a missing unit is accepted, another one is not",
        (_boxed("7:30\\text{ p.m.}", "7:30", "correct"), _boxed("7:30 pm", "7:30 am", "wrong")),
    ),
    Policy("reading", "`a:b` is a/b", "ratios are asked for either way", (_boxed("1:2", "\\frac12", "correct"),)),
    Policy(
        "reading",
        "`2 + 2 = 4` states 4, `2 = 3` states nothing",
        "a true equation between numbers says its value",
        (_boxed("2+2=4", "4", "correct"), _boxed("2=3", "3", "unparsed")),
    ),
    Policy(
        "reading",
        "integrals, sums, limits, commands of TeX beyond notation, number words: nothing",
        "restating the question is no answer, and text is never executed",
        (
            _boxed("\\int_0^1 x dx", "\\frac12", "unparsed"),
            _boxed("\\input{x}", "42", "unparsed"),
            _boxed("twelve", "12", "wrong"),
        ),
    ),
    Policy(
        "reading",
        "`4 or 5` is a list of two",
        "hedging is never the same as one of them",
        (_boxed("4\\text{ or }5", "4", "wrong"),),
    ),
    Policy(
        "reading",
        "a placeholder (`?`, `...`, `nan`, `answer`) equals nothing",
        "it stands where an answer should",
        (_boxed("?", "42", "unparsed"), _boxed("nan", "nan", "unjudged")),
    ),
    # whether two statements are one
    Policy(
        "comparing",
        "bare lists and sets are unordered, tuples, matrices and intervals exact",
        "their notation says so",
        (
            _boxed("2,1", "1,2", "correct"),
            _boxed("(2,1)", "(1,2)", "wrong"),
            _boxed("[1,2]", "(1,2)", "wrong"),
            _boxed("(1,2)", "\\{1,2\\}", "wrong"),
        ),
    ),
    Policy(
        "comparing",
        "a missing unit, base or name is accepted, another one is not, nothing is converted",
        "the question fixed it",
        (
            _boxed("5", "5\\text{ cm}", "correct"),
            _boxed("50\\text{ mm}", "5\\text{ cm}", "wrong"),
            _boxed("2516_7", "2516_8", "wrong"),
            _boxed("y=3", "x=3", "wrong"),
        ),
    ),
    Policy(
        "comparing",
        "a bracketed vector, a column and a row of the same entries are one; a row is no column",
        "vectors are written each way, matrices are not",
        (
            _boxed("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2)", "correct"),
            _boxed("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}", "wrong"),
        ),
    ),
    Policy(
        "comparing",
        "several names against a bare list: not the same; `x = 1, y = 2` is the point (1, 2)",
        "a list does not tell which value is whose; a point is in alphabetical order",
        (_boxed("1,2", "a=1,b=2", "wrong"), _boxed("x=1,y=2", "(1,2)", "correct")),
    ),
    Policy(
        "comparing",
        "`50%` is 0.5, and 50 where the other side has no per cent sign",
        "the sign is also used as a unit",
        (_boxed("50\\%", "0.5", "correct"), _boxed("50\\%", "50", "correct"), _boxed("5\\%", "0.5", "wrong")),
    ),
    Policy(
        "comparing",
        "a decimal equals its own value; with six significant digits also a number without a finite expansion that it \
is the rounded or truncated form of",
        "0.333333 is meant as 1/3, 0.33 may not be",
        (
            _boxed("0.333333", "1/3", "correct"),
            _boxed("0.33", "1/3", "wrong"),
            _boxed("3.1416", "\\pi", "wrong"),
            _boxed("3.1400001", "3.14", "wrong"),
        ),
    ),
    Policy(
        "comparing",
        "expressions are equal where both are defined; one whose digits drown in its rounding equals nothing",
        "(x^2-1)/(x-1) is x+1 almost everywhere; sin(10^300) cannot be told from anything between -1 and 1",
        (
            _boxed("\\frac{x^2-1}{x-1}", "x+1", "correct"),
            _boxed("x+1", "x-1", "wrong"),
            _boxed("10^{300}+\\ln 2-10^{300}", "42", "unparsed"),
        ),
    ),
    Policy(
        "comparing",
        "variables are case-sensitive, words are not",
        "X and x may both occur; Yes and yes are one",
        (_boxed("X+1", "x+1", "wrong"), _boxed("YES", "yes", "correct"), _boxed("E", "e", "wrong")),
    ),
    Policy(
        "comparing",
        "a letter of a choice counts alone or with what stands behind it; two letters do not",
        "both are stated; two would be hedging",
        (_boxed("\\textbf{(B)}\\ 12", "B", "correct"), _boxed("(B) or (C)", "B", "unparsed")),
    ),
    # how much work an answer may be
    Policy(
        "bounds",
        "64 kB of the region's end, 2 kB an answer, 50 nested brackets, 300 digits, exponents of 4 digits",
        "far beyond any honest answer",
        (_boxed("1+" * 2000 + "1", "42", "unparsed"), _boxed("(" * 60 + "42" + ")" * 60, "42", "unparsed")),
    ),
    Policy(
        "bounds",
        "what plain forms leave open is settled in another process, killed after two seconds",
        "big numbers hold the interpreter's lock, so no thread could be stopped",
        (_boxed("\\sqrt{3+2\\sqrt2}", "1+\\sqrt2", "correct"), _boxed("9^{9^{9^{9}}}", "42", "unparsed")),
    ),
)


def page() -> str:
    """The table as Markdown, by part, each row with its examples."""
    out = []
    for part, title in _TITLES.items():
        rows = [policy for policy in POLICIES if policy.part == part]
        out += [f"### {title}", "", "| policy | reason | for example |", "|---|---|---|"]
        out += [f"| {_cell(row.rule)} | {_cell(row.reason)} | {_examples(row)} |" for row in rows]
        out.append("")
    return "\n".join(out).rstrip() + "\n"


_TITLES: dict[Part, str] = {
    "finding": "Which text is the answer",
    "reading": "What a text states",
    "comparing": "Whether two statements are one",
    "bounds": "How much work an answer may be",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _examples(policy: Policy) -> str:
    return "; ".join(_example(each) for each in policy.examples)


def _example(each: Example) -> str:
    text = each.text if len(each.text) <= 60 else f"{each.text[:24]} [...] {each.text[-24:]}"
    shown = text.replace("\n", "⏎").replace("|", "\\|")
    how = "".join([f", {each.profile}" if each.profile != "strict" else "", ", cut" if each.truncated else ""])
    fence, gap = ("````", " ") if "`" in shown else ("``", "")
    shown = f"{fence}{gap}{shown}{gap}{fence}"
    return f"{shown} for `{_cell(each.gold)}`{how}: {each.status}"
