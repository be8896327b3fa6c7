"""What one process and several must agree on, by whoever runs it: `torchrun ... -m tests.shared_out MODEL OUT CASES`.

Float64, so that agreement is to rounding. `tests/test_ranks.py` compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.test_step import PROBLEMS, RECIPES, drawn, gradient, recipe, verify
from workbench import estimates
from workbench.divergence import ForwardKL, ReverseKL
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.ranks import ALONE, Ranks, joined
from workbench.engine.replicas import whole
from workbench.engine.roles import Cast
from workbench.engine.teachers import Beside, Local, Place, run_texts
from workbench.launch import leave
from workbench.parts.adaptive import ShareByLoss
from workbench.parts.curricula import BetaKernel
from workbench.parts.plans import ReverseKLToGo
from workbench.parts.refresh import EXTERNAL, LIVE, ema
from workbench.parts.schedules import Clock
from workbench.parts.selection import Hardest
from workbench.parts.terms import Distill, PolicyGradient
from workbench.parts.writers import AdaptiveOffPolicy, ByTeacher, OnPolicy, Together, TokenMixture
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train import accounts, evaluate, snapshot
from workbench.train.checkpoint import Checkpoint, at
from workbench.train.loop import survey
from workbench.train.report import Phases
from workbench.train.step import State, train_step

STEPS = 3
OFFLOADED = ("run: one rank has nothing", "left on the host")
"""What is asked where FSDP2 leaves its parts on the host, beside FSDP2 itself."""


@dataclass(frozen=True)
class OnlyOne:
    """A gate that leaves one problem of a step: with two ranks one of them has nothing."""

    problem: str = "p1"

    def __call__(self, group: list[Judged]) -> list[Judged]:
        return [j for j in group if j.rollout.problem.id == self.problem]


RUNS: dict[str, Recipe] = {
    "frozen": recipe(),
    "moving average": recipe(refresh=ema(0.5), terms=(Distill(ReverseKL()),)),
    "live": recipe(refresh=LIVE),
    "one rank has nothing": recipe(gates=(OnlyOne(),)),
    "nobody has anything": recipe(gates=(OnlyOne("none"),)),
    "whitened over the step": recipe(
        plans=(ReverseKLToGo(), Hardest(share=ShareByLoss(warmup=0.0, tolerance=1e-4, change=0.3))),
        terms=(Distill(ReverseKL()), PolicyGradient(correction="clipped")),
    ),
    "two authors": recipe(rollouts=Together((ByTeacher(2), OnPolicy(1)))),
    "mixed tokens": recipe(rollouts=TokenMixture(2)),
    "replay": recipe(
        rollouts=AdaptiveOffPolicy(student=0.9, fresh=0.2, remembers=4),
        terms=(Distill(ForwardKL(), token_weight=None),),
    ),
    "surveyed": recipe(curriculum=BetaKernel(rollouts=2, stages=(0.0,))),
    "another model": recipe(refresh=EXTERNAL),
    "resumed": recipe(
        refresh=ema(0.5),
        rollouts=AdaptiveOffPolicy(student=0.95, fresh=0.5, remembers=4),
        plans=(Hardest(share=ShareByLoss(warmup=0.0, tolerance=1e-4, change=0.3)),),
    ),
    "adapter": recipe(adapter="lora:r=4,alpha=8"),
    "adapter, moving average": recipe(adapter="lora:r=4,alpha=8", refresh=ema(0.5)),
}


def engine_for(chosen: Recipe, model: str, ranks: Ranks) -> Engine:
    loaded, settings = load(model, dtype=torch.float64), EngineSettings(ranks=ranks, micro_tokens=300)
    cast = None
    if chosen.refresh.external:
        teacher = Local(model)
        cast = Cast(teacher, None, False)
        teacher.join(Beside(loaded, run_texts(PROBLEMS), Place(settings.device, settings.device, "float32")))
    torch.manual_seed(0)
    return Engine(loaded, adapter=chosen.adapter, refresh=chosen.refresh, settings=settings, cast=cast)


def batch(step: int) -> list[Any]:
    """Five problems: an odd number, so that ranks have unequal shares."""
    return [PROBLEMS[(step + i) % len(PROBLEMS)] for i in range(5)]


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    found = {n: whole(p.detach()).clone() for n, p in engine.parameters().items()}
    return found | {f"teacher.{n}": whole(t).clone() for n, t in engine.teacher.tensors().items()}


def trained(
    name: str,
    model: str,
    ranks: Ranks,
    start: Checkpoint | None = None,
    steps: int = STEPS,
    root: Path | None = None,
) -> dict[str, Any]:
    """What a few steps leave behind: rollouts, figures, weights, what a checkpoint remembers (written to `root`)."""
    chosen = RUNS[name]
    engine = engine_for(chosen, model, ranks)
    state = State(engine, Clock(0, STEPS))
    if start is not None:
        snapshot.restore(engine, chosen, start)
        state.recall(start.step, start.state, PROBLEMS)
    rows = []
    while state.clock.step < steps:
        survey(chosen, state, PROBLEMS, verify)
        report = train_step(chosen, state, batch(state.clock.step), verify)
        assert report is not None
        shown = [(j.rollout.problem.id, j.rollout.tokens, j.advantage) for j in report.judged]
        rows.append((report.metrics(), shown, [report.entries.get(id(j.rollout)) for j in report.judged]))
    if root is not None:
        snapshot.save(snapshot.Vault(root, "x"), engine, chosen, steps, state.remembered())
    return {"rows": rows, "weights": weights(engine), "remembered": state.remembered()}


def evaluated(model: str, ranks: Ranks) -> dict[str, Any]:
    chosen = RUNS["moving average"]
    engine = engine_for(chosen, model, ranks)
    held_out = evaluate.HeldOutDivergence(engine, chosen, PROBLEMS, lambda: False)
    before = held_out.measure()
    state = State(engine, Clock(0, STEPS))
    train_step(chosen, state, batch(0), verify)
    arm = evaluate.evaluate(engine, PROBLEMS, evaluate.Asked("x", chosen.student, 2), chosen.sampling, verify)
    assert arm is not None
    return {"before": before, "after": held_out.measure(), "answers": [vars(a) for a in arm.answers]}


def first_step(model: str, out: Path) -> None:
    """A checkpoint of one process for `went_on`."""
    engine, chosen = engine_for(RUNS["resumed"], model, ALONE), RUNS["resumed"]
    snapshot.base_fingerprint(engine)
    state = State(engine, Clock(0, STEPS))
    train_step(chosen, state, batch(0), verify)
    snapshot.save(snapshot.Vault(out / "one", "x"), engine, chosen, 1, state.remembered())


def went_on(model: str, ranks: Ranks, out: Path) -> dict[str, Any]:
    """The second step, from a checkpoint of one process; and a checkpoint for whoever takes the third."""
    found = ranks.told(lambda: at(out / "one" / "step-00000001"))
    return trained("resumed", model, ranks, found, steps=2, root=out / ranks.asked)


def assembled(model: str, ranks: Ranks) -> dict[str, Any]:
    """The student as one process has it at the end, and its logits."""
    engine = engine_for(RUNS["frozen"], model, ranks)
    train_step(RUNS["frozen"], State(engine, Clock(0, STEPS)), batch(0), verify)
    engine.assemble()
    if not ranks.first:
        return {}
    with torch.no_grad():
        return {"logits": engine.student(input_ids=torch.tensor([[1, 2, 3]])).logits}


def held(model: str, ranks: Ranks) -> dict[str, Any]:
    """Bytes that the accounts and an estimate know of."""
    chosen = RUNS["moving average"]
    engine = engine_for(chosen, model, ranks)
    planned: Any = SimpleNamespace(train=PROBLEMS, recipe=chosen, steps=STEPS)
    return {
        "updated": accounts.of(engine, Phases())._trained_bytes,
        "memory": estimates._memory(engine, planned, chosen),
        "disk": estimates._disk(engine, planned, 1),
    }


def left_on_the_host(model: str, ranks: Ranks) -> set[bool]:
    """Whether torch was told so, of every tensor that is split."""
    from torch.distributed.fsdp import FSDPModule

    roots: Any = getattr(engine_for(RUNS["frozen"], model, ranks).replicas, "_roots", {})
    split = [m for root in roots.values() for m in root.modules() if isinstance(m, FSDPModule)]
    return {p.offload_to_cpu for module in split for p in module._get_fsdp_state()._fsdp_param_group.fsdp_params}


def cases(ranks: Ranks, model: str, out: Path) -> dict[str, Callable[[], Any]]:
    """Name -> what to compute under one strategy."""
    split = ranks.asked == "fsdp2"
    found: dict[str, Callable[[], Any]] = {}
    for name, chosen in RECIPES.items():
        found[f"gradient: {name}"] = lambda chosen=chosen: gradient_of(chosen, model, ranks)
    for name, chosen in RUNS.items():
        if not (split and chosen.adapter):
            found[f"run: {name}"] = lambda name=name: trained(name, model, ranks)
    return found | {
        "evaluated": lambda: evaluated(model, ranks),
        "went on": lambda: went_on(model, ranks, out),
        "held": lambda: held(model, ranks),
        "left on the host": lambda: left_on_the_host(model, ranks),
        "assembled": lambda: assembled(model, ranks),
    }


def gradient_of(chosen: Recipe, model: str, ranks: Ranks) -> tuple[float, dict[str, torch.Tensor]]:
    engine = engine_for(chosen, model, ranks)
    loss, grads = gradient(engine, chosen, drawn(engine, chosen), micro_tokens=300)
    return loss, {name: whole(g) for name, g in grads.items()}


def main(model: str, out: Path, names: set[str]) -> None:
    torch.set_num_threads(1)
    with joined("auto") as ranks:
        for strategy in ("ddp", "fsdp2", "offload") if ranks.size > 1 else ("auto",):
            here = replace(ranks, asked="fsdp2" if strategy == "offload" else strategy, offload=strategy == "offload")
            found = {}
            for name, work in cases(here, model, out).items():
                if (names and name not in names) or (here.offload and name not in OFFLOADED):
                    continue
                found[name] = work()
            if ranks.first:
                torch.save(found, out / f"{strategy}-{ranks.size}.pt")


if __name__ == "__main__":
    from tests.conftest import norms_in_float64

    norms_in_float64()
    main(sys.argv[1], Path(sys.argv[2]), set(sys.argv[3:]))
    leave(0)
