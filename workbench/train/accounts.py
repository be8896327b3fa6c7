"""What a run has cost: tokens by what was done with them, FLOPs, seconds by phase, energy and money.

The formula of the FLOPs stands in `engine/meter.py`. Each phase is also given as a multiple of its bound: what the
machine, as it was measured at the start (`engine/machine.py`), would need at best:

    rollout          sum over passes token by token of max(FLOPs / F, (weights + keys and values) / B), others FLOPs / F
    score, read      FLOPs / F, the head's gradients included where it learns
    backward         FLOPs / F
    update           7 numbers a trained weight / B: weight, gradient, two moments read; all but the gradient written

Everything is kept per method, so that a staged run knows what each stage cost; `beside` is what no step did once
training began: later evaluations, files. Where several processes share a run tokens, FLOPs and device seconds are those
of all, seconds are the first one's, and a bound is the mean of theirs: what they need if each does its part at best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engine.engine import Engine
from workbench.engine.machine import Machine, measured
from workbench.engine.ranks import ALONE, Ranks
from workbench.engine.replicas import held_bytes
from workbench.train.report import BESIDE, Phases
from workbench.train.spending import Spent

Tally = dict[str, Any]
"""Numbers by name, nested, all of which add up."""
UPDATE_TRAFFIC = 7
"""Numbers moved for each trained weight by AdamW."""


@dataclass(frozen=True)
class Price:
    """What an hour of this machine takes. None: not known, and not in the accounts."""

    per_hour: float | None = None
    """Of money, in whatever it was given in."""
    watts: float | None = None


def tally(spent: Spent, machine: Machine) -> tuple[Tally, Tally]:
    """(what the step's phases came to, what was done beside them)."""
    step, beside = _empty(), _empty()
    for phase, laps in spent.laps.items():
        out = beside if phase == BESIDE else step
        _add(out["seconds"], phase, sum(lap.wall for lap in laps))
        _add(out["device_seconds"], phase, sum(lap.device for lap in laps))
    for phase, (role, mode, single), count in spent.counts:
        out = beside if phase == BESIDE else step
        tokens, forward = out["tokens"], count.forward()
        if mode == "learn":
            forward += count.head_backward()
            # The decoder's gradients are computed in the phase behind.
            behind = "backward" if phase == "score" else phase
            _add(out["flops"], behind, count.backward())
            _add(out["bound_seconds"], behind, machine.seconds(count.backward()))
        _add(tokens["generated" if mode == "write" else "scored"], role, count.tokens)
        _add(tokens["read"], role, count.read)
        _add(out["flops"], phase, forward)
        _add(out["role_flops"], f"{phase}.{role}", forward)
        _add(out["bound_seconds"], phase, machine.seconds(forward, count.bytes(single) if mode == "write" else 0.0))
    return step, beside


def summed(each: Sequence[tuple[Tally, Tally]]) -> tuple[Tally, Tally]:
    """The tallies of all ranks as those of one run; the first rank's come first."""
    found = [_empty(), _empty()]
    for tallies in each:
        found = [added(a, b) for a, b in zip(found, tallies, strict=True)]
    for out, first in zip(found, each[0], strict=True):
        out["seconds"] = first["seconds"]
        out["bound_seconds"] = {phase: x / len(each) for phase, x in out["bound_seconds"].items()}
    return found[0], found[1]


def _empty() -> Tally:
    return {
        "seconds": {},
        "device_seconds": {},
        "bound_seconds": {},
        "flops": {},
        "role_flops": {},
        "tokens": {"generated": {}, "read": {}, "scored": {}, "trained": 0},
        "steps": 0,
    }


def _add(into: dict[str, Any], name: str, number: float) -> None:
    if number:
        into[name] = into.get(name, 0) + number


def added(a: Mapping[str, Any], b: Mapping[str, Any]) -> Tally:
    """Both, number by number."""
    out = dict(a)
    for name, value in b.items():
        if isinstance(value, Mapping):
            out[name] = added(out.get(name, {}), value)
        else:
            out[name] = out.get(name, 0) + value
    return out


def times_bound(found: Mapping[str, Any]) -> dict[str, float]:
    """Phase -> its seconds over its bound, where it has one."""
    bounds: Mapping[str, float] = found["bound_seconds"]
    return {phase: found["seconds"].get(phase, 0.0) / bound for phase, bound in bounds.items() if bound > 0}


def of(engine: Engine, phases: Phases) -> Accounts:
    """A new book for a run on `engine`, from this moment on. Measures the machine, in a fraction of a second."""
    machine = measured(engine.student, engine.settings.device)
    engine.meter.take()  # what was computed before belongs to nobody
    phases.begin(engine.meter)
    return Accounts(machine, phases, held_bytes(engine.parameters().values()), engine.ranks)


class Accounts:
    """The run's book. It is told of every step, and asked for lines, rows and totals."""

    price = Price()

    def __init__(self, machine: Machine, phases: Phases, trained_bytes: int, ranks: Ranks = ALONE) -> None:
        """`phases` is the run's, its meter set; `trained_bytes` of the weights that the optimizer moves here."""
        self.machine, self._ranks = machine, ranks
        self._phases, self._trained_bytes = phases, trained_bytes
        self._book: dict[str, Tally] = {}

    def step(self, method: str, trained: int) -> Tally:
        """Close a step of `method` that learnt from `trained` tokens; its own row. All ranks must close it."""
        found = self._close(method)
        found["tokens"]["trained"], found["steps"] = trained, 1
        if trained and "update" in found["seconds"]:
            _add(found["bound_seconds"], "update", UPDATE_TRAFFIC * self._trained_bytes / self.machine.bytes)
        self._book[method] = added(self._book.get(method, {}), found)
        return found

    def settled(self) -> dict[str, Any]:
        """`totals`, with what was done since the last step. All ranks must ask."""
        self._phases.settle()
        rest = self._close(BESIDE)
        self._book[BESIDE] = added(self._book.get(BESIDE, {}), rest)
        return self.totals()

    def _close(self, method: str) -> Tally:
        spent, self._phases.spent = self._phases.spent, Spent()
        found, beside = summed(self._ranks.together(lambda: tally(spent, self.machine)))
        if method == BESIDE:
            return added(found, beside)
        self._book[BESIDE] = added(self._book.get(BESIDE, {}), beside)
        return found

    def totals(self) -> dict[str, Any]:
        """Everything so far, for status.json: by method and in all."""
        whole: Tally = _empty()
        for found in self._book.values():
            whole = added(whole, found)
        seconds = sum(whole["seconds"].values())
        return {
            "machine": self.machine.as_dict(),
            "methods": {name: _shown(found) for name, found in self._book.items()},
            "tokens": whole["tokens"],
            "flops": sum(whole["flops"].values()),
            "seconds": seconds,
            "device_seconds": sum(whole["device_seconds"].values()),
            **self._paid(seconds),
        }

    def _paid(self, seconds: float) -> dict[str, float]:
        hours, price = seconds / 3600, self.price
        money = {} if price.per_hour is None else {"cost": hours * price.per_hour}
        return money | ({} if price.watts is None else {"kilowatt_hours": hours * price.watts / 1000})

    def state_dict(self) -> dict[str, Any]:
        """JSON for the checkpoint: a resumed run goes on counting from the step it goes on from."""
        return {"machine": self.machine.as_dict(), "book": self._book}

    def load(self, saved: Mapping[str, Any] | None) -> None:
        """Go on from what `state_dict` gave. The machine is the one of now: a run may have moved."""
        self._book = {name: dict(found) for name, found in (saved or {}).get("book", {}).items()}


def _shown(found: Tally) -> dict[str, Any]:
    return {**found, "times_bound": times_bound(found)}


def row(found: Tally) -> dict[str, Any]:
    """What metrics.jsonl says of a step."""
    bound = sum(found["bound_seconds"].values())
    seconds = sum(found["seconds"].get(phase, 0.0) for phase in found["bound_seconds"])
    return {
        "flops": sum(found["flops"].values()),
        "times_bound": seconds / bound if bound else None,
        "accounts": _shown(found),
    }


def lines(totals: Mapping[str, Any]) -> list[str]:
    """For a person: the model card and the end of a run."""
    tokens = totals["tokens"]
    words = [f"{kind} {sum(tokens[kind].values()):,}" for kind in ("generated", "read", "scored")]
    words.append(f"trained {tokens['trained']:,}")
    out = [f"tokens {', '.join(words)}"]
    out.append(
        f"{totals['flops']:.3g} FLOPs in {totals['seconds']:.0f} s ({totals['device_seconds']:.0f} s of the device)"
    )
    for name, found in totals["methods"].items():
        bounds = times_bound(found)
        phases = ", ".join(
            f"{phase} {seconds:.1f} s" + (f" ({bounds[phase]:.1f} x bound)" if phase in bounds else "")
            for phase, seconds in found["seconds"].items()
        )
        out.append(f"{name}: {phases}")
    out += [f"cost {totals['cost']:.2f}"] if "cost" in totals else []
    out += [f"energy {totals['kilowatt_hours']:.3f} kWh"] if "kilowatt_hours" in totals else []
    return out
