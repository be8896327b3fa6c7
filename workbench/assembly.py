"""From a plan to an engine: the models of every role, loaded, compared and put in their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workbench.config import RunConfig
from workbench.engine.capabilities import needed, refuse_unfit
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import Loaded, load, pick_device, pick_dtype
from workbench.engine.ranks import ALONE, Ranks
from workbench.engine.roles import Cast
from workbench.engine.serving.attaching import Served, attach
from workbench.engine.serving.attaching import refuse_unfit as refuse_unserved
from workbench.engine.serving.client import Replica, refuse_public
from workbench.engine.teachers import Beside, Local, Place, invite, run_texts
from workbench.errors import UsageError
from workbench.inspector.audit import Audit, audit
from workbench.planning import Plan
from workbench.records import Case
from workbench.train.ahead import write_ahead


def invited(config: RunConfig, planned: Plan) -> Cast:
    """Who else plays, before any model is loaded. Raises UsageError for those the recipe has no use for."""
    check_servers(config)
    if config.teacher is None and planned.recipe.refresh.external:
        raise UsageError(
            f"recipe {planned.recipe.name} is taught by another model, and none was given. A model that teaches itself "
            "what it sees itself learns nothing. Name one: --teacher MODEL."
        )
    teacher = None if config.teacher is None else invite(config.teacher)
    if teacher is not None:
        methods = planned.recipe.methods
        for method in [m for m in methods if needed(m)] or methods:  # a stage may do without
            refuse_unfit(method, teacher)
    if config.reference is not None and not planned.recipe.needs_reference:
        raise UsageError(
            f"--reference {config.reference}: recipe {planned.recipe.name} has no third role. It would be loaded and "
            "never used. Leave it out."
        )
    reference = None if config.reference is None else Local(config.reference)
    return Cast(teacher, reference, planned.recipe.needs_reference)


def check_servers(config: RunConfig) -> None:
    """Raises UsageError where servers are asked for and not named, or named and not asked for."""
    served = config.engine == "vllm"
    if served and not config.servers:
        raise UsageError(
            "--engine vllm writes on servers, and none was given. Name one (make serve starts one): "
            "--server http://127.0.0.1:8911"
        )
    if config.ahead > 1:
        raise UsageError(
            f"--ahead {config.ahead}: rollouts may be one step old, no more. Write --ahead 1, or leave it out."
        )
    if not served and (config.server is not None or config.ahead):
        name = "--ahead" if config.ahead else "--server"
        raise UsageError(
            f"{name} is for servers, and this process generates. Its one model cannot write while it is trained. "
            f"Add --engine vllm, or leave {name} out."
        )
    for url in config.servers:  # before anything of it is written down
        refuse_public(url)


def joined(cast: Cast, config: RunConfig, planned: Plan, loaded: Loaded, home: torch.device) -> Cast:
    """Load the other models and prove that they speak the student's tokens. Raises InputError."""
    device = home if config.teacher_device == "auto" else pick_device(config.teacher_device)
    place = Place(home, device, config.teacher_dtype, config.chat_template)
    beside = Beside(loaded, run_texts((*planned.train, *planned.held_out)), place)
    for other in (cast.teacher, cast.reference):
        if other is not None:
            other.join(beside)
    return cast


def build_engine(config: RunConfig, planned: Plan, ranks: Ranks = ALONE) -> Engine:
    """Model, tokenizer, adapter and teacher as the configuration and the recipe say."""
    device = ranks.device(pick_device(config.device))
    if config.offload and (ranks.asked != "fsdp2" or device.type != "cuda"):
        raise UsageError(
            f"--offload with --parallel {ranks.asked} on {device.type}: FSDP2 alone leaves its parts in the host's "
            "memory, and on a CPU they are there. Add --parallel fsdp2 under torchrun on GPUs, or leave --offload out."
        )
    cast = invited(config, planned)
    adapter = planned.recipe.adapter
    source = str(fork_source(config.fork)) if config.fork else config.model
    loaded = load(
        source, dtype=pick_dtype(config.dtype, device, adapter is not None), chat_template=config.chat_template
    )
    micro = config.micro_tokens or (2048 if device.type == "cpu" else 16384)
    settings = EngineSettings(
        device=device,
        decode_rows=64 if device.type == "cpu" else 256,
        micro_tokens=micro,
        activation_checkpointing=config.activation_checkpointing,
        ranks=replace(ranks, offload=config.offload),
    )
    cast = joined(cast, config, planned, loaded, device)
    torch.manual_seed(config.seed)  # the adapter's first factors are the only thing torch draws
    return Engine(loaded, adapter=adapter, refresh=planned.recipe.refresh, settings=settings, cast=cast)


def audited(engine: Engine, planned: Plan) -> Audit:
    """Every check on every method that will run. Raises InputError for what ruins a run."""
    problems, methods = (*planned.train, *planned.held_out), planned.recipe.methods
    found = audit(engine, planned.recipe, problems, train=len(planned.train))
    others = [audit(engine, m, problems, train=len(planned.train)) for m in methods if len(methods) > 1]
    findings = dict.fromkeys((*found.findings, *(finding for other in others for finding in other.findings)))
    return Audit(found.examples, tuple(findings))


def attached(
    config: RunConfig,
    engine: Engine,
    planned: Plan,
    stopped: Callable[[], bool],
    run: Path | None,
    first_gap: float | None = None,
) -> dict[str, Any]:
    """Let the servers of the configuration write; returns what run.json keeps of them: nothing where there are none.

    Without a run (--dry-run) they are asked what they are, and sent nothing. `first_gap`: what their first difference
    was when the run began, for one that goes on.
    """
    if config.engine == "hf":
        return {}
    if run is None:
        refuse_unserved(engine, config.servers)
        return {"servers": [vars(Served.ask(Replica(url))) for url in config.servers]}
    recipe = planned.recipe
    asked = [
        (method.sampling, max(len(engine.prompt(method.student, Case(p)).ids) for p in planned.train))
        for method in recipe.methods
    ]
    facts = attach(engine, config.servers, run / "weights", asked, first_gap=first_gap)
    if config.ahead and engine.ranks.size > 1:
        raise UsageError(
            f"--ahead 1 on {engine.ranks.size} processes: one that writes ahead and those that train would wait for "
            "each other. Leave --ahead out, or train in one process."
        )
    if config.ahead:
        write_ahead(engine, recipe, stopped)
    return dict(facts)


def fork_source(path: str) -> Path:
    """The folder with the weights of another run. Raises UsageError where there is none."""
    final = Path(path) / "final"
    for folder in (final / "adapter", final):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    raise UsageError(
        f"--fork {path}: no finished model there (looked for {final}). Resume it to its end, or name another run."
    )
