from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.sandbox.conftest import open_or_skip
from verifiers.sandbox import Calls, Checked, Limits, Pool, Raised, Script, Value, equal

ROOT = Path(__file__).resolve().parents[2]
ADD = "def add(a, b):\n    return a + b\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n"


def test_each_call_has_its_own_result(box):
    source = "def f(x):\n    print('in', x)\n    return 6 / x\n"
    outcome = box.run(Calls(source, "f", ((2,), (0,), (3,))))
    first, second, third = outcome.values
    assert (outcome.ended, outcome.level) == ("returned", box.level)
    assert isinstance(first, Value)
    assert equal(first.data, 3)
    assert second == Raised("ZeroDivisionError", "division by zero", 3)
    assert isinstance(third, Value)
    assert equal(third.data, 2)
    assert outcome.stdout == "in 2\nin 0\nin 3\n"
    assert outcome.peak_bytes > 1 << 20
    assert outcome.cpu_seconds > 0


def test_what_does_not_load_says_where(box):
    for source, name, line in (
        ("x = (\n", "SyntaxError", 1),
        ("\n1 / 0\n", "ZeroDivisionError", 2),
        ("", "NameError", None),
    ):
        outcome = box.run(Calls(source, "f", ((),)))
        assert outcome.ended == "raised"
        assert outcome.raised is not None
        assert (outcome.raised.name, outcome.raised.line) == (name, line)


def test_arguments_are_copies_and_state_lasts_within_a_run_only(box):
    source = "seen = []\ndef f(x):\n    x.append(1)\n    seen.append(0)\n    return len(seen), x\n"
    for _ in range(2):
        values = box.run(Calls(source, "f", (([],), ([],)))).values
        assert [equal(v.data, e) for v, e in zip(values, [(1, [1]), (2, [1])], strict=True)] == [True, True]


def test_a_script_has_real_streams_and_a_status(box):
    outcome = box.run(Script("import sys\nprint(sys.stdin.read()[::-1])\nprint('e', file=sys.stderr)\n", "abc\n"))
    assert (outcome.ended, outcome.stdout, outcome.stderr, outcome.exit_status) == ("returned", "\ncba\n", "e\n", 0)
    for code, ended, status in (
        ("raise SystemExit(3)", "raised", 3),
        ("exit('no')", "raised", 1),
        ("1/0", "raised", 1),
        ("import os; os.kill(os.getpid(), 11)", "died", -11),
        (
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('late'))).start()",
            "returned",
            0,
        ),
    ):
        outcome = box.run(Script(code))
        assert (outcome.ended, outcome.exit_status) == (ended, status), code
    assert outcome.stdout == "late\n"


def test_a_check_runs_apart_from_the_candidate(box):
    assert box.run(Checked(ADD, "", CHECK, "add")).passed is True
    assert box.run(
        Checked(ADD, "Write add.", "assert add(1, 2) == 3\nassert set(add([1], [2])) == {1, 2}", "add")
    ).passed
    wrong = box.run(Checked("def add(a, b):\n    return 3\n", "", CHECK, "add"))
    assert (wrong.ended, wrong.passed) == ("returned", False)
    assert wrong.raised == Raised("AssertionError", "assert candidate(2, 2) == 4", 3)
    helper = "def double(x):\n    return 2 * x\ndef add(a, b):\n    pass\n"
    assert box.run(Checked(ADD, helper, "def check(f):\n    assert f(1, 1) == double(1)", "add")).passed


@pytest.mark.parametrize(
    ("source", "check", "ended"),
    [
        (ADD, "def check(candidate):\n    pass\n", "returned"),
        (ADD, "", "returned"),
        ("def add(a, b):\n    1 / 0\n", CHECK, "raised"),
        (
            "def add(a, b):\n    return object()\n",
            "def check(f):\n    assert f(1, 2) != 4\n    assert f(1, 2)",
            "returned",
        ),
        ("def add(a, b):\n    import os\n    os._exit(0)\n", CHECK, "died"),
        ("def add(a, b):\n    while True: pass\n", CHECK, "timeout"),
        ("import sys\nsys.modules['__main__'].check = lambda f: None\ndef add(a, b): return 0", CHECK, "returned"),
    ],
)
def test_a_check_never_passes_in_silence(box, source, check, ended):
    outcome = box.run(Checked(source, "", check, "add"), Limits(seconds=1.0))
    assert not outcome.passed
    assert outcome.ended == ended


def test_a_deadline_ends_what_does_not(box):
    for program in (
        Calls("def f():\n    while True: pass\n", "f", ((),)),
        Calls("while True: pass", "f", ((),)),
        Script("import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)"),
    ):
        assert box.run(program, Limits(seconds=0.3)).ended == "timeout"


def test_floods_are_limits(box):
    assert box.run(Script("while True: print('x' * 1000)"), Limits(seconds=20, output_bytes=1 << 20)).ended == "limit"
    flood = "import os\ndef f():\n    os.write(3, b'\\0\\0\\0\\x80')\n    while True: os.write(3, b'x' * 65536)\n"
    assert box.run(Calls(flood, "f", ((),)), Limits(seconds=20)).ended == "limit"
    garbage = "import os\ndef f():\n    os.write(3, b'\\x03\\0\\0\\0Zab')\n    os._exit(0)\n"
    assert box.run(Calls(garbage, "f", ((),))).ended == "protocol"


def test_leaving_early_is_never_an_error_of_ours(box):
    # An unjudged run costs a program nothing, so no program may choose it.
    for code in (0, 70, 1):
        assert box.run(Calls(f"import os\nos._exit({code})", "f", ((),))).ended == "died"


def test_a_server_killed_once_is_replaced_and_twice_is_the_program_s_doing(monkeypatch):
    from verifiers.sandbox import exchange

    with open_or_skip("auto") as box:
        load = exchange.Run._load
        for times, ended in ((1, "returned"), (2, "died")):
            left = [times]

            def killed(self, child, *rest, left=left):
                if left[0] and self.program.entry_point == "add":  # not the self-test of a spare that starts meanwhile
                    left[0] -= 1
                    os.kill(child.jail.process.pid, signal.SIGKILL)
                return load(self, child, *rest)

            monkeypatch.setattr(exchange.Run, "_load", killed)
            assert box.run(Calls(f"import time\ntime.sleep(0.5)\n{ADD}", "add", ((1, 2),))).ended == ended


def test_a_stopped_worker_is_an_error_of_ours_then_replaced():
    with open_or_skip("auto") as box:
        box._free[0].process.kill()
        assert box.run(Calls(ADD, "add", ((1, 2),))).ended == "returned"


def test_a_box_opened_in_a_thread_that_ended_still_works():
    opened = []
    thread = threading.Thread(target=lambda: opened.append(open_or_skip("auto")))
    thread.start()
    thread.join()
    with opened[0] as box:
        time.sleep(0.2)
        first = box._free[0].process.pid
        assert box.run(Calls(ADD, "add", ((1, 2),))).ended == "returned"
        assert box._free[0].process.pid == first


@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_nothing_survives_a_killed_parent(level):
    open_or_skip(level).close()
    code = (
        "import threading, time\nfrom verifiers.sandbox import *\n"
        f"box = Sandbox.open({level!r})\nprint(box._free[0].process.pid, flush=True)\n"
        "box.run(Calls('def f():\\n    while True: pass', 'f', ((),)), Limits(seconds=60))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.3)
    tree = descendants(parent.pid)
    assert worker in tree
    assert len(tree) > 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while tree & running() and time.monotonic() < until:
        time.sleep(0.01)
    assert not tree & running()


def descendants(pid: int) -> set[int]:
    shown = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in shown.splitlines()]
    found: set[int] = {pid}
    while new := {child for child, parent in pairs if parent in found} - found:
        found |= new
    return found - {pid}


def running() -> set[int]:
    shown = subprocess.run(["ps", "-eo", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    return {int(line.split()[0]) for line in shown.splitlines() if not line.split()[1].startswith("Z")}


def test_many_runs_leave_nothing_behind(box):
    program = Calls(ADD, "add", ((1, 2),))

    def used():
        return len(os.listdir("/proc/self/fd")), len(descendants(os.getpid())), threading.active_count()

    box.run(Checked(ADD, "", CHECK, "add"))
    before = used()
    for _ in range(100):
        assert box.run(program).ended == "returned"
    assert used() == before


def test_a_pool_runs_all_and_lets_no_more_wait_than_it_was_told():
    with open_or_skip("auto", workers=2) as box:

        async def many():
            async with Pool(box, waiting=1) as pool:
                tasks = [asyncio.create_task(pool.run(Calls(ADD, "add", ((i, 1),)))) for i in range(12)]
                await asyncio.sleep(0)
                assert pool._threads._work_queue.qsize() <= 3
                return await asyncio.gather(*tasks)

        outcomes = asyncio.run(many())
    assert [equal(o.values[0].data, i + 1) for i, o in enumerate(outcomes)] == [True] * 12


def test_wrong_use_says_so():
    with open_or_skip("auto") as box, pytest.raises(ValueError, match="plain data"):
        box.run(Calls(ADD, "add", (("x" * (9 << 20), 1),)))
    with pytest.raises(ValueError, match="closed"):
        box.run(Calls(ADD, "add", ((1, 2),)))
