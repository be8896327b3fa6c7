"""Many servers as one: who gets which request, and what happens when one fails or somebody asks to stop."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from workbench.engine.generating import ignore, never
from workbench.engine.serving.client import Line, Replica
from workbench.errors import ServerError, WorkbenchError

T = TypeVar("T")
SLOTS = 64
"""Requests in flight at one replica before the next group waits."""
GLANCE = 0.05
"""Seconds between two looks at whether to stop."""


class Fleet:
    """Replicas of one model."""

    def __init__(self, replicas: Sequence[Replica], slots: int = SLOTS) -> None:
        """At least one."""
        self.replicas, self._slots = tuple(replicas), slots

    def spread(
        self,
        groups: Iterable[Sequence[int]],
        call: Callable[[Replica, int, Line], T],
        stopped: Callable[[], bool] = never,
        finished: Callable[[int, T, bool], None] = ignore,
    ) -> dict[int, T]:
        """What `call` gave by place, for all places of all groups, or for those that were done when stopped.

        A group goes to the replica with the fewest requests in flight, whole: what its members share is read there
        once. `finished` is told of each and whether others are still to come. The first failure cuts off the rest.
        """
        waiting, found, flying = deque(groups), dict[int, T](), dict[Future[T], tuple[int, Replica]]()
        line = Line()
        with ThreadPoolExecutor(self._slots * len(self.replicas)) as pool:
            try:
                while (waiting or flying) and not stopped():
                    while waiting and (free := self._freest(flying)) is not None:
                        flying |= {pool.submit(call, free, place, line): (place, free) for place in waiting.popleft()}
                    done, _ = wait(flying, GLANCE, FIRST_COMPLETED)
                    for future in done:
                        place, _ = flying.pop(future)
                        found[place] = future.result()
                        finished(place, found[place], bool(waiting or flying))
            finally:
                line.cut()
                for future in flying:
                    future.cancel()
        return found

    def everywhere(self, call: Callable[[Replica], None]) -> None:
        """`call` on every replica at once; all are waited for. Raises ServerError with what each failed one said."""
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            calls = [pool.submit(call, replica) for replica in self.replicas]
        errors = [error for c in calls if (error := c.exception()) is not None]
        for error in errors:
            if not isinstance(error, WorkbenchError):
                raise error
        if errors:
            raise ServerError(" ".join(map(str, errors)))

    def _freest(self, flying: dict[Future[T], tuple[int, Replica]]) -> Replica | None:
        """Who has the fewest in flight and room for more."""
        counts = Counter(replica.url for _, replica in flying.values())
        free = min(self.replicas, key=lambda replica: counts[replica.url])
        return free if counts[free.url] < self._slots else None


def alike(prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Places with the same prompt, in the order in which prompts first appear."""
    groups = dict[tuple[int, ...], list[int]]()
    for place, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(place)
    return list(groups.values())
