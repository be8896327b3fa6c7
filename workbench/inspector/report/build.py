"""From what a run recorded, and what probes found, to its report; and from two reports to what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workbench.inspector.columns import of_loss
from workbench.inspector.page import static
from workbench.inspector.report import outputs, predicted, tokenwise, variety
from workbench.inspector.report.collect import Recorded, collect
from workbench.inspector.report.section import Report, Row, Section, common, paired_share, unknown
from workbench.inspector.report.tokenwise import Evidence
from workbench.inspector.report.verdict import report
from workbench.train.evaluate import headline
from workbench.train.intervals import paired_bootstrap, problem_means
from workbench.train.report import words


def collected(path: Path) -> Recorded:
    """A run, read once. Raises UsageError where there is none."""
    return collect(path)


def report_of(run: Recorded, probed: Sequence[Section] = ()) -> Report:
    """The report of a run: recorded sections, then probed ones; a probe takes the place of what was not recorded."""
    recorded = [*outputs.sections(run), predicted.gain(run), predicted.teacher(run), variety.recorded(run)]
    recorded += _signal(run)
    better = {s.name for s in probed}
    kept = [s for s in recorded if not (s.name in better and (not s.rows or s.name in REPLACED))]
    there = {s.name for s in kept}
    more = [replace(s, name=f"{s.name}_probed", title=f"{s.title} (probed)") if s.name in there else s for s in probed]
    return report(run.name, facts(run), [*kept, *more])


REPLACED = frozenset({"drift"})
"""Sections of which a probe knows more than the record, and everything the record says."""


def facts(run: Recorded) -> dict[str, str]:
    """What was run, in words: every comparison states the thinking modes of all three roles."""
    config, recipe = run.config, run.recipe
    found = {
        "recipe": str(run.run.get("recipe", config.recipe)),
        "model": config.model,
        "problems": str(run.run.get("data", config.problems or "")),
        "state": f"{run.state}, step {run.step}",
        "seed": f"{config.seed}, one training run",
        "command": " ".join(map(str, run.run.get("command", ()))),
    }
    if recipe is not None:
        teacher = "none" if recipe.teacher is None else _mode(recipe.teacher.thinking)
        student = _mode(recipe.student.thinking)
        found["divergence"] = words(type(headline(recipe)).__name__)
        found["thinking"] = f"rollouts {student}; teacher {teacher}; evaluation {student}"
    else:
        found["not known"] = run.why_unplanned
    return found


def _mode(thinking: bool | None) -> str:
    return {None: "the template's default", True: "on", False: "off"}[thinking]


def _signal(run: Recorded) -> list[Section]:
    """Sections from the token records that training wrote."""
    pairs = [(s, r) for s in run.seen() if (r := of_loss(s)) is not None]
    seen, records = [s for s, _ in pairs], [r for _, r in pairs]
    if not seen:
        names = {
            "divergence_by_class": "On what kind of token does the divergence lie?",
            "concentration": "How few tokens carry the divergence?",
            "noise": "Has the signal the right sign at the answer?",
            "alignment": "Does the teacher prefer right completions of a problem to wrong ones?",
            "marker_pressure": "Does the teacher press on second thoughts?",
            "first_error": "Does the divergence rise where the student first errs?",
        }
        why = "no token records with both roles' log-probs lie in the run"
        return [unknown(name, title, why) for name, title in names.items()]
    steps = sorted({s.step for s in seen})
    problems = len({s.problem for s in seen})
    basis = f"{len(seen)} rollouts of {problems} problems, as the loss saw them in steps {steps[0]} to {steps[-1]}"
    return tokenwise.sections(Evidence(records, "recorded", f"{basis}; one training run", run.hidden, run.questions))


SHARES = ("accuracy", "mentions", "teacher_success", "noise_rate", "style_share", "concentration", "correct_", "tts_")
"""Figures from 0 to 1, by how their names begin."""


def compared(reports: Sequence[Report]) -> Section:
    """Second minus first, paired by problem: every figure that both have values of, problem by problem."""
    first, second = reports
    rows, key = [], {}
    for section in second.sections:
        other = first.section(section.name)
        if other is None or other.source != section.source:
            continue
        for name in (name for name in section.scores if name in other.scores):
            sides = common(other.scores[name], section.scores[name])
            change = (paired_share if name.startswith(SHARES) else paired_bootstrap)(*sides)
            if change.n:
                values = [sum(problem_means(side).values()) / change.n for side in sides]
                rows.append(
                    Row(
                        f"{name.replace('_', ' ')} ({section.name.replace('_', ' ')}, {section.source})",
                        {"first": values[0], "second": values[1], "difference": change, "problems": change.n},
                    )
                )
                key[f"{section.name}.{name}"] = change
    clear = [row.label for row in rows if key and _clear(row)]
    answer = f"clear of noise: {', '.join(clear)}" if clear else "nothing differs that is clear of noise"
    return Section(
        "comparison",
        f"What differs between {first.run} and {second.run}?",
        answer if rows else "not measured: the two runs share no problem with a measure",
        "recorded",
        f"{second.run} minus {first.run}, the same problems on both sides; one training run each",
        tuple(rows),
        None,  # each row has its own unit, and one axis would hide the small ones
        key,
        misleads="Means of a problem's values, so a ratio of sums elsewhere in the page can differ. Many rows, one "
        "95 % interval each: one in twenty is clear by chance. One run each: seeds are not in the interval.",
    )


def _clear(row: Row) -> bool:
    found = row.cells["difference"]
    return not isinstance(found, (int, float, str)) and found is not None and found.clear_of_zero


def telling(run: Recorded) -> list[tuple[str, str]]:
    """(title, document) of up to three rollouts that say most, as the token view shows them; none without records.

    Where the divergence is largest a token; where the signal contradicts the verdict most at the answer; where it
    agrees most. Rollouts whose alternatives were recorded are taken first.
    """
    pairs = [(s, r) for s in run.seen() if (r := of_loss(s)) is not None]
    shown = [pair for pair in pairs if pair[0].tops is not None] or pairs
    if not shown:
        return []
    signed = [(value, s) for s, r in shown if (value := tokenwise.at_answer(r)) is not None]
    largest = max(shown, key=lambda pair: float(pair[1].share_of_loss.mean()))[0]
    chosen = {"the largest divergence a token": largest}
    if signed:
        worst, best = min(signed, key=lambda x: x[0])[1], max(signed, key=lambda x: x[0])[1]
        chosen |= {"the signal contradicts the verdict most": worst, "the signal agrees with the verdict most": best}
    names: dict[int, list[str]] = {}
    for why, one in chosen.items():
        names.setdefault(id(one), []).append(why)
    records = {id(one): one for one in chosen.values()}
    return [
        (f"Rollout {records[key].rollout or records[key].problem}: {' and '.join(whys)}", static.page(records[key]))
        for key, whys in names.items()
    ]
