"""Completions for the tests of what is shown: the numbers of two random distributions, made as scoring makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.inspector.seen import Seen, Tops

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<svg/onload=alert(1)>",
    "'\"><iframe src=javascript:alert(1)>",
    "${alert(1)}",
    "{{constructor.constructor('alert(1)')()}}",
    "\\boxed{4}",
    "`+alert(1)+`",
    "<!-- <script>",
    "]]>",
    "&lt;b&gt; &amp;",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\u202egnp.exe\u202c",
    "zero\u200bwidth\ufeff",
    "line\u2028sep\u2029",
    "\ud800 alone",
    "a\r\nb\tc\x00d\x7f",
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "e" + "\u0301" * 30,
    "javascript:alert(1)",
    "https://example.invalid/x.png",
    "![x](https://example.invalid/x.png)",
)
"""Text that tries to become markup, script, a formula, a terminal's command or somebody else's line."""


def seen(texts: Sequence[str], *, k: int = 3, seed: int = 0, vocabulary: int = 50, **others: Any) -> Seen:
    """Tokens with these texts, seen by two roles with random distributions over a small vocabulary."""
    n, rng = len(texts), np.random.default_rng(seed)
    student, teacher = (_log_softmax(rng.normal(scale=2.0, size=(n, vocabulary))) for _ in "st")
    ids = rng.integers(0, vocabulary, size=n)
    rows = np.arange(n)
    s, t = student[rows, ids], teacher[rows, ids]
    p, q = np.exp(student), np.exp(teacher)
    middle = np.log((p + q) / 2)
    weight = np.asarray(others.pop("weight", np.ones(n)), dtype=float)
    reverse = (p * (student - teacher)).sum(1)
    first = {
        "problem": "p-1",
        "run": "a-run",
        "rollout": "8/p-1/student/0",
        "why": tuple("counted" if w > 0 else "gated by Correct" for w in weight),
        "terms": ("ReverseKL",),
        "values": reverse[None],
        "weights": weight[None] / max(n, 1),
        "pieces": {i: f"piece{i}" for i in range(vocabulary)},
        "prompts": (("<|user|>", "What", " is", " 1+1", "?"), ("<|user|>", "What", " is", " 1+1", "?", " It", " is 2")),
    }
    return Seen(
        token_ids=tuple(ids.tolist()),
        text=tuple(texts),
        student_logp=s,
        teacher_logp=t,
        forward_kl=(q * (teacher - student)).sum(1),
        reverse_kl=reverse,
        jsd=0.5 * (p * (student - middle)).sum(1) + 0.5 * (q * (teacher - middle)).sum(1),
        student_entropy=-(p * student).sum(1),
        teacher_entropy=-(q * teacher).sum(1),
        student_rank=(student > s[:, None]).sum(1),
        teacher_rank=(teacher > t[:, None]).sum(1),
        weight=weight,
        tops=_tops(student, teacher, k) if k else None,
        **(first | others),
    )


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def _tops(student: np.ndarray, teacher: np.ndarray, k: int) -> Tops:
    def top(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
        ids = np.argsort(-own, axis=1)[:, :k]
        logp = np.take_along_axis(own, ids, 1)
        return ids, logp, np.take_along_axis(other, ids, 1), np.log1p(-np.exp(logp).sum(1))

    return Tops(*top(student, teacher), *top(teacher, student))
