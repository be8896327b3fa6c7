"""How this process was started: plainly and alone, or as one of several by torchrun. Read without loading torch.

torchrun tells its processes in the environment who they are. Nothing else is listened to: a launcher that starts one
process where two were asked for, and says nothing, is found out by what is missing here.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from workbench.errors import UsageError

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets."""


@dataclass(frozen=True)
class Launch:
    """One process among `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of its host."""
    local_size: int = 1
    """Processes of its host."""
    host: int = 0
    master: str = ""
    """address:port where the hosts meet; empty where there is one host."""

    @property
    def hosts(self) -> int:
        """Hosts with as many processes as this one."""
        return self.size // self.local_size

    @property
    def command(self) -> list[str]:
        """What starts a module as this process was started: to paste in front of its name."""
        if self.size == 1:
            return ["python", "-m"]
        each = ["--nproc_per_node", str(self.local_size)]
        if self.hosts == 1:
            return ["torchrun", "--standalone", *each, "-m"]
        address, _, port = self.master.rpartition(":")
        where = ["--nnodes", str(self.hosts), "--node_rank", str(self.host)]
        return ["torchrun", *where, "--master_addr", address, "--master_port", port, *each, "-m"]


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """Who this process is. Raises UsageError where a launcher that is not torchrun said half of it."""
    env = os.environ if environment is None else environment
    if env.get("WORLD_SIZE", "1") == "1":
        return Launch()
    missing = [name for name in TOLD if not env.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {env['WORLD_SIZE']}, but {', '.join(missing)} is not set. Processes find each other "
            "by what torchrun tells them. Start with torchrun --standalone --nproc_per_node 2 -m workbench.opsd ..."
        )
    try:
        rank, size, local, here = (int(env[name]) for name in TOLD[:4])
        host = int(env.get("GROUP_RANK", rank // here))
    except ValueError as error:
        raise UsageError(f"what torchrun says is no number: {error}. Start with torchrun.") from error
    if not 0 <= rank < size or size % here:
        raise UsageError(
            f"RANK={rank} of WORLD_SIZE={size} with {here} processes on this host cannot be. Every host runs as many. "
            "Give every torchrun the same --nproc_per_node."
        )
    return Launch(rank, size, local, here, host, f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}")


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several ends at once: threads of its connections may still run, and taking the interpreter down under them
    now and then aborts a process whose work is done.
    """
    if launched().size > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def alone(command: str) -> None:
    """Refuse a command that several processes would run each for itself. Raises UsageError."""
    if (n := launched().size) > 1:
        raise UsageError(
            f"{command} runs in one process, and torchrun started {n}. Each would do all of it and write the same "
            f"files. Start it with python -m {command} ..."
        )
