"""One way of doing a piece of work, in a process of its own: `python worker.py MODULE:NAME ARGUMENTS`.

MODULE:NAME(**ARGUMENTS) gives a way: an object with `run()`, which does the work once, and perhaps `clear()`, which
puts back what it left, `facts()`, what the last run came to, and `save(path)`. The process then answers one line of
JSON for every word it reads: `warm` (the first run, with the resident memory it took), `time`, `peak`, `save PATH`.
One thread, process CPU time, and a heap that keeps what is freed: otherwise page faults are measured.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def seconds(way: Any) -> float:
    start = time.process_time()
    way.run()
    return time.process_time() - start


def answer(way: Any, word: str, argument: str) -> dict[str, Any]:
    from memory import Peak, forget_most, resident

    if word == "peak":
        with Peak() as peak:
            way.run()
        out: dict[str, Any] = {"peak": peak.most}
    elif word == "warm":
        forget_most()
        before = resident()
        out = {"seconds": seconds(way), "resident": resident(most=True) - before}
    elif word == "save":
        way.run()
        way.save(argument)
        out = {}
    else:
        out = {"seconds": seconds(way)}
    out["facts"] = way.facts() if hasattr(way, "facts") else {}
    if hasattr(way, "clear"):
        way.clear()
    return out


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    sys.path.append(str(ROOT))
    import torch

    torch.set_num_threads(1)
    # By path: the environment of the peers holds nothing of the workbench but this file.
    retained = runpy.run_path(str(ROOT / "workbench/engine/allocator.py"))["retain_heap"]()
    module, name = sys.argv[1].split(":")
    way = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps({"retained": retained}), file=answers, flush=True)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        print(json.dumps(answer(way, word, argument)), file=answers, flush=True)


if __name__ == "__main__":
    main()
