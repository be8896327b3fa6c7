"""A report through real tiny runs, and rules on figures whose verdict is known."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import build_tiny
from tests.smoke import problems as problem_file
from verifiers import Verdict
from workbench import opsd, report
from workbench.errors import UsageError
from workbench.inspector.diagnostics import CLASSES, DECISIONS, TokenRecord
from workbench.inspector.diagnostics.mistakes import first_error
from workbench.inspector.report import build, page, plain, plots, thinking, tokenwise, variety
from workbench.inspector.report.hints import wrong_hints
from workbench.inspector.report.section import Plot, Report, Row, Section, as_json, paired_share, shown
from workbench.inspector.report.tokenwise import Evidence
from workbench.inspector.report.verdict import SYMPTOMS, decide, verdict
from workbench.parts import contexts
from workbench.recipes import ALL
from workbench.records import Case, Problem
from workbench.train.intervals import Estimate, bootstrap_mean, bootstrap_share, paired_bootstrap

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e```{{ }} <b>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two runs of two steps on the tiny model: with the solution, and with another problem's."""
    root = tmp_path_factory.mktemp("report")
    model, data = build_tiny(root / "tiny"), problem_file(root / "problems.jsonl", 14)
    sizes = "--steps 2 --batch 2 --group 2 --max-new-tokens 12 --eval-problems 7 --eval-tokens 12 --progress quiet"
    for recipe in ("opsd", "opsd_other_problem"):
        where = ["--model", str(model), "--problems", str(data), "--output", str(root / "runs"), "--name", recipe]
        assert opsd.main(["--recipe", recipe, "--adapter", "none", *where, *sizes.split()]) == 0
    return root / "runs"


# Through a real run


def test_a_run_is_reported_from_what_it_left_behind(runs, capsys):
    assert report.main([str(runs / "opsd")]) == 0
    out = capsys.readouterr().out
    assert "verdict        whether the signal teaches cannot be told" in out
    found = json.loads((runs / "opsd" / "report.json").read_text())["reports"][0]
    sections = {s["name"]: s for s in found["sections"]}
    stored = json.loads((runs / "opsd" / "eval.json").read_text())
    change = next(d for d in stored["differences"] if d["figure"] == "accuracy" and d["name"] == "after - before")
    assert sections["accuracy"]["key"]["accuracy_change"] == change["estimate"], "the run's own number"
    assert {s["symptom"] for s in found["decisions"]} | {u.split(":")[0] for u in found["unseen"]} == {
        d.symptom for d in DECISIONS
    }
    for name, section in sections.items():
        assert section["rows"] or section["missing"], f"{name} says neither a number nor why there is none"


def test_every_step_says_of_its_signal_what_the_report_reads(runs):
    rows = [json.loads(line) for line in (runs / "opsd" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        shares = [row[f"divergence_share.{name}"] for name in CLASSES]
        assert sum(shares) == pytest.approx(1)
        assert 0 < row["concentration"] <= 1
        assert row["mention_share"] == 0
    run = build.collected(runs / "opsd")
    seen = run.seen()
    assert len(seen) == 2 * 2 * 2, "every rollout of every step"
    section = build.report_of(run).section("concentration")
    assert section.source == "recorded"
    assert "8 rollouts of" in section.basis
    assert "as the loss saw them in steps 1 to 2" in section.basis


def test_the_telling_rollouts_stand_in_the_page_and_may_run_their_own_script_alone(runs):
    run = build.collected(runs / "opsd")
    rollouts = build.telling(run)
    assert 1 <= len(rollouts) <= 3
    assert rollouts[0][0].startswith("Rollout 1/") or rollouts[0][0].startswith("Rollout 2/")
    document = page.page([build.report_of(run)], None, rollouts)
    own = re.search(r'Security-Policy" content="([^"]*)"', document)[1]
    allowed = re.findall(r"sha256-[A-Za-z0-9+/=]+", html.unescape(own))
    inner = [re.search(r'Security-Policy" content="([^"]*)"', d)[1] for _, d in rollouts]
    assert {h for d in inner for h in re.findall(r"sha256-[A-Za-z0-9+/=]+", html.unescape(d))} < set(allowed)
    style = document.split("<style>")[1].split("</style>")[0]
    assert "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in allowed


def test_page_text_and_json_show_the_same_numbers(runs):
    made = build.report_of(build.collected(runs / "opsd"))
    document, text, notes = page.page([made]), plain.text(made), plain.markdown(made)
    for section in made.sections:
        for row in section.rows:
            for name, cell in row.cells.items():
                written = plain.cell_text(name, cell)
                assert f"<td>{written}</td>" in document, (section.name, row.label, name)
                assert written in text
                assert written in notes
    assert "http" not in re.sub(
        r"Content-Security-Policy|http-equiv", "", document.split("</style>")[1].split("<pre>")[0]
    )
    assert "<script" not in document


def test_two_runs_are_compared_problem_by_problem(runs, capsys):
    assert report.main([str(runs / "opsd"), str(runs / "opsd_other_problem"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in data["comparison"]["rows"]}
    row = rows["accuracy (accuracy, recorded)"]
    assert row["problems"] == 7
    assert row["difference"]["value"] == pytest.approx(row["second"] - row["first"])
    same = build.compared([build.report_of(build.collected(runs / "opsd"))] * 2)
    assert all(row.cells["difference"].value == 0 for row in same.rows)


def test_a_run_is_probed_and_the_page_says_what_it_rests_on(runs, capsys):
    where = runs.parent / "probe.html"
    asked = ["--probe", "--problems", "3", "--samples", "2", "--hints", "2"]
    assert report.main([str(runs / "opsd"), *asked, "--html", str(where)]) == 0
    found = json.loads(where.with_suffix(".json").read_text())["reports"][0]
    probed = {s["name"]: s for s in found["sections"] if s["source"] == "probed"}
    assert {"hint_contrast", "diversity_probed", "teacher_reliability_probed", "drift", "budgets", "thinking"} <= {
        name if name != "diversity" else "diversity_probed" for name in probed
    }
    kinds = {row["label"] for row in probed["hint_contrast"]["rows"]}
    assert "maths, the hint with a wrong answer" in kinds
    assert "maths, another problem's hint" in kinds
    assert "maths, opsd_wrong_answer's hint" in kinds
    assert all(
        "3 held-out problems, 2 completions" in probed[n]["basis"] for n in ("hint_contrast", "drift", "budgets")
    )
    capsys.readouterr()


def test_what_cannot_be_reported_is_answered(runs, tmp_path, capsys):
    assert report.main([str(tmp_path / "nothing")]) == 2
    assert "is no run: it has no run.json" in capsys.readouterr().err
    assert report.main([str(runs / "opsd")] * 3) == 2
    assert report.main([str(runs / "opsd"), "--hints", "0"]) == 2
    capsys.readouterr()
    assert report.main([str(runs / "opsd"), "--html", str(tmp_path / "no" / "page.html")]) != 0
    assert "Name another place with --html" in capsys.readouterr().err


def test_a_run_whose_problems_are_gone_is_still_reported(runs, tmp_path, capsys):
    import shutil

    shutil.copytree(runs / "opsd", tmp_path / "copy")
    facts = json.loads((tmp_path / "copy" / "run.json").read_text())
    facts["config"]["problems"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "copy" / "run.json").write_text(json.dumps(facts))
    with open(tmp_path / "copy" / "rollouts.jsonl", "a") as file:
        file.write('{"step": 3, "torn')
    assert report.main([str(tmp_path / "copy")]) == 0
    assert "its problems cannot be loaded again" in capsys.readouterr().out
    assert report.main([str(tmp_path / "copy"), "--probe"]) != 0


# Rules


def e(value, low, high, n=20, unit=""):
    return Estimate(value, low, high, n, unit)


def test_the_headline_follows_what_is_clear_of_noise():
    right = {"noise_rate": e(0.2, 0.1, 0.3), "alignment": e(0.1, -0.1, 0.3)}
    assert verdict(right)[0] == "teaches"
    assert verdict(right | {"alignment": e(-0.2, -0.3, -0.1)})[0] == "cannot be told"
    assert verdict({"noise_rate": e(0.7, 0.6, 0.8)})[0] == "points the wrong way"
    assert verdict({"noise_rate": e(0.2, 0.1, 0.3, n=5)})[0] == "cannot be told", "five problems say nothing"
    assert verdict({"answer_contrast_another_problem": e(0.5, 0.2, 0.9)})[0] == "teaches"
    style = right | {"style_share": e(0.7, 0.6, 0.8)}
    assert verdict(style)[0] == "is mostly style and format"
    assert "contradicts the verdict" in verdict(style)[1]
    assert verdict({"style_share": e(0.6, 0.4, 0.8)})[0] == "cannot be told"
    assert verdict({}) == (
        "cannot be told",
        "whether the signal teaches cannot be told: no measure of the signal here is clear of noise",
    )


@pytest.mark.parametrize(
    ("symptom", "keys"),
    [
        ("loss falls, accuracy flat", {"divergence_change": e(-1, -2, -0.5), "accuracy_change": e(0, -0.1, 0.1)}),
        ("better at a short budget, worse at a long one",
         {"shortest_budget_change": e(0.2, 0.1, 0.3), "longest_budget_change": e(-0.1, -0.2, 0.05)}),
        ("length grows without end", {"length_ratio": e(2, 1.5, 3)}),
        ("length collapses", {"length_ratio": e(0.4, 0.3, 0.5)}),
        ("outputs say 'as the reference says'", {"mentions_change": e(0.2, 0.1, 0.3)}),
        ("pass@1 up, pass@16 flat", {"pass_at_1_change": e(0.2, 0.1, 0.3), "pass_at_k_change": e(0, -0.1, 0.1)}),
        ("teacher wrong but sure", {"teacher_success": e(0.3, 0.2, 0.4)}),
        ("signal mostly on style", {"style_share": e(0.8, 0.7, 0.9)}),
    ],
)  # fmt: skip
def test_every_symptom_is_seen_where_it_is_put_and_nowhere_else(symptom, keys):
    triggered, unseen = decide(keys)
    assert [t.decision.symptom for t in triggered] == [symptom]
    assert len(unseen) == len(DECISIONS) - 1
    turned = {name: e(-x.value, -x.high, -x.low) if "ratio" not in name else e(1, 0.9, 1.1) for name, x in keys.items()}
    turned |= {name: e(0.9, 0.8, 0.99) for name in keys if name == "teacher_success"}
    turned |= {name: e(0.2, 0.1, 0.3) for name in keys if name == "style_share"}
    assert decide(turned)[0] == (), "the opposite is no symptom"


def test_what_rests_on_more_problems_speaks():
    def section(name, estimate):
        return Section(name, "t", "a", "recorded", key={"noise_rate": estimate})

    few, many, none = e(0.2, 0.1, 0.3, n=8), e(0.5, 0.4, 0.6, n=60), e(math.nan, -math.inf, math.inf, n=0)
    for order in ((few, many, none), (none, many, few)):
        made = build.report("run", {}, [section(str(i), x) for i, x in enumerate(order)])
        assert made.word == "cannot be told"
    assert build.report("run", {}, [section("a", few), section("b", none)]).word == "teaches"


def test_every_row_of_the_table_has_a_rule():
    assert SYMPTOMS.keys() == {d.symptom for d in DECISIONS}


# Constructed signals


def record(problem, text, d, status="wrong", extracted=None, divergence=None):
    d = np.array(d, float)
    n = len(text)
    values = np.abs(d) if divergence is None else np.array(divergence, float)
    zero, half = np.zeros(n), np.full(n, 0.5)
    return TokenRecord(problem, tuple(text), zero - 1, d - 1, half, half, values, zero + 1, Verdict(status, extracted))


def knowing(n=8):
    """A teacher that knows: at the answer it says more where that is right, and less where it is wrong."""
    text = ["So", " it", " is", " 7"]
    return [
        record(f"p{i}", text, [0.5, 0.5, 0.5, 2.0 if right else -2.0], "correct" if right else "wrong", "7")
        for i in range(n)
        for right in (True, False)
    ]


def test_a_teacher_that_knows_teaches_and_one_with_another_style_does_not():
    records = knowing()
    wrong = [np.array([[-0.5, -0.5, -0.5, -1.0]] * 2) for _ in records]  # as stylish, and silent at the answer
    told = Evidence(records, "probed", "made up", wrong={"another_problem": wrong})
    keys = {k: v for s in [tokenwise.hints(told), *tokenwise.sections(told)] for k, v in s.key.items()}
    assert keys["answer_contrast_another_problem"].value == pytest.approx(2.0)
    row = next(r for r in tokenwise.hints(told).rows if "RLCSD" in r.label)
    # e is 2 at one token of four and 0 at the others; one e of .03 is selected and is no sign yet.
    assert (row.cells["selected"].value, row.cells["sign_alone"].value) == (0.25, 0.25)
    assert row.cells["weight_of_others"].value == pytest.approx(1 / 3), "three that are left beside one that is taken"
    nearly = replace(told, wrong={"another_problem": [w + np.array([0, 0, -0.03, 0]) for w in wrong]})
    row = next(r for r in tokenwise.hints(nearly).rows if "RLCSD" in r.label)
    assert (row.cells["selected"].value, row.cells["sign_alone"].value) == (0.5, 0.25)
    assert keys["noise_rate"].value == 0
    assert keys["noise_rate"].high == pytest.approx(0.324, abs=1e-3), "eight problems are no proof of zero"
    assert keys["alignment"].value == pytest.approx(1.0)
    assert verdict(keys)[0] == "teaches"
    stylish = [record(f"p{i}", ["So", " it", " is", " 7"], [2, 2, 2, 0.1], "wrong", "7") for i in range(8)]
    same = Evidence(stylish, "probed", "made up", wrong={"another_problem": [r.teacher_logp[None] for r in stylish]})
    keys = {k: v for s in [tokenwise.hints(same), *tokenwise.sections(same)] for k, v in s.key.items()}
    assert keys["answer_contrast_another_problem"].value == 0
    assert keys["style_share"].value == pytest.approx(6 / 6.1)
    assert verdict(keys)[0] == "is mostly style and format"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        (["24", " + 2", " =", " 2", "7", ", so", " 27"], (3, 5)),
        (["24 - 2 * 3 = 18", " so", " 17"], (2, 3)),
        (["3 - -1 = 4", " then", " 10 / 4 = 2.5", " so 17"], (3, 4)),
        (["x^2", " =", " 3 dogs", " 17"], (3, 4)),
    ],
)
def test_the_first_error_is_the_first_false_equation_or_the_answer(text, span):
    found = record("p", text, [0.0] * len(text), extracted="17" if "17" in "".join(text) else "27")
    assert first_error(found) == span
    right = record("p", text, [0.0] * len(text), "correct", "17")
    assert first_error(right) is None


def test_numbers_of_a_step_are_moved_and_nothing_else():
    step = "17 plus 4.5 makes x2 in 3 ways"
    moved = thinking.perturbed(step, "seed", drop=True)
    assert re.sub(r"\d+", "", moved) == re.sub(r"\d+", "", step)
    new, old = (list(map(int, re.findall(r"(?<![\w.])\d+(?![\w.])", s))) for s in (moved, step))
    assert all(0 < abs(a - b) <= 3 for a, b in zip(new, old, strict=True))
    assert "4.5" in moved and "x2" in moved  # noqa: PT018
    assert moved == thinking.perturbed(step, "seed", drop=True)
    assert thinking.perturbed("no number", "s", drop=True) == ""
    assert thinking.perturbed("no number", "s", drop=False) == "no number"
    assert thinking.split("One. Two 1.5\n\nThree!") == ["One.", "Two 1.5", "Three!"]


def some_problems(n=8):
    return [
        Problem(str(i), f"What is {i} + 20?", answer=str(i + 20), solution=f"{i} + 20 = {i + 20}. So {i + 20}")
        for i in range(1, n + 1)
    ]


def test_wrong_hints_say_another_answer_in_the_same_words():
    problems = some_problems()
    found = {h.kind: h for h in wrong_hints(ALL["opsd"], "some-model", problems, 3)}
    assert found.keys() == tokenwise.HINTS.keys()
    for hint in found.values():
        assert len(hint.draws) == 3
        for draw in hint.draws:
            assert draw.keys() == {p.id for p in problems}
            for problem in problems:
                shown = hint.context(Case(draw[problem.id]))[-1]["content"]
                assert problem.question in shown
                told = shown.replace(problem.question, "")
                assert not re.search(rf"(?<!\d){problem.answer}(?!\d)", told), (hint.kind, told)
    altered = found["wrong_answer"].draws[0]["3"]
    assert re.fullmatch(r"3 \+ 20 = (\d+)\. So \1", altered.solution)
    answers = replace(ALL["opsd"], teacher=contexts.with_answer)
    told = {h.kind: h for h in wrong_hints(answers, "some-model", problems, 1)}["wrong_answer"].draws[0]["3"]
    assert told.answer != "23"


def test_a_teacher_that_knows_nothing_has_no_wrong_hint():
    assert wrong_hints(ALL["opsdc"], "m", some_problems(), 2) == []
    assert wrong_hints(ALL["opsd_no_reference"], "m", some_problems(), 2) == []
    assert wrong_hints(ALL["opsd"], "m", some_problems(1), 2) == []
    other = wrong_hints(ALL["opsd_other_problem"], "m", some_problems(), 2)
    assert [h.kind for h in other][:1] == ["another_problem"], "its own hint is another's: a contrast between equals"
    assert other[0].context.needs == ALL["opsd_other_problem"].teacher.needs


def test_where_no_problem_differs_the_interval_is_no_point():
    same = {str(i): [0.0] for i in range(20)}
    found = paired_share(same, same)
    assert (found.value, found.low, found.high) == pytest.approx((0, -0.1611, 0.1611), abs=1e-4)
    other = same | {"0": [1.0]}
    assert paired_share(same, other) == paired_bootstrap(same, other)
    assert bootstrap_share(same).high == pytest.approx(0.1611, abs=1e-4)
    assert bootstrap_share({k: [1.0] for k in same}).low == pytest.approx(0.8389, abs=1e-4)
    assert bootstrap_share(other) == bootstrap_mean(other)


def test_two_pools_are_compared_on_the_same_problems():
    def pool(right):
        verdicts = {f"p{i}": [Verdict("correct" if k < right else "wrong", str(k)) for k in range(4)] for i in range(6)}
        return verdicts, {key: [f"way {k}" for k in range(4)] for key in verdicts}

    found = variety.section({"before": pool(1), "after": pool(2)}, "probed", "made up")
    assert found.key["pass_at_1_change"].value == pytest.approx(0.25)
    assert found.key["pass_at_k_change"].value == pytest.approx(0.0)
    rows = {row.label: row for row in found.rows}
    assert rows["pass@2"].cells["before"].value == pytest.approx(0.5)
    assert rows["different answers a problem"].cells["after"].value == 4


# The page


def hostile_report() -> Report:
    rows = (
        Row(HOSTILE, {"value": e(0.1, -0.1, math.inf), HOSTILE: HOSTILE}),
        Row("b", {"value": e(math.nan, 0, 0, 0)}),
    )
    section = Section("x", HOSTILE, HOSTILE, "recorded", HOSTILE, rows, Plot("intervals", ("value",), HOSTILE, HOSTILE),
                      missing=(HOSTILE,), misleads=HOSTILE)  # fmt: skip
    return Report(HOSTILE, {HOSTILE: HOSTILE}, "cannot be told", HOSTILE, (section,), (), (HOSTILE,))


def test_hostile_text_stays_text_on_every_way_out():
    made = hostile_report()
    document = page.page([made], None, [(HOSTILE, "<p><img src=x></p></iframe><script>")])
    tags = re.findall(r"<\s*/?\s*([a-zA-Z]+)", document)
    assert set(tags) <= {
        "html", "head", "meta", "title", "style", "body", "h", "p", "dl", "dt", "dd", "section", "div", "table",
        "thead", "tbody", "tr", "th", "td", "details", "summary", "ul", "li", "a", "b", "pre", "svg", "text", "line",
        "circle", "rect", "polygon", "g", "iframe",
    }  # fmt: skip
    assert "<img" not in document
    assert '<iframe sandbox="allow-scripts" title="' in document, "scripts at most, and no origin"
    assert "script-src 'none'" in html.unescape(document)
    for way in (document, plain.text(made), plain.markdown(made), as_json(made.as_dict())):
        assert "\x1b" not in way
        assert "\u202e" not in way
    assert "\n```" not in plain.markdown(made).split("## What to look at")[1]
    assert json.loads(as_json(made.as_dict()))["bad"], "what is not finite is null and named"


def test_a_picture_stands_where_its_numbers_are():
    axis = plots.Axis(0.0, 1.0, 100.0, 200.0)
    assert (axis(0.25), axis(-5), axis(9)) == (125, 100, 200)
    assert axis.ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert plots.Axis(-1e-9, 1e-9, 0, 1).ticks()
    section = Section(
        "x", "t", "a", "recorded", rows=(Row("r", {"v": e(0.5, 0.2, 0.9)}),), plot=Plot("intervals", ("v",), "u")
    )
    drawn = plots.picture(section)
    low, high, middle = (
        float(re.search(p, drawn)[1])
        for p in (r'class="s0" x1="([\d.]+)', r'class="s0"[^>]*x2="([\d.]+)', r'cx="([\d.]+)')
    )
    assert (middle - low) / (high - low) == pytest.approx(3 / 7, abs=1e-3)
    assert plots.picture(Section("x", "t", "a", "recorded")) == ""


def test_cells_are_written_with_what_they_rest_on():
    assert shown(e(0.5, 0.4, 0.6)) == "0.500 [0.400, 0.600]"
    assert shown(e(0.5, 0.4, 0.6, n=3)) == "0.500 [0.400, 0.600] (n 3)"
    assert shown(e(0.5, -math.inf, math.inf, n=1)) == "0.500 (no interval, n 1)"
    assert shown(e(math.nan, 0, 1, n=0)) == "not known"
    assert shown(None) == "-"
    with pytest.raises(UsageError):
        build.collected(Path("nowhere"))
