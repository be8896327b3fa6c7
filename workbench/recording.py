"""What a run leaves behind while it trains: files first, then the screen."""

from __future__ import annotations

import contextlib
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.inspector.columns import SignalWatch, columns, of_loss
from workbench.inspector.token_records import TokenFiles
from workbench.inspector.watching import Recording
from workbench.parts.contexts import shown_to_teacher
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train import accounts, ahead, snapshot
from workbench.train.checkpoint import Checkpoint
from workbench.train.report import StepReport, words
from workbench.train.reporting import Alarms, StepLine
from workbench.train.run_directory import RunDirectory
from workbench.train.saturation import Saturation
from workbench.train.step import State
from workbench.train.terminal import Reporter
from workbench.train.tracking import Tracking


class Recorder:
    """The loop's observer: metrics.jsonl, rollouts.jsonl, checkpoints, alarms, trackers, the step line."""

    def __init__(
        self, directory: RunDirectory, reporter: Reporter, recipe: Recipe, state: State, tracking: Tracking
    ) -> None:
        """`state` is the run's; it is watched, and read, and nothing else about it is changed."""
        self.directory, self.reporter, self.recipe, self.state, self.tracking = (
            directory,
            reporter,
            recipe,
            state,
            tracking,
        )
        self.alarms, self.saturation, self.signal = Alarms(), Saturation(recipe), SignalWatch()
        self.tokens = TokenFiles(directory.path, reporter.note)
        self.accounts = accounts.of(state.engine, state.phases)
        self._method = recipe.method(state.memory)
        state.watch = Recording(directory.path.name, shown, reporter.note)
        self.vault = snapshot.Vault(directory.checkpoints, config_hash="")
        self.evaluation: Callable[[], None] = lambda: None
        self._started, self._first = time.monotonic(), state.clock.step
        self._texts: dict[str, list[str]] = {}
        """Problem -> what was written for it the last time it came."""

    def step(self, report: StepReport, seconds: dict[str, float], notes: list[str]) -> None:
        """Write the step, show it, and say once what should make a person look."""
        self._write_tokens(report, seconds)
        figures, saturated = self.saturation.observe(report.judged)
        signal, taught = self._signal(report, seconds)
        cost = accounts.row(self.accounts.step(self._method.name, report.tokens)) | {"method": self._method.name}
        row = report.metrics() | figures | signal | cost | self._served(report)
        row |= {"seconds": seconds, "peak_bytes": peak_bytes(), "notes": notes}
        self.directory.metrics.append(row)
        for judged in report.judged:
            self.directory.rollouts.append(rollout_row(report, judged))
        self.tracking.scalars(report.step, {k: v for k, v in row.items() if isinstance(v, (int, float))})
        self.reporter.step(self._line(report, seconds, cost))
        for judged in shown(report.judged, report.step):
            self.reporter.rollout(judged, self._texts.get(judged.rollout.problem.id, ()))
        self._texts |= texts(report.judged)
        for text in (*notes, *self.alarms.observe(row), *saturated, *taught, *self._turned(report.step)):
            self.reporter.note(text)
        self.directory.standing["accounts"] = self.accounts.totals()
        self.directory.status("training", report.step)

    def _turned(self, step: int) -> list[str]:
        """A line where the next step belongs to another stage."""
        before, self._method = self._method, self.recipe.method(self.state.memory)
        same = before.name == self._method.name
        return [] if same else [f"stage {before.name} is over: {self._method.name} from step {step + 1} on"]

    def _write_tokens(self, report: StepReport, seconds: dict[str, float]) -> None:
        start = time.perf_counter()
        if report.seen:
            self.tokens.write(report.step, report.seen)
        seconds["record"] = seconds.get("record", 0.0) + time.perf_counter() - start

    def _signal(self, report: StepReport, seconds: dict[str, float]) -> tuple[dict[str, float], list[str]]:
        """Columns about the signal, and what they should make a person look at."""
        start = time.perf_counter()
        records = [r for seen in report.seen if seen.author == "student" and (r := of_loss(seen)) is not None]
        problems = {j.rollout.problem.id: j.rollout.problem for j in report.judged}
        hidden = shown_to_teacher(self._method.teacher, problems)
        found = columns(records, hidden, {key: p.question for key, p in problems.items()})
        seconds["record"] = seconds.get("record", 0.0) + time.perf_counter() - start
        return found, self.signal.observe(found)

    def _served(self, report: StepReport) -> dict[str, float]:
        """Where servers write: how many versions the oldest rollout is behind, and how far the last probe was off."""
        engine = self.state.engine
        if not engine.served:
            return {}
        learnt = engine.weights_version - bool(report.kept)
        ages = [learnt - j.rollout.weights_version for j in report.judged if j.rollout.author == "student"]
        return {"staleness": max(ages, default=0), "probe_gap": engine.generators["student"].gap}

    def _line(self, report: StepReport, seconds: dict[str, float], cost: Mapping[str, Any]) -> StepLine:
        row = report.metrics()
        done = report.step - self._first
        left = (time.monotonic() - self._started) / max(1, done) * (self.state.clock.total - report.step)
        gates = " then ".join(type(gate).__name__ for gate in self._method.gates) or "being empty"
        more = {"TFLOP": cost["flops"] / 1e12, "times bound": cost["times_bound"] or math.nan}
        more |= {} if report.turned is None else {"turned": report.turned}
        if self.state.engine.served:
            more |= {"sampler gap": report.agreement.distance, "effective": report.agreement.effective}
        return StepLine(
            step=report.step,
            total=self.state.clock.total,
            seconds=seconds,
            divergence=words(report.terms[0]),
            value=report.divergence[0],
            kept=report.kept,
            rollouts=row["rollouts"],
            correct=row["correct"],
            judged=row["judged"],
            tokens=row["tokens_mean"],
            truncated=round(row["truncated_share"] * row["rollouts"]),
            grad_norm=report.grad_norm,
            tokens_per_second=row["tokens_mean"] * row["rollouts"] / max(1e-9, sum(seconds.values())),
            seconds_left=left,
            peak_bytes=peak_bytes(),
            note="" if report.kept else f"all {row['rollouts']} rollouts rejected by {gates}",
            more=more,
        )

    def save(self) -> None:
        """A checkpoint of the state as it is now."""
        step = self.state.clock.step
        self.directory.status("saving", step)
        extra = {
            "offsets": self.directory.offsets(),
            "alarms": self.alarms.state_dict(),
            "saturation": self.saturation.state_dict(),
            "signal": self.signal.state_dict(),
            "accounts": self.accounts.state_dict(),
            "ahead": ahead.remembered(self.state),
            **self.state.remembered(),
        }
        snapshot.save(self.vault, self.state.engine, self.recipe, step, extra)
        self.directory.status("training", step)

    def close(self) -> None:
        """No step will come: the tracker sends what waits."""
        self.tracking.finish()

    def evaluate(self) -> None:
        """Between steps, if asked for."""
        self.evaluation()

    def afresh(self) -> None:
        """An attempt that saved nothing may have left records of steps that come again."""
        self.directory.truncate_to({})
        self.tokens.drop_after(0)

    def resumed(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint: alarms already said stay said, and time counts from here."""
        self.alarms = Alarms(saved.state["alarms"])
        self.saturation = Saturation(self.recipe, saved.state.get("saturation"))
        self.signal = SignalWatch(saved.state.get("signal"))
        self.accounts.load(saved.state.get("accounts"))
        ahead.recall(self.state, saved.state.get("ahead", ()))
        self._method = self.recipe.method(self.state.memory)
        self._started, self._first = time.monotonic(), saved.step
        self.tokens.drop_after(saved.step)


def rollout_row(report: StepReport, judged: Judged) -> dict[str, Any]:
    """A line of rollouts.jsonl; names are API."""
    rollout, verdict = judged.rollout, judged.verdict
    return {
        "step": report.step,
        "problem": rollout.problem.id,
        "question": rollout.problem.question,
        "index": rollout.index,
        "author": rollout.author,
        "text": rollout.text,
        "token_ids": rollout.tokens,
        "stop": rollout.stop,
        "status": verdict.status,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "reason": verdict.reason,
        "level": verdict.level,
        "behaviour": verdict.behaviour,
        "advantage": judged.advantage,
        "kept": id(rollout) in report.entries,
        "divergence": report.entries.get(id(rollout)),
        "sampler_logp": rollout.logprobs,
        "weights_version": rollout.weights_version,
    }


def shown(judged: Sequence[Judged], step: int) -> list[Judged]:
    """All rollouts of three problems: of the shortest, of the longest and of one at random.

    What a person should see is at the edges, and one more so that the edges are not taken for the middle.
    """
    if not judged:
        return []
    order = sorted(judged, key=lambda j: len(j.rollout.tokens))
    chosen = [order[0], random.Random(step).choice(order), order[-1]]
    names = dict.fromkeys(j.rollout.problem.id for j in chosen)
    return [j for name in names for j in judged if j.rollout.problem.id == name]


def texts(judged: Sequence[Judged]) -> dict[str, list[str]]:
    """Problem -> everything that was written for it."""
    found: dict[str, list[str]] = {}
    for j in judged:
        found.setdefault(j.rollout.problem.id, []).append(j.rollout.text)
    return found


def resident_bytes() -> int:
    """Memory in use now: on the GPU if there is one, else of the process; 0 where the system does not say."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def peak_bytes() -> int:
    """Largest memory so far: on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else used * 1024)
