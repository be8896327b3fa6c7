"""What is saved comes back exactly, and what was damaged does not come back at all (the fault matrix of saving)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import InputError, Interrupted, ResourceError, UsageError
from workbench.train import checkpoint, interrupts
from workbench.train.checkpoint import newest, pack, prune, rejection, save, sweep, unpack

ROOT = Path(__file__).parents[1]
FILES = ("MANIFEST.json", "state.json", "model.safetensors", "optimizer.safetensors")


def write(root: Path, step: int, keep: int = 2) -> Path:
    model = {"w": torch.full((16, 8), float(step)), "b": torch.arange(8.0) + step}
    optimizer = {"0": torch.full((16, 8), -float(step)), "1": torch.tensor(float(step))}
    return save(root, step, {"model": model, "optimizer": optimizer}, {"step": step}, config_hash="c", keep=keep)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append_junk(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"junk")


DAMAGES = (flip, truncate, empty, append_junk, Path.unlink)


# What is saved comes back


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {"text": "lone \ud800 surrogate", "number": 0.1 + 0.2, "none": None, "list": [1, [2.5]]}
    tensors = {
        "half": torch.randn(3, 4).to(torch.bfloat16),
        "scalar": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "none": torch.empty(0, 4),
    }
    folder = save(tmp_path, 7, {"model": tensors, "nothing": {}}, state, config_hash="abc")
    found = newest(tmp_path)
    assert found is not None
    assert (found.step, found.folder, found.config_hash, found.notes) == (7, folder, "abc", ())
    assert found.state == state
    back = found.tensors("model")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert found.tensors("nothing") == {}
    assert "torch" in found.versions
    with pytest.raises(InputError, match=r"holds no 'teacher'. It has: model, nothing"):
        found.tensors("teacher")


def test_others_can_read_the_files_whatever_the_umask(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.glob("*.safetensors")} == {
        "model.safetensors": 0o644,
        "optimizer.safetensors": 0o644,
    }


def test_nothing_saved_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    (tmp_path / ".tmp-3-99").mkdir()
    assert newest(tmp_path) is None


def test_a_step_after_loading_equals_the_step_without(tmp_path: Path) -> None:
    def step(model: torch.nn.Linear, optimizer: torch.optim.AdamW) -> None:
        noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(int(bool(optimizer.state))))
        optimizer.zero_grad()
        model(noise).square().sum().backward()
        optimizer.step()

    torch.manual_seed(1)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    tensors, packed = pack({"optimizer": optimizer.state_dict()})
    save(tmp_path, 1, {"model": model.state_dict(), "optimizer": tensors}, {"packed": packed}, config_hash="")
    step(model, optimizer)

    found = newest(tmp_path)
    assert found is not None
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(found.tensors("model"))
    again = torch.optim.AdamW(other.parameters(), lr=0.7)
    tree = unpack(found.state["packed"], found.tensors("optimizer"))
    again.load_state_dict(tree["optimizer"])
    step(other, again)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    LEAVES | st.integers(0, 5).map(lambda n: torch.arange(n)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_pack_then_json_then_unpack_is_the_identity(tree: object) -> None:
    tensors, skeleton = pack(tree)
    assert same(unpack(json.loads(json.dumps(skeleton)), tensors), tree)


def test_an_object_is_not_packed() -> None:
    with pytest.raises(TypeError, match="only tensors and plain values"):
        pack({"state": {1, 2}})


def test_nothing_here_reads_or_writes_a_pickle() -> None:
    source = (ROOT / "workbench/train/checkpoint.py").read_text()
    assert "torch.load" not in source
    assert "torch.save" not in source
    assert "import pickle" not in source


def test_the_room_loads_without_torch() -> None:
    code = (
        "import sys\n"
        "from workbench.train import checkpoint, interrupts, reporting, run_directory, intervals, terminal\n"
        "sys.exit('torch' in sys.modules or 'rich' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# Keeping and pruning


def test_the_newest_two_are_kept_even_if_one_was_asked_for(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, step, keep=1)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    write(tmp_path, 6, keep=3)
    assert names(tmp_path) == ["step-00000004", "step-00000005", "step-00000006"]


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    write(tmp_path, 1)
    flip(write(tmp_path, 2) / "model.safetensors")
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    write(tmp_path, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for step in (9, 10):
        os.utime(write(tmp_path, step), (1000 - step, 1000 - step))
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 10


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, 1)
    flip(write(tmp_path, 2) / "state.json")
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert rejection(tmp_path / "step-00000002") is None


# Damage (fault matrix 8, 9, 10)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_found_and_the_one_before_taken(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    write(tmp_path, 1)
    damage(write(tmp_path, 2) / file)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert torch.equal(found.tensors("model")["w"], torch.full((16, 8), 1.0))
    (note,) = found.notes
    assert "falling back to step-00000001" in note
    assert "step-00000002" in note
    assert file in note


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"), 3)


@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_is_loaded(sound: Path, file: str, place: float, bit: int) -> None:
    path = sound / file
    before = path.read_bytes()
    content = bytearray(before)
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        assert rejection(sound) is not None
    finally:
        path.write_bytes(before)
    assert rejection(sound) is None


def test_when_none_can_be_trusted_the_run_does_not_start_over(tmp_path: Path) -> None:
    flip(write(tmp_path, 1) / "model.safetensors")
    truncate(write(tmp_path, 2) / "state.json")
    with pytest.raises(InputError) as caught:
        newest(tmp_path)
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert "none of the 2 checkpoints" in text
    assert "--fresh" in text
    assert "step-00000001: model.safetensors has another sha256" in text
    assert "step-00000002: state.json has" in text
    assert len(text.splitlines()[0].replace(str(tmp_path), "runs/a")) < 200


def test_a_later_format_is_refused_and_not_fallen_back_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        write(tmp_path, 2)
    with pytest.raises(InputError, match=r"later workbench. Its format is 2, this one reads 1"):
        newest(tmp_path)


def test_a_checkpoint_under_another_step_s_name_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2).rename(tmp_path / "step-00000009")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "says step 2" in found.notes[0]


# A disk that fills or fails (fault matrix 6, 12)


def disk(monkeypatch: pytest.MonkeyPatch, fail_at: int, code: int = errno.ENOSPC) -> None:
    """The `fail_at`-th fsync fails."""
    real, calls = os.fsync, iter(range(10**6))

    def fsync(descriptor: int) -> None:
        if next(calls) == fail_at:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("fail_at", range(6))
def test_a_full_disk_costs_nothing_but_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        disk(patch, fail_at)
        with pytest.raises(ResourceError) as caught:
            write(tmp_path, 2)
    assert caught.value.exit_code == 4
    for part in ("step 2 not saved", str(tmp_path), "disk full", "Needed", "free", "intact", "--resume"):
        assert part in str(caught.value)
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    found = newest(tmp_path)
    assert found is not None
    # The last fsync is of the parent: the new one is already in place then, whole.
    assert found.step == (2 if fail_at == 5 else 1)
    assert found.notes == ()
    write(tmp_path, 3)
    assert newest(tmp_path).step == 3  # type: ignore[union-attr]


def test_an_input_output_error_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 0, errno.EIO)
    with pytest.raises(ResourceError, match="OSError: Input/output error"):
        write(tmp_path, 1)


def test_a_write_that_fails_inside_the_tensor_library(tmp_path: Path) -> None:
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
    try:
        with pytest.raises(ResourceError, match="step 2 not saved"):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]
    assert rejection(tmp_path / "step-00000001") is None


def test_a_disk_known_to_be_too_small_is_not_even_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(ResourceError, match=r"disk full. Needed 1060 bytes, free 100 bytes"):
        write(tmp_path, 1)
    assert names(tmp_path) == []


def test_a_really_full_file_system(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        write(mounted, 1)
        (mounted / "ballast").write_bytes(bytes(os.statvfs(mounted).f_bavail * 4096 - 4096))
        with pytest.raises(ResourceError, match="disk full"):
            write(mounted, 2)
        assert names(mounted) == ["ballast", "step-00000001"]
        assert newest(mounted).step == 1  # type: ignore[union-attr]
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_an_unwritable_output_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.writable(tmp_path / "new" / "deep")
    assert names(tmp_path / "new" / "deep") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="output cannot be written"):
        checkpoint.writable(tmp_path / "file" / "run")
    disk(monkeypatch, 0, errno.EROFS)
    with pytest.raises(ResourceError, match="Read-only file system") as caught:
        checkpoint.writable(tmp_path)
    assert caught.value.exit_code == 4
    assert names(tmp_path) == ["file", "new"]


# Killed and interrupted (fault matrix 1, 2, 5)


def test_an_interruption_while_saving_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def interrupted(*arguments: object) -> None:
        raise Interrupted("again", signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "_seal", interrupted)
    with pytest.raises(Interrupted):
        write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_killed_between_rename_and_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)

    def killed(*arguments: object, **keywords: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", killed)
        with pytest.raises(SystemExit):
            write(tmp_path, 3)
    assert [rejection(tmp_path / name) for name in names(tmp_path)] == [None] * 3
    assert sweep(tmp_path, keep=2) == ["step-00000001"]
    assert prune(tmp_path, keep=2) == []


def test_a_replacement_killed_half_way_is_undone(tmp_path: Path) -> None:
    write(tmp_path, 1).rename(tmp_path / ".replaced-1-77")
    (tmp_path / ".tmp-1-77").mkdir()
    (tmp_path / ".trash-step-00000000-77").mkdir()
    assert sweep(tmp_path) == [".tmp-1-77", ".trash-step-00000000-77"]
    assert newest(tmp_path).step == 1  # type: ignore[union-attr]


KILLER = """
    import json, os, random, signal, sys, time
    import torch
    from pathlib import Path
    from workbench.train import checkpoint as c

    torch.set_num_threads(1)
    root, generator, report = Path(sys.argv[1]), random.Random(0), []
    for round in range(20):
        saved, told = os.pipe()
        child = os.fork()
        if child == 0:
            with c.lock(root):
                c.sweep(root, keep=2)
                last = c.newest(root)
                step = last.step if last else 0
                while True:
                    step += 1
                    tensors = {"w": torch.full((20_000,), float(step))}
                    c.save(root, step, {"model": tensors, "teacher": tensors}, {"step": step}, config_hash="")
                    os.write(told, b".")
        os.close(told)  # a child that fails ends the reading
        # After one to three saves, somewhere in the next: slow machines get there too.
        for _ in range(generator.randint(1, 3)):
            before = time.monotonic()
            os.read(saved, 1)
        time.sleep(generator.uniform(0.0, 1.0) * (time.monotonic() - before))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(saved)
        found = c.newest(root)
        wrong = [] if found is None else [
            name for name in ("model", "teacher") if not bool((found.tensors(name)["w"] == found.step).all())
        ]
        report.append({
            "step": found.step if found else 0,
            "notes": list(found.notes) if found else [],
            "wrong": wrong + ([] if found is None or found.state["step"] == found.step else ["state"]),
            "published": len(list(root.glob("step-*"))),
            "left": len(list(root.glob(".tmp-*"))) + len(list(root.glob(".trash-*"))),
        })
    with c.lock(root):
        c.sweep(root, keep=2)
    print(json.dumps({"rounds": report, "after": sorted(p.name for p in root.iterdir())}))
"""


def test_twenty_kills_at_random_times(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rounds = report["rounds"]
    steps = [r["step"] for r in rounds]
    assert steps == sorted(steps), "a kill lost a verified checkpoint"
    assert steps[-1] >= 20
    assert [r["notes"] for r in rounds] == [[]] * 20, "a published checkpoint did not verify"
    assert [r["wrong"] for r in rounds] == [[]] * 20
    assert all(r["published"] <= 3 for r in rounds)
    assert any(r["left"] for r in rounds), "no kill ever hit a save: the test shows nothing"
    assert not [name for name in report["after"] if name.startswith((".tmp", ".trash"))]
    assert len([name for name in report["after"] if name.startswith("step-")]) <= 2


# One writer (fault matrix 13)

HOLDER = """
    import sys, time
    from pathlib import Path
    from workbench.train.interrupts import lock
    with lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_by_name_and_a_dead_one_is_no_hindrance(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        try:
            with (
                pytest.raises(UsageError, match=f"in use by process {process.pid} on") as caught,
                checkpoint.lock(tmp_path),
            ):
                pass
            assert caught.value.exit_code == 2
            assert "--name" in str(caught.value)
        finally:
            process.kill()
    with checkpoint.lock(tmp_path), pytest.raises(UsageError, match=str(os.getpid())), checkpoint.lock(tmp_path):
        pass
    with checkpoint.lock(tmp_path):
        pass


def test_a_lock_from_before_a_reboot_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path) as process:
        try:
            monkeypatch.setattr(interrupts, "_boot", lambda: "another boot")
            with checkpoint.lock(tmp_path):
                owner = json.loads((tmp_path / ".lock").read_text())
                assert (owner["pid"], owner["boot"]) == (os.getpid(), "another boot")
        finally:
            process.kill()


def test_a_lock_of_another_machine_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path) as process:
        try:
            monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
            monkeypatch.setattr(interrupts, "_boot", lambda: "another boot")
            with pytest.raises(UsageError, match="in use"), checkpoint.lock(tmp_path):
                pass
        finally:
            process.kill()


def test_a_lock_taken_but_not_yet_signed_is_not_taken_over_by_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    dead = interrupts.identity() | {"boot": "the one before"}
    path.write_text(json.dumps(dead))
    real = interrupts.identity

    def slow() -> dict[str, Any]:
        # Another process takes the lock away while this one has it and has not signed it.
        path.rename(tmp_path / "moved")
        return real()

    monkeypatch.setattr(interrupts, "identity", slow)
    with pytest.raises(UsageError, match="in use"), checkpoint.lock(tmp_path):
        pass
    monkeypatch.setattr(interrupts, "identity", real)

    # And from the other side: the owner signs just before its file is moved.
    path.write_text(json.dumps(dead))
    holding = os.open(path, os.O_RDWR)
    fcntl.flock(holding, fcntl.LOCK_EX)
    answers = iter([dead, real(), real()])
    monkeypatch.setattr(interrupts, "read_json", lambda path: next(answers))
    with pytest.raises(UsageError, match="in use"), checkpoint.lock(tmp_path):
        pass
    assert os.path.samestat(os.fstat(holding), path.stat()), "the owner's file is back in its place"
    os.close(holding)


def test_a_forked_worker_does_not_hold_its_dead_parent_s_lock(tmp_path: Path) -> None:
    code = """
        import os, sys, time
        from pathlib import Path
        from workbench.train.interrupts import lock
        with lock(Path(sys.argv[1])):
            if os.fork() == 0:
                # The worker names itself: by then it has run what Python does in a child after a fork.
                os.write(1, b"%d\\n" % os.getpid())
                os.close(1)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    try:
        os.kill(worker, 0)  # it lives, and does not hold it
        descriptor = interrupts._take(tmp_path / ".lock")
        assert descriptor is not None
        os.close(descriptor)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_who_is_alive() -> None:
    me = interrupts.identity()
    assert interrupts.alive(me) is True
    assert interrupts.alive(me | {"boot": "another"}) is False
    assert interrupts.alive(me | {"host": "elsewhere"}) is None
    assert interrupts.alive({}) is None
    assert interrupts.alive(me | {"born": "1"}) is False, "the number belongs to a later process"
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert interrupts.alive(me | {"pid": child.pid}) is False, "a zombie does not write"
