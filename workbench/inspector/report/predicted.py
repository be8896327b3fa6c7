"""What the arms before training predict: whether the teacher is right, and what could be gained from it."""

from __future__ import annotations

from pathlib import Path

from workbench.inspector.diagnostics import accuracy_gap, gain_line
from workbench.inspector.report.collect import Recorded
from workbench.inspector.report.section import Plot, Row, Section, common, shown, unknown
from workbench.train.evaluate import ArmResult, Evaluation
from workbench.train.intervals import paired_bootstrap
from workbench.train.run_directory import list_runs, read_jsonl

INTERCEPT = -0.003
"""Of the published line, shares; its slope is not published (arXiv:2605.30070)."""
FEWEST_RUNS = 3
"""Earlier runs below which a line has no residual to make an interval of."""


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
