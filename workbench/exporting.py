"""From a run directory to a folder that other programs load: which weights, whose engine, which card."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.assembly import fork_source
from workbench.config import RunConfig
from workbench.config_files import build, read_layer
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.export import export, refuse_quantised
from workbench.engine.loading import load, pick_device, pick_dtype
from workbench.errors import InputError, UsageError, WorkbenchError
from workbench.model_card import Subject, card
from workbench.parts.refresh import LIVE
from workbench.planning import Plan, plan, settle_recipe
from workbench.recipe import Recipe
from workbench.summary import evaluation_text
from workbench.text import printable
from workbench.train import checkpoint, snapshot
from workbench.train.checkpoint import Checkpoint
from workbench.train.evaluate import Evaluation
from workbench.train.interrupts import read_json
from workbench.train.reporting import list_runs, view
from workbench.train.run_directory import read_jsonl


@dataclass(frozen=True)
class Source:
    """The weights of a run that go out."""

    run: Path
    config: RunConfig
    recipe: Recipe
    steps: int | None
    checkpoint: Checkpoint | None
    """None: what `final/` holds."""
    step: int
    planned: Plan | None
    """None where the run's data cannot be had any more, or is not what it was."""

    @property
    def adapter(self) -> bool:
        """Whether an adapter was trained, and stands alone."""
        if self.checkpoint is None:
            return (self.run / "final" / "adapter").is_dir()
        base = fork_source(self.config.fork) if self.config.fork else Path(self.config.model)
        return self.recipe.adapter is not None and not (base / "adapter_config.json").is_file()  # else it is merged in


def find(run: Path, which: str | None) -> Source:
    """The finished model, or the checkpoint that `which` names: `newest` or a step.

    Raises UsageError where there is no run, no such checkpoint, or none was asked for of a run that is not finished.
    """
    seen = view(run)
    if seen is None or not (run / "run.json").is_file():
        names = ", ".join(other.name for other in list_runs(run.parent)[:5]) if run.parent.is_dir() else ""
        raise UsageError(
            f"{printable(run)} is no run: it has no run.json. An export reads a run directory. "
            f"{printable(run.parent)} holds {names or 'no runs'}."
        )
    config = replace(build(read_layer(run / "run.json")), resume=False, name=None)
    saved = None
    if which is None and seen.state != "finished":
        newest = checkpoint.newest(run / "checkpoints")
        way = f"Export what it saved last: --checkpoint (step {newest.step})" if newest else "It has saved nothing yet"
        raise UsageError(f"{printable(run)} is not finished ({seen.state}, step {seen.step}). {way}, or resume it.")
    if which is not None:
        saved = _checkpoint(run, which)
    recipe, planned = settle_recipe(config)[0].recipe, None
    with contextlib.suppress(WorkbenchError, ValueError, OSError):
        planned = plan(config)
        if seen.run.get("data_sha256") not in (None, planned.problems.sha256):
            planned = None
    steps = planned.steps if planned else config.steps
    return Source(run, config, recipe, steps, saved, saved.step if saved else seen.step, planned)


def _checkpoint(run: Path, which: str) -> Checkpoint:
    root = run / "checkpoints"
    saved = checkpoint.newest(root) if which == "newest" else None
    if which.isdigit() and (root / f"step-{int(which):08d}").is_dir():
        saved = checkpoint.at(root / f"step-{int(which):08d}")
    if saved is None:
        kept = ", ".join(str(int(p.name[5:])) for p in sorted(root.glob("step-*"))) or "none"
        raise UsageError(f"--checkpoint {printable(which)}: {printable(run)} keeps no such step. It keeps: {kept}.")
    return saved


def as_trained(source: Source) -> Path:
    """The folder in which a finished run left its model, which was read back then."""
    return fork_source(str(source.run))


def write(source: Source, folder: Path, *, merge: bool) -> Path:
    """Write the model into `folder`, which appears whole or not at all; returns it.

    A finished run's model is copied as it was left, unless its adapter is to be merged. Raises UsageError for a folder
    that holds something, InputError for weights that cannot be had or merged.
    """
    merge = merge and source.adapter
    if source.checkpoint is None and not merge:
        trained, text = as_trained(source), source.run / "final" / "README.md"

        def copy(fresh: Path) -> None:
            shutil.copytree(trained, fresh, dirs_exist_ok=True)
            if text.is_file():
                shutil.copyfile(text, fresh / "README.md")

        return _whole(folder, copy)

    def make(fresh: Path) -> None:
        engine = engine_of(source)
        made = export(engine, fresh / "made", card(subject(source, engine, merge)), merge=merge)
        for path in sorted(made.iterdir()):
            path.rename(fresh / path.name)
        shutil.rmtree(fresh / "made")

    return _whole(folder, make)


def engine_of(source: Source) -> Engine:
    """The student of a run, without what only training needs. Raises InputError."""
    config, recipe = source.config, source.recipe
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, recipe.adapter is not None)
    settings = EngineSettings(device=device)
    if source.checkpoint is None:
        loaded = load(str(as_trained(source)), dtype=dtype)  # an adapter is merged in
        refuse_quantised(loaded.model.config)
        return Engine(loaded, adapter=None, refresh=LIVE, settings=settings)
    model = str(fork_source(config.fork)) if config.fork else config.model
    loaded = load(model, dtype=dtype, chat_template=config.chat_template)
    torch.manual_seed(config.seed)  # an adapter's first factors, which the checkpoint's base is told apart by
    engine = Engine(loaded, adapter=recipe.adapter, refresh=LIVE, settings=settings)
    snapshot.restore_weights(engine, source.checkpoint)
    return engine


def subject(source: Source, engine: Engine, merged: bool) -> Subject:
    """What the card says."""
    return Subject(
        run=source.run,
        config=source.config,
        recipe=source.planned.recipe if source.planned else source.recipe,
        engine=engine,
        step=source.step,
        steps=source.steps,
        problems=source.planned.problems if source.planned else None,
        results=_results(source),
        merged=merged,
        verifier=source.planned.verifier if source.planned else "",
    )


def _results(source: Source) -> dict[str, Any]:
    """What was measured of these weights: at the end of the run, or at the checkpoint's step."""
    if source.checkpoint is None:
        return read_json(source.run / "eval.json")
    stored = {row.get("when"): row for row in read_jsonl(source.run / "evaluations.jsonl")}
    found = [stored.get("before"), stored.get(f"step {source.step}")]
    if None in found:
        return {}
    before, after = (Evaluation.from_row(row) for row in found if row)
    return evaluation_text(source.recipe, before, after)[1]


def _whole(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Fill a folder that appears by one rename. Raises UsageError where it is there and holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--to {printable(folder)} holds something. Nothing is overwritten. Name a new folder.")
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        fill(fresh)
        if folder.is_dir():
            folder.rmdir()
        fresh.rename(folder)
    except OSError as error:
        raise InputError(f"{printable(folder)} cannot be written: {error}. Name another place with --to.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def tokenizer_ends(run: Path, folder: Path) -> list[str]:
    """The texts of the tokens at which the run's completions end."""
    from workbench.engine.loading import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    stored = json.loads((run / "run.json").read_text(encoding="utf-8")).get("stop_ids", ())
    return [str(tokenizer.decode([i])) for i in stored]
