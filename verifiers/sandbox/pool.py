"""Many runs at once from asyncio, with back-pressure."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from verifiers.sandbox.box import Sandbox
from verifiers.sandbox.programs import Limits, Outcome, Program


class Pool:
    """Runs programs in a sandbox's workers; who asks for more than `waiting` at once waits to hand them in.

    Deadlines count from when a program starts, so time spent in the queue fails nothing.
    """

    def __init__(self, box: Sandbox, waiting: int = 64) -> None:
        """Use this sandbox, which stays its owner's to close.

        Args:
            box: an open sandbox; as many programs run at once as it has workers.
            waiting: programs accepted beyond those running.

        Raises:
            ValueError: if `waiting` is negative.
        """
        if waiting < 0:
            raise ValueError(f"waiting={waiting}: a queue cannot be shorter than empty. Give 0 or more.")
        self._box = box
        self._slots = asyncio.Semaphore(box.workers + waiting)
        self._threads = ThreadPoolExecutor(box.workers, thread_name_prefix="sandbox")

    async def run(self, program: Program, limits: Limits | None = None) -> Outcome:
        """Run one program. A cancelled caller leaves it to end by itself, within its deadline."""
        await self._slots.acquire()
        try:
            future = self._threads.submit(self._box.run, program, limits)
        except BaseException:
            self._slots.release()
            raise
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _release(loop, self._slots))
        return await asyncio.wrap_future(future)

    async def __aenter__(self) -> Pool:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what runs; drop what waits."""
        await asyncio.to_thread(self._threads.shutdown, True, cancel_futures=True)


def _release(loop: asyncio.AbstractEventLoop, slots: asyncio.Semaphore) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(slots.release)
