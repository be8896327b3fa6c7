"""`make lanes`: one recipe and seed for four steps, written and trained in every way there is; one table of losses.

    make lanes                                         in process, two ranks, the HTTP double, on a tiny model
    make lanes ARGS="--model DIR --server URL"         on DIR, and written by the server that was started with it

Every completion takes the likeliest token (top-k 1): samplers draw from one distribution by different numbers, so that
samples of two of them are two samples. What is left is arithmetic: sums in another order, another attention kernel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.conftest import build_tiny
from tests.serving_double import Double
from tests.smoke import problems

STEPS = 4
ALIKE = ["--recipe", "opsd", "--steps", str(STEPS), "--batch", "4", "--group", "1", "--seed", "0", "--adapter", "none"]
SIZES = ["--max-new-tokens", "12", "--eval-problems", "0", "--progress", "quiet", "--lr", "1e-4", "--save-every", "9"]
GREEDY = ["--temperature", "1", "--top-p", "1", "--set", "sampling.top_k=1"]
OPSD = ["-m", "workbench.opsd"]
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TOLERANCE = {"two ranks": 1e-4, "HTTP double": 1e-5, "vLLM server": 1e-3}
"""Largest difference in a loss, as a share of it. Gradients summed in another order, and a server's own attention,
differ from ours in the sixth digit, and a step learns from the one before: by the fourth that has grown."""


@dataclass(frozen=True)
class Lane:
    """What one way of running gave."""

    losses: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]


def main(argv: list[str] | None = None) -> int:
    """0 where every lane agrees; 1 with the table where one does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an HF folder; a tiny random model if not given")
    parser.add_argument("--server", help="a vLLM server of that model, started with --logprobs-mode raw_logprobs")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = dict(lanes(root, given.model or build_tiny(root / "tiny"), given.server))
    good = report(found)
    if given.server is None:
        print("vLLM server: not asked (--server URL)")
    return 0 if good else 1


def lanes(root: Path, model: Path, server: str | None) -> Iterator[tuple[str, Lane]]:
    """Each way of running, one after the other."""
    data = problems(root / "problems.jsonl")

    def run(name: str, start: list[str], *more: str) -> Lane:
        where = ["--model", str(model), "--problems", str(data), "--output", str(root), "--name", name]
        command = [sys.executable, *start, *where, *ALIKE, *SIZES, *GREEDY, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return read(root / name)

    yield "in process", run("plain", OPSD)
    yield "two ranks", run("ranks", [*RANKS, *OPSD])
    with closing(Double(model, dtype=torch.float32)) as double:
        yield "HTTP double", run("double", OPSD, "--engine", "vllm", "--server", double.url)
    if server is not None:
        yield "vLLM server", run("server", OPSD, "--engine", "vllm", "--server", server)


def read(run: Path) -> Lane:
    """Losses by step, and every completion in the order of its problem."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    written = {(r["step"], r["problem"], r["index"]): tuple(r["token_ids"]) for r in rollouts}
    return Lane(tuple(row["loss"] for row in rows), tuple(written[key] for key in sorted(written)))


def report(found: dict[str, Lane]) -> bool:
    """Print the table; whether every lane is within its tolerance."""
    first, *_ = found.values()
    print(f"{'':14}" + "".join(f"{f'step {i + 1}':>14}" for i in range(STEPS)) + "     difference    tolerance  tokens")
    good = True
    for name, lane in found.items():
        apart = max(abs(a - b) / abs(b) for a, b in zip(lane.losses, first.losses, strict=True))
        same = "the same" if lane.tokens == first.tokens else "differ"
        limit = TOLERANCE.get(name, 0.0)
        good &= apart <= limit and lane.tokens == first.tokens and len(lane.losses) == STEPS
        losses = "".join(f"{loss:14.8f}" for loss in lane.losses)
        print(f"{name:14}{losses}{apart:15.1e}{limit:13.0e}  {same}")
    return good


if __name__ == "__main__":
    raise SystemExit(main())
