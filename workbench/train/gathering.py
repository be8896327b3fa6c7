"""What ranks tell each other of a step they learnt from: every signal on every rank, so that all report the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from workbench.engine.ranks import Ranks
from workbench.train.batches import Entry
from workbench.train.objective import Signal


def problem_ids(kept: Sequence[Entry]) -> list[str]:
    """By what entries are shared out: a problem's group stays together, for what its rollouts have in common."""
    return [entry.judged.rollout.problem.id for entry in kept]


def shortest(kept: Sequence[Entry]) -> list[Entry]:
    """The entry that costs least, which fills up where a rank has fewer micro-batches; none where there is none."""
    return [min(kept, key=lambda entry: entry.width)] if kept else []


def gathered(ranks: Ranks, kept: Sequence[Entry], own: Sequence[Signal]) -> list[Signal]:
    """The signals of all ranks. `kept` is the step's, alike on all; entries cross as their places in it."""
    if ranks.size == 1:
        return list(own)
    place = {id(entry): i for i, entry in enumerate(kept)}
    here = [_on_cpu(signal) for signal in own]

    def sent() -> list[tuple[list[int], dict[int, Any] | None, Signal]]:
        return [
            ([place[id(e)] for e in s.batch], _renamed(s.looked, place), dataclasses.replace(s, batch=(), looked=None))
            for s in here
        ]

    found: list[Signal] = []
    for rank, signals in enumerate(ranks.together(sent)):
        for i, (places, looked, signal) in enumerate(signals):
            batch = [kept[k] for k in places]
            back = {k: id(entry) for k, entry in zip(places, batch, strict=True)}
            theirs = dataclasses.replace(signal, batch=batch, looked=_renamed(looked, back))
            found.append(here[i] if rank == ranks.rank else theirs)
    return found


def _renamed(looked: object, names: Mapping[int, int]) -> dict[int, Any] | None:
    """What was seen, kept by another number of each entry."""
    return {names[key]: value for key, value in looked.items()} if isinstance(looked, dict) else None


def _on_cpu(signal: Signal) -> Signal:
    stats = {f.name: getattr(signal.stats, f.name) for f in dataclasses.fields(signal.stats)}
    moved = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in stats.items()}
    turned = None if signal.turned is None else signal.turned.cpu()
    return dataclasses.replace(signal, stats=type(signal.stats)(**moved), turned=turned)
