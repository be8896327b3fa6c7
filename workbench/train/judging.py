"""Verdicts while the next rollouts are written: where a step decodes in several batches, nobody waits for a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from verifiers import Verdict, at_once
from workbench.engine.ranks import Ranks
from workbench.records import Judged, Rollout

Verifier = Callable[[Rollout], Verdict]


def judge_all(ranks: Ranks, verify: Verifier, rollouts: Sequence[Rollout]) -> list[Judged]:
    """Each rollout with its verdict: one judge a rollout, whose word counts on every rank."""

    def mine(places: Sequence[int]) -> list[Verdict]:
        return [verify(rollouts[i]) for i in places]

    verdicts = ranks.spread([r.problem.id for r in rollouts], mine)
    return [Judged(r, verdict) for r, verdict in zip(rollouts, verdicts, strict=True)]


class Judging:
    """Judges beside the writer. Verdicts are those of `verify`, whenever and in whichever order they come about.

    `begin` returns at once and does not raise; what the verifier raises comes out of the call that wants the verdict.
    As many threads as the jail runs programs at once, one where nothing runs: answers are compared in Python, which
    does one at a time. What waits is held by the step in any case, so nobody has to be held back.
    """

    def __init__(self, verify: Verifier) -> None:
        """Nothing begun yet; threads start with the first `begin`. Where programs run, several call `verify`."""
        self._verify, self._pool = verify, ThreadPoolExecutor(at_once(), thread_name_prefix="verify")
        self._begun: dict[int, tuple[Rollout, Future[Verdict]]] = {}

    def begin(self, rollout: Rollout) -> None:
        """Have it judged in the background."""
        self._begun[id(rollout)] = (rollout, self._pool.submit(self._verify, rollout))

    def __call__(self, rollout: Rollout) -> Verdict:
        """Its verdict: awaited if begun, else made here."""
        _, begun = self._begun.get(id(rollout), (rollout, None))
        return self._verify(rollout) if begun is None else begun.result()

    def __enter__(self) -> Judging:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what nobody waits for any more; verdicts being made are finished first."""
        self._pool.shutdown(cancel_futures=True)
