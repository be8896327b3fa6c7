"""The main job on two processes: it leaves behind what one does, and ends as it should when one of the two does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.serving_double import Double
from tests.test_job import FLAGS, ROOT, status
from tests.test_ranks import STRATEGIES, same
from workbench import opsd
from workbench.train.run_directory import read_jsonl, view

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
AT_ONCE = 30.0
"""Seconds in which all processes are to be gone once one of them is."""


@pytest.fixture
def start(tiny_folder: Path, tmp_path: Path, monkeypatch) -> Callable[..., subprocess.Popen[bytes]]:
    """`start("--name", "a", ...)` starts the main job on two processes; what it says goes to said.txt."""
    monkeypatch.chdir(tmp_path)

    def begin(*flags: str, launcher: list[str] = TORCHRUN) -> subprocess.Popen[bytes]:
        line = [*launcher, *(["workbench.opsd"] if launcher is TORCHRUN else []), "--model", str(tiny_folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
        with Path("said.txt").open("wb") as said:
            return subprocess.Popen([*line, *FLAGS, *flags], env=environment, stdout=said, stderr=said)

    return begin


def ended(process: subprocess.Popen[bytes], timeout: float = 240) -> tuple[int, str]:
    """(exit code, what was said)."""
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    return code, Path("said.txt").read_text(errors="replace")


def alone(tiny_folder: Path, *flags: str) -> None:
    assert opsd.main(["--model", str(tiny_folder), *FLAGS, *flags]) == 0


def same_run(one: str, other: str, to: float) -> None:
    """The same problems, tokens, verdicts and order; figures to float32's rounding, which AdamW carries on."""
    for name in ("rollouts", "metrics"):
        first, second = (read_jsonl(Path("runs", run, f"{name}.jsonl")) for run in (one, other))
        assert len(first) == len(second) > 0
        same([plain(row) for row in first], [plain(row) for row in second], to, name)
    first, second = (read_jsonl(Path("runs", run, "evaluations.jsonl")) for run in (one, other))
    same([plain(row) for row in first], [plain(row) for row in second], to, "evaluations")


def plain(row: dict) -> dict:
    """Without what no two runs share; of the accounts the tokens: less is shared by two who read apart."""
    own = {"time", "seconds", "peak_bytes", "notes", "flops", "times_bound", "accounts"}
    tokens = (
        {"tokens": {k: v for k, v in row["accounts"]["tokens"].items() if k != "read"}} if "accounts" in row else {}
    )
    return {key: value for key, value in row.items() if key not in own} | tokens


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_leave_behind_what_one_does(start, tiny_folder: Path, strategy: str) -> None:
    code, said = ended(start("--name", "two", "--steps", "3", "--parallel", strategy))
    assert code == 0, said[-3000:]
    assert f"processes      2 on 1 host, {strategy} (gloo)" in said
    assert said.count("step 3/3") == said.count("verdict  ") == 1, "one process speaks"
    alone(tiny_folder, "--name", "one", "--steps", "3")
    same_run("one", "two", 5e-5)
    assert {p.name for p in Path("runs/two").iterdir()} == {p.name for p in Path("runs/one").iterdir()}
    alone(tiny_folder, "--name", "again", "--steps", "0", "--eval-problems", "0", "--model", "runs/two/final")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_with_another_number_of_processes(start, tiny_folder: Path, strategy: str) -> None:
    recipe = ("--recipe", "opsdc", "--set", "refresh.every=2")
    alone(tiny_folder, *recipe, "--name", "one", "--steps", "3")
    alone(tiny_folder, *recipe, "--name", "two", "--steps", "1")
    code, said = ended(start(*recipe, "--name", "two", "--steps", "2", "--resume", "--parallel", strategy))
    assert code == 0, said[-3000:]
    assert "resuming from step 1" in said
    alone(tiny_folder, *recipe, "--name", "two", "--steps", "3", "--resume")
    same_run_but_evaluations("one", "two")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_written_by_one_server(start, tiny_folder: Path, strategy: str) -> None:
    """The first rank sends and probes, both ask, and nothing depends on how many there are."""
    served = ("--temperature", "1", "--top-p", "1", "--set", "sampling.top_k=0", "--engine", "vllm", "--server")
    with Double(tiny_folder, dtype=torch.float32) as server:
        code, said = ended(start("--name", "two", "--steps", "3", "--parallel", strategy, *served, server.url))
        assert code == 0, said[-3000:]
        sent = [body["new_version"] for route, body in server.calls if route == "/update_weight_version"]
    assert [label.partition("-")[0] for label in sent] == ["0", "1", "2", "3"], "each version is sent once"
    with Double(tiny_folder, dtype=torch.float32) as server:
        alone(tiny_folder, "--name", "one", "--steps", "3", *served, server.url)
    same_run_but_evaluations("one", "two")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_server_that_dies_ends_both_processes(start, tiny_folder: Path, strategy: str) -> None:
    served = ("--temperature", "1", "--top-p", "1", "--set", "sampling.top_k=0", "--engine", "vllm", "--server")
    with Double(tiny_folder, dtype=torch.float32, die_after=26) as server:
        code, said = ended(start("--name", "two", "--steps", "9", "--parallel", strategy, *served, server.url), 120)
    assert code == 1
    assert "cannot be reached" in said
    assert "Continue: " in said, said[-3000:]
    assert status("two")["phase"] == "failed"


def test_a_teachers_server_that_dies_ends_both_processes(start, tiny_folder: Path) -> None:
    """Bug: the one that learnt of it asked the other, which waited for its gradient: two hours of silence."""
    with Double(tiny_folder, dtype=torch.float32) as server:
        process = start(
            "--recipe", "gkd", "--teacher", server.url, "--name", "two", "--steps", "500", "--parallel", "ddp"
        )
        in_training(process, "two")
    code, said = ended(process, AT_ONCE)
    assert code == 1
    assert "cannot be reached" in said
    assert "Continue: torchrun" in said


def same_run_but_evaluations(one: str, other: str) -> None:
    """An attempt that ends evaluates once more."""
    losses = [[row["loss"] for row in read_jsonl(Path("runs", run, "metrics.jsonl"))] for run in (one, other)]
    tokens = [[row["token_ids"] for row in read_jsonl(Path("runs", run, "rollouts.jsonl"))] for run in (one, other)]
    assert tokens[0] == tokens[1]
    assert losses[1] == pytest.approx(losses[0], abs=5e-5)


def ranks_of(launcher: int) -> list[int]:
    """Process ids of the ranks that a torchrun started, by rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher:
            rank = next((int(x[5:]) for x in environment if x.startswith(b"RANK=")), None)
            found += [] if rank is None else [(rank, int(folder.name))]
    return [pid for _, pid in sorted(found)]


def in_training(process: subprocess.Popen[bytes], name: str) -> list[int]:
    """Wait for two steps; the process ids of the ranks."""
    until = time.monotonic() + 240
    while len(read_jsonl(Path("runs", name, "metrics.jsonl"))) < 2:
        assert process.poll() is None, Path("said.txt").read_text()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    return ranks_of(process.pid)


@pytest.mark.parametrize(("victim", "strategy"), [(1, "ddp"), (0, "ddp"), (1, "fsdp2")])
def test_a_killed_process_ends_all_and_the_run_goes_on(start, tiny_folder: Path, victim: int, strategy: str) -> None:
    process = start("--name", "a", "--steps", "500", "--parallel", strategy)
    ranks = in_training(process, "a")
    os.kill(ranks[victim], signal.SIGKILL)
    code, said = ended(process, AT_ONCE)
    assert code != 0
    assert f"process {1 - victim} of 2: another process of the run is gone" in said
    assert "Continue: torchrun --standalone --nproc_per_node 2 -m workbench.opsd --resume --name a" in said
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks)
    assert view(Path("runs/a")).state in {"failed", "dead"}
    done = read_jsonl(Path("runs/a/metrics.jsonl"))[-1]["step"]
    code, said = ended(start("--name", "a", "--steps", str(done + 2), "--resume", "--parallel", strategy))
    assert code == 0, said[-3000:]
    assert [row["step"] for row in read_jsonl(Path("runs/a/metrics.jsonl"))] == list(range(1, done + 3))


@pytest.mark.parametrize(("number", "strategy"), [(signal.SIGTERM, "ddp"), (signal.SIGINT, "fsdp2")])
def test_a_signal_stops_all_at_one_step_and_saves(start, number: signal.Signals, strategy: str) -> None:
    process = start("--name", "a", "--steps", "500", "--save-every", "1000", "--parallel", strategy)
    in_training(process, "a")
    process.send_signal(number)
    _, said = ended(process, AT_ONCE)
    step = status("a")["step"]
    assert f"saved step {step}. Continue: torchrun" in said
    assert view(Path("runs/a")).state == "interrupted"
    assert step == read_jsonl(Path("runs/a/metrics.jsonl"))[-1]["step"] >= 2


@pytest.mark.net
def test_two_hosts_do_one_run(start, tiny_folder: Path) -> None:
    """A network namespace each and a virtual cable between them: the documented command."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two network namespaces need root and iproute2")
    if subprocess.run(["ip", "netns", "add", "probe-of-tests"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    subprocess.run(["ip", "netns", "delete", "probe-of-tests"], check=True)
    code, said = ended(start("--name", "two", "--steps", "3", launcher=["sh", str(ROOT / "tests/two_hosts.sh")]))
    assert code == 0, said[-3000:]
    assert "processes      2 on 2 hosts, ddp (gloo)" in said
    alone(tiny_folder, "--name", "one", "--steps", "3")
    same_run("one", "two", 5e-5)
    assert json.loads(Path("runs/two/run.json").read_text())["processes"] == "2 on 2 hosts, ddp (gloo)"
