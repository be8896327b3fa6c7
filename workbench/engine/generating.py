"""In-process decoding behind the `Generator` contract: as many completions side by side as memory holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.divergence import Head
from workbench.engine.modes import out_of_memory
from workbench.engine.sampling import Row, decode, uniforms
from workbench.errors import ResourceError
from workbench.records import Sample, Sampling, Wanted

Voice = Callable[[], contextlib.AbstractContextManager[tuple[Any, Head]]]
"""Opens a role's decoder and head, without gradient, for as long as the context lasts."""


def never() -> bool:
    """The default answer to `stopped()`."""
    return False


def ignore(*_: object) -> None:
    """Who is told when nobody asked to be."""


class HfGenerator:
    """A module of this process writes: its weights are always the current ones."""

    def __init__(self, voice: Voice, rows: int) -> None:
        """`rows` completions are decoded side by side, and fewer when they do not fit."""
        self._voice, self._rows = voice, rows
        self.version, self.gap, self.mark = 0, 0.0, ""

    def generate(
        self,
        wanted: Sequence[Wanted],
        sampling: Sampling,
        ends: frozenset[int],
        stopped: Callable[[], bool] = never,
        wrote: Callable[[int, Sample], None] = ignore,
    ) -> list[Sample]:
        """One sample for each wanted, in order. Raises ResourceError when a single one does not fit."""
        draws = sampling.max_new_tokens if sampling.temperature > 0 else 0
        rows = [Row(w.prompt, uniforms(w.key, draws)) for w in wanted]
        place = {id(row): i for i, row in enumerate(rows)}

        def batch(some: list[Row]) -> None:
            with self._voice() as (module, head):
                decode(module, head, some, sampling, ends, stopped)

        def finished(some: Sequence[Row], more: bool) -> None:
            for row in some if more else ():
                wrote(place[id(row)], row.sample(self.version))

        in_batches(sorted(rows, key=lambda row: len(row.prompt)), self._rows, batch, finished)
        return [row.sample(self.version) for row in rows]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The module that trains is the module that writes: only the number moves."""
        self.version = version

    def follow(self, version: int, mark: str) -> None:
        """As `sync`."""
        self.version = version

    def close(self) -> None:
        """Holds nothing."""


def in_batches(
    rows: Sequence[Row],
    n: int,
    write: Callable[[list[Row]], None],
    finished: Callable[[Sequence[Row], bool], None] = ignore,
) -> None:
    """Hand `write` up to `n` rows at a time; fewer when memory runs out, with the same result.

    `finished` gets each batch and whether another follows. Raises ResourceError when one row alone does not fit.
    """
    start = 0
    while start < len(rows):
        batch = list(rows[start : start + n])
        try:
            write(batch)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if n == 1:
                raise ResourceError(
                    f"a completion behind {len(batch[0].prompt)} tokens does not fit in memory. One row was tried "
                    "alone. Use a smaller --max-new-tokens or --eval-tokens."
                ) from error
            n = max(1, n // 2)
            for row in batch:
                row.restart()
            continue
        start += n
        finished(batch, start < len(rows))
