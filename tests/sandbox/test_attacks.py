"""What the shared corpus does not try: each program reports what it could do, which must be nothing."""

from __future__ import annotations

import os
import socket

import pytest

from verifiers.sandbox import Calls, Limits, show

HEAD = """
import ctypes, errno, fcntl, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def refused(action, *arguments):
    try:
        action(*arguments)
    except (OSError, ValueError):
        return True
    return False
def system(number, *arguments):
    return libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
"""


def held(box, body: str, *arguments) -> str:
    outcome = box.run(Calls(HEAD + body, "attack", (arguments,)), Limits(seconds=20))
    assert outcome.ended == "returned", outcome
    return show(outcome.values[0].data, 2000) if hasattr(outcome.values[0], "data") else str(outcome.values[0])


def test_no_owner_of_signals_by_any_door(box):
    body = """
def attack(parent):
    r, w = os.pipe()
    a, b = socket.socketpair()
    who = struct.pack("i", parent)
    tried = [fcntl.fcntl, r, 8, parent], [fcntl.fcntl, r, 15, struct.pack("ii", 1, parent)]
    tried += [fcntl.ioctl, a, 0x8901, who], [fcntl.fcntl, r, 8, os.getppid()]
    tried += ([fcntl.ioctl, a, 0x8902, who], [fcntl.fcntl, r, 10, 9], [fcntl.ioctl, 1, 0x5412, b"x"])
    # With the upper half set: a filter that compares 64 bits would not know these.
    high = 1 << 32
    numbers = {"x86_64": (16, 72), "aarch64": (29, 25)}[os.uname().machine]
    raw = [system(numbers[0], a.fileno(), high | 0x8901, who), system(numbers[1], r, high | 8, parent)]
    return [refused(*t) for t in tried], raw
"""
    assert held(box, body, os.getpid()) == f"({[True] * 7}, [-1, -1])"


def test_no_way_to_a_socket_on_the_host(box, tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "s"
    name = f"\0attack-{os.getpid()}"
    hits = []
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as by_path,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as by_name,
    ):
        by_path.bind(str(path))
        by_name.bind(name)
        os.chmod(path, 0o777)
        body = """
def attack(path, name):
    kinds = socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW
    out = [refused(socket.socketpair, socket.AF_UNIX, kind) for kind in kinds]
    a, b = socket.socketpair()
    for target in (path, name):
        out += [refused(a.sendto, b"x", target), refused(a.sendmsg, [b"x"], [], 0, target), refused(a.connect, target)]
    return out
"""
        assert held(box, body, str(path), name) == str([True] * 9)
        for server in (by_path, by_name):
            server.setblocking(False)
            try:
                hits.append(server.recv(10))
            except BlockingIOError:
                continue
    assert not hits


def test_a_file_everyone_may_write_is_not_even_cut(box, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).count("/") > 1:
            folder.chmod(folder.stat().st_mode | 0o055)
    victim.chmod(0o666)
    body = """
def attack(path):
    out = [refused(os.truncate, path, 0), refused(os.open, path, os.O_RDONLY | os.O_TRUNC), refused(os.open, path, 3)]
    out += [refused(os.open, path, how) for how in (3 | os.O_TRUNC, os.O_WRONLY, os.O_RDWR, os.O_CREAT | os.O_TRUNC)]
    out += [refused(os.unlink, path), refused(os.rename, path, path + "x")]
    out += [refused(os.link, path, path + "y"), refused(os.chmod, path, 0), refused(os.utime, path, (0, 0))]
    raw = {"x86_64": [(2, path.encode(), 1 << 32 | os.O_TRUNC), (85, path.encode(), 0o666)]}.get(os.uname().machine, [])
    return out, [system(*r) for r in raw]
"""
    said = held(box, body, str(victim))
    assert said.startswith(str(([True] * 12, ""))[:-5])
    assert "0" not in said.partition("]")[2].replace("-1", "")
    assert victim.read_text() == "whole"
    assert victim.stat().st_mode & 0o777 == 0o666
    assert victim.stat().st_mtime > 1


def test_setup_cannot_be_undone(box):
    body = """
def attack():
    prctl = libc.prctl
    out = [prctl(1, 0, 0, 0, 0), prctl(22, 0, 0, 0, 0), prctl(4, 1, 0, 0, 0), prctl(8, 1, 0, 0, 0)]
    out += [system(n, 0, 0, 0, 0) for n in (444, 446, 434, 424, 425, 438, 435)]
    high = 1 << 32
    numbers = {"x86_64": (157, 62, 56), "aarch64": (167, 129, 220)}[os.uname().machine]
    out += [system(numbers[0], high | 1, 0, 0, 0, 0), system(numbers[1], high | os.getpid(), 0)]
    out += [system(numbers[2], 17, 0, 0, 0, 0), system(numbers[2], high | 17, 0, 0, 0, 0)]
    import resource
    for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        if not refused(resource.setrlimit, which, (1 << 40, 1 << 40)):
            out.append("raised a limit")
    return set(out) - {-1}
"""
    assert held(box, body) in ("{}", "set()")


def test_no_signal_leaves_the_process(box):
    body = """
def attack(parent):
    import signal
    out = [refused(os.kill, pid, 0) for pid in (parent, os.getppid() or 1, 1, -1, 0, 2)]
    out += [refused(os.killpg, os.getpgid(0) + 1, 0), refused(signal.pidfd_send_signal, 0, 0)]
    os.kill(os.getpid(), 0)
    return out
"""
    assert held(box, body, os.getpid()) == str([True] * 8)


@pytest.mark.parametrize(
    "mess",
    [
        "for i in range(50_000): open(f'/tmp/{i}', 'w').close()",
        "p = '/tmp'\n    for i in range(3000):\n        os.mkdir('d'); os.chdir('d')",
        "os.mkdir('/tmp/x'); os.chmod('/tmp', 0)",
        "os.symlink('/etc/passwd', '/tmp/l'); open('/tmp/f', 'w').write('left')",
    ],
)
def test_a_dirty_jail_serves_nobody_else(box, mess):
    if box.level != "bwrap":
        pytest.skip("nothing can be written at this level")
    outcome = box.run(
        Calls(HEAD + f"def attack():\n    os.chdir('/tmp')\n    {mess}\n    return 1\n", "attack", ((),)),
        Limits(seconds=8),
    )
    assert outcome.ended in ("returned", "timeout")
    assert held(box, "def attack():\n    return os.listdir('/tmp')\n") == "[]"


def test_honest_threads_async_and_files_work(box):
    body = """
import asyncio, concurrent.futures, threading
def attack():
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        total = sum(threads.map(abs, range(-10, 0)))
    async def wait():
        await asyncio.sleep(0.01)
        return 1
    return total, asyncio.run(wait()), os.cpu_count() > 0
"""
    assert held(box, body) == "(55, 1, True)"
