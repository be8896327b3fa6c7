"""The door: statuses, scores, reasons, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import verifiers
from verifiers import Verdict, verify

from .conftest import Problem, boxed


@pytest.mark.parametrize(
    ("gold", "text", "truncated", "status", "score"),
    [
        ("42", "\\boxed{42}", False, "correct", 1.0),
        ("42", "\\boxed{41}", False, "wrong", 0.0),
        ("42", "\\boxed{4 2}", False, "unparsed", 0.0),
        ("42", "it is 42", False, "no_answer", 0.0),
        ("42", "it is 4", True, "truncated", 0.0),
        ("42", "it is \\boxed{4", True, "truncated", 0.0),
        ("42", "<think>it", True, "truncated", 0.0),
        ("42", "it is \\boxed{42} because", True, "correct", 1.0),
        (None, "\\boxed{42}", False, "unjudged", None),
        (" ", "\\boxed{42}", False, "unjudged", None),
        ("nan", "\\boxed{nan}", False, "unjudged", None),
        ("\\boxed{42}", "\\boxed{42}", False, "correct", 1.0),
    ],
)
def test_statuses(gold, text, truncated, status, score):
    verdict = verify(Problem(gold), text, truncated=truncated)
    assert (verdict.status, verdict.score) == (status, score)
    assert verdict.correct == (status == "correct")
    assert verdict.reason


def test_every_status_has_its_score():
    scores = {status: Verdict(status).score for status in verifiers.STATUSES}
    assert [status for status, score in scores.items() if score == 1.0] == ["correct"]
    assert {status for status, score in scores.items() if score is None} == {"error", "unjudged"}


def test_what_was_extracted_is_kept_as_written():
    assert boxed("1", " {\\tfrac22} ").extracted == "{\\tfrac22}"
    assert verify(Problem(None), "\\boxed{3}").extracted == "3"


def test_a_bug_of_ours_is_an_error_verdict(monkeypatch):
    def broken(gold, answer):
        raise RuntimeError("oops\nagain")

    monkeypatch.setattr(verifiers, "judge", broken)
    verdict = boxed("1", "1")
    assert (verdict.status, verdict.score) == ("error", None)
    assert "oops" in verdict.reason
    assert "\n" not in verdict.reason


def test_reasons_are_one_short_line_whatever_was_written():
    verdict = boxed("42", "\\foo" + "x" * 1500 + "\n{}")
    assert len(verdict.reason) <= 220
    assert verdict.reason.isprintable()


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)


def test_importing_is_light():
    heavy = "verifiers.sandbox sympy mpmath math_verify torch numpy workbench asyncio multiprocessing"
    shown = python(f"import sys, verifiers; print(sorted(set({heavy!r}.split()) & set(sys.modules)))")
    assert shown.stdout.strip() == "[]"


def test_a_plain_verdict_starts_no_process():
    code = "import verifiers, types; verifiers.verify(types.SimpleNamespace(answer='1/2'), '\\\\boxed{0.5}'); "
    code += "from verifiers.answers.equivalence import _LINK; print(_LINK.pid)"
    assert python(code).stdout.strip() == "None"
