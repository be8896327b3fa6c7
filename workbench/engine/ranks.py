"""Several processes that do one run: who does what, and how each learns what the others found.

What a step decides (groups, gates, plans, denominators, curricula) is decided on every rank from the same records, so
it is what one process would decide, with no part knowing that there are several. Only what costs time is split:
writing, judging, reading and learning, problem by problem. `spread` is that split; nothing else crosses but gradients.

A world of one imports no torch.distributed and calls nothing.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, Literal, TypeVar

import torch

from workbench.errors import ProcessLost, UsageError, WorkbenchError
from workbench.launch import Launch, launched

Strategy = Literal["single", "ddp", "fsdp2"]
"""What runs: one process; a whole model on every rank; the model's tensors split among the ranks."""
Parallel = Literal["auto", "ddp", "fsdp2"]
"""What may be asked for."""
T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another that is at work. A dead one is noticed at once: its connections close."""


@dataclass(frozen=True)
class Ranks:
    """This process among `launch.size`, with whatever connects them."""

    launch: Launch = field(default_factory=Launch)
    asked: Parallel = "auto"
    strategy: Strategy = "single"
    """What runs; settled when the model is known."""
    backend: str = ""
    offload: bool = False
    """Whether FSDP2 keeps what is split in the host's memory, and moves it there: weights, gradients, averages."""

    @property
    def rank(self) -> int:
        """From 0."""
        return self.launch.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.launch.size

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.launch.rank == 0

    def describe(self) -> str:
        """For the header: `2 on 1 host, ddp (gloo)`."""
        if self.size == 1:
            return "1"
        hosts = f"{self.launch.hosts} host{'s' if self.launch.hosts > 1 else ''}"
        return f"{self.size} on {hosts}, {self.strategy} ({self.backend})"

    def device(self, device: torch.device) -> torch.device:
        """This rank's own among a host's devices."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        torch.cuda.set_device(self.launch.local_rank)
        return torch.device("cuda", self.launch.local_rank)

    # -- who does what ---------------------------------------------------------------------------------------------

    def places(self, keys: Sequence[Hashable], rank: int | None = None) -> list[int]:
        """Where this rank's items stand: all items of a key on one rank, the g-th key to appear on rank g mod size."""
        wanted = self.rank if rank is None else rank
        number = {key: g for g, key in enumerate(dict.fromkeys(keys))}
        return [i for i, key in enumerate(keys) if number[key] % self.size == wanted]

    def spread(self, keys: Sequence[Hashable], work: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """One result an item, in order, on every rank: `work` is given the places of this rank's items alone.

        This rank's own results are the objects that `work` made; those of others are copies. Raises on every rank the
        WorkbenchError that `work` raised on one.
        """
        if self.size == 1:
            return list(work(list(range(len(keys)))))
        found: dict[int, T] = {}
        for rank, results in enumerate(self.together(lambda: list(work(self.places(keys))))):
            found |= zip(self.places(keys, rank), results, strict=True)
        return [found[i] for i in range(len(keys))]

    def level(self, batches: Sequence[Sequence[T]], blank: Sequence[T]) -> list[tuple[Sequence[T], bool]]:
        """As many batches as the rank that has most, each with whether it counts.

        Ranks must go through the model equally often: it is there that they wait for each other. `blank` fills up; all
        ranks have it, so that one with nothing of its own takes part too. Empty where no rank has anything.
        """
        own = [(batch, True) for batch in batches]
        if self.size == 1 or not blank:
            return own
        most = max(self.together(lambda: len(batches)))
        return own + [(blank, False)] * (most - len(batches))

    # -- what crosses ----------------------------------------------------------------------------------------------

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` gave on each rank, by rank. A WorkbenchError of one rank is raised on all."""
        if self.size == 1:
            return [work()]
        import torch.distributed as dist

        own: tuple[T | None, WorkbenchError | None]
        try:
            own = work(), None
        except WorkbenchError as error:
            own = None, error
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        for _, failed in found:
            if failed is not None:
                failed.shared = True
                raise failed
        found[self.rank] = own  # others may know this rank's objects by identity
        return [value for value, _ in found]

    def told(self, work: Callable[[], T]) -> T:
        """What the first rank finds, on every rank: for what only it can see, or what two clocks would say unlike."""
        return self.together(lambda: work() if self.first else None)[0]  # type: ignore[return-value]

    def agree(self, asked: bool) -> bool:
        """Whether any rank says so."""
        if self.size == 1:
            return asked
        import torch.distributed as dist

        vote = torch.tensor([int(asked)])
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        return bool(vote.item())

    @contextlib.contextmanager
    def lost(self, go_on: str = "Start it again.") -> Iterator[None]:
        """Raise ProcessLost, which says how to `go_on`, where what breaks is the connection to another rank."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or isinstance(error, WorkbenchError) or not _connection(error):
                raise
            raise ProcessLost(
                f"process {self.rank} of {self.size}: another process of the run is gone. {_first_line(error)}. "
                f"What was saved is intact. {go_on}"
            ) from error


ALONE = Ranks()


class Agreed:
    """A question that all ranks ask at the same places and that all get the same answer to: any yes is everyone's.

    `alone` is this rank's own answer, for places where ranks are not in step (each token of a rollout).
    """

    def __init__(self, ranks: Ranks, asked: Callable[[], bool]) -> None:
        """`asked` is this rank's; once it is yes it stays so."""
        self.alone = asked
        self._ranks, self._said = ranks, False

    @property
    def signal_number(self) -> int | None:
        """The signal that this rank got, where it asks about signals and got one."""
        return getattr(self.alone, "signal_number", None)

    def __call__(self) -> bool:
        """All ranks must ask now."""
        self._said = self._said or self._ranks.agree(self.alone())
        return self._said


def by_oneself(stopped: Callable[[], bool]) -> Callable[[], bool]:
    """This rank's own part of a question, to be asked as often as one likes."""
    return getattr(stopped, "alone", stopped)


@contextlib.contextmanager
def joined(asked: Parallel, device: str = "auto") -> Iterator[Ranks]:
    """Meet the other processes, for as long as the context lasts. `auto` is settled once the model is known.

    Raises UsageError where a strategy was asked for and there is one process, or where WORLD_SIZE and the processes
    that met differ: a requested strategy that is not what runs is an error.
    """
    launch = launched()
    if launch.size == 1:
        if asked != "auto":
            raise UsageError(
                f"--parallel {asked}: this is one process (WORLD_SIZE is not set, or 1). Nothing would be parallel; "
                "some launchers start one process where two were asked for. Start with torchrun --standalone "
                "--nproc_per_node 2 -m workbench.opsd ..."
            )
        yield ALONE
        return
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if device in ("auto", "cuda") and torch.cuda.is_available() else "gloo"
    # When one process ends torchrun asks the others to: what happened is still to be said, and 30 s are enough for it.
    signal.signal(signal.SIGTERM, _hear_out)
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ProcessLost(f"the {launch.size} processes did not find each other. {_first_line(error)}.") from error
    try:
        if dist.get_world_size() != launch.size or dist.get_rank() != launch.rank:
            raise UsageError(
                f"WORLD_SIZE is {launch.size}, but {dist.get_world_size()} processes met. The run would not be the one "
                "asked for. Start every process with the same torchrun command."
            )
        ranks = Ranks(launch, asked, backend=backend)
        with ranks.lost():
            yield ranks
            dist.barrier()  # nobody hangs up on one that is still saving
    finally:
        with contextlib.suppress(Exception):  # whatever is broken by now, the process ends
            dist.destroy_process_group()


def _hear_out(number: int, frame: FrameType | None) -> None:
    """A handler, not "ignore": programs that are started would inherit that."""


def _connection(error: RuntimeError) -> bool:
    import torch.distributed as dist

    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def _first_line(error: Exception) -> str:
    """What went wrong, without where in the library, and without its guess why."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*\] ?", "", line).split(". This is typically")[0][:160].rstrip(".")
