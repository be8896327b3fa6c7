"""The main job: audit, look, train, look again, and say honestly whether anything moved."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.assembly import attached, audited, build_engine, invited
from workbench.config import RunConfig, as_dict
from workbench.config_files import to_toml
from workbench.engine.allocator import retain_heap
from workbench.engine.engine import Engine
from workbench.engine.export import export, ways_to_use
from workbench.engine.ranks import ALONE, Agreed, Ranks, joined
from workbench.engine.serving.probing import CLOSE, MARGIN
from workbench.errors import Interrupted, JudgingError, ServerError, TrainingError, UsageError
from workbench.estimates import estimate
from workbench.fitting import fitting, output_state, trained
from workbench.following import Elsewhere, Follower
from workbench.model_card import Subject, card
from workbench.parts.schedules import Clock
from workbench.planning import Plan, plan
from workbench.provenance import config_hash, engine_facts, plan_facts, refuse_difference, refuse_other_models
from workbench.recording import Recorder
from workbench.summary import evaluation_text, header_lines
from workbench.train import checkpoint, loop, snapshot
from workbench.train.accounts import Price
from workbench.train.evaluate import Asked, Evaluation, HeldOutDivergence, evaluate, verify_with
from workbench.train.interrupts import Interrupts
from workbench.train.loop import LoopSettings
from workbench.train.reporting import resume_command
from workbench.train.run_directory import JsonLines, RunDirectory, made_up_name, read_jsonl
from workbench.train.step import State
from workbench.train.terminal import Reporter, choose, silent
from workbench.train.tracking import Tracking

_log = logging.getLogger(__name__)


def run(config: RunConfig) -> int:
    """Run `config` to its end; returns the exit code. Raises WorkbenchError for whatever the user can mend."""
    retain_heap()
    with joined(config.parallel, config.device) as ranks, Interrupts() as asked:
        planned = plan(config)
        invited(config, planned)
        directory = None
        with choose(config.progress) if ranks.first else silent() as reporter:
            if not config.dry_run:
                directory = open_directory(config, planned, ranks)
            try:
                with ranks.lost("" if directory is None else f"Continue: {resume_command(directory.path)}"):
                    stopped = asked if ranks.size == 1 else Agreed(ranks, asked)
                    return Job(config, planned, reporter, stopped, directory, ranks).run()
            finally:
                if directory is not None:
                    directory.__exit__(*sys.exc_info())


def open_directory(config: RunConfig, planned: Plan, ranks: Ranks = ALONE) -> RunDirectory:
    """The run's directory, new or taken up again; where another rank writes it, what does not."""
    mine: list[RunDirectory] = []

    def opened() -> Path:
        mine.append(_opened(config, planned))
        return mine[0].path

    path = ranks.told(opened)
    return mine[0] if mine else Elsewhere(path)


def _opened(config: RunConfig, planned: Plan) -> RunDirectory:
    output = Path(config.output)
    if config.resume:
        if config.name is None:
            raise UsageError("--resume needs the run's name. It goes on with one run. Add --name NAME.")
        return RunDirectory.open(output / config.name)
    name = config.name or made_up_name(output, planned.recipe.name, config.model)
    directory = RunDirectory.create(output / name, fresh=config.fresh)
    directory.write_run_json(plan_facts(config, planned))  # at once: a run killed while it loads can be resumed too
    return directory


@dataclass
class Job:
    """One run in progress."""

    config: RunConfig
    planned: Plan
    reporter: Reporter
    stopped: Interrupts | Agreed
    directory: RunDirectory | None
    ranks: Ranks = ALONE

    def run(self) -> int:
        """From the audit to the saved model."""
        self.reporter.phase("loading the model")
        engine = build_engine(self.config, self.planned, self.ranks)
        try:
            return self._run(engine)
        finally:
            for generator in engine.generators.values():
                generator.close()

    def _run(self, engine: Engine) -> int:
        config, planned = self.config, self.planned
        self.planned = fitting(engine, planned, config)
        found = audited(engine, self.planned)
        where = str(self.directory.path) if self.directory else "nothing is written (--dry-run)"
        self.reporter.header(header_lines(engine, self.planned, found, where, 1 if self.directory else 3))
        for finding in found.warnings:
            self.reporter.note(f"{finding.name}: {finding.text}")
        if config.device == "auto" and engine.settings.device.type == "cpu" and trained(engine) > 1e9:
            needs = estimate(engine, self.planned, config.keep, served=config.engine == "vllm")
            self.reporter.note(f"a model above 1B on a CPU: {needs.lines()[-1].split(maxsplit=1)[1]}")
        folder = None if self.directory is None else self.directory.path
        gap = self.directory.run_json.get("first_gap") if self.directory and config.resume else None
        served = attached(config, engine, self.planned, self.stopped, folder, gap)
        if served.get("first_gap", 0.0) > CLOSE:
            self.reporter.note(
                f"servers are {served['first_gap']:.2g} nats a token from this process, more than float32's rounding: "
                f"weights that did not arrive are noticed from {MARGIN * served['first_gap']:.2g} on"
            )
        if self.directory is None:
            needs = estimate(engine, self.planned, config.keep, served=config.engine == "vllm")
            self.reporter.header([*needs.lines(), f"output         {output_state(config)}"])
            self.reporter.result("", to_toml(config))
            return 0
        saved = self._take_up(planned, engine) if config.resume else None
        if saved is None:
            self.directory.write_run_json(plan_facts(config, planned) | engine_facts(engine) | served)
        divergence = self._record_divergence(engine)
        before = self._before(engine, divergence)
        state = State(
            engine,
            Clock(0, self.planned.steps),
            config.seed,
            held_out=self.planned.held_out,
            stopped=self.stopped,
        )
        recorder = self._recorder(state)
        if saved is not None:
            self._restore(saved, state, recorder)
        else:
            recorder.afresh()
        ending = self._train(state, recorder)
        if ending == "stopped":
            return self._say_goodbye(state)
        after = self._after(engine, divergence)
        return self._finish(state, recorder, before, after)

    # -- before ------------------------------------------------------------------------------------------------

    def _take_up(self, asked: Plan, engine: Engine) -> checkpoint.Checkpoint | None:
        assert self.directory is not None
        stored = self.directory.run_json
        refuse_difference(stored, self.config, asked)
        refuse_other_models(stored, engine, self.config)
        saved = self.ranks.told(self._newest)
        for note in saved.notes if saved else ():
            self.reporter.note(note)
        self.reporter.note(f"resuming from step {saved.step}" if saved else "no checkpoint yet: starting at step 0")
        return saved

    def _newest(self) -> checkpoint.Checkpoint | None:
        assert self.directory is not None
        checkpoint.sweep(self.directory.checkpoints)
        return checkpoint.newest(self.directory.checkpoints)

    def _restore(self, saved: checkpoint.Checkpoint, state: State, recorder: Recorder) -> None:
        assert self.directory is not None
        snapshot.restore(state.engine, self.planned.recipe, saved)
        state.recall(saved.step, saved.state, self.planned.train)
        recorder.resumed(saved)
        for note in self.directory.truncate_to(saved.state["offsets"]):
            self.reporter.note(note)

    def _recorder(self, state: State) -> Recorder:
        assert self.directory is not None
        kind = self.config.track if self.ranks.first else "none"
        tracking = Tracking(kind, self.directory.path, self.reporter.note)
        tracking.start(self.directory.path.name, as_dict(self.config))
        recorder = (Recorder if self.ranks.first else Follower)(
            self.directory, self.reporter, self.planned.recipe, state, tracking
        )
        recorder.vault = snapshot.Vault(self.directory.checkpoints, config_hash(self.planned), self.config.keep)
        recorder.evaluation = lambda: self._between(state)
        recorder.accounts.price = Price(self.config.price_per_hour, self.config.watts)
        return recorder

    def _record_divergence(self, engine: Engine) -> HeldOutDivergence | None:
        if not self.planned.recipe.needs_teacher or not self.planned.held_out:
            return None
        self._status("recording held-out rollouts")
        held_out = HeldOutDivergence(engine, self.planned.recipe, self.planned.held_out, self.stopped)
        self._check_stop()
        if held_out.empty:
            self.reporter.note("no held-out completion is in the teacher's cache: no held-out divergence")
            return None
        return held_out

    def _before(self, engine: Engine, held_out: HeldOutDivergence | None) -> Evaluation:
        """Every arm on the untrained weights; a resumed run reads what it measured then."""
        recipe = self.planned.recipe
        arms = [Asked("before", recipe.student)]
        if recipe.prompt_only == recipe.student:
            self.reporter.note(
                "prompt only is before: without what is privileged the teacher's prompt is the student's"
            )
        elif recipe.prompt_only is not None:
            arms.append(Asked("prompt only", recipe.prompt_only))
        other, view = engine.external, recipe.teacher
        if view is not None and other is not None and not other.recorded:
            arms.append(Asked("teacher", view, author="teacher"))  # the ceiling: another model under its own context
        # Another model's view may be the student's: then the student under it is what came before.
        if view not in (None, recipe.prompt_only, recipe.student if other else None):
            assert view is not None
            arms.append(Asked("teacher's view", view))
        return self._measured("before", engine, arms, held_out)

    def _after(self, engine: Engine, held_out: HeldOutDivergence | None) -> Evaluation:
        return self._measured("after", engine, [Asked("after", self.planned.recipe.student)], held_out)

    def _between(self, state: State) -> None:
        found = self._measured(
            f"step {state.clock.step}",
            state.engine,
            [Asked(f"step {state.clock.step}", self.planned.recipe.student)],
            None,
        )
        for result in found.arms:
            arm = result.arm
            self.reporter.note(
                f"{arm.name}: held-out correct {arm.correct}/{arm.judged}, {arm.tokens.value:.0f} tokens"
            )

    def _measured(
        self, when: str, engine: Engine, arms: Sequence[Asked], held_out: HeldOutDivergence | None
    ) -> Evaluation:
        assert self.directory is not None
        path = self.directory.path / "evaluations.jsonl"
        stored = self.ranks.told(lambda: {row["when"]: row for row in read_jsonl(path)})
        if when in stored and when != "after":
            return Evaluation.from_row(stored[when])
        if not self.planned.held_out:
            return Evaluation(when, (), None)
        recipe = self.planned.recipe
        sampling = replace(recipe.sampling, temperature=0.0, max_new_tokens=self.planned.eval_tokens)
        results = []
        for arm in arms:
            self._status(f"evaluating: {arm.name}")
            result = evaluate(
                engine, self.planned.held_out, arm, sampling, verify_with(self.planned.verifier), stopped=self.stopped
            )
            self._check_stop()
            assert result is not None
            results.append(result)
        found = Evaluation(when, tuple(results), held_out.measure() if held_out else None)
        if self.ranks.first:
            with contextlib.closing(JsonLines(path)) as lines:
                lines.append(found.as_row())
        return found

    # -- train and after ---------------------------------------------------------------------------------------

    def _train(self, state: State, recorder: Recorder) -> loop.Ending:
        config = self.config
        settings = LoopSettings(
            self.planned.steps,
            config.seed,
            config.minutes,
            config.train_tokens,
            config.save_every,
            config.eval_every,
        )
        self._status("training", state.clock.step)
        verify = verify_with(self.planned.verifier)
        try:
            with contextlib.closing(recorder):
                return loop.run(self.planned.recipe, state, self.planned.train, verify, settings, recorder)
        except (TrainingError, UsageError) as error:
            assert self.directory is not None
            if isinstance(error, ServerError) and self.ranks.size > 1 and not error.shared:
                # The other processes are elsewhere in the step: they learn of it when this one is gone.
                raise ServerError(f"{error} Continue: {resume_command(self.directory.path)}") from error
            saved = self.ranks.told(self._newest)
            # Of these nothing was learnt from the step at hand: what was done before it is whole.
            whole = isinstance(error, (JudgingError, ServerError, UsageError))
            if whole and state.clock.step > (saved.step if saved else 0):
                recorder.save()
                saved = self.ranks.told(self._newest)
            last = f"step {saved.step}" if saved else "none yet"
            raise TrainingError(
                f"{error} Stopped at step {state.clock.step}; last good checkpoint: {last}; the rollouts are in "
                f"{self.directory.path / 'rollouts.jsonl'}. Continue: {resume_command(self.directory.path)}"
            ) from error

    def _say_goodbye(self, state: State) -> int:
        assert self.directory is not None
        newest = self.ranks.told(self._newest)
        step, number = newest.step if newest else 0, self.stopped.signal_number or 2
        self.directory.status("interrupted", step)
        what = f"saved step {step}" if step else "stopped before the first step was done; nothing to save"
        self.reporter.result("stopped", f"{what}. Continue: {resume_command(self.directory.path)}")
        return 128 + number

    def _finish(self, state: State, recorder: Recorder, before: Evaluation, after: Evaluation) -> int:
        assert self.directory is not None
        self._status("saving the model", state.clock.step)
        facts = {"weights_sha256": snapshot.weights_hash(state.engine)}
        took = recorder.accounts.settled()
        state.engine.assemble()
        if not self.ranks.first:
            return 0
        text, data = evaluation_text(self.planned.recipe, before, after)
        (self.directory.path / "eval.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        for name, line in text:
            self.reporter.result(name, line, data.get(name))
        final = self.directory.path / "final"
        self.directory.standing["accounts"] = took
        data |= {"accounts": took}
        about = Subject.of(self.directory.path, self.config, self.planned, state.engine, state.clock.step, data)
        target = export(state.engine, final, card(about))
        self.directory.status("finished", state.clock.step, **facts)
        self.reporter.result("saved", f"{target}", facts)
        self.reporter.result("use", "\n".join(ways_to_use(target)))
        return 0

    # -- small -------------------------------------------------------------------------------------------------

    def _status(self, phase: str, step: int = 0) -> None:
        assert self.directory is not None
        self.reporter.phase(phase)
        self.directory.status(phase, step)

    def _check_stop(self) -> None:
        if self.stopped():
            assert self.directory is not None
            raise Interrupted(
                f"stopped while {self.directory.path.name} was measuring; no step was lost. "
                f"Continue: {resume_command(self.directory.path)}",
                self.stopped.signal_number or 2,
            )
