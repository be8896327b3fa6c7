"""Sections about what was written: right answers, lengths, leaks, variety, and what the evaluated arms predict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from verifiers import Verdict
from workbench.inspector.diagnostics import accuracy_gap, diversity, gain_line, leakage
from workbench.inspector.report.collect import Recorded, verdict_of
from workbench.inspector.report.section import Plot, Row, Section, common, percent, shown, unknown
from workbench.problems import pair_with_others
from workbench.records import Problem
from workbench.train.evaluate import ArmResult, Evaluation
from workbench.train.intervals import Estimate, bootstrap_mean, bootstrap_ratio, paired_bootstrap
from workbench.train.run_directory import list_runs, read_jsonl

INTERCEPT = -0.003
"""Of the published line, shares; its slope is not published (arXiv:2605.30070)."""
FEWEST_RUNS = 3
"""Earlier runs below which a line has no residual to make an interval of."""


def sections(run: Recorded) -> list[Section]:
    """Every section that evaluations, metrics and rollouts can answer."""
    return [accuracy(run), training(run), gain(run), teacher(run), leaks(run), variety(run), lengths(run)]


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


def gain(run: Recorded) -> Section:
    """What the gap between self-teacher and student predicts, from earlier runs (arXiv:2605.30070)."""
    title, before, view = "What could be expected before training?", run.arm("before"), _view(run)
    if before is None or view is None:
        return unknown("expected_gain", title, "the teacher's view was not evaluated before training")
    gap = accuracy_gap(*common(before.scores, view.scores))
    earlier = _earlier(run)
    rows = [Row("teacher's view - student, before training", {"accuracy": gap})]
    missing = []
    answer = f"the self-teacher is {shown(gap, signed=True)} above the student"
    key = {"gap": gap}
    if len(earlier) >= FEWEST_RUNS and len({x for x, _ in earlier}) > 1:
        expected = gain_line([x for x, _ in earlier], [y for _, y in earlier]).expected(gap)
        rows.append(Row(f"expected gain, from {len(earlier)} earlier runs", {"accuracy": expected}))
        key["expected_gain"] = expected
        answer += f"; {len(earlier)} earlier runs here make it expect {shown(expected, signed=True)}"
    else:
        missing.append(
            f"the expected gain: {len(earlier)} other finished runs with this model and such arms lie beside this one, "
            f"a line with an interval needs {FEWEST_RUNS}; the published slope is not known, its intercept is "
            f"about {INTERCEPT}"
        )
    return Section(
        "expected_gain",
        title,
        answer,
        "recorded",
        f"{gap.n} problems, greedy",
        tuple(rows),
        Plot("intervals", ("accuracy",), "accuracy, shares", reference=0.0),
        key,
        missing=tuple(missing),
        misleads="A pre-flight number, never proof: views of equal accuracy gain differently (arXiv:2609.20612).",
    )


def _view(run: Recorded) -> ArmResult | None:
    return run.arm("teacher's view") or run.arm("teacher")


def _earlier(run: Recorded) -> list[tuple[float, float]]:
    """(gap, gain) of other finished runs beside this one, with the same model, in shares."""
    found = []
    for other in list_runs(run.path.parent):
        same = other.run.get("config", {}).get("model") == run.run.get("config", {}).get("model")
        if other.path.resolve() == run.path.resolve() or other.state != "finished" or not same:
            continue
        pair = _gap_and_gain(other.path)
        found += [pair] if pair else []
    return found


def _gap_and_gain(path: Path) -> tuple[float, float] | None:
    arms: dict[str, ArmResult] = {}
    for row in read_jsonl(path / "evaluations.jsonl"):
        arms |= {a.name: a for a in Evaluation.from_row(row).arms}
    before, after, view = arms.get("before"), arms.get("after"), arms.get("teacher's view") or arms.get("teacher")
    if not (before and after and view):
        return None
    gap, change = (paired_bootstrap(*common(before.scores, arm.scores), draws=1) for arm in (view, after))
    return (gap.value, change.value) if gap.n and change.n else None


def teacher(run: Recorded) -> Section:
    """Whether the teacher is right, by the verifier: one greedy answer a problem."""
    title, view = "Is the teacher right?", _view(run)
    if view is None:
        return unknown("teacher_reliability", title, "the teacher's view was not evaluated")
    found = view.arm
    return Section(
        "teacher_reliability",
        title,
        f"under its context the teacher answers {found.correct}/{found.judged} held-out problems right, "
        f"{shown(found.accuracy)}",
        "recorded",
        f"{found.total} held-out problems, one greedy answer each",
        (Row(view.name, {"correct": f"{found.correct}/{found.judged}", "success": found.accuracy}),),
        Plot("intervals", ("success",), "verified success", reference=2 / 3),
        {"teacher_success": found.accuracy},
        {"teacher_success": view.scores},
        ("whether confidence tells right from wrong: it needs several answers a problem (--probe)",),
        "A teacher that reads the answer can be right without being able to derive it.",
    )


def leaks(run: Recorded) -> Section:
    """Does the student speak of what it never saw, and quote it?"""
    title = "Does the student speak of a text it was never shown?"
    outputs = {name: texts for name in ("before", "after") if (texts := _texts(run.arm(name)))}
    trained = _rollout_texts(run)
    outputs |= {"training rollouts": trained} if trained else {}
    if not outputs:
        return unknown("leakage", title, "no completion was recorded")
    others, rows, key, scores = _unrelated(run), [], {}, {}
    for name, texts in outputs.items():
        known = {k: v for k, v in texts.items() if k in run.hidden and k in others}
        found = leakage(
            known or texts,
            {k: run.hidden[k] for k in known} if known else None,
            {k: others[k] for k in known} if known else None,
            questions=run.questions,
        )
        rows.append(Row(name, {"mentions_per_1000": found.phrases, "overlap_beyond_chance": found.overlap}))
        key[f"mentions_{name.replace(' ', '_')}"] = found.phrases
        if found.overlap is not None:
            key[f"overlap_{name.replace(' ', '_')}"] = found.overlap
    last = rows[-1] if "after" not in outputs else next(r for r in rows if r.label == "after")
    before, after = outputs.get("before"), outputs.get("after")
    if before and after:
        old, new = (leak_scores(texts, run.questions) for texts in (before, after))
        key["mentions_change"] = paired_bootstrap(*common(old, new), unit="per 1,000 outputs")
        rows.append(Row("after - before, paired", {"mentions_per_1000": key["mentions_change"]}))
        scores["mentions"] = new
    return Section(
        "leakage",
        title,
        f"{last.label}: {shown(last.cells['mentions_per_1000'])} speak of an unseen text; overlap with the privileged "
        f"text beyond an unrelated one {shown(last.cells['overlap_beyond_chance'], signed=True)}",
        "recorded",
        ", ".join(f"{name} {sum(map(len, texts.values()))}" for name, texts in outputs.items()) + " outputs",
        tuple(rows),
        None,
        key,
        scores,
        () if run.hidden else ("overlap with the privileged text: it is not known",),
        "The phrases are a reconstruction. Four words in a row of a short solution are often its answer, which a "
        "student that learnt may write without having seen it.",
    )


def leak_scores(texts: Mapping[str, Sequence[str]], questions: Mapping[str, str]) -> dict[str, list[float]]:
    """Problem -> 1,000 for an output that mentions an unseen text, else 0: the values behind `leakage`'s rate."""
    from workbench.inspector.diagnostics import mentions

    return {k: [1000.0 * bool(mentions(t, questions.get(k, ""))) for t in group] for k, group in texts.items()}


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


def variety(run: Recorded) -> Section:
    """pass@k and different answers of the training rollouts: one pool a problem and step."""
    title, groups = "Does the student still try different things?", dict[str, list[Mapping[str, object]]]()
    for row in run.rollouts:
        if row.get("author") == "student":
            groups.setdefault(f"{row['step']}/{row['problem']}", []).append(row)
    several = {key: rows for key, rows in groups.items() if len(rows) > 1}
    if not several:
        return unknown("diversity", title, "the run drew one completion a problem; several are drawn with --probe")
    verdicts = {key: [verdict_of(row) for row in rows] for key, rows in several.items()}
    texts = {key: [str(row["text"]) for row in rows] for key, rows in several.items()}
    return variety_of({"training rollouts": (verdicts, texts)}, "recorded", f"{len(several)} groups of the training")


Pool = tuple[Mapping[str, Sequence[Verdict]], Mapping[str, Sequence[str]]]
"""Problem -> verdicts, problem -> texts."""


def variety_of(pools: Mapping[str, Pool], source: str, basis: str) -> Section:
    """The curve of pass@k, distinct answers and solutions of each pool (arXiv:2606.26091)."""
    rows, key, scores = [], {}, {}
    ks: list[int] = []
    for name, (verdicts, texts) in pools.items():
        most = max(map(len, verdicts.values()))
        ks = [k for k in (1, 2, 4, 8, 16) if k <= most]
        found = diversity(verdicts, texts, ks)
        rows += [Row(f"pass@{k}, {name}", {name.replace(" ", "_"): e}, float(k)) for k, e in found.pass_at.items()]
        rows.append(Row(f"different answers, {name}", {"a_problem": found.answers}))
        if found.solutions is not None:
            rows.append(Row(f"different solutions, {name}", {"a_problem": found.solutions}))
        tag = name.replace(" ", "_")
        key |= {f"pass_at_{k}_{tag}": e for k, e in found.pass_at.items()} | {f"answers_{tag}": found.answers}
        scores[f"correct_{tag}"] = {k: [v.score for v in group] for k, group in verdicts.items()}
    tags = tuple(name.replace(" ", "_") for name in pools)
    first = f"pass@1 {shown(key[f'pass_at_1_{tags[-1]}'])}, pass@{ks[-1]} {shown(key[f'pass_at_{ks[-1]}_{tags[-1]}'])}"
    return Section(
        "diversity",
        "Does the student still try different things?",
        f"{tags[-1].replace('_', ' ')}: {first}, {shown(key[f'answers_{tags[-1]}'])} different answers",
        "probed" if source == "probed" else "recorded",
        basis,
        tuple(rows),
        Plot("curve", tags, "chance that one of k is right", "k"),
        key,
        scores,
        misleads="pass@k of a small pool is as wide as its interval; k cannot exceed the completions a problem has.",
    )


def lengths(run: Recorded) -> Section:
    """How lengths drifted, paired by problem; and the surprise of the rollouts."""
    title, before, after = "Did lengths and entropy drift?", run.arm("before"), run.arm("after")
    if before is None or after is None:
        return unknown("drift", title, "the run was not evaluated at both ends")
    old, new = common(before.tokens, after.tokens)
    ratio = bootstrap_ratio(new, old)
    cut = [bootstrap_mean(arm.by_problem(lambda a: float(a.stop == "length"))) for arm in (before, after)]
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
