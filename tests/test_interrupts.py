"""Signals in real processes: one saves, two stop at once (fault matrix 3 to 5, as far as this layer goes)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from workbench.errors import Interrupted
from workbench.train.interrupts import STOPPING, Interrupts

ROOT = Path(__file__).parents[1]

SCRIPT = """
    import signal, sys, time
    from workbench.errors import Interrupted
    from workbench.train.interrupts import Interrupts

    patient = sys.argv[1] == "patient"
    try:
        with Interrupts() as stopped:
            print("ready", flush=True)
            while not (patient and stopped()):
                time.sleep(0.005)
        print("saved", stopped.signal_number, flush=True)
        sys.exit(128 + stopped.signal_number)
    except Interrupted as error:
        print(f"at once: {error}", flush=True)
        sys.exit(error.exit_code)
"""


def start(kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_says_so_once(number: signal.Signals) -> None:
    process = start("patient")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == f"saved {int(number)}\n"
    assert err == "stopping after this rollout, saving; again to stop at once\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)],
)
def test_the_second_signal_stops_at_once(first: signal.Signals, second: signal.Signals) -> None:
    process = start("busy")
    assert process.stderr is not None
    process.send_signal(first)
    assert process.stderr.readline() == STOPPING + "\n"  # two that are pending together would be one
    process.send_signal(second)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + second
    assert "at once" in out
    assert "--resume" in out
    assert err == ""


def test_an_inherited_ignore_does_not_make_a_run_unstoppable() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("patient")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert process.returncode == 130


def test_a_closed_stderr_does_not_break_the_handler() -> None:
    code = (
        "import os, signal\n"
        "from workbench.train.interrupts import Interrupts\n"
        "os.close(2)\n"
        "with Interrupts() as stopped:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stopped()\n"
        "    os._exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 7


def test_handlers_are_called_too_and_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    mine = lambda number, frame: seen.append(number)  # noqa: E731
    previous = signal.signal(signal.SIGTERM, mine)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with Interrupts() as stopped:
            assert not stopped()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped()
            assert stopped()
            assert stopped.signal_number == signal.SIGTERM
            with pytest.raises(Interrupted) as caught:
                signal.raise_signal(signal.SIGTERM)
            assert caught.value.exit_code == 143
        assert seen == [signal.SIGTERM] * 2
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_nested_ones_both_learn_of_it() -> None:
    with Interrupts() as outer, Interrupts() as inner:
        signal.raise_signal(signal.SIGINT)
        assert outer()
        assert inner()


def test_outside_the_main_thread_it_stays_out_of_the_way() -> None:
    before, results = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupts() as stopped:
            results.append((stopped(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [(False, True)]
