"""What a run was started from, and whether a resumed one is still the same run."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.config import RunConfig, as_dict
from workbench.engine.engine import Engine
from workbench.errors import UsageError
from workbench.launch import launched
from workbench.parts.schedules import follows_total
from workbench.planning import Plan
from workbench.train import snapshot


def config_hash(planned: Plan) -> str:
    """What a checkpoint must agree on with the run that resumes it."""
    return hashlib.sha256(
        (planned.recipe.describe() + planned.problems.sha256).encode("utf-8", "surrogatepass")
    ).hexdigest()


CHANGES_NOTHING = frozenset(
    {"steps", "minutes", "train_tokens", "eval_every", "save_every", "keep", "track", "progress", "debug", "dry_run",
     "resume", "fresh", "name", "output", "micro_tokens", "activation_checkpointing", "parallel", "offload", "device",
     "teacher_device", "server", "price_per_hour", "watts"}
)  # fmt: skip
"""Fields that a resumed run may change: they move no number of the steps to come."""


def refuse_difference(stored: Mapping[str, Any], config: RunConfig, planned: Plan) -> None:
    """Compare with what the run was started with. Raises UsageError naming every field that changes results."""
    # What a run of an earlier version could not say, it did not ask for.
    old, new = as_dict(RunConfig()) | stored.get("config", {}), as_dict(config)
    odd = [
        f"{k} {old[k]!r} -> {new[k]!r}"
        for k in sorted(old.keys() & new.keys())
        if k not in CHANGES_NOTHING and old[k] != new[k]
    ]
    if old.get("steps", planned.steps) != new["steps"] and follows_total(planned.recipe):
        odd.append(f"steps {old.get('steps')!r} -> {new['steps']!r}, which the recipe's schedules follow")
    if stored.get("recipe_text") != planned.recipe.describe() and not odd:
        odd = ["the recipe itself: this version of the workbench describes it differently"]
    if stored.get("data_sha256") != planned.problems.sha256 and not odd:
        odd = ["the problems: the data is not what it was"]
    if odd:
        raise UsageError(
            f"--resume: {'; '.join(odd)}. These change results, so it would be another run. "
            f"Leave them as they were, or start one with --fork {config.output}/{config.name}."
        )


def refuse_other_models(stored: Mapping[str, Any], engine: Engine, config: RunConfig) -> None:
    """Compare the models beside the student with the run's. Raises UsageError where one's content has changed."""
    for role, now in _others(engine).items():
        before = stored.get(role)
        if before and before["fingerprint"] != (now or {}).get("fingerprint"):
            raise UsageError(
                f"--resume: the {role} is not the one the run started with ({before['source']}, fingerprint "
                f"{before['fingerprint'][:12]} -> {(now or {}).get('fingerprint', 'none')[:12]}). It would be another "
                f"run. Put the original back, or start one with --fork {config.output}/{config.name}."
            )


def _others(engine: Engine) -> dict[str, dict[str, Any] | None]:
    cast = engine.cast
    pairs = {"teacher": cast.teacher, "reference": cast.reference}
    return {role: None if other is None else other.facts() for role, other in pairs.items()}


def plan_facts(config: RunConfig, planned: Plan) -> dict[str, Any]:
    """What run.json holds from the first moment on."""
    return {
        "command": [*launched().command, "workbench.opsd", *sys.argv[1:]],
        "version": __version__,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "peft")},
        "commit": _commit(),
        "config": as_dict(config),
        "recipe": planned.recipe.name,
        "recipe_text": planned.recipe.describe(),
        "seed": config.seed,
        "data": planned.problems.source,
        "data_sha256": planned.problems.sha256,
    }


def engine_facts(engine: Engine) -> dict[str, Any]:
    """What run.json holds once the model is there."""
    return {
        "model_source": engine.loaded.source,
        "model_revision": engine.loaded.revision,
        "model_sha256": snapshot.base_fingerprint(engine),
        "processes": engine.ranks.describe(),
        "stop_ids": sorted(engine.stop_ids),
        "chat_template": engine.tokenizer.chat_template,
        **_others(engine),
    }


def _commit() -> str | None:
    try:
        out = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return out.stdout.strip() or None
