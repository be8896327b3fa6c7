r"""What kind of text a token is, and where a divergence goes by kind.

A privileged teacher writes in another style before it reasons otherwise, so a divergence can fall by thousands of nats
while the student learns connectives (RLCSD, arXiv:2606.11709: mean |log-ratio| .263 on style tokens, .083 on others).

| class | what | why it is apart |
|---|---|---|
| `copied` | part of six words in a row of the privileged text that the question lacks | reward for knowing the text |
| `format` | special tokens, white space, mark-up, `\boxed`, punctuation alone | any instruction teaches it |
| `maths` | a digit, an operator, a LaTeX command, a letter that stands alone | what an answer is made of |
| `style` | connectives, hedges, first-person talk about the work | moves under a wrong hint as under a right one |
| `words` | every other word | what is talked about |

The first row that fits decides. A token inside a word is judged by its word: `how` of `however` is style.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from workbench.inspector.diagnostics.record import TokenRecord, by_problem, spans
from workbench.train.intervals import Estimate, Scores, bootstrap_ratio, problem_means, unanimous

TokenClass = Literal["copied", "format", "maths", "style", "words"]
CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)
COPIED = 6
"""Words in a row: shorter runs are shared by any two texts about one problem."""

_STYLE = """
a about actually after again all also although am an and another any are as at be because been before being both but
by can check could did do does doing done each either else even every exactly finally find first following for from
get give given gives going had has have having he her here hence him his how however i if in indeed instead into is it
its just know let like look looks make makes maybe me means many might mistake more moreover most much must my need
needs next no nor not note notice now of okay ok on once only or other our out over perhaps please previously probably
quickly rather recall recheck reconsider right same second see seems she should shows simply since so some still such
sure than that the their them then there therefore these they thing think third this those though through thus to too
try up us use using verify very wait was way we well were what when where whether which while who why will with would
yes yet you your
"""
STYLE = frozenset(_STYLE.split())
"""Function words and talk about the work: nothing here says anything about a problem."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_MARKUP = re.compile(r"\\(?:boxed|text|textbf|begin|end|quad|qquad|left|right|displaystyle|mathrm|item)(?![a-zA-Z])")
_SPECIAL = re.compile(r"</?[a-zA-Z_|][\w|.\-]*>|<[|｜][^<>\s]{1,40}[|｜]>")
_OPERATOR = re.compile(r"\d+(?:[.,]\d+)*|[+\-*/=<>^%±×÷≤≥≠≈√∑∫∞·→]")
_RULE = re.compile(r"(?m)^[ \t]*(?:[-*+]|#{1,6})(?=\s)|\*\*|__|-{3,}|={3,}|`+")


def classify(text: Sequence[str], privileged: str = "", question: str = "") -> tuple[TokenClass, ...]:
    """The class of every token of a completion, by the table above.

    Args:
        text: every token as text, [n].
        privileged: what only the teacher was shown; empty: nothing can be copied.
        question: what both were shown, so that quoting it is not copying.

    Returns:
        [n] classes. Never raises, whatever the text.
    """
    whole = "".join(text)
    kind = np.full(len(whole), "", dtype="<U6")
    for label, start, end in _regions(whole):
        free = kind[start:end] == ""
        kind[start:end][free] = label
    stolen = copied(whole, privileged, question)
    return tuple(_of_token(whole, start, end, kind, stolen) for start, end in spans(text))


def _regions(whole: str) -> list[tuple[str, int, int]]:
    """Labelled stretches of characters, the strongest first."""
    found = [("format", *m.span()) for pattern in (_SPECIAL, _MARKUP, _RULE) for m in pattern.finditer(whole)]
    found += [("maths", *m.span()) for m in _COMMAND.finditer(whole)]
    for m in _WORD.finditer(whole):
        word = m[0].lower()
        style = word.split("'")[0].split("’")[0] in STYLE
        found.append(("style" if style else "maths" if len(word) == 1 else "words", *m.span()))
    return found + [("maths", *m.span()) for m in _OPERATOR.finditer(whole)]


def _of_token(whole: str, start: int, end: int, kind: NDArray[np.str_], stolen: NDArray[np.bool_]) -> TokenClass:
    """By the first character that says something: white space and punctuation say nothing."""
    for i in range(start, end):
        if not whole[i].isspace() and stolen[i]:
            return "copied"
    for i in range(start, end):
        for name in CLASSES:
            if kind[i] == name:
                return name
    return "format"


def copied(whole: str, privileged: str, question: str = "", words: int = COPIED) -> NDArray[np.bool_]:
    """Which characters belong to `words` words in a row that the privileged text has and the question has not.

    Words are compared in lower case, numbers are words; [characters of `whole`]. Empty `privileged`: none.
    """
    mask = np.zeros(len(whole), dtype=np.bool_)
    known = runs(privileged, words) - runs(question, words)
    marks = list(re.finditer(r"\w+", whole)) if known else []
    for i in range(len(marks) - words + 1):
        if tuple(m[0].lower() for m in marks[i : i + words]) in known:
            mask[marks[i].start() : marks[i + words - 1].end()] = True
    return mask


def runs(text: str, words: int) -> set[tuple[str, ...]]:
    """Every run of `words` words of a text, lower case."""
    found = [w.lower() for w in re.findall(r"\w+", text)]
    return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}


@dataclass(frozen=True)
class ClassShare:
    """What one class of tokens takes."""

    name: TokenClass
    tokens: int
    """Counted tokens of the class."""
    of_tokens: Estimate
    """Share of the counted tokens, 0 to 1."""
    of_divergence: Estimate
    """Share of sum(weight * divergence), 0 to 1."""


def divergence_by_class(
    records: Sequence[TokenRecord], classes: Sequence[Sequence[TokenClass]], *, seed: int = 0
) -> tuple[ClassShare, ...]:
    """Where the loss goes: sum over the class of w_t D_t / sum over all of w_t D_t, by class.

    A ratio of means over problems (a problem's rollouts averaged first), with an interval from resampling problems.
    Without any divergence the share is NaN. Source: RLCSD (arXiv:2606.11709), classes of this module.
    """
    tokens = by_problem(records, [float(r.counted.sum()) for r in records])
    loss = by_problem(records, [float(r.share_of_loss.sum()) for r in records])
    rows = []
    for name in CLASSES:
        masks = [np.array([c == name for c in kinds], dtype=np.bool_) for kinds in classes]
        counts = [float((r.counted & mask).sum()) for r, mask in zip(records, masks, strict=True)]
        parts = [float(r.share_of_loss[mask].sum()) for r, mask in zip(records, masks, strict=True)]
        of_tokens = proportion(by_problem(records, counts), tokens, seed)
        rows.append(ClassShare(name, int(sum(counts)), of_tokens, proportion(by_problem(records, parts), loss, seed)))
    return tuple(rows)


def share(part: Scores, whole: Scores, seed: int = 0) -> Estimate:
    """mean(part) / mean(whole) over problems; those whose whole is 0 add nothing to either side."""
    some = {key for key, value in problem_means(whole).items() if value > 0}
    return bootstrap_ratio({k: part[k] for k in some}, {k: whole[k] for k in some}, seed=seed)


def proportion(part: Scores, whole: Scores, seed: int = 0) -> Estimate:
    """`share` of a part that lies within its whole: 0 and 1 without any spread have Wilson's interval."""
    return unanimous(share(part, whole, seed))
