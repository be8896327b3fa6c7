"""Verdicts while the next rollouts are written: where a step decodes in several batches, nobody waits for a judge."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from verifiers import Verdict
from workbench.records import Rollout

Verifier = Callable[[Rollout], Verdict]


class Judging:
    """One judge beside the writer. Verdicts are those of `verify`, whenever they were asked for.

    `begin` returns at once and does not raise; what the verifier raises comes out of the call that wants the verdict.
    One thread, so that a verifier need not be made for more.
    """

    def __init__(self, verify: Verifier) -> None:
        """Nothing begun yet; the thread starts with the first `begin`."""
        self._verify, self._pool = verify, ThreadPoolExecutor(1, thread_name_prefix="verify")
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
        """Drop what nobody waits for any more; a verdict being made is finished first."""
        self._pool.shutdown(cancel_futures=True)
