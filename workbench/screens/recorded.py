"""The rollout of a link, for the screen Live: recorded by a run, or held since it was written here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workbench.errors import InputError, UsageError, WorkbenchError
from workbench.inspector import token_records
from workbench.inspector.seen import Seen
from workbench.screens.asking import OWN, Ask, stored_config
from workbench.screens.links import Link, RolloutKey
from workbench.screens.session import STORE, Kept
from workbench.screens.stage import Stage


def key(run: str, rollout: str) -> str:
    """The store's id of a rollout that a view names; one written on the page has no run."""
    return f"{run}/{rollout}" if run else rollout


def opened(stage: Stage, link: Link) -> str:
    """Read what a link names into the store, if it is not there; its id there. Raises UsageError and InputError."""
    if link.live:
        if STORE.get(link.rollout) is None:
            raise InputError(
                "the rollout of this link is no longer held: the app keeps the newest ones until it ends. "
                "Roll out again: the same fields and seed write the same tokens."
            )
        return link.rollout
    run = stage.find(link.run)
    if run is None:
        raise UsageError(
            f"no run '{link.run}' here. The link may be of another machine. Choose one on the screen Runs."
        )
    seen = _read(run.path, RolloutKey.parse(link.rollout))
    ask = ask_of(run.path, seen)
    name = key(run.name, link.rollout)
    label = f"recorded: {run.name}, step {seen.step}, problem {seen.problem}, {seen.author} {seen.index}"
    STORE.put(Kept(replace(seen, run=run.name, rollout=link.rollout), label, model=ask.model, asked=ask), name)
    return name


def _read(run: Path, wanted: RolloutKey) -> Seen:
    path = token_records.path_of(run / token_records.FOLDER, wanted.step)
    if not path.is_file():
        raise InputError(
            f"run {run.name} recorded no tokens of step {wanted.step}. Its text is on the screen Rollouts. Train "
            "again with this version to see it token by token."
        )
    found = next((seen for seen in token_records.read(path) if seen.rollout == wanted.text), None)
    if found is None:
        raise InputError(
            f"step {wanted.step} of run {run.name} recorded other rollouts, not this one. The link may be of an "
            "earlier attempt. Choose one on the screen Rollouts."
        )
    return found


def ask_of(run: Path, seen: Seen) -> Ask:
    """The fields that go on from a recorded rollout: the run's newest checkpoint, its recipe, the recorded problem."""
    try:
        config = stored_config(run)
    except WorkbenchError:
        return Ask(problem=OWN, question=seen.question)
    steps = sorted((run / "checkpoints").glob("step-*"))
    return Ask(
        model=str(steps[-1]) if steps else config.model,
        recipe=config.recipe,
        problems=config.problems or "",
        problem=OWN,
        question=seen.question,
        solution=seen.solution or "",
        answer=seen.answer or "",
        changes=config.set,
        tokens=max(64, len(seen) + 32),
        temperature=config.temperature,
        top_p=config.top_p,
    )
