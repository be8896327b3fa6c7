"""`python -m workbench.evaluate RUN|MODEL ...`: what runs and models can do, several judges on the same text.

A finished run is read from its files: its answers were recorded, so judging them again costs nothing and moves no
number. A model (hub id, folder, `.gguf`, `smollm2`) is asked the held-out problems now.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import verifiers
from verifiers import Verdict
from workbench.cli import Arguments, run_command
from workbench.config import RunConfig
from workbench.errors import InputError, UsageError, nearest
from workbench.launch import alone
from workbench.text import printable
from workbench.train.evaluate import Answer, ArmResult, Asked, Evaluation, tests_digest
from workbench.train.intervals import Difference, arms_dict, arms_table, paired_bootstrap
from workbench.train.run_directory import read_jsonl
from workbench.train.significance import bootstrap_p, corrected, welch


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: Sequence[str]) -> int:
    alone("workbench.evaluate")
    asked = arguments().parse_args(argv)
    profiles = known_profiles(asked.verifier)
    only = asked.only.split(",") if asked.only else []
    results: list[ArmResult] = []
    tests: dict[str, tuple[str, ...]] = {}
    for target in asked.target:
        stored = Path(target) / "evaluations.jsonl"
        found = recorded(stored) if stored.is_file() else generated(target, asked)
        if profiles and any(answer.tests for arm in found for answer in arm.answers):
            tests |= tests_of(Path(target), found, asked.sandbox)
        label = f"{Path(target).name}: " if len(asked.target) > 1 and not asked.pool else ""
        results += [replace(arm, name=f"{label}{arm.name}") for arm in found if not only or arm.name in only]
    seeds = between_seeds(results) if asked.pool else []
    results = pooled(results) if asked.pool else results
    if not results:
        raise UsageError(f"--only {asked.only}: no arm is called that. Runs have before, teacher's view, after.")
    results, beside = judged_by(results, profiles, tests)
    differences = differences_of(results)
    arms = [result.arm for result in results]
    data = arms_dict(arms, differences) | {"between_seeds": [asdict(d) for d in seeds]}
    data |= {"pass_at": {r.name: passes(r) for r in results if passes(r)}}
    data |= {"verifiers": beside} if beside else {}
    if asked.out:
        write(Path(asked.out), results, data)
    print(json.dumps(data, indent=1) if asked.json else arms_table(arms, differences))
    for d in [] if asked.json else seeds:
        words = f"{d.estimate.text(signed=True)} (Welch, {d.estimate.n} seeds)"
        print(f"between seeds  {printable(d.name)}, accuracy {words}")
    for name, values in {} if asked.json else data["pass_at"].items():
        print(f"{printable(name)}  " + "  ".join(f"pass@{k} {value:.3f}" for k, value in values.items()))
    if beside and not asked.json:
        print("\n" + verifiers_text(beside))
    return 0


def known_profiles(text: str | None) -> list[str]:
    """The profiles that a flag names, each once. Raises UsageError for one that does not exist."""
    profiles = list(dict.fromkeys(text.split(","))) if text else []
    for profile in profiles:
        if profile not in verifiers.PROFILES:
            raise UsageError(f"--verifier {profile}: no such verifier. {nearest(profile, verifiers.PROFILES)}")
    return profiles


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = Arguments(prog="python -m workbench.evaluate", description="Judge runs and models on held-out problems.")
    parser.add_argument("target", nargs="+", help="run directories, or models as --model takes them")
    known = ", ".join(verifiers.PROFILES)
    parser.add_argument("--verifier", help=f"judge the same text again by one or several of {known}; else as recorded")
    parser.add_argument("--only", help="these arms alone, e.g. before,after")
    parser.add_argument("--problems", default="sums", help="for models: the set, as for the main job")
    parser.add_argument("--n", type=int, default=RunConfig().eval_problems, help="for models: held-out problems")
    parser.add_argument("--context", default="question", help="for models: who sees what, e.g. question, concise")
    parser.add_argument("--samples", type=int, default=1, help="for models: completions a problem")
    parser.add_argument("--temperature", type=float, default=0.0, help="for models: 0 is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="for models: tokens a completion may have")
    levels = ", ".join(verifiers.SANDBOX_LEVELS)
    parser.add_argument(
        "--sandbox", choices=verifiers.SANDBOX_LEVELS, default="auto", help=f"where programs run; {levels}"
    )
    parser.add_argument("--pool", action="store_true", help="targets are seeds of one job: average within a problem")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", help="also write eval.json and eval.jsonl into this folder")
    return parser


def recorded(path: Path) -> list[ArmResult]:
    """The arms a run recorded, before and after. Raises InputError where there are none yet."""
    last = {row["when"]: row for row in read_jsonl(path)}  # a run taken up again measures its end again
    arms = [arm for row in last.values() for arm in Evaluation.from_row(row).arms]
    if not arms:
        raise InputError(f"{path.parent} has evaluated nothing yet. Wait for it, or resume it.")
    return arms


def generated(target: str, asked: argparse.Namespace) -> list[ArmResult]:
    """Ask a model the held-out problems now."""
    from workbench.engine.allocator import retain_heap
    from workbench.engine.engine import Engine, EngineSettings
    from workbench.engine.loading import load, pick_device, pick_dtype
    from workbench.parts.contexts import required
    from workbench.parts.phrases import named
    from workbench.parts.refresh import LIVE
    from workbench.planning import sandboxed
    from workbench.problems import check_needs, graded
    from workbench.problems import load as load_problems
    from workbench.records import Sampling
    from workbench.train.evaluate import evaluate, verify_with

    if asked.samples > 1 and asked.temperature == 0:
        raise UsageError(f"--samples {asked.samples} at temperature 0 are all the same. Add --temperature 0.6.")
    context = named(asked.context)
    problems = load_problems(asked.problems)
    check_needs(problems, required(context), f"--context {asked.context} shows")
    # Nothing trains here: a set that holds nothing out is asked from its top.
    held_out, lost = graded((problems.held_out or problems.train)[: asked.n], verifiers.check_gold)
    for line in (*lost, *sandboxed(held_out, asked.sandbox)):
        print(f"note: {printable(line)}", file=sys.stderr)
    retain_heap()
    device = pick_device("auto")
    loaded = load(target, dtype=pick_dtype("auto", device, adapter=False))
    engine = Engine(loaded, adapter=None, refresh=LIVE, settings=EngineSettings(device=device))
    sampling = Sampling(asked.max_new_tokens, asked.temperature)
    arm = Asked(asked.context, context, asked.samples)
    profile = "last_number" if asked.problems.partition(":")[0] == "sums" else "strict"
    result = evaluate(engine, held_out, arm, sampling, verify_with(profile))
    assert result is not None, "nobody asks this command to stop midway"
    return [result]


def tests_of(run: Path, arms: Sequence[ArmResult], level: str) -> dict[str, tuple[str, ...]]:
    """The tests by which a run's programs were judged, by digest, taken from its problems' source again.

    Opens the jail they need. Raises InputError where the source has other tests now, or none can be had of it.
    """
    from workbench.config_files import build, read_layer
    from workbench.planning import plan

    stored = run / "run.json"
    if not stored.is_file():
        raise InputError(f"{run} holds programs and no run.json, which says where their tests are. {_AS_RECORDED}")
    planned = plan(build(read_layer(stored) | {"sandbox": level}))
    for line in planned.notes:
        print(f"note: {printable(line)}", file=sys.stderr)
    found = {digest: p.tests for p in planned.held_out if (digest := tests_digest(p.tests))}
    for arm in arms:
        for answer in arm.answers:
            if answer.tests and answer.tests not in found:
                raise InputError(
                    f"{run}: the tests of {printable(answer.problem)} are not those that judged it: its source "
                    f"{printable(planned.problems.source)} has changed. Put it back. {_AS_RECORDED}"
                )
    return found


_AS_RECORDED = "To see them as they were judged, leave --verifier out."


def judged_by(
    arms: list[ArmResult], profiles: Sequence[str], tests: Mapping[str, tuple[str, ...]]
) -> tuple[list[ArmResult], dict[str, dict[str, Any]]]:
    """Each arm under each profile, and where several part; the arms as they were recorded where none is asked for."""
    if not profiles:
        return arms, {}
    again = [{name: judge_again(arm, name, tests) for name in profiles} for arm in arms]
    if len(profiles) == 1:
        return [one for found in again for one in found.values()], {}
    beside = {arm.name: side_by_side(found) for arm, found in zip(arms, again, strict=True)}
    return [replace(one, name=f"{one.name} ({name})") for found in again for name, one in found.items()], beside


def judge_again(arm: ArmResult, profile: str, tests: Mapping[str, tuple[str, ...]]) -> ArmResult:
    """The same answers under another judge; the text is what counts, not what was once said of it."""

    def again(answer: Answer) -> Answer:
        if answer.gold is None and answer.tests is None:  # nothing to compare with
            return answer
        problem = SimpleNamespace(answer=answer.gold, tests=tests[answer.tests] if answer.tests else ())
        verdict = verifiers.verify(problem, answer.text, truncated=answer.stop == "length", profile=profile)
        return replace(answer, status=verdict.status, score=verdict.score, extracted=verdict.extracted)

    return ArmResult(arm.name, tuple(again(a) for a in arm.answers))


def side_by_side(by_profile: Mapping[str, ArmResult]) -> dict[str, Any]:
    """Several verifiers on the text of one arm.

    Returns:
        `statuses`: by verifier, how many answers got each status. `apart`: by pair, how many answers only one of the
        two finds right, and the problems of the first of them.
    """
    judged = {name: result.answers for name, result in by_profile.items()}
    apart = []
    for one, other in combinations(judged, 2):
        for right, not_right in ((one, other), (other, one)):
            pairs = zip(judged[right], judged[not_right], strict=True)
            only = [a.problem for a, b in pairs if a.score == 1.0 != b.score]
            apart.append({"right": right, "not_right": not_right, "answers": len(only), "problems": only[:5]})
    counts = {name: Counter(answer.status for answer in answers) for name, answers in judged.items()}
    statuses = {name: {status: found[status] for status in verifiers.STATUSES} for name, found in counts.items()}
    return {"total": len(next(iter(judged.values()))), "statuses": statuses, "apart": apart}


def verifiers_text(beside: Mapping[str, Any]) -> str:
    """What each verifier said of the same text, for a terminal; statuses without a score are marked."""
    marks = [f"{s} (no score)" if Verdict(s).score is None else s for s in verifiers.STATUSES]
    lines = []
    for arm, found in beside.items():
        lines.append(f"{printable(arm)}: the same {found['total']} answers by {len(found['statuses'])} verifiers")
        width = max(map(len, found["statuses"]))
        for name, counts in found["statuses"].items():
            said = ", ".join(f"{n} {mark}" for n, mark in zip(counts.values(), marks, strict=True) if n)
            lines.append(f"  {name:{width}}  {said}")
        for pair in found["apart"]:
            if pair["answers"]:
                which = ", ".join(printable(problem) for problem in pair["problems"])
                lines.append(f"  right by {pair['right']}, not by {pair['not_right']}: {pair['answers']} ({which})")
    return "\n".join(lines)


def pooled(results: Sequence[ArmResult]) -> list[ArmResult]:
    """Arms of the same name as one, each seed another answer to the same problem."""
    names = list(dict.fromkeys(result.name for result in results))
    return [ArmResult(name, tuple(a for r in results if r.name == name for a in r.answers)) for name in names]


def between_seeds(results: Sequence[ArmResult]) -> list[Difference]:
    """Each arm's accuracy against the first arm's, over runs: whether other seeds would say the same."""
    runs: dict[str, list[float]] = {}
    for result in results:
        runs.setdefault(result.name, []).append(result.arm.accuracy.value)
    (first, before), *others = runs.items()
    return [Difference(f"{name} - {first}", "accuracy", welch(before, after)) for name, after in others]


def passes(result: ArmResult) -> dict[str, float]:
    """pass@k where a problem has several completions."""
    most = max((len(v) for v in result.scores.values()), default=1)
    return {str(k): v for k in (1, 2, 4, 8, 16) if 1 < most >= k and (v := result.pass_at(k)) is not None}


def write(folder: Path, results: Sequence[ArmResult], data: dict[str, object]) -> None:
    """eval.json and, by sample, eval.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(data, indent=1) + "\n", encoding="ascii")
    lines = [json.dumps({"arm": r.name, **vars(a)}) for r in results for a in r.answers]
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n", encoding="ascii")


def differences_of(results: Sequence[ArmResult]) -> list[Difference]:
    """Each arm against the first, and each run's `after` against the first run's: what one job has over another."""
    pairs = [(other, results[0]) for other in results[1:]]
    ends = [result for result in results if result.name.endswith("after")]
    pairs += [(other, ends[0]) for other in ends[1:]]
    pairs = [(other, first) for other, first in pairs if other.scores.keys() == first.scores.keys()]
    out = []
    for other, first in pairs:
        name = f"{other.name} - {first.name}"
        p = bootstrap_p(first.scores, other.scores) if len(pairs) > 1 else None
        out.append(Difference(name, "accuracy", paired_bootstrap(first.scores, other.scores), p=p))
        out.append(Difference(name, "tokens", paired_bootstrap(first.tokens, other.tokens)))
    return corrected(out)


if __name__ == "__main__":
    raise SystemExit(main())
