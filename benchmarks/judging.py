"""How fast answers are judged, beside math-verify alone, and whether a hostile answer ever holds the caller.

    python benchmarks/judging.py                 every figure, a few minutes
    python benchmarks/judging.py --quick         small counts, to see that it runs
    python benchmarks/judging.py --json          the same as one JSON object

Rates are of distinct pairs, so nothing comes from the cache. math-verify runs in a process of its own, as its authors
mean it to (main thread, its alarms on), gold in a box; a case on which it hangs beyond `PATIENCE_S` counts as wrong.
With WORKBENCH_CORPORA the last figure counts wrong judgements on the shared cases that depend on no policy.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

import verifiers  # noqa: E402

PATIENCE_S = 12.0
Pair = tuple[str, str]
"""A gold and an answer in a box."""

THEIRS = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
print("ready", flush=True)
for line in sys.stdin:
    gold, text = json.loads(line)
    try:
        right = bool(verify(parse("\\\\boxed{" + gold + "}"), parse(text)))
    except Exception:
        right = False
    print(json.dumps(right), flush=True)
"""


@dataclass(frozen=True)
class Figure:
    """One line of the output."""

    what: str
    found: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool | None:
        """None where nothing is required."""
        if self.at_least is not None:
            return self.found >= self.at_least
        return None if self.at_most is None else self.found <= self.at_most

    def line(self) -> str:
        """For a terminal."""
        required = f">= {self.at_least:g}" if self.at_least is not None else ""
        required = f"<= {self.at_most:g}" if self.at_most is not None else required
        word = {None: "", True: "holds", False: "DOES NOT HOLD"}[self.holds]
        return f"  {self.what:66s} {self.found:10.2f} {self.unit:12s} {required:10s} {word}"


def plain(count: int) -> list[Pair]:
    """Distinct pairs of the kinds that data sets hold, half of them right."""
    kinds: tuple[Callable[[int], Pair], ...] = (
        lambda n: (str(n), f"{n:,}"),
        lambda n: (str(n), str(n + 1)),
        lambda n: (f"\\frac{{{n}}}{{7}}", f"\\dfrac{{{2 * n}}}{{14}}"),
        lambda n: (f"{n}+2\\sqrt{{2}}", f"\\sqrt{{8}}+{n}"),
        lambda n: (f"({n}, {n + 1})", f"({n}, {n + 2})"),
        lambda n: (f"{n}\\text{{ cm}}", f"{n}\\,\\mathrm{{cm}}"),
        lambda n: (f"x^2 + {n}x", f"x(x+{n})"),
        lambda n: (f"[{n}, \\infty)", f"x \\ge {n}"),
        lambda n: (f"{n}, -{n}", f"\\pm {n + 1}"),
        lambda n: (f"y = 2x + {n}", f"2x - y + {n + 1} = 0"),
    )
    return [kinds[n % len(kinds)](n + 2) for n in range(count)]


def hard(count: int) -> list[Pair]:
    """Distinct pairs that no plain form settles: nested roots, trigonometric and exponential identities."""
    kinds: tuple[Callable[[int], Pair], ...] = (
        lambda n: (f"\\sqrt{{{n}}}+\\sqrt{{{n + 1}}}", f"\\sqrt{{{2 * n + 1}+2\\sqrt{{{n * (n + 1)}}}}}"),
        lambda n: (f"\\sin({2 * n}x)", f"2\\sin({n}x)\\cos({n}x)"),
        lambda n: (f"\\ln {n}", f"2\\ln\\sqrt{{{n}}}"),
        lambda n: (f"\\frac{{1}}{{\\sqrt{{{n}}}+1}}", f"\\frac{{\\sqrt{{{n}}}-1}}{{{n - 1}}}"),
        lambda n: (f"\\cos^2({n}x)", f"1-\\sin^2({n}x)"),
    )
    # The root of a square has a plain form.
    numbers = [n for n in range(11, 2 * count + 40) if not {math.isqrt(n) ** 2, math.isqrt(n + 1) ** 2} & {n, n + 1}]
    return [kinds[k % len(kinds)](n) for k, n in enumerate(numbers[:count])]


def hostile(count: int) -> list[Pair]:
    """Distinct answers made to take time, memory or the interpreter's lock."""
    kinds: tuple[Callable[[int], str], ...] = (
        lambda n: f"9^{{9^{{9^{{{n}}}}}}}",
        lambda n: f"({n}^9)!",
        lambda n: f"\\binom{{10^9}}{{{n}\\cdot 10^5}}",
        lambda n: f"\\sum_{{n=1}}^{{10^{{12}}}} \\frac{{{n}}}{{n}}",
        lambda n: "(" * (40 + n % 5000) + "1" + ")" * (40 + n % 5000),
        lambda n: f"{n}" + "9" * 100_000,
        lambda n: f"\\sin(x)^{{{n + 100}}}+\\cos(x)^{{{n + 100}}}",
        lambda n: "+".join([f"(a+b+{n})^9"] * 150),
        lambda n: "+".join([f"{500 + n % 500}!"] * 250),
        lambda n: "\\sqrt{" * 45 + str(n) + "}" * 45,
        lambda n: "\\frac{1}{1+" * 45 + f"x^{n}" + "}" * 45,
        lambda n: ",".join(f"\\sqrt{{{k}}}+{n}" for k in range(120)),
        lambda n: "*".join(["9" * 250] * 7) + f"*{n}",
        lambda n: f"x^{{x^{{x^{{x^{{x^{n}}}}}}}}}",
        lambda n: "\\boxed{" * n + "1",
        lambda n: "\\" * (1000 + n),
        lambda n: " " * 100_000 + str(n),
        lambda n: f'__import__("os").system("exit {n}")',
    )
    golds = ("42", "x^2+1", "\\sqrt{2}+1", "1,2,3", "\\sin(x)^{100}+\\cos(x)^{101}")
    return [(golds[n % len(golds)], kinds[n % len(kinds)](n + 3)) for n in range(count)]


def text_of(answer: str) -> str:
    """A short completion around a boxed answer."""
    return f"Adding both gives the result.\n\nSo the final answer is $\\boxed{{{answer}}}$."


def ours(pairs: list[Pair]) -> tuple[float, list[verifiers.Verdict]]:
    """Seconds, and the verdicts."""
    began = time.perf_counter()
    verdicts = [verifiers.verify(SimpleNamespace(answer=gold), text_of(answer)) for gold, answer in pairs]
    return time.perf_counter() - began, verdicts


class Theirs:
    """math-verify in a process of its own, replaced when it hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def judge(self, gold: str, text: str) -> bool:
        """Its verdict; False where it has none in time."""
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([gold, text]) + "\n")
            self.process.stdin.flush()
            return self.lines.get(timeout=PATIENCE_S) == "true"
        except (queue.Empty, OSError):
            self.close()
            return False

    def seconds(self, pairs: list[Pair]) -> float:
        """Wall clock of judging them one after another."""
        self.judge("1", "\\boxed{1}")
        began = time.perf_counter()
        for gold, answer in pairs:
            self.judge(gold, text_of(answer))
        return time.perf_counter() - began

    def _start(self) -> None:
        self.lines = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [sys.executable, "-c", THEIRS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=_pump, args=(self.process, self.lines), daemon=True).start()
        if self.lines.get(timeout=60) != "ready":
            raise SystemExit("math-verify did not start.")

    def close(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _pump(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.strip())
    lines.put("")


def heartbeat(pairs: list[Pair]) -> tuple[float, float, list[verifiers.Verdict]]:
    """The longest gap between two beats of this thread while another judges, in seconds; seconds of all; verdicts."""
    found: list[verifiers.Verdict] = []
    judge = threading.Thread(target=lambda: found.extend(ours(pairs)[1]))
    began = last = time.monotonic()
    longest = 0.0
    judge.start()
    while judge.is_alive():
        time.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest, last - began, found


def rates(count: int, peer: Theirs) -> Iterator[Figure]:
    """Verdicts a second, ours and theirs, on the same pairs."""
    for name, pairs, required in (("plain", plain(10 * count), 2000.0), ("worker", hard(count), 100.0)):
        ours(pairs[:1])
        verifiers.verify(SimpleNamespace(answer="\\ln 3"), "\\boxed{2\\ln\\sqrt3}")  # the worker's start
        seconds, verdicts = ours(pairs[1:])
        levels = {verdict.level for verdict in verdicts}
        if levels != {name}:
            raise SystemExit(f"pairs meant for the level {name} were judged at {sorted(levels)}.")
        rate = len(verdicts) / seconds
        yield Figure(f"{name} verdicts a second, {len(verdicts)} distinct pairs", rate, "1/s", at_least=required)
        some = pairs[1 : 1 + max(20, count // 4)]
        other = len(some) / peer.seconds(some)
        yield Figure(f"{name}: math-verify alone, {len(some)} of them", other, "1/s")
        yield Figure(f"{name}: ours over math-verify", rate / other, "x")
    again, _ = ours(plain(10 * count)[1:])
    yield Figure("plain, judged before", (10 * count - 1) / again, "1/s")


def under_attack(count: int) -> Iterator[Figure]:
    """Whether hostile answers hold the caller, and what they get."""
    longest, seconds, verdicts = heartbeat(hostile(count))
    yield Figure(f"longest gap of the heartbeat, {len(verdicts)} hostile answers", longest, "s", at_most=0.5)
    yield Figure("hostile answers judged", len(verdicts) / seconds, "1/s")
    yield Figure("hostile answers judged right", sum(v.correct for v in verdicts), "", at_most=0)
    yield Figure("hostile answers with an error", sum(v.status == "error" for v in verdicts), "", at_most=0)
    yield Figure("hostile answers that ran out of time", sum(v.status == "timeout" for v in verdicts), "")


def wrong_judgements(folder: Path, most: int | None, peer: Theirs) -> Iterator[Figure]:
    """Wrong judgements of both on the shared cases that depend on no policy, and ours on all."""
    with gzip.open(folder / "math-cases.jsonl.gz", "rt", encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines][:most]
    free = [case for case in cases if "policy" not in case]

    def right(case: dict[str, object]) -> bool:
        return verifiers.verify(SimpleNamespace(answer=case["gold"]), str(case["prediction_text"])).correct

    theirs = [peer.judge(case["gold"], case["prediction_text"]) for case in free]
    wrong = sum(found != case["expected"] for found, case in zip(theirs, free, strict=True))
    yield Figure(f"wrong by math-verify alone, {len(free)} cases without a policy", wrong, "")
    mine = sum(right(case) != case["expected"] for case in free)
    yield Figure(f"wrong by ours, the same {len(free)}", mine, "", at_most=0)
    accepted = sum(right(case) and not case["expected"] for case in cases)
    yield Figure(f"accepted wrongly by ours, all {len(cases)}", accepted, "", at_most=0)
    refused = sum(not right(case) and case["expected"] for case in cases)
    yield Figure(f"refused wrongly by ours, all {len(cases)}", refused, "")


def main() -> int:
    """0 if everything required holds."""
    parser = argparse.ArgumentParser(description="How fast answers are judged, and whether one can hold the caller.")
    parser.add_argument("--quick", action="store_true", help="small counts, to see that it runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    peer, figures = Theirs(), []
    if not asked.json:
        print(f"judging answers, {cores} core(s)")
    corpora = os.environ.get("WORKBENCH_CORPORA")
    parts = [rates(40 if asked.quick else 500, peer), under_attack(36 if asked.quick else 1000)]
    parts += [wrong_judgements(Path(corpora), 40 if asked.quick else None, peer)] if corpora else []
    try:
        for part in parts:
            for figure in part:
                figures.append(figure)
                if not asked.json:
                    print(figure.line(), flush=True)
    finally:
        peer.close()
        verifiers.close()
    if asked.json:
        print(json.dumps({"cores": cores, "figures": [asdict(f) | {"holds": f.holds} for f in figures]}, indent=1))
    elif not corpora:
        print("  skipped: WORKBENCH_CORPORA names no folder with math-cases.jsonl.gz")
    return 0 if all(figure.holds is not False for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
