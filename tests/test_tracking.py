"""Trackers as programs of their own: real ones where they are installed, and stand-ins that do what no run may feel."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workbench.train import tracking
from workbench.train.tracking import Tracking

FAKE = """
import json, os, sys, time
def _say(*what):
    with open({log!r}, "a") as file:
        file.write(json.dumps(what) + "\\n")
def init(**keywords):
    print("a banner", flush=True)
    {init}
    _say("init", keywords)
def log(values, step):
    {log_body}
    _say("log", values, step)
def finish():
    {finish}
    _say("finish")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch):
    """Put a module in the place of a tracker's library; code in `init`, `log` and `finish` is its bad habits."""

    def make(kind: str, init: str = "pass", log: str = "pass", finish: str = "pass") -> Path:
        folder, calls = tmp_path / "fakes", tmp_path / "calls.jsonl"
        folder.mkdir(exist_ok=True)
        (folder / f"{kind}.py").write_text(FAKE.format(log=str(calls), init=init, log_body=log, finish=finish))
        monkeypatch.syspath_prepend(str(folder))
        return calls

    return make


def calls_of(path: Path) -> list[list[Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def track(kind: str, folder: Path, first: int = 1) -> tuple[Tracking, list[str]]:
    warnings: list[str] = []
    run = folder / "run"
    run.mkdir(exist_ok=True)
    followed = Tracking(kind, run, warnings.append)
    followed.start("a", {"lr": 1e-5})
    followed.scalars(first, {"step": first, "loss": 0.5, "bad": math.nan, "text": "x", "none": None})
    followed.finish()
    return followed, warnings


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_a_tracker_gets_three_calls(kind: str, tmp_path: Path, fake) -> None:
    calls = fake(kind)
    followed, warnings = track(kind, tmp_path)
    assert followed.failures == 0, warnings
    (where,) = warnings
    assert where.startswith(f"tracker {kind} "), "where to look is said once"
    start, scalars, finish = calls_of(calls)
    assert start[0] == "init"
    assert (start[1]["project"], start[1]["config"]) == ("opsd", {"lr": 1e-5})
    assert start[1]["name"].startswith("a")
    assert scalars == ["log", {"loss": 0.5}, 1]
    assert finish == ["finish"]
    assert "a banner" in (tmp_path / "run" / "logs" / "tracker.log").read_text(), "what it prints is no output of ours"


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_a_resumed_run_goes_on_with_the_same_run_and_sends_no_step_twice(kind: str, tmp_path: Path, fake) -> None:
    calls = fake(kind)
    track(kind, tmp_path, first=3)
    track(kind, tmp_path, first=3)  # comes again after a kill
    track(kind, tmp_path, first=4)
    first, *later = (call[1] for call in calls_of(calls) if call[0] == "init")
    same = "name" if kind == "trackio" else "id"
    assert {start[same] for start in (first, *later)} == {first[same]}
    assert [start["resume"] for start in (first, *later)] == (
        ["never", "allow", "allow"] if kind == "trackio" else ["allow"] * 3
    )
    assert [c[2] for c in calls_of(calls) if c[0] == "log" and "loss" in c[1]] == [3, 4]


def test_another_run_directory_is_another_run(tmp_path: Path, fake) -> None:
    calls = fake("wandb")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    track("wandb", tmp_path / "one")
    track("wandb", tmp_path / "two")
    one, two = (call[1]["id"] for call in calls_of(calls) if call[0] == "init")
    assert one != two


@pytest.mark.parametrize(
    ("habit", "says", "failures"),
    [
        (
            {"init": "raise ConnectionError('\\x1b[31mserver gone')"},
            r"in start: ConnectionError: \x1b[31mserver gone",
            3,
        ),
        ({"log": "raise ValueError('no')"}, "in scalars: ValueError: no", 1),
        ({"finish": "sys.exit(3)"}, "in finish: SystemExit: 3", 1),
        ({"init": "os._exit(9)"}, "its process ended with code 9", 1),
        ({"log": "os.kill(os.getpid(), 11)"}, "its process ended with code -11", 1),
    ],
)
def test_a_tracker_that_fails_is_said_once_and_counted(habit, says: str, failures: int, tmp_path: Path, fake) -> None:
    fake("wandb", **habit)
    followed, warnings = track("wandb", tmp_path)
    assert followed.failures == failures, warnings
    failed = [w for w in warnings if w.startswith("tracker wandb failed in ")]
    assert len(failed) == 1
    assert says in failed[0]
    assert "The run goes on" in failed[0]


def test_a_tracker_that_hangs_holds_up_nothing_and_is_ended(tmp_path: Path, fake, monkeypatch) -> None:
    fake("wandb", log="time.sleep(1000)")
    monkeypatch.setattr(tracking, "FINISH", 1.0)
    monkeypatch.setattr(tracking, "SILENT", 0.0)
    monkeypatch.setattr(tracking, "WAITING", 20)
    warnings: list[str] = []
    followed = Tracking("wandb", tmp_path, warnings.append)
    followed.start("a", {})
    assert followed._process is not None
    child = followed._process.pid
    for step in range(1, 40):  # more than may wait
        followed.scalars(step, {"loss": "x" * 100, "x": 1.0})
    for step in range(40, 3000):
        followed.scalars(step, {f"name {'y' * 300}": 1.0})
    followed.finish()
    said = " ".join(warnings)
    assert "has not answered for 0 s" in said
    assert "not done after 1 s, so it was ended" in said
    assert followed.dropped > 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_tracker_outlives_ctrl_c_but_not_a_run_that_is_killed(tmp_path: Path, fake) -> None:
    """Ctrl-C reaches the whole group of the terminal; the tracker still sends what it has when the run is gone."""
    calls = fake("wandb", log="time.sleep(0.2)")
    program = (
        "import sys, time; from pathlib import Path; from workbench.train.tracking import Tracking\n"
        f"t = Tracking('wandb', Path({str(tmp_path)!r}), print); t.start('a', {{}})\n"
        "t.scalars(1, {'x': 1.0}); time.sleep(0.5); print('ready', flush=True); time.sleep(100)"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stdout is not None
    with run.stdout:
        assert run.stdout.readline() == b"ready\n"
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    end = time.monotonic() + 60
    while calls_of(calls)[-1:] != [["finish"]] and time.monotonic() < end:
        time.sleep(0.05)
    assert [call[0] for call in calls_of(calls)] == ["init", "log", "finish"]


def test_a_tracker_that_is_not_installed_is_said(tmp_path: Path, fake) -> None:
    fake("wandb", init="raise ImportError('no wandb here')")
    _, warnings = track("wandb", tmp_path)
    assert 'pip install ".[track]"' in warnings[0]


def test_no_tracker_is_no_process_and_no_file(tmp_path: Path) -> None:
    followed, warnings = track("none", tmp_path)
    assert (followed.failures, warnings, os.listdir(tmp_path / "run")) == (0, [], [])


def real(kind: str) -> pytest.MarkDecorator:
    """Tests with the library itself, where it is installed."""
    return pytest.mark.skipif(importlib.util.find_spec(kind) is None, reason=f"{kind} is not installed: extra `track`")


@real("trackio")
def test_trackio_itself_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for first in (1, 2, 2, 3):
        followed, warnings = track("trackio", tmp_path, first)
        assert followed.failures == 0, warnings
    import sqlite3

    with sqlite3.connect(tmp_path / "trackio" / "opsd.db") as stored:
        rows = stored.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [(step, json.loads(m)) for _, step, m in rows if b"loss" in m] == [(k, {"loss": 0.5}) for k in (1, 2, 3)]


@real("wandb")
def test_wandb_itself_writes_below_the_run_while_offline(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for first in (1, 2):
        followed, warnings = track("wandb", tmp_path, first)
        assert followed.failures == 0, warnings
    known = json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]
    stored = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{known['id']}.wandb"))
    assert len(stored) == 2, "two attempts of one run: `wandb sync` joins what has one id"


@real("tensorboard")
def test_tensorboard_itself_reads_every_step_once(tmp_path: Path) -> None:
    for first in (1, 2, 2):
        followed, warnings = track("tensorboard", tmp_path, first)
        assert followed.failures == 0, warnings
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 0.5), (2, 0.5)]
