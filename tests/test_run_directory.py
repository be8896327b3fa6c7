"""A run directory can be written by one, read by all, killed at any moment, and says what became of the run."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import secrets
import shlex
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import Interrupted, ResourceError, UsageError
from workbench.train import run_directory
from workbench.train.interrupts import identity, read_json
from workbench.train.run_directory import (
    PATIENCE,
    JsonLines,
    RunDirectory,
    check_name,
    encode,
    follow,
    list_runs,
    made_up_name,
    newest_run,
    read_jsonl,
    resume_command,
    utc_now,
    view,
)

ROOT = Path(__file__).parents[1]
HOSTILE = "\x1b[2J\r\x07\u202e\u200b\ud800\x00 tail"


def made(path: Path, phase: str = "finished", step: int = 4) -> Path:
    """A run that has been here."""
    with RunDirectory.create(path) as run:
        run.write_run_json({"command": ["opsd"]})
        run.metrics.append({"step": step})
        run.status(phase, step)
    return path


# Records


def test_what_is_no_number_is_null_and_named() -> None:
    line = encode(
        {
            "loss": math.nan,
            "by": {"top": -math.inf, "fine": 1.0},
            "list": [1.0, math.inf],
            "array": numpy.array([math.nan]),
        }
    )
    assert json.loads(line) == {
        "loss": None,
        "by": {"top": None, "fine": 1.0},
        "list": [1.0, None],
        "array": [None],
        "bad": ["loss", "by.top", "list.1", "array.0"],
    }
    assert "bad" not in json.loads(encode({"loss": 1.0}))


def test_scalars_of_both_libraries_and_objects_are_written() -> None:
    line = encode(
        {"t": torch.tensor(2.5), "n": numpy.float32(0.5), "i": numpy.int64(3), "p": Path("a/b"), "s": {1}, "l": (1, 2)}
    )
    assert json.loads(line) == {"t": 2.5, "n": 0.5, "i": 3, "p": "a/b", "s": [1], "l": [1, 2]}


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
@settings(max_examples=80, deadline=None)
def test_any_record_is_one_line_of_ascii_and_comes_back(record: dict[str, object]) -> None:
    line = encode(record)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == record


def test_hostile_text_is_kept_as_it_was(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.rollouts.append({"text": HOSTILE})
        run.status("train", 1, error=HOSTILE)
    assert read_jsonl(tmp_path / "a" / "rollouts.jsonl")[0]["text"] == HOSTILE
    assert b"\x1b" not in (tmp_path / "a" / "rollouts.jsonl").read_bytes()
    assert view(tmp_path / "a").error == HOSTILE  # type: ignore[union-attr]


def test_a_record_knows_when_it_was_written(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.metrics.append({"step": 1})
    when = datetime.fromisoformat(read_jsonl(tmp_path / "a" / "metrics.jsonl")[0]["time"])
    assert when.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=5)


# Torn lines, reading along, cutting back (fault matrix 1, 35)


def test_a_torn_last_line_is_not_read_and_then_repaired(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [r["step"] for r in read_jsonl(path)] == [1, 2]
    lines = JsonLines(path)
    lines.append({"step": 3})
    lines.close()
    assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3]
    path.write_bytes(b"{" + b" " * 200_000)
    JsonLines(path).close()
    assert path.read_bytes() == b""


@given(st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_cut_anywhere_what_is_read_is_a_beginning_of_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.jsonl"
    content = b"".join(encode({"step": i, "text": "\u00e9\n"}).encode() + b"\n" for i in range(6))
    path.write_bytes(content[:cut])
    steps = [r["step"] for r in read_jsonl(path)]
    assert steps == list(range(content[:cut].count(b"\n")))


def test_a_reader_follows_by_offset(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert follow(path) == ([], 0)
    lines = JsonLines(path)
    lines.append({"step": 1})
    records, offset = follow(path)
    assert [r["step"] for r in records] == [1]
    assert follow(path, offset) == ([], offset)
    with open(path, "ab") as file:
        file.write(b'{"step": 2')
    assert follow(path, offset) == ([], offset)
    with open(path, "ab") as file:
        file.write(b"}\nnot json\n[1]\n")
    records, offset = follow(path, offset)
    assert records == [{"step": 2}]
    lines.truncate_to(0)
    lines.append({"step": 9})
    assert [r["step"] for r in follow(path, offset)[0]] == [9], "a file cut back is read from its start"
    lines.close()


def test_a_resume_cuts_back_to_its_checkpoint(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.write_run_json({})
        run.metrics.append({"step": 1})
        offsets = run.offsets()
        run.metrics.append({"step": 2})
        run.rollouts.append({"step": 2})
    with RunDirectory.open(tmp_path / "a") as run:
        assert run.truncate_to(offsets) == []
        run.metrics.append({"step": 2, "again": True})
    assert [r["step"] for r in read_jsonl(run.path / "metrics.jsonl")] == [1, 2]
    assert read_jsonl(run.path / "rollouts.jsonl") == []


def test_records_a_checkpoint_knew_of_and_that_are_gone_are_said(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.metrics.append({"step": 1})
        offsets = run.offsets()
        (run.path / "metrics.jsonl").write_bytes(b"")
        (note,) = run.truncate_to(offsets)
        assert note == f"metrics.jsonl lacks {offsets['metrics']} bytes that the checkpoint knew of"
        assert (run.path / "metrics.jsonl").stat().st_size == 0, "never padded with zeros"


# A full disk (fault matrix 6)


class FullDisk:
    """Writes fail after `room` bytes, the last one half done, until there is `room` again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.real = room, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, content: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.real(descriptor, bytes(content)[: self.room])
        self.room -= done
        return done


def test_records_wait_for_room_and_lose_neither_order_nor_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 0})
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, room=20)
        for step in range(1, PATIENCE):
            lines.append({"step": step})
        assert [r["step"] for r in read_jsonl(lines.path)] == [0]
        with pytest.raises(ResourceError, match="disk full"):
            lines.size()
        disk.room = 10**6
        lines.append({"step": PATIENCE})
    assert [r["step"] for r in read_jsonl(lines.path)] == list(range(PATIENCE + 1))
    assert lines.size() == lines.path.stat().st_size
    assert caplog.text.count("records wait in memory") == 1
    lines.close()


def test_a_disk_that_stays_full_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    with monkeypatch.context() as patch:
        FullDisk(patch, room=0)
        for step in range(PATIENCE - 1):
            lines.append({"step": step})
        with pytest.raises(ResourceError, match="records not written") as caught:
            lines.append({})
        assert str(tmp_path) in str(caught.value)
        assert caught.value.exit_code == 4
        lines.close()


def test_a_status_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.status("train", 1)
        with monkeypatch.context() as patch:

            def full(*arguments: object, **keywords: object) -> int:
                raise OSError(errno.ENOSPC, "full")

            patch.setattr(Path, "write_text", full)
            run.status("train", 2)
        assert view(run.path).step == 1  # type: ignore[union-attr]
        run.status("train", 3)
        assert view(run.path).step == 3  # type: ignore[union-attr]


# Directories (experience 2.3)


def test_an_existing_name_prints_the_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("runs/a"))
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(Path("runs/a"))
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "runs/a exists (finished, step 4). Continue: --resume --steps 8. New: --name a-2. "
        "From its weights: --fork runs/a."
    )
    made(Path("runs/a-2"), phase="interrupted", step=3)
    with pytest.raises(UsageError) as caught:
        RunDirectory.create(Path("runs/a-2"))
    assert str(caught.value) == (
        "runs/a-2 exists (interrupted, step 3). Continue: --resume. New: --name a-2-2. "
        "From its weights: --fork runs/a-2."
    )


def test_what_is_no_run_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"exists \(not a run\)\. New: --name a-2\.$"):
        RunDirectory.create(tmp_path / "a")
    (tmp_path / "b").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunDirectory.create(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty").close()


def test_fresh_moves_aside_and_deletes_nothing(tmp_path: Path) -> None:
    made(tmp_path / "a", step=1)
    for step in (2, 3):
        with RunDirectory.create(tmp_path / "a", fresh=True) as run:
            run.metrics.append({"step": step})
    steps = {p.name: read_jsonl(p / "metrics.jsonl")[0]["step"] for p in tmp_path.iterdir()}
    assert steps == {"a.old-1": 1, "a.old-2": 2, "a": 3}


def test_a_run_in_use_is_neither_opened_nor_moved(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.write_run_json({})
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
            RunDirectory.open(run.path)
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
            RunDirectory.create(run.path, fresh=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_resuming_what_is_not_there_names_what_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no runs"):
        RunDirectory.open(tmp_path / "opsd-1")
    made(tmp_path / "opsd-2")
    with pytest.raises(UsageError, match=r"no run .*opsd-1 to resume.*Did you mean 'opsd-2'"):
        RunDirectory.open(tmp_path / "opsd-1")
    assert not (tmp_path / "opsd-1").exists()


def test_a_made_up_name_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(["7f3a", "7f3a", "0001"])
    monkeypatch.setattr(secrets, "token_hex", lambda n: next(draws))
    assert made_up_name(tmp_path, "opsd", "smollm2") == "opsd-smollm2-7f3a"
    (tmp_path / "opsd-smollm2-7f3a").mkdir()
    assert made_up_name(tmp_path, "opsd", "smollm2") == "opsd-smollm2-0001"


@pytest.mark.parametrize(
    "model", ["HuggingFaceTB/SmolLM2-135M-Instruct", "../../x/", "a b\x1b[31m.gguf", "/", "\u6a21\u578b", "x" * 300]
)
def test_a_made_up_name_can_always_be_a_name(tmp_path: Path, model: str) -> None:
    check_name(made_up_name(tmp_path, "opsd", model))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "-rf", ".hidden", "a\nb", "a\x1b[0m", "a\u202eb", "x" * 101]
)
def test_a_name_is_not_a_path_nor_a_trick(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a run") as caught:
        check_name(name)
    assert not set("\x1b\n\u202e") & set(str(caught.value))
    if "/" not in name and name not in ("", ".", ".."):
        with pytest.raises(UsageError, match="cannot name a run"):
            RunDirectory.create(tmp_path / name)


def test_the_resume_command_can_be_pasted() -> None:
    assert resume_command(Path("runs/a")) == "python -m workbench.opsd --resume --name a"
    odd = resume_command(Path("my runs/a b;rm"), ["--steps", "8"])
    assert shlex.split(odd)[3:] == ["--resume", "--name", "a b;rm", "--output", "my runs", "--steps", "8"]


# What became of a run (fault matrix 31)


def test_a_run_is_seen_running_and_then_as_it_ended(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.write_run_json({"recipe": "opsd"})
        run.status("rollout", 3, kept=4)
        seen = view(run.path)
        assert seen is not None
        assert (seen.name, seen.state, seen.phase, seen.step) == ("a", "running", "rollout", 3)
        assert seen.status["kept"] == 4
        assert seen.run["recipe"] == "opsd"
        run.status("finished", 4)
    assert view(run.path).state == "finished"  # type: ignore[union-attr]
    assert view(tmp_path) is None


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("bang"), "failed"), (Interrupted("stop"), "interrupted"), (KeyboardInterrupt(), "interrupted")],
)
def test_an_exception_nobody_recorded_is_the_ending(tmp_path: Path, error: BaseException, state: str) -> None:
    def run() -> None:
        with RunDirectory.create(tmp_path / "a") as directory:
            directory.status("train", 2)
            raise error

    with pytest.raises(type(error)):
        run()
    seen = view(tmp_path / "a")
    assert seen is not None
    assert (seen.state, seen.step, seen.error) == (state, 2, str(error) or "KeyboardInterrupt")


def test_a_recorded_ending_is_not_overwritten(tmp_path: Path) -> None:
    def run() -> None:
        with RunDirectory.create(tmp_path / "a") as directory:
            directory.status("failed", 2, error="NaN in step 2")
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        run()
    assert view(tmp_path / "a").error == "NaN in step 2"  # type: ignore[union-attr]


def test_a_killed_run_is_dead_at_once(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from workbench.train.run_directory import RunDirectory
        run = RunDirectory.create(Path(sys.argv[1]))
        run.write_run_json({})
        run.status("train", 3)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], cwd=ROOT, check=False)
    seen = view(tmp_path / "a")
    assert seen is not None
    assert (seen.state, seen.phase, seen.step) == ("dead", "train", 3)
    with RunDirectory.open(tmp_path / "a"):
        assert view(tmp_path / "a").state == "running"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("age", "host", "state"),
    [
        (0, "here", "running"),
        (3600, "here", "stalled"),
        (0, "elsewhere", "running"),
        (3600, "elsewhere", "dead"),
        (-3600, "here", "running"),
    ],
)
def test_a_silent_process_is_stalled_and_an_unreachable_one_dead(
    tmp_path: Path, age: float, host: str, state: str
) -> None:
    beat = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    status = {**identity(), "phase": "train", "step": 1, "heartbeat": beat}
    if host != "here":
        status["host"] = "another machine"
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert view(tmp_path).state == state  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"phase": 3, "step": "x", "heartbeat": 7}', b"\xff\xfe"]
)
def test_a_broken_status_is_a_dead_run_and_not_a_broken_reader(tmp_path: Path, content: bytes) -> None:
    made(tmp_path / "a")
    (tmp_path / "a" / "status.json").write_bytes(content)
    seen = view(tmp_path / "a")
    assert seen is not None
    assert (seen.state, seen.step) == ("dead", 0)
    assert [run.name for run in list_runs(tmp_path)] == ["a"]


def test_the_heart_beats_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "BEAT", 0.01)
    with RunDirectory.create(tmp_path / "a") as run:
        first, beats = view(run.path).heartbeat, threading.Event()  # type: ignore[union-attr]
        for _ in range(500):
            if view(run.path).heartbeat != first:  # type: ignore[union-attr]
                beats.set()
                break
            threading.Event().wait(0.01)
        assert beats.is_set()
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]
    run.close()  # twice is fine


def test_a_reader_never_meets_half_a_status(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        done, met = threading.Event(), []

        def read() -> None:
            while not done.is_set():
                met.append(read_json(run.path / "status.json").get("step", -1))

        reader = threading.Thread(target=read)
        reader.start()
        for step in range(200):
            run.status("train", step)
        done.set()
        reader.join()
        assert met
        assert -1 not in met
        assert met == sorted(met)


def test_runs_are_listed_the_one_heard_of_last_first(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "absent") == []
    assert newest_run(tmp_path) is None
    for i, name in enumerate(("b", "a", "c")):
        made(tmp_path / name)
        status = read_json(tmp_path / name / "status.json") | {"heartbeat": f"2026-01-01T00:00:0{i}.000+00:00"}
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "other").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["c", "a", "b"]
    assert newest_run(tmp_path).name == "c"  # type: ignore[union-attr]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    made(tmp_path / "a")

    def state() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*"))

    before = state()
    list_runs(tmp_path)
    view(tmp_path / "a")
    read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert state() == before


def test_run_json_is_whole_and_dated(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        assert run.run_json == {}
        run.write_run_json({"command": ["--x", HOSTILE], "lr": math.inf})
        assert run.run_json["command"] == ["--x", HOSTILE]
        assert (run.run_json["lr"], run.run_json["bad"]) == (None, ["lr"])
        assert run.run_json["created"] <= utc_now()
        assert not list(run.path.glob(".run.json*"))


# run.log


def test_the_log_takes_ours_and_the_libraries_and_obeys_neither(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory.create(tmp_path / "a") as run:
        run.write_run_json({})
        logging.getLogger("workbench.train").info("said %s", HOSTILE)
        logging.getLogger("some.library").warning("warned\nin two lines")
        logging.getLogger("some.library").info("chatter")
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("workbench").exception("failed")
    logging.getLogger("workbench").warning("afterwards")
    log = (run.path / "run.log").read_bytes()
    assert log.isascii()
    assert not set(b"\x1b\r\x07\x00") & set(log)
    text = log.decode()
    assert "INFO workbench.train: said \\x1b[2J\\r" in text
    assert "WARNING some.library: warned\nin two lines" in text
    assert "Traceback" in text
    assert "chatter" not in text
    assert "afterwards" not in text
    assert datetime.fromisoformat(text.split()[0]).utcoffset() == timedelta(0)


def test_each_attempt_has_its_log(tmp_path: Path) -> None:
    made(tmp_path / "a")
    for attempt in (1, 2, 3):
        with RunDirectory.open(tmp_path / "a") as run:
            logging.getLogger("workbench").warning("attempt %d", attempt)
    assert sorted(p.name for p in (run.path / "logs").iterdir()) == ["attempt-1.log", "attempt-2.log"]
    assert "attempt 1" in (run.path / "logs" / "attempt-1.log").read_text()
    assert "attempt 3" in (run.path / "run.log").read_text()
