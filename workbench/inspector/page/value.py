"""A `Seen` as JSON: what the token view draws, in the app and in files.

NaN is null, infinities are the strings `Infinity` and `-Infinity`, floats have six significant digits. Texts are ASCII
JSON, so that lone surrogates and everything else arrive as they are and are made visible where they are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from verifiers import Verdict
from workbench.errors import InputError
from workbench.inspector.diagnostics.record import TokenRecord
from workbench.inspector.diagnostics.where import concentration
from workbench.inspector.seen import Seen

VERSION = 1
_COMPARED = 6000
"""Tokens that two prompts may differ by before their difference is taken as one piece: comparing is quadratic."""

_COLUMNS = {
    "delta": "difference",
    "div": "divergence",
    "w": "weight",
    "ent_s": "student_entropy",
    "ent_t": "teacher_entropy",
    "fkl": "forward_kl",
    "rkl": "reverse_kl",
    "jsd": "jsd",
    "logp_s": "student_logp",
    "logp_t": "teacher_logp",
}
"""Of the value: its names, and what they are called in `Seen`."""

_SPELT = {
    "ForwardKL": "forward KL = KL(teacher || student)",
    "ReverseKL": "reverse KL = KL(student || teacher)",
}
"""Terms whose name does not say which way round they are."""


def token_value(seen: Seen, since: int = 0, *, about: bool = True, at: int | None = None) -> str:
    """The JSON string that the token view takes.

    Args:
        seen: a completion, or the next piece of one that is being written (its `start` says where it belongs).
        since: leave out the tokens before this position; the view keeps those it has.
        about: with the first token also the rollout's facts and both prompts.
        at: the position to select.
    """
    return dumps(value_dict(seen, since, about=about) | ({} if at is None else {"at": at}))


def dumps(value: object) -> str:
    """ASCII JSON without the tokens `NaN` and `Infinity`, which JSON does not have."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def value_dict(seen: Seen, since: int = 0, *, about: bool = True) -> dict[str, Any]:
    """`token_value` before it is a string. Raises ValueError for a negative `since`."""
    if since < 0:
        raise ValueError(f"since is {since}. Positions count from 0. Give one of them.")
    skipped = max(0, since - seen.start)
    first = seen.start + skipped
    text = list(seen.text[skipped:])
    alone = {t: seen.pieces.get(token, "") for t, token in enumerate(seen.token_ids[skipped:], first)}
    value: dict[str, Any] = {
        "v": VERSION,
        "run": seen.run,
        "rollout": seen.rollout,
        "off": first,
        "source": seen.source,
        "div_name": divergence_name(seen),
        "text": text,
        "id": list(seen.token_ids[skipped:]),
        "why": list(seen.why[skipped:]),
        "rank_s": seen.student_rank[skipped:].tolist(),
        "rank_t": seen.teacher_rank[skipped:].tolist(),
        # What adds nothing to the text and is no part of a character is a special token: shown by its name.
        "special": {
            str(t): alone[t] for t, piece in enumerate(text, first) if piece == "" and alone[t].strip("\ufffd")
        },
    }
    for name, field in _COLUMNS.items():
        value[name] = numbers(getattr(seen, field)[skipped:].tolist())
    if about and first == 0:
        value |= {"facts": facts(seen), "prompts": prompts(seen)}
    return value


def detail(seen: Seen, t: int) -> dict[str, Any]:
    """What the panel of one token adds to its columns: both roles' likeliest tokens, aligned.

    Args:
        seen: the completion, or the piece of it that holds the token.
        t: the token's position in the completion.

    Returns:
        `alternatives`: per entry token, text, student and teacher log-prob (nat), whether it is the written one;
        `rest`: what each role gives to everything else (log); `terms`: per term of the loss its name, value, weight.
        Raises IndexError where the piece has no such position.
    """
    row = t - seen.start
    if not 0 <= row < len(seen):
        raise IndexError(f"no token {t}: these are {seen.start} to {seen.start + len(seen) - 1}")
    student, teacher = seen.rest(row) if seen.tops is not None else (math.nan, math.nan)
    return {
        "v": VERSION,
        "t": t,
        "alternatives": [
            {
                "token": a.token,
                "text": a.text,
                "student": number(a.student_logp),
                "teacher": number(a.teacher_logp),
                "written": a.written,
            }
            for a in seen.alternatives(row)
        ],
        "rest": {"student": number(student), "teacher": number(teacher)},
        "terms": [
            {"name": name, "value": number(float(seen.values[k, row])), "weight": number(float(seen.weights[k, row]))}
            for k, name in enumerate(seen.terms)
        ],
    }


def document(seen: Seen) -> dict[str, Any]:
    """Everything a file shows of a completion: the value and, token by token, the alternatives.

    Returns:
        `value` as `value_dict`; `terms`, `values`, `weights` as in `Seen`; `pieces` the vocabulary entries by id;
        `tops` per token a flat list id, student log-prob, teacher log-prob, id, ... in the order of
        `Seen.alternatives`; `rest` per token both roles' log of what is left. `tops` and `rest` are null where the run
        recorded the tokens alone.
    """
    said: dict[str, Any] = {
        "value": value_dict(seen),
        "terms": list(seen.terms),
        "values": [numbers(row) for row in seen.values.tolist()],
        "weights": [numbers(row) for row in seen.weights.tolist()],
    }
    if seen.tops is None:
        return said | {"pieces": {}, "tops": None, "rest": None}
    tops, rest = [], []
    pieces: dict[str, str] = {}
    for row in range(len(seen)):
        listed = seen.alternatives(row)
        pieces |= {str(a.token): a.text for a in listed}
        tops.append([x for a in listed for x in (a.token, number(a.student_logp), number(a.teacher_logp))])
        rest.append(numbers(seen.rest(row)))
    return said | {"pieces": pieces, "tops": tops, "rest": rest}


def facts(seen: Seen) -> dict[str, Any]:
    """What is known of a rollout beside its tokens."""
    return {
        "problem": seen.problem,
        "step": seen.step,
        "index": seen.index,
        "author": seen.author,
        "recipe": seen.recipe,
        "stop": seen.stop,
        "source": seen.source,
        "question": seen.question,
        "answer": seen.answer,
        "verdict": None if seen.verdict is None else verdict_dict(seen.verdict),
    }


def verdict_dict(verdict: Verdict) -> dict[str, str | None]:
    """A verdict's three lines."""
    return {"status": verdict.status, "extracted": verdict.extracted, "reason": verdict.reason}


def prompts(seen: Seen) -> dict[str, Any]:
    """Both roles' prompts as pieces `[text, differs]`, with what only one of them holds marked; and their lengths."""
    student, teacher = seen.prompts
    apart = _apart(student, teacher)
    return {
        "student": {"tokens": len(seen.student_prompt) or len(student), "parts": _parts(student, apart[0])},
        "teacher": {"tokens": len(seen.teacher_prompt) or len(teacher), "parts": _parts(teacher, apart[1])},
    }


def divergence_name(seen: Seen) -> str:
    """What the column `div` is, spelt out."""
    if not seen.terms:
        return _SPELT["ReverseKL"]
    return _SPELT.get(seen.terms[0].partition(".")[0], seen.terms[0])  # `ForwardKL.1`, where there are two


def carried(seen: Seen, part: float = 0.8) -> str | None:
    """`37 of 412 tokens carry 80 % of the divergence`; None where numbers are missing or nothing is in the loss."""
    silent = np.zeros(len(seen))  # counting needs neither log-probs nor entropies, which not every run recorded
    counted = np.where(seen.weight != 0, seen.divergence, 0.0)
    try:
        record = TokenRecord(seen.problem, seen.text, silent, silent, silent, silent, counted, seen.weight)
    except InputError:
        return None
    found = concentration(record, part)
    of = "" if found.counted == len(seen) else "the "
    in_loss = " in the loss" if of else ""
    said = f"{len(found.positions)} of {of}{found.counted} tokens{in_loss} carry {100 * part:.0f} % of the divergence"
    return said if len(found.positions) else None


def number(x: float) -> float | str | None:
    """A float as JSON has it."""
    if math.isnan(x):
        return None
    return float(f"{x:.6g}") if math.isfinite(x) else ("Infinity" if x > 0 else "-Infinity")


def numbers(values: Iterable[float]) -> list[float | str | None]:
    """Floats as JSON has them."""
    return [number(x) for x in values]


def _apart(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[list[bool], list[bool]]:
    """For each token of both sequences, whether the other one lacks it in that place."""
    head = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    most = min(len(a), len(b)) - head
    tail = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    marks = [i >= head and i < len(a) - tail for i in range(len(a))]
    others = [i >= head and i < len(b) - tail for i in range(len(b))]
    one, other = a[head : len(a) - tail], b[head : len(b) - tail]
    if len(one) + len(other) <= _COMPARED:
        for i, j, size in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
            if size > 1:  # one token that happens to stand in both is no common text
                marks[head + i : head + i + size] = [False] * size
                others[head + j : head + j + size] = [False] * size
    return marks, others


def _parts(tokens: tuple[str, ...], marks: list[bool]) -> list[tuple[str, bool]]:
    """Neighbours with the same mark as one piece."""
    parts: list[tuple[str, bool]] = []
    for token, mark in zip(tokens, marks, strict=True):
        if parts and parts[-1][1] == mark:
            parts[-1] = (parts[-1][0] + token, mark)
        else:
            parts.append((token, mark))
    return parts
