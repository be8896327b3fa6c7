"""One recipe, one seed, four steps, by everybody who can write: do the losses agree?

    python benchmarks/engines.py --server http://127.0.0.1:8911       a real server beside the double and this process
    python benchmarks/engines.py --ranks 2                            and the same on two processes

Every token is the likeliest (top-k 1 at temperature 1), since engines draw differently from one distribution. Prints
one table: the loss of each step, and how far it is from that of this process, relative to it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.serving_double import Double
from workbench.engine.loading import load
from workbench.engine.serving.publishing import write_folder
from workbench.train.run_directory import read_jsonl

STEPS = 4
FLAGS = "--temperature 1 --top-p 1 --set sampling.top_k=1 --batch 4 --eval-problems 0 --progress quiet --save-every 50"


def losses(root: Path, name: str, flags: list[str], launch: list[str]) -> list[float]:
    """The loss of each step of a run. Raises CalledProcessError where it fails."""
    line = [*launch, "-m", "workbench.opsd", *flags, "--output", str(root), "--name", name]
    subprocess.run(line, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=sys.stderr)
    return [row["loss"] for row in read_jsonl(root / name / "metrics.jsonl")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--server", help="a real server of this model")
    parser.add_argument("--ranks", type=int, help="also on so many processes, by torchrun")
    parser.add_argument("--tokens", type=int, default=12)
    asked = parser.parse_args()
    shared = [*FLAGS.split(), "--steps", str(STEPS), "--model", asked.model, "--max-new-tokens", str(asked.tokens)]
    served = ["--engine", "vllm", "--server"]
    with tempfile.TemporaryDirectory() as folder:
        root, alone = Path(folder), [sys.executable]
        loaded = load(asked.model, dtype=torch.float32)
        write_folder(loaded.model, loaded.tokenizer, root / "model")
        found = {"in process": losses(root, "here", shared, alone)}
        with Double(root / "model", dtype=torch.float32) as double:
            found["through the double"] = losses(root, "double", [*shared, *served, double.url], alone)
        if asked.server:
            found["through the server"] = losses(root, "server", [*shared, *served, asked.server], alone)
        if asked.ranks:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={asked.ranks}"]
            found[f"{asked.ranks} processes"] = losses(root, "ranks", shared, launch)
    print("| written | " + " | ".join(f"step {i + 1}" for i in range(STEPS)) + " | largest difference |")
    print("|" + "---|" * (STEPS + 2))
    for name, row in found.items():
        worst = max(abs(a / b - 1) for a, b in zip(row, found["in process"], strict=True))
        print(f"| {name} | " + " | ".join(f"{x:.7f}" for x in row) + f" | {worst:.1e} |")


if __name__ == "__main__":
    main()
