"""Sections about what was written: right answers, lengths, leaks, variety, and what the evaluated arms predict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from workbench.inspector.diagnostics import leakage
from workbench.inspector.diagnostics.classes import runs
from workbench.inspector.diagnostics.leakage import mentioning
from workbench.inspector.report.collect import Recorded
from workbench.inspector.report.section import Cell, Plot, Row, Section, common, paired_share, percent, shown, unknown
from workbench.problems import pair_with_others
from workbench.records import Problem
from workbench.train.evaluate import ArmResult, Evaluation
from workbench.train.intervals import Estimate, Scores, bootstrap_ratio, bootstrap_share, paired_bootstrap

RUN = 4
"""Words in a row that count as quoting."""


def sections(run: Recorded) -> list[Section]:
    """Every section that evaluations, metrics and rollouts can answer."""
    return [accuracy(run), training(run), leaks(run), lengths(run)]


def accuracy(run: Recorded) -> Section:
    """Arms with counts, and what changed, paired by problem."""
    title, arms = "Does the student answer more problems right?", [a for e in run.evaluations.values() for a in e.arms]
    before, after = run.arm("before"), run.arm("after")
    if not arms:
        return unknown("accuracy", title, "the run evaluated nothing")
    rows = [
        Row(
            a.name,
            {"correct": f"{a.arm.correct}/{a.arm.judged}", "accuracy": a.arm.accuracy, "truncated": a.arm.truncated},
        )
        for a in arms
    ]
    key, missing, answer = {}, [], "the run has not been evaluated after training"
    if before and after:
        change = paired_bootstrap(*common(before.scores, after.scores))
        key["accuracy_change"] = change
        rows.append(Row("after - before, paired", {"accuracy": change}))
        word = "clear of noise" if change.clear_of_zero else "within noise"
        answer = f"accuracy changed by {shown(change, signed=True)}, {word} ({change.n} problems)"
    else:
        missing.append("after: the run is not finished")
    return Section(
        "accuracy",
        title,
        answer,
        "recorded",
        f"{after.arm.total if after else arms[0].arm.total} held-out problems, greedy; one training run",
        tuple(rows),
        Plot("intervals", ("accuracy",), "accuracy; differences in shares", reference=0.0),
        key,
        {"accuracy": after.scores} if after else {},
        tuple(missing),
        "A gain does not prove that the reference taught: arms without it, and with another problem's, can gain as "
        "much (arXiv:2609.20612, 2608.18271, 2608.09228). One training run: the interval knows nothing of other seeds.",
    )


def training(run: Recorded) -> Section:
    """Whether the loss fell: the held-out divergence paired, and the steps' own numbers."""
    title = "Does the student come closer to its teacher?"
    ends = [run.evaluations.get(when) for when in ("before", "after")]
    rows = [_step_row(run, name) for name in ("loss", "surprise", "tokens_mean", "truncated_share")]
    kept = tuple(row for row in rows if row is not None)
    change = _held_out_change(ends)
    if change is None and not kept:
        return unknown("training", title, "no step was recorded")
    answer = (
        f"the held-out divergence changed by {shown(change, signed=True)}"
        if change
        else "the held-out divergence was not measured at both ends"
    )
    # A step's numbers are of other problems than the last step's: no interval by problem can be made of them.
    return Section(
        "training",
        title,
        answer,
        "recorded",
        f"{len(run.metrics)} steps; first and last third of them, unpaired",
        kept,
        None,
        {"divergence_change": change} if change else {},
        missing=() if change else ("the held-out divergence needs evaluations before and after",),
        misleads="A divergence can fall while only style is learnt. Steps see different problems, so their rows have "
        "no interval.",
    )


def _held_out_change(ends: Sequence[Evaluation | None]) -> Estimate | None:
    before, after = ends
    if before is None or after is None or not before.divergence or not after.divergence:
        return None
    return paired_bootstrap(*common(before.divergence, after.divergence), unit="nat/token")


def _step_row(run: Recorded, name: str) -> Row | None:
    values = [float(row[name]) for row in run.metrics if isinstance(row.get(name), (int, float))]
    third = max(1, len(values) // 3)
    if not values:
        return None
    return Row(name, {"first": statistics.fmean(values[:third]), "last": statistics.fmean(values[-third:])})


def leaks(run: Recorded) -> Section:
    """Does the student speak of what it never saw, and quote it?"""
    title = "Does the student speak of a text it was never shown?"
    outputs = {name: texts for name in ("before", "after") if (texts := _texts(run.arm(name)))}
    trained = _rollout_texts(run)
    outputs |= {"training rollouts": trained} if trained else {}
    if not outputs:
        return unknown("leakage", title, "no completion was recorded")
    questions, long = run.questions, _long_enough(run)
    others = _unrelated(run)
    rows: list[Row] = []
    key: dict[str, Estimate] = {}
    for name, texts in outputs.items():
        phrases = leakage(texts, questions=questions).phrases
        known = {k: v for k, v in texts.items() if k in long and k in others}
        cells: dict[str, Cell] = {"mentions_per_1000": phrases}
        if known:
            pair = {k: long[k] for k in known}, {k: others[k] for k in known}
            cells["overlap_beyond_chance"] = leakage(known, *pair, questions=questions).overlap
        rows.append(Row(name, cells))
        key[f"mentions_{name.replace(' ', '_')}"] = phrases
    last = next((r for r in rows if r.label == "after"), rows[-1])
    answer = f"{last.label}: {shown(last.cells['mentions_per_1000'])} speak of an unseen text"
    if "overlap_beyond_chance" in last.cells:
        overlap = shown(last.cells["overlap_beyond_chance"], signed=True)
        answer += f"; overlap with the privileged text beyond an unrelated one {overlap}"
    scores: dict[str, Scores] = {}
    if "before" in outputs and "after" in outputs:
        old, scores["mentions"] = (mentioning(outputs[when], questions) for when in ("before", "after"))
        key["mentions_change"] = paired_share(*common(old, scores["mentions"]))
        rows.append(Row("after - before, paired", {"change_in_share_of_outputs": key["mentions_change"]}))
    why = "it is not known" if not run.hidden else f"no run of {RUN} words stands in it that the question lacks"
    return Section(
        "leakage",
        title,
        answer,
        "recorded",
        ", ".join(f"{name} {sum(map(len, texts.values()))}" for name, texts in outputs.items()) + " outputs",
        tuple(rows),
        None,
        key,
        scores,
        () if long else (f"overlap with the privileged text: {why}",),
        "The phrases are a reconstruction. Four words in a row of a short solution are often its answer, which a "
        "student that learnt may write without having seen it.",
    )


def _long_enough(run: Recorded) -> dict[str, str]:
    """Problem -> its privileged text, where that has a run of words of its own that an output could repeat."""
    asked = run.questions
    return {k: text for k, text in run.hidden.items() if runs(text, RUN) - runs(asked.get(k, ""), RUN)}


def _texts(arm: ArmResult | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for answer in arm.answers if arm else ():
        found.setdefault(answer.problem, []).append(answer.text)
    return found


def _rollout_texts(run: Recorded) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in run.rollouts:
        if row.get("author") == "student":
            found.setdefault(str(row["problem"]), []).append(str(row["text"]))
    return found


def _unrelated(run: Recorded) -> dict[str, str]:
    """Problem -> what the teacher was shown of another one: the control for overlap."""
    hidden, problems = run.hidden, run.problems
    known: list[Problem] = [problems[key] for key in hidden]
    if len({p.question for p in known}) < 2:
        return {}
    try:
        paired = pair_with_others(known)
    except ValueError:
        return {}
    return {p.id: hidden[p.other.id] for p in paired if p.other is not None and p.other.id in hidden}


def lengths(run: Recorded) -> Section:
    """How lengths drifted, paired by problem; and the surprise of the rollouts."""
    title, before, after = "Did lengths and entropy drift?", run.arm("before"), run.arm("after")
    if before is None or after is None:
        return unknown("drift", title, "the run was not evaluated at both ends")
    old, new = common(before.tokens, after.tokens)
    ratio = bootstrap_ratio(new, old)
    cut = [bootstrap_share(arm.by_problem(lambda a: float(a.stop == "length"))) for arm in (before, after)]
    rows = [
        Row("tokens after / before", {"ratio": ratio}),
        Row("cut by the limit, before", {"share": cut[0]}),
        Row("cut by the limit, after", {"share": cut[1]}),
    ]
    surprise = _step_row(run, "student_entropy")
    if surprise is not None:
        rows.append(Row("entropy of rollouts, first and last third of steps, nat/token", surprise.cells))
    return Section(
        "drift",
        title,
        f"completions are {shown(ratio)} times as long as before training; {percent(cut[1])} are cut",
        "recorded",
        f"{ratio.n} held-out problems, greedy",
        tuple(rows),
        Plot("intervals", ("ratio",), "tokens after / tokens before", reference=1.0),
        {"length_ratio": ratio, "cut_after": cut[1]},
        {"tokens": after.tokens},
        ("entropy paired by problem: it needs both models (--probe)",),
        "Greedy completions: sampled ones can drift before these do.",
    )
