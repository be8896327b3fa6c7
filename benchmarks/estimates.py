"""Is what `--dry-run` says true? Estimated over measured: peak memory, seconds of a step, disk, for models made here.

    python benchmarks/estimates.py                          three sizes, all weights, adapter, activation checkpointing
    python benchmarks/estimates.py --sizes 15M --ways all   one of them

Weights are random, so completions take all the room they have: the case that is estimated. Every estimate and every
run has a process of its own. Time is that of the second of two steps; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SIZES: dict[str, dict[str, Any]] = {
    "15M": {"hidden_size": 256, "intermediate_size": 704, "layers": 14, "heads": (8, 4), "vocab_size": 16384},
    "60M": {"hidden_size": 512, "intermediate_size": 1408, "layers": 14, "heads": (8, 4), "vocab_size": 32768},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "layers": 30, "heads": (9, 3), "vocab_size": 49152},
}
WAYS = {
    "all": [],
    "checkpointing": ["--activation-checkpointing"],
    "lora": ["--adapter", "lora:r=16,alpha=32"],
}
FLAGS = [
    "--problems",
    "sums:terms=2,maximum=30",
    "--limit",
    "32",
    "--eval-problems",
    "0",
    "--steps",
    "3",
    "--keep",
    "2",
]
FLAGS += ["--save-every", "1", "--batch", "8", "--max-new-tokens", "64", "--temperature", "1", "--progress", "quiet"]


def build(folder: Path, size: str) -> None:
    from tests.conftest import build_tiny

    shape = dict(SIZES[size])
    heads, keys = shape.pop("heads")
    with contextlib.redirect_stderr(io.StringIO()):
        build_tiny(folder, num_attention_heads=heads, num_key_value_heads=keys, initializer_range=0.02, **shape)


def estimated(flags: list[str]) -> dict[str, Any]:
    """What `--dry-run` would print, as numbers."""
    from workbench.assembly import build_engine
    from workbench.cli import parse
    from workbench.engine.allocator import retain_heap
    from workbench.estimates import estimate
    from workbench.job import fitting
    from workbench.planning import plan

    retain_heap()
    config = parse(flags)
    planned = plan(config)
    engine = build_engine(config, planned)
    found = estimate(engine, fitting(engine, planned, config), config.keep)
    disk = sum(found.disk.values()) - found.disk["one being written"]
    ((_, seconds),) = found.stages
    return {"memory": found.peak, "disk": disk, "seconds": seconds, "parts": found.memory}


def measured(flags: list[str], folder: Path) -> dict[str, Any]:
    from workbench import opsd
    from workbench.train.run_directory import read_jsonl

    if opsd.main([*flags, "--output", str(folder), "--name", "run"]):
        raise SystemExit("the run failed")
    row = read_jsonl(folder / "run/metrics.jsonl")[-1]
    disk = sum(p.stat().st_size for p in (folder / "run").rglob("*") if p.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    names = ("rollout", "score", "backward", "update")
    return {"memory": peak, "disk": disk, "seconds": {name: row["seconds"][name] for name in names}}


def child(what: str, model: Path, way: str, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--child", what, str(model), way, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--parts", action="store_true", help="what the estimate is made of")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        what, model, way, folder = asked.child
        flags = ["--model", model, "--adapter", "none", *FLAGS, *WAYS[way]]
        with contextlib.redirect_stdout(sys.stderr):
            found = estimated(flags) if what == "estimate" else measured(flags, Path(folder))
        print(json.dumps(found))
        return 0
    print("estimated / measured     memory                    disk                      step")
    for size in asked.sizes:
        with tempfile.TemporaryDirectory() as place:
            model = Path(place, "model")
            build(model, size)
            for way in asked.ways:
                guess, truth = child("estimate", model, way, Path(place)), child("run", model, way, Path(place, way))
                seconds = sum(guess["seconds"].values()), sum(truth["seconds"].values())
                cells = [
                    f"{guess[k] / truth[k]:.2f} ({guess[k] >> 20}/{truth[k] >> 20} MiB)" for k in ("memory", "disk")
                ]
                cells.append(f"{seconds[0] / seconds[1]:.2f} ({seconds[0]:.1f}/{seconds[1]:.1f} s)")
                print(f"{size:5} {way:17} {'  '.join(f'{cell:24}' for cell in cells)}", flush=True)
                phases = {k: f"{guess['seconds'].get(k, 0):.2f}/{v:.2f}" for k, v in truth["seconds"].items()}
                if asked.parts:
                    print("     ", phases)
                    for phase, parts in guess["parts"].items():
                        print("     ", phase, {name: n >> 20 for name, n in parts.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
