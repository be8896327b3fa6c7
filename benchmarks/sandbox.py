"""What isolation costs: runs in each jail beside an unisolated `python -I -S -E -c`, interleaved.

python benchmarks/sandbox.py [--rounds 100]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from verifiers.sandbox import Calls, Checked, Limits, Sandbox, SandboxUnavailable, Script

FUNCTION = "def add(a, b):\n    return a + b\n"
CALLS = Calls(FUNCTION, "add", ((2, 3), (-7, 4), (10**12, 1)))
SCRIPT = Script("print(sum(map(int, input().split())))", "1 2 3\n")
CHECK = Checked(FUNCTION, "", "def check(candidate):\n    assert candidate(2, 3) == 5\n", "add")
PLAIN = [sys._base_executable, "-I", "-S", "-E", "-c", FUNCTION + "print(add(2, 3), add(-7, 4), add(10**12, 1))"]


def plain() -> None:
    subprocess.run(PLAIN, capture_output=True, check=True)


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


def latency(boxes: dict[str, Sandbox], rounds: int) -> None:
    ways: dict[str, Callable[[], object]] = {"plain": plain}
    for level, box in boxes.items():
        for name, program in (("calls", CALLS), ("script", SCRIPT), ("check", CHECK)):
            ways[f"{level} {name}"] = partial(box.run, program)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(timed(way))
    base = statistics.median(times["plain"])
    for name, found in times.items():
        middle = statistics.median(found)
        late = statistics.quantiles(found, n=20)[-1]
        print(f"{name:16} median {middle:6.2f} ms   p95 {late:6.2f} ms   {middle / base:5.2f} of plain")


def throughput(level: str, workers: int, seconds: float = 3.0) -> None:
    rates = {}
    with Sandbox.open(level, workers) as box:
        for name, way in (("plain", plain), (level, lambda: box.run(CALLS))):
            until, done = time.monotonic() + seconds, 0

            def keep(way: Callable[[], object] = way, until: float = until) -> int:
                count = 0
                while time.monotonic() < until:
                    way()
                    count += 1
                return count

            with ThreadPoolExecutor(workers) as threads:
                done = sum(future.result() for future in [threads.submit(keep) for _ in range(workers)])
            rates[name] = done / seconds
    print(f"{level} x{workers}: {rates[level]:.0f} /s, plain {rates['plain']:.0f}: {rates[level] / rates['plain']:.2f}")


def overshoot(box: Sandbox, rounds: int) -> None:
    spin = Calls("def f():\n    while True: pass\n", "f", ((),))
    late = [box.run(spin, Limits(seconds=0.2)).wall_seconds - 0.2 for _ in range(rounds)]
    print(f"{box.level} overshoot: median {1000 * statistics.median(late):.1f} ms, most {1000 * max(late):.1f} ms")


HELD = """
import sys
sys.path.insert(0, sys.argv[2])
from verifiers.sandbox import Calls, Limits, Sandbox
box = Sandbox.open(sys.argv[1])
print("open", flush=True)
box.run(Calls("def f():\\n    while True: pass\\n", "f", ((),)), Limits(seconds=60))
"""


def descendants(pid: int) -> set[int]:
    """All processes below one, as they are now."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def orphaned(level: str, rounds: int) -> None:
    """From killing the parent of a jail in the middle of a run until nothing of it lives."""
    times = []
    for _ in range(rounds):
        here = str(Path(__file__).resolve().parents[1])
        parent = subprocess.Popen([sys.executable, "-c", HELD, level, here], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"open\n"
        until = time.monotonic() + 10
        while not busy(below := descendants(parent.pid)) and time.monotonic() < until:
            time.sleep(0.01)
        started = time.perf_counter()
        parent.kill()
        while any(map(alive, below)):
            time.sleep(0.0005)
        times.append(1000 * (time.perf_counter() - started))
        parent.wait()
        parent.stdout.close()
    print(f"{level} parent killed, all dead: median {statistics.median(times):.0f} ms, most {max(times):.0f} ms")


def busy(pids: set[int]) -> bool:
    """Whether a run is on its way: a process that has used processor time in its own right."""
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] == "R" and int(fields[11]) > 5:
                return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    boxes: dict[str, Sandbox] = {}
    for level in ("bwrap", "landlock"):
        try:
            took = timed(lambda level=level: boxes.setdefault(level, Sandbox.open(level)))
            print(f"{level}: open and proved in {took:.0f} ms")
        except SandboxUnavailable as refusal:
            print(refusal)
    latency(boxes, rounds)
    for box in boxes.values():
        overshoot(box, 10)
        box.close()
    for level in boxes:
        orphaned(level, 10)
    for level in boxes:
        for workers in (1, 2):
            throughput(level, workers)


if __name__ == "__main__":
    main()
