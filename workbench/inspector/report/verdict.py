"""The headline of a report, and which rows of the decision table its numbers trigger: rules, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workbench.inspector.diagnostics import DECISIONS, Decision
from workbench.inspector.report.section import Report, Section, Triggered, percent, shown
from workbench.inspector.report.tokenwise import HINTS
from workbench.train.intervals import Estimate

Keys = Mapping[str, Estimate]
HALF, LONG, SHORT, RELIABLE = 0.5, 1.25, 0.8, 2 / 3
"""Half of the divergence or of the answer tokens; a quarter longer, a fifth shorter; TGOPD's gate."""


def report(run: str, facts: Mapping[str, str], sections: Sequence[Section]) -> Report:
    """Sections with the headline and the decisions that follow from them."""
    keys: dict[str, Estimate] = {}
    for name, value in (pair for section in sections for pair in section.key.items()):
        # Recorded and probed figures may share a name: what rests on more problems speaks, whatever it says.
        if value.n and (name not in keys or value.n >= keys[name].n):
            keys[name] = value
    word, headline = verdict(keys)
    triggered, unseen = decide(keys)
    return Report(run, facts, word, headline, tuple(sections), triggered, unseen)


def verdict(keys: Keys) -> tuple[str, str]:
    """(word, sentence). Only intervals that are clear of their reference speak; one problem or five say nothing.

    teaches: something is clear for it (fewer sign errors at answers than a coin, right completions preferred, the right
    hint beyond the wrong ones at the answer) and nothing clear against it. points the wrong way: the reverse. is mostly
    style and format: more than half of the divergence, clear of half, lies there, whatever else holds. cannot be told:
    the rest, or clear evidence on both sides.
    """
    good, bad = _evidence(keys)
    style = keys.get("style_share")
    mostly = style is not None and style.clear_of(HALF) and style.value > HALF
    told = [*good, *bad] if not (good and bad) else [f"for it: {'; '.join(good)}", f"against it: {'; '.join(bad)}"]
    where = f"{percent(style)} of the divergence lies on style and format" if style is not None and style.n else ""
    if mostly:
        also = f"; {'; '.join(told)}" if told else "; nothing else is clear of noise"
        return "is mostly style and format", f"the signal is mostly style and format: {where}{also}"
    told += [where] if where else []
    if good and not bad:
        return "teaches", f"the signal teaches: {'; '.join(told)}"
    if bad and not good:
        return "points the wrong way", f"the signal points the wrong way: {'; '.join(told)}"
    reason = (
        "; ".join(told) if good else "no measure of the signal here is clear of noise" + (f"; {where}" if where else "")
    )
    return "cannot be told", f"whether the signal teaches cannot be told: {reason}"


def _evidence(keys: Keys) -> tuple[list[str], list[str]]:
    """What is clear of its reference: for a signal that teaches, and against it."""
    rules: list[tuple[str, float, int, str]] = [
        ("noise_rate", HALF, -1, "share of answer tokens whose sign contradicts the verdict"),
        ("alignment", 0.0, 1, "right minus wrong completions of a problem"),
    ]
    rules += [
        (f"answer_contrast_{kind}", 0.0, 1, f"at the answer, signed, the teacher's hint beyond {words}")
        for kind, words in HINTS.items()
    ]
    good: list[str] = []
    bad: list[str] = []
    for name, reference, wanted, words in rules:
        found = keys.get(name)
        if found is not None and found.clear_of(reference):
            side = 1 if found.value > reference else -1
            (good if side == wanted else bad).append(f"{words} {shown(found)} ({found.n} problems)")
    return good, bad


def decide(keys: Keys) -> tuple[tuple[Triggered, ...], tuple[str, ...]]:
    """Rows of the decision table that are triggered, and for the others why not."""
    triggered, unseen = [], []
    for decision in DECISIONS:
        seen, why = SYMPTOMS[decision.symptom](keys)
        if seen:
            triggered.append(Triggered(decision, why))
        else:
            unseen.append(f"{decision.symptom}: {why}")
    return tuple(triggered), tuple(unseen)


Symptom = Callable[[Keys], tuple[bool, str]]
"""Key figures -> (whether the symptom is seen, the numbers or what is missing)."""


def _known(keys: Keys, *names: str) -> list[Estimate] | None:
    found = [keys[name] for name in names if name in keys and keys[name].n]
    return found if len(found) == len(names) else None


def _flat(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "divergence_change", "accuracy_change")
    if found is None:
        return False, "needs held-out divergence and accuracy before and after"
    loss, right = found
    seen = loss.clear_of_zero and loss.value < 0 and not (right.clear_of_zero and right.value > 0)
    return seen, f"held-out divergence {shown(loss, signed=True)}, accuracy {shown(right, signed=True)}"


def _long_budget(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "shortest_budget_change", "longest_budget_change")
    if found is None:
        return False, "needs the budget sweep of both models (--probe)"
    short, long = found
    seen = short.value > 0 > long.value and (short.clear_of_zero or long.clear_of_zero)
    return seen, f"shortest budget {shown(short, signed=True)}, longest {shown(long, signed=True)}"


def _grows(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "length_ratio")
    if found is None:
        return False, "needs evaluations before and after"
    return found[0].clear_of(1.0) and found[0].value >= LONG, f"tokens after / before {shown(found[0])}"


def _collapses(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "length_ratio")
    if found is None:
        return False, "needs evaluations before and after"
    return found[0].clear_of(1.0) and found[0].value <= SHORT, f"tokens after / before {shown(found[0])}"


def _leaks(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "mentions_change")
    if found is None:
        return False, "needs evaluations before and after"
    return found[0].clear_of_zero and found[0].value > 0, f"mentions changed by {shown(found[0], signed=True)}"


def _narrows(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "pass_at_1_change", "pass_at_k_change")
    if found is None:
        return False, "needs several completions a problem of both models (--probe)"
    one, many = found
    seen = one.clear_of_zero and one.value > 0 and not (many.clear_of_zero and many.value > 0)
    return seen, f"pass@1 {shown(one, signed=True)}, pass@k {shown(many, signed=True)}"


def _wrong_but_sure(keys: Keys) -> tuple[bool, str]:
    names = {"teacher_success": "verified success, greedy", "teacher_success_sampled": "sampled"}
    success = {words: keys[name] for name, words in names.items() if name in keys and keys[name].n}
    noise = keys.get("noise_rate")
    if not success:
        return False, "needs the teacher's answers judged"
    unreliable = any(e.clear_of(RELIABLE) and e.value < RELIABLE for e in success.values())
    noisy = noise is not None and noise.clear_of(HALF) and noise.value > HALF
    parts = [f"{words} {shown(e)}" for words, e in success.items()]
    parts += [f"noise rate {shown(noise)}"] if noise is not None and noise.n else []
    return unreliable or noisy, ", ".join(parts)


def _style(keys: Keys) -> tuple[bool, str]:
    found = _known(keys, "style_share")
    if found is None:
        return False, "needs token records (recorded while training, or --probe)"
    seen = found[0].clear_of(HALF) and found[0].value > HALF
    return seen, f"{percent(found[0])} of the divergence lies on style and format"


SYMPTOMS: Mapping[str, Symptom] = {
    "loss falls, accuracy flat": _flat,
    "better at a short budget, worse at a long one": _long_budget,
    "length grows without end": _grows,
    "length collapses": _collapses,
    "outputs say 'as the reference says'": _leaks,
    "pass@1 up, pass@16 flat": _narrows,
    "teacher wrong but sure": _wrong_but_sure,
    "signal mostly on style": _style,
}
"""A rule for every row of the decision table."""


def as_text(decision: Decision) -> str:
    """What to do about a symptom, in words."""
    return f"{decision.look_at} ({', '.join(decision.sources)})"
