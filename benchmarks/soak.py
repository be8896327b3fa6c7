"""Does judging leak? Many programs through one jail after another: what this process and its children hold meanwhile.

    python benchmarks/soak.py [--runs 50000] [--level auto]

Nine programs in ten are plain; the tenth is one that raises, dies, leaves a file, floods its output, or returns what is
no plain data. Ends with 1 where anything has grown from the first tenth to the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from verifiers.sandbox import Calls, Limits, Sandbox

PLAIN = Calls("def f(x):\n    return x + 1\n", "f", ((1,), (2,)))
ODD = (
    Calls("def f():\n    raise ValueError(1)\n", "f", ((),)),
    Calls("import os\ndef f():\n    os._exit(0)\n", "f", ((),)),
    Calls("def f():\n    print('x' * 200_000)\n    return 1\n", "f", ((),)),
    Calls("def f():\n    return f\n", "f", ((),)),
    Calls("def f():\n    return [0] * 10**9\n", "f", ((),)),
    Calls("def f():\n    open('/tmp/left', 'w').write('x')\n    return 1\n", "f", ((),)),
)
RARE = 60
"""One odd program in so many is the last of them: it costs a jail."""


def held() -> dict[str, int]:
    """What may grow: this process's memory, descriptors, threads, its descendants and the machine's mounts."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found = [int(child) for child in task.read_text().split()]
            except OSError:
                continue
            children += len(found)
            waiting += found
    return {
        "kB": int(status["VmRSS"].split()[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "children": children,
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
    }


def main() -> int:
    """Run, print, compare."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--runs", type=int, default=50_000)
    ask.add_argument("--level", default="auto")
    given = ask.parse_args()
    ends: dict[str, int] = {}
    marks: list[dict[str, int]] = []
    started = time.monotonic()
    with Sandbox.open(given.level) as box:
        print(f"level {box.level}, {given.runs} runs")
        for at in range(1, given.runs + 1):
            odd = at // 10
            pick = len(ODD) - 1 if odd % RARE == 0 else odd % (len(ODD) - 1)
            outcome = box.run(ODD[pick] if at % 10 == 0 else PLAIN, Limits(seconds=5.0))
            ends[outcome.ended] = ends.get(outcome.ended, 0) + 1
            if at % max(1, given.runs // 10) == 0:
                time.sleep(1.0)  # a spare that is being started is no leak
                marks.append(held())
                print(f"{at:7d}  {marks[-1]}  {at / (time.monotonic() - started):.0f} runs/s", flush=True)
    print(f"ended: {ends}; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB")
    grown = [name for name in marks[0] if name != "kB" and marks[-1][name] > marks[0][name]]
    if marks[-1]["kB"] > 1.1 * marks[0]["kB"]:
        grown.append("memory by more than a tenth")
    print(f"grown: {', '.join(grown) or 'nothing'}")
    return 1 if grown or ends.get("infra_error") else 0


if __name__ == "__main__":
    raise SystemExit(main())
