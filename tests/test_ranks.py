"""Several processes are one run: the same rollouts, gradients, weights, records; an error where that cannot be."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import shared_out
from tests.conftest import build_tiny
from workbench import opsd
from workbench.engine.ranks import ALONE, Ranks, joined
from workbench.engine.replicas import fits
from workbench.errors import ProcessLost, UsageError
from workbench.launch import Launch, alone, launched
from workbench.train.checkpoint import at

ROOT = Path(__file__).resolve().parents[1]
FEW = ("gradient: two terms", "run: one rank has nothing", "went on")
HALVES = ({"RANK": ""}, {"MASTER_PORT": ""}, {"RANK": "4"}, {"LOCAL_WORLD_SIZE": "3"}, {"RANK": "x"})
STRATEGIES = ("ddp", "fsdp2")
TOLD = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
        "MASTER_ADDR": "here", "MASTER_PORT": "29700"}  # fmt: skip


def torchrun(*command: str, n: int = 2, timeout: float = 240, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`n` processes on this machine; what they say goes to files, for a pipe would be held open by whoever is left."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = cwd / "said.txt"
    with said.open("w") as file:
        done = subprocess.run(line, cwd=cwd, env=environment, stdout=file, stderr=file, timeout=timeout, check=False)
    return subprocess.CompletedProcess(line, done.returncode, said.read_text(errors="replace"))


def computed(folder: Path, *names: str) -> dict[str, dict[str, object]]:
    """What two processes find, by strategy: they start once for all of it."""
    model = str(build_tiny(folder / "tiny"))
    shared_out.first_step(model, folder)
    done = torchrun("-m", "tests.shared_out", model, str(folder), *names, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    return {name: torch.load(folder / f"{name}-2.pt", weights_only=False) for name in (*STRATEGIES, "offload")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, object]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, computed(folder, *FEW, "held", "left on the host")


def same(one: object, other: object, to: float = 1e-10, where: str = "") -> None:
    """Equal, numbers to rounding."""
    if isinstance(one, torch.Tensor):
        assert torch.allclose(one, other, atol=to, rtol=0), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], to, f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            same(x, y, to, f"{where}/{i}")
    elif isinstance(one, float) and not math.isnan(one):
        assert other == pytest.approx(one, abs=to), where
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", FEW)
def test_two_processes_are_one(two, name: str, strategy: str) -> None:
    """Unequal lengths, five problems on two ranks, whole-step selections, a rank without a kept rollout."""
    folder, found = two
    here = shared_out.cases(ALONE, str(folder / "tiny"), folder)[name]()
    same(here, found[strategy][name])


def test_parts_that_stay_on_the_host_change_nothing(two) -> None:
    """As far as a CPU shows: torch takes the policy, and what goes through the host is the same to the last bit."""
    _, found = two
    assert (found["fsdp2"]["left on the host"], found["offload"]["left on the host"]) == ({False}, {True})
    name = "run: one rank has nothing"
    same(found["fsdp2"][name], found["offload"][name], to=0.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_process_goes_on_where_two_were(two, strategy: str) -> None:
    """One step alone, one on two ranks, one alone: the run that never changed, teacher, replay and schedule with it."""
    folder, _ = two
    model = str(folder / "tiny")
    whole = shared_out.trained("resumed", model, ALONE)
    last = shared_out.trained("resumed", model, ALONE, at(folder / strategy / "step-00000002"))
    same(whole["rows"][-1:], last["rows"])
    same({**whole, "rows": []}, {**last, "rows": []})


def test_memory_is_what_a_process_holds_and_disk_the_whole(two) -> None:
    folder, found = two
    alone = shared_out.held(str(folder / "tiny"), ALONE)
    both, split = (found[name]["held"] for name in ("ddp", "fsdp2"))
    assert both["updated"] == alone["updated"]
    assert split["updated"] == pytest.approx(alone["updated"] / 2, rel=0.05)
    for part in ("weights", "teacher", "optimizer"):
        whole = alone["memory"]["learning"][part]
        assert both["memory"]["learning"][part] == whole
        assert split["memory"]["learning"][part] == pytest.approx(whole / 2, rel=0.05)
    writing = split["memory"]["rollout"]
    held = writing["weights"] + writing["teacher"] + writing["gathered weights"]
    assert held == alone["memory"]["rollout"]["weights"] + alone["memory"]["rollout"]["teacher"], "they write whole"
    assert alone["disk"] == both["disk"] == split["disk"]


@pytest.mark.slow
def test_two_processes_are_one_for_every_kind_of_recipe(tmp_path: Path) -> None:
    found = computed(tmp_path)
    for strategy, results in found.items():
        for name, there in results.items():
            if name in ("held", "left on the host"):  # what a process holds depends on how many there are
                continue
            here = shared_out.cases(ALONE, str(tmp_path / "tiny"), tmp_path)[name]()
            # The factors of an adapter are kept in float32, and AdamW divides what is nearly 0 by what is nearly 0.
            same(here, there, to=5e-6 if "adapter" in name else 1e-10, where=f"{strategy} {name}")


# -- who one is ------------------------------------------------------------------------------------------------------


def test_who_torchrun_says_one_is() -> None:
    assert launched({}) == launched({"WORLD_SIZE": "1", "RANK": "0"}) == Launch()
    assert Launch().command == ["python", "-m"]
    found = launched(TOLD)
    assert (found.rank, found.size, found.local_rank, found.hosts, found.host) == (3, 4, 1, 2, 1)
    assert " ".join(found.command) == (
        "torchrun --nnodes 2 --node_rank 1 --master_addr here --master_port 29700 --nproc_per_node 2 -m"
    )
    one_host = launched(TOLD | {"LOCAL_WORLD_SIZE": "4"})
    assert " ".join(one_host.command) == "torchrun --standalone --nproc_per_node 4 -m"


@pytest.mark.parametrize("change", HALVES)
def test_half_of_what_torchrun_says_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="torchrun"):
        launched(TOLD | change)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_that_cannot_run_is_an_error_before_anything_is_loaded(
    strategy: str, capsys, monkeypatch, tmp_path: Path
) -> None:
    """A launcher that starts one process where two were asked for, and says nothing (accelerate launch --cpu)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert opsd.main(["--parallel", strategy, "--model", "nowhere/at-all"]) == 2
    assert f"--parallel {strategy}: this is one process" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_one_process_loads_nothing_distributed() -> None:
    with joined("auto") as ranks:
        assert ranks is ALONE
    code = "import sys, workbench.engine.engine as e; r = e.ALONE; r.agree(True); r.told(int); r.spread([1], list);"
    code += "print('torch.distributed.fsdp' in sys.modules, 'torch.distributed.tensor' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False False"


def test_other_commands_refuse_to_be_run_twice_over(monkeypatch) -> None:
    alone("workbench.evaluate")
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"python -m workbench\.evaluate"):
        alone("workbench.evaluate")


def test_who_does_what() -> None:
    keys = ["b", "a", "b", "c", "a", "d"]
    shares = [Ranks(Launch(rank, 3)).places(keys) for rank in range(3)]
    assert shares == [[0, 2, 5], [1, 4], [3]], "a problem's group stays together, in the order problems appear"
    assert ALONE.places(keys) == list(range(6))
    assert ALONE.spread(keys, lambda places: [keys[i] for i in places]) == keys
    assert ALONE.level([[1], [2]], [0]) == [([1], True), ([2], True)]


def test_a_lost_connection_is_told_from_a_bug() -> None:
    broken = RuntimeError("[/x/gloo/pair.cc:537] Read error [::1]:2: Connection reset by peer. This is typically y.")
    told = r"gone\. Read error \[::1\]:2: Connection reset by peer\. What.*Continue: x"
    with pytest.raises(ProcessLost, match=told), Ranks(Launch(1, 2)).lost("Continue: x"):
        raise broken
    for ranks, error in ((ALONE, broken), (Ranks(Launch(1, 2)), RuntimeError("shape mismatch"))):
        with pytest.raises(RuntimeError) as found, ranks.lost():
            raise error
        assert found.value is error


def test_auto_splits_what_does_not_fit() -> None:
    class Huge(torch.nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.empty(n, device="meta"))

    cpu = torch.device("cpu")
    assert fits(ALONE, Huge(10), [], cpu)
    assert not fits(ALONE, Huge(10**13), [], cpu)
    assert not fits(ALONE, Huge(10), [Huge(10**13)], cpu)


def test_offloading_is_refused_where_nothing_would_move(tiny_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert opsd.main(["--model", str(tiny_folder), "--offload", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "--offload with --parallel auto on cpu" in said
    assert "Add --parallel fsdp2 under torchrun on GPUs" in said
