"""The sandbox: a level that was proved to hold, a handful of jails at that level, and runs in them."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from verifiers.sandbox.data import DataError
from verifiers.sandbox.exchange import Run, clean
from verifiers.sandbox.jail import LEVELS, Jail, Runtime, SandboxUnavailable, StartError, runtime
from verifiers.sandbox.probe import prove, refusal, short_proof
from verifiers.sandbox.programs import Checked, Limits, Outcome, Program


class Sandbox:
    """Use `open`. Safe to use from several threads; `workers` programs run at once."""

    def __init__(self, level: str, workers: int) -> None:
        """Prove a level. Raises SandboxUnavailable with what did not hold."""
        self.level, self.workers = level, workers
        self._runtime: Runtime = runtime()
        # bwrap and PDEATHSIG follow the thread that started a worker: this one lives until close().
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-start")
        self._slots = threading.Semaphore(workers)
        self._lock = threading.Lock()
        self._free: list[Jail] = []
        self._spare: Future[Jail] | None = None
        self._closed = False
        try:
            jail = self._starter.submit(Jail, level, self._runtime).result()
            try:
                prove(jail)
            except BaseException:
                jail.close()
                raise
        except BaseException:
            self._starter.shutdown()
            raise
        self._free.append(jail)
        self._order_spare()

    @classmethod
    def open(cls, level: str = "auto", workers: int = 1) -> Sandbox:
        """Open a sandbox at a level that holds on this machine.

        Args:
            level: one of `LEVELS`. `auto` takes bwrap, else landlock; `external` says that this process itself runs
                inside an isolation of your own; `unsafe` isolates nothing and must be asked for by name.
            workers: how many programs run at once.

        Raises:
            SandboxUnavailable: naming every primitive that failed, its message and the remedy.
            ValueError: if the level is unknown or there is no worker.
        """
        if level not in LEVELS:
            raise ValueError(f"unknown sandbox level {level!r}; known: {', '.join(LEVELS)}.")
        if workers < 1:
            raise ValueError(f"workers={workers}: at least one must run programs. Give 1 or more.")
        failures: list[tuple[str, str]] = []
        if sys.platform != "linux":
            raise SandboxUnavailable(refusal([(level, f"{sys.platform}: jails need Linux")]))
        for tried in ("bwrap", "landlock") if level == "auto" else (level,):
            for attempt in range(2):  # a failure that is gone at once was the moment's, not the machine's
                try:
                    return cls(tried, workers)
                except StartError as error:
                    if attempt:
                        failures.append((tried, str(error)))
        raise SandboxUnavailable(refusal(failures))

    def run(self, program: Program, limits: Limits | None = None) -> Outcome:
        """Run one program. Returns an outcome whatever the program does.

        Raises:
            SandboxUnavailable: if the level no longer holds on this machine. The run was not judged.
            ValueError: if the sandbox is closed, or the arguments are no plain data.
        """
        limits = limits or Limits()
        with self._slots:
            outcome = self._once(program, limits)
            if outcome.ended == "infra_error":
                outcome = self._once(program, limits)
                if outcome.ended == "infra_error" and outcome.reason == "the worker died":
                    # Twice in a row is the program's doing: it must not be able to buy retries.
                    return Outcome("died", outcome.level, reason="its worker died with it, twice")
            return outcome

    def _once(self, program: Program, limits: Limits) -> Outcome:
        jails: list[Jail] = []
        run = Run(program, limits)
        broken: set[Jail] = set()
        try:
            for _ in range(2 if isinstance(program, Checked) else 1):
                jails.append(self._take())
            broken = set(jails)  # until the run says otherwise
            outcome = run.go(jails)
            broken = set(jails) - clean(run.children)
            return outcome
        except DataError as error:
            broken = set(jails) - clean(run.children)
            raise ValueError(f"the arguments are no plain data: {error}") from error
        finally:
            for jail in jails:
                if jail in broken:
                    jail.close()
                else:
                    self._give(jail)

    def _take(self) -> Jail:
        with self._lock:
            if self._closed:
                raise ValueError("the sandbox is closed. Open another.")
            if self._free:
                return self._free.pop()
            spare, self._spare = self._spare, None
        try:
            jail = (spare or self._starter.submit(self._fresh)).result()
        except StartError as error:
            try:  # the moment's trouble, or the machine's: never another level
                jail = self._starter.submit(self._fresh).result()
            except StartError:
                raise SandboxUnavailable(refusal([(self.level, str(error))])) from error
        self._order_spare()
        return jail

    def _fresh(self) -> Jail:
        jail = Jail(self.level, self._runtime)
        try:
            short_proof(jail)
        except BaseException:
            jail.close()
            raise
        return jail

    def _give(self, jail: Jail) -> None:
        with self._lock:
            if not self._closed and len(self._free) < 2 * self.workers:
                self._free.append(jail)
                return
        jail.close()

    def _order_spare(self) -> None:
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = self._starter.submit(self._fresh)

    def close(self) -> None:
        """End all workers. Runs under way end as `infra_error` or by themselves; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            free, self._free = self._free, []
            spare, self._spare = self._spare, None
        for jail in free:
            jail.close()
        if spare is not None and spare.exception() is None:
            spare.result().close()
        self._starter.shutdown()

    def __enter__(self) -> Sandbox:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
