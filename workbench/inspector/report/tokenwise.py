"""Sections about the signal, token by token: where it lies, whether its sign is right, what wrong hints leave of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.inspector.diagnostics import (
    Reshaping,
    TokenClass,
    TokenRecord,
    around_first_error,
    classify,
    concentration,
    concentration_of,
    contrast,
    contrast_by_class,
    correctness_alignment,
    divergence_by_class,
    marker_pressure,
    marker_pressure_split,
    noise_rate,
)
from workbench.inspector.diagnostics.answers import counted_answer
from workbench.inspector.diagnostics.mistakes import first_error
from workbench.inspector.diagnostics.record import Floats, by_problem
from workbench.inspector.report.section import Plot, Row, Section, Source, percent, shown
from workbench.train.intervals import Estimate, Scores, bootstrap_mean

MERGED: Mapping[TokenClass, TokenClass] = {
    "style": "style", "format": "style", "copied": "copied", "maths": "maths", "words": "maths",
}  # fmt: skip
"""Style and format together, because neither says anything about a problem; maths and words are what does."""


HINTS: Mapping[str, str] = {
    "another_problem": "another problem's hint",
    "wrong_answer": "the hint with a wrong answer",
    "opsd_wrong_answer": "opsd_wrong_answer's hint",
}
"""Kinds of wrong hints, in words."""


@dataclass(frozen=True)
class Evidence:
    """Completions under both contexts, and what is needed to sort their tokens."""

    records: Sequence[TokenRecord]
    source: Source
    basis: str
    hidden: Mapping[str, str] = field(default_factory=dict)
    """Problem -> what the teacher alone was shown."""
    questions: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, Sequence[Floats]] = field(default_factory=dict)
    """Kind of wrong hint (of `HINTS`) -> for each record log-probs under K of them, nats, [K, n]; K may be 0."""
    kinds: tuple[tuple[TokenClass, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Sort every token once."""
        found = [
            classify(r.text, self.hidden.get(r.problem, ""), self.questions.get(r.problem, "")) for r in self.records
        ]
        object.__setattr__(self, "kinds", tuple(found))

    def scores(self, value: Callable[[TokenRecord], float | None]) -> Scores:
        """One number a record, by problem."""
        return by_problem(self.records, [value(r) for r in self.records])


def sections(evidence: Evidence) -> list[Section]:
    """Every section that token records can answer."""
    makers = (classes, few_tokens, noise, alignment, markers, errors)
    return [make(evidence) for make in makers]


def classes(e: Evidence) -> Section:
    """Share of divergence on style, format, maths, words and copied tokens."""
    rows = divergence_by_class(e.records, e.kinds)
    merged = [tuple(MERGED[kind] for kind in kinds) for kinds in e.kinds]
    style, copied = (
        next(row for row in divergence_by_class(e.records, merged) if row.name == name) for name in ("style", "copied")
    )
    answer = (
        f"style and format tokens take {percent(style.of_divergence)} of the divergence and are "
        f"{percent(style.of_tokens)} of the tokens; tokens copied from the privileged text take "
        f"{percent(copied.of_divergence)}"
    )
    key = {"style_share": style.of_divergence, "style_share_of_tokens": style.of_tokens}
    table = tuple(
        Row(
            row.name,
            {"tokens": row.tokens, "share_of_tokens": row.of_tokens, "share_of_divergence": row.of_divergence},
        )
        for row in rows
    )
    return Section(
        "divergence_by_class",
        "On what kind of token does the divergence lie?",
        answer,
        e.source,
        e.basis,
        table,
        Plot("intervals", ("share_of_tokens", "share_of_divergence"), "share, 0 to 1"),
        key | {"copied_share": copied.of_divergence},
        {"style_share": by_problem(e.records, [_share(r, k, "style") for r, k in zip(e.records, merged, strict=True)])},
        () if e.hidden else ("copied tokens: what the teacher was shown is not known",),
        "Classes are a word list and patterns: a word that carries the argument in one problem is style in another. A "
        "share says where the loss is, not whether it is of use there.",
    )


def few_tokens(e: Evidence) -> Section:
    """How few tokens carry half, 80, 90 and 95 % of the divergence."""
    parts = {part: concentration_of(e.records, part) for part in (0.5, 0.8, 0.9, 0.95)}
    most = parts[0.8]
    return Section(
        "concentration",
        "How few tokens carry the divergence?",
        f"{percent(most)} of a completion's counted tokens carry 80 % of its divergence",
        e.source,
        e.basis,
        tuple(Row(f"{100 * p:.0f} %", {"share_of_tokens": value}, 100 * p) for p, value in parts.items()),
        Plot("curve", ("share_of_tokens",), "share of tokens needed", "percent of the divergence"),
        {"concentration": most},
        {"concentration": e.scores(_carrying)},
        misleads="In short completions few tokens are many per cent: one of four is 25 %.",
    )


def noise(e: Evidence) -> Section:
    """Is the sign right where it can be checked?"""
    found = noise_rate(e.records)
    missing: tuple[str, ...] = () if found.tokens else ("no judged completion states an answer that stands in it",)
    rate = found.rate
    side = "fewer contradictions than a coin" if rate.clear_of(0.5) and rate.value < 0.5 else (
        "more contradictions than a coin" if rate.clear_of(0.5) else "cannot be told from a coin"
    )  # fmt: skip
    return Section(
        "noise",
        "Has the signal the right sign at the answer?",
        f"at {percent(rate)} of {found.tokens} answer tokens its sign contradicts the verdict: {side}"
        if found.tokens
        else f"not measured: {missing[0]}",
        e.source,
        e.basis,
        (
            Row("contradicts the verdict", {"share_of_answer_tokens": rate, "tokens": found.tokens}),
            Row("silent, |d| < 1e-4 nat", {"share_of_answer_tokens": found.silent, "tokens": found.tokens}),
        ),
        Plot("intervals", ("share_of_answer_tokens",), "share of answer tokens, 0 to 1", reference=0.5),
        {"noise_rate": rate, "silent_share": found.silent},
        {"noise_rate": e.scores(_against)},
        missing,
        "d = log p_T - log p_S at the written token. A token both are sure of counts like one they fight over, and a "
        "right answer reached by luck counts as right.",
    )


def alignment(e: Evidence) -> Section:
    """Does the teacher lean towards what is right?"""
    found = correctness_alignment(e.records)
    missing: tuple[str, ...] = (
        () if found.n else ("no problem has a right and a wrong completion (--probe draws several)",)
    )
    values = {
        right: by_problem(e.records, [_delta(r) if r.correct is right else None for r in e.records])
        for right in (True, False)
    }
    rows = [
        Row(
            "right completions" if right else "wrong completions",
            {"mean_difference": bootstrap_mean(scores, unit="nat/token")},
        )
        for right, scores in values.items()
    ]
    return Section(
        "alignment",
        "Does the teacher prefer right completions of a problem to wrong ones?",
        f"correctness alignment C = {shown(found, signed=True)} over {found.n} problems with both kinds"
        if found.n
        else f"not measured: {missing[0]}",
        e.source,
        e.basis,
        (*rows, Row("C: right minus wrong, same problem", {"mean_difference": found})),
        Plot("intervals", ("mean_difference",), "mean of d, nat/token", reference=0.0),
        {"alignment": found},
        missing=missing,
        misleads="A sum over all tokens: style can move it. It predicts no gain by itself (arXiv:2608.18271), and a "
        "teacher that knows the answer can score every wrong chain down without showing how to repair it.",
    )


def markers(e: Evidence) -> Section:
    """What the teacher does at second thoughts."""
    found, split = marker_pressure(e.records), marker_pressure_split(e.records)
    missing: tuple[str, ...] = () if found.tokens else ("no word of a second thought was written",)
    return Section(
        "marker_pressure",
        "Does the teacher press on second thoughts?",
        f"over {found.tokens} marker tokens d is {shown(found.log_ratio, signed=True)}, elsewhere "
        f"{shown(found.elsewhere, signed=True)}"
        if found.tokens
        else f"not measured: {missing[0]}",
        e.source,
        e.basis,
        (
            Row("d at markers", {"value": found.log_ratio}),
            Row("d elsewhere", {"value": found.elsewhere}),
            Row("p_T - p_S at markers", {"value": found.mass}),
            Row("H_T - H_S at markers", {"value": found.entropy}),
            *(Row(f"d at markers, {name}", {"value": one}) for name, one in split.items() if one.n),
        )
        if found.tokens
        else (),
        Plot("intervals", ("value",), "nats; the third row is a probability", reference=0.0) if found.tokens else None,
        {"marker_pressure": found.log_ratio} if found.tokens else {},
        missing=missing,
        misleads="A substring match, as in the source: `button` holds `but`. Leaving markers out of the loss often "
        "changes nothing (arXiv:2609.20612).",
    )


def errors(e: Evidence) -> Section:
    """The divergence before, at and after the first error that can be placed."""
    at = [first_error(r) for r in e.records]
    placed = sum(span is not None for span in at)
    wrong = sum(r.correct is False for r in e.records)
    found = around_first_error(e.records, at)
    missing: tuple[str, ...] = () if placed else (f"none of {wrong} wrong completions has an error that can be placed",)
    return Section(
        "first_error",
        "Does the divergence rise where the student first errs?",
        f"at the first error {shown(found.at)}, before it {shown(found.before)}, after it {shown(found.after)}; "
        f"jump {shown(found.jump, signed=True)}"
        if placed
        else f"not measured: {missing[0]}",
        e.source,
        f"{e.basis}; {placed} of {wrong} wrong completions",
        tuple(Row(name, {"divergence": getattr(found, name)}) for name in ("before", "at", "after", "jump"))
        if placed
        else (),
        Plot("intervals", ("divergence",), "nat/token", reference=0.0) if placed else None,
        {"error_jump": found.jump} if placed else {},
        missing=missing,
        misleads="The first error is the first false equation of plain numbers, or the wrong answer itself. Errors in "
        "words are not seen, and a token that both roles would write after the error says nothing.",
    )


def hints(e: Evidence) -> Section:
    """Right hint against wrong ones, by class of token and at the answer (RLCSD, arXiv:2606.11709)."""
    rows, key, scores, answers, missing = [], {}, {}, [], []
    for kind, logps in e.wrong.items():
        hint = HINTS[kind]
        chosen = [i for i, wrong in enumerate(logps) if len(wrong)]
        records = [e.records[i] for i in chosen]
        if not records:
            missing.append(f"{hint}: no problem has such a hint")
            continue
        found = contrast_by_class(records, [logps[i] for i in chosen], [e.kinds[i] for i in chosen])
        rows += [
            Row(f"{row.name}, {hint}", {"tokens": row.tokens, "own_hint": row.right, "beyond_wrong": row.contrast})
            for row in found
        ]
        values = by_problem(records, [_knowing(r, logps[i]) for r, i in zip(records, chosen, strict=True)])
        estimate = bootstrap_mean(values, unit="nat/token")
        rows.append(_reshaped(hint, records, [logps[i] for i in chosen]))
        rows.append(Row(f"answer tokens, signed, {hint}", {"signed_beyond_wrong": estimate}))
        key[f"answer_contrast_{kind}"] = estimate
        scores[f"answer_contrast_{kind}"] = values
        answers.append(f"against {hint} {shown(estimate, signed=True)}")
    return Section(
        "hint_contrast",
        "Does the teacher's hint say more than a wrong one?",
        "at answer tokens, signed by the verdict, the teacher's own hint says "
        + "; ".join(answers)
        + ". Above 0: it knows the answer, not only another style"
        if answers
        else "not measured: no wrong hint could be built",
        "probed",
        e.basis,
        tuple(rows),
        Plot("intervals", ("own_hint", "beyond_wrong", "signed_beyond_wrong"), "nat/token", reference=0.0),
        key,
        scores,
        tuple(missing) if e.wrong else ("no wrong hint could be built",),
        "own_hint is the mean of |log p_T(own) - log p_S|, beyond_wrong the mean of |e|, e = log p_T(own) - log "
        "of the mean probability under the wrong hints. |e| is never 0: read the signed row. Where the wrapper of a "
        "wrong hint differs from the right one's, the wrapper is part of the contrast. Where sign_alone nears "
        "selected, RLCSD's reward at tau = .02 is a sign; weight_of_others: of a token it leaves, over one it takes.",
    )


def _reshaped(hint: str, records: Sequence[TokenRecord], wrong: Sequence[Floats]) -> Row:
    """How much of the signal RLCSD's published settings would take, and how much of it as a sign alone."""
    signals = [contrast(r.teacher_logp, w)[r.counted] for r, w in zip(records, wrong, strict=True)]
    takes, cells = Reshaping(), {}
    asked = {"selected": takes.selected, "sign_alone": takes.saturated, "weight_of_others": takes.weight_of_others}
    for name, measure in asked.items():
        found = [None if np.isnan(x) else x for x in map(measure, signals)]
        cells[name] = bootstrap_mean(by_problem(records, found))
    return Row(f"tokens that RLCSD as published reshapes, {hint}", cells)


def at_answer(record: TokenRecord) -> float | None:
    """Mean d at answer tokens, its sign turned in wrong completions, nats: above 0 it says what the verdict says."""
    signed = _signed(record, record.difference)
    return None if signed is None else float(signed.mean())


def _share(record: TokenRecord, kinds: Sequence[TokenClass], name: TokenClass) -> float | None:
    total = record.share_of_loss.sum()
    mask = np.array([kind == name for kind in kinds], dtype=np.bool_)
    return float(record.share_of_loss[mask].sum() / total) if total > 0 else None


def _carrying(record: TokenRecord) -> float | None:
    found = concentration(record)
    return len(found.positions) / found.counted if len(found.positions) else None


def _against(record: TokenRecord) -> float | None:
    signed = _signed(record, record.difference)
    return None if signed is None else float((signed < 0).mean())


def _delta(record: TokenRecord) -> float | None:
    d = record.difference[record.counted]
    return float(d.mean()) if d.size else None


def _knowing(record: TokenRecord, wrong: Floats) -> float | None:
    """Mean of e at answer tokens, its sign turned in wrong completions."""
    signed = _signed(record, contrast(record.teacher_logp, wrong))
    return None if signed is None else float(signed.mean())


def _signed(record: TokenRecord, values: Floats) -> Floats | None:
    at = counted_answer(record)
    if record.verdict is None or record.verdict.status not in ("correct", "wrong") or not len(at):
        return None
    return values[at] * (1 if record.correct else -1)


def estimate_of(section: Section | None, name: str) -> Estimate | None:
    """A key figure, where the section has it and it is known."""
    found = None if section is None else section.key.get(name)
    return None if found is None or found.n == 0 else found
