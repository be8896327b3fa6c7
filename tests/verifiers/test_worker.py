"""The killable process: deadlines, deaths, threads, forks, and what it may see of us."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

import verifiers
from verifiers.answers import equivalence, link
from verifiers.answers.link import Link
from verifiers.answers.notation.characters import tidy
from verifiers.answers.notation.grammar import parse
from verifiers.answers.notation.tokens import tokenise
from verifiers.answers.statements.agreement import Question, Undecided
from verifiers.answers.worker import decode, encode, settle

from .conftest import Problem, boxed

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and /proc")
LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc")

HARD = ("\\sqrt2-1", "\\frac{1}{1+\\sqrt2}")
"""A pair that only the worker settles."""

HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "symbolic tower": "x^{x^{x^{x^{x^x}}}}",
    "parentheses": "(" * 5000 + "1" + ")" * 5000,
    "open parentheses": "(" * 5000,
    "braces": "{" * 2000 + "1" + "}" * 2000,
    "digits": "9" * 100_000,
    "decimals": "0." + "1" * 100_000,
    "large factorial": "(10^9)!",
    "many factorials": "+".join(["1000!"] * 250),
    "binomial": "\\binom{10^9}{5\\cdot 10^8}",
    "long sum": "\\sum_{n=1}^{10^{12}} \\frac1n",
    "product": "\\prod_{n=1}^{10^9} n",
    "powers": "\\sin(x)^{100}+\\cos(x)^{100}",
    "polynomial": "+".join(["(a+b+c)^9"] * 190),
    "large exponent": "2^{1000000}",
    "expanded": "*".join(["9" * 250] * 7),
    "list": ",".join(["x+1"] * 400),
    "set": "\\{" + ",".join(map(str, range(400))) + "\\}",
    "nested roots": "\\sqrt{" * 45 + "2" + "}" * 45,
    "nested fractions": "\\frac{1}{1+" * 45 + "x" + "}" * 45,
    "injection": '__import__("os").system("touch canary")',
    "injected text": "\\text{__import__('os').system('touch canary')}",
    "include": "\\input{/etc/passwd}",
    "nothing": "\x00" * 1000,
    "surrogates": "\ud800" * 1000,
}


def node(text: str):
    tokens = tokenise(tidy(text))
    return parse(tokens, 0, len(tokens.items))


def question(a: str = HARD[0], b: str = HARD[1]) -> Question:
    return Question("equal", node(a), node(b))


def soon() -> float:
    return time.monotonic() + link.DEADLINE_S


@pytest.fixture
def fresh():
    """A link of its own."""
    made = Link()
    yield made
    made.close()


@pytest.fixture
def uncached(monkeypatch):
    """The room's own link without its cache."""
    monkeypatch.setattr(equivalence, "_CACHE", equivalence._Cache(0))
    return equivalence._LINK


def test_hostile_answers_get_verdicts_while_the_caller_lives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts, gaps = {}, []

    def work() -> None:
        for name, text in HOSTILE.items():
            for gold in ("42", "x+1", "\\sqrt{2}"):
                verdicts[name, gold] = boxed(gold, text)

    thread = threading.Thread(target=work)
    began = last = time.monotonic()
    thread.start()
    beats = 0
    while thread.is_alive():
        thread.join(0.01)
        now = time.monotonic()
        gaps.append(now - last)
        last = now
        beats += 1
    assert len(verdicts) == 3 * len(HOSTILE)
    assert not [name for name, verdict in verdicts.items() if verdict.correct or verdict.status == "error"]
    assert beats > 10
    assert max(gaps) < 2.0  # generous: a big integer that holds the interpreter would stop it for minutes
    assert last - began < 60
    assert not list(tmp_path.iterdir())
    assert boxed(*HARD).correct


def test_a_hostile_answer_equals_itself():
    for name in ("tower", "large exponent", "long sum", "polynomial"):
        assert boxed(HOSTILE[name], HOSTILE[name]).correct, name


@POSIX
def test_a_worker_that_does_not_answer_is_killed_at_the_deadline(uncached, monkeypatch):
    assert boxed(*HARD).correct
    stopped = uncached.pid
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    verdict = boxed(*HARD)
    took = time.monotonic() - began
    assert (verdict.status, verdict.score) == ("timeout", 0.0)
    assert link.DEADLINE_S <= took < link.DEADLINE_S + 10
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    assert boxed(*HARD).correct
    assert uncached.pid not in (stopped, None)


@POSIX
def test_timeouts_are_not_remembered(monkeypatch):
    verifiers.close()
    monkeypatch.setattr(link, "DEADLINE_S", 0.2)
    monkeypatch.setattr(equivalence, "DEADLINE_S", 0.2)
    assert boxed("\\sqrt5-2", "\\frac{1}{2+\\sqrt5}").correct
    os.kill(equivalence._LINK.pid, signal.SIGSTOP)
    pair = ("\\sqrt{10}-3", "\\frac{1}{3+\\sqrt{10}}")
    assert boxed(*pair).status == "timeout"
    assert boxed(*pair).status == "correct"


@POSIX
def test_a_worker_killed_from_outside_is_replaced(uncached):
    assert boxed(*HARD).correct
    for _ in range(3):
        os.kill(uncached.pid, signal.SIGKILL)
        verdict = boxed(*HARD)
        assert verdict.correct, verdict


@POSIX
def test_a_worker_that_dies_while_asked_is_replaced_once(fresh, monkeypatch):
    assert fresh.ask(question(), soon())
    send = Link._send
    deaths = []

    def dying(self, data):
        if len(deaths) < kills:
            deaths.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait()
        send(self, data)

    monkeypatch.setattr(Link, "_send", dying)
    kills = 1
    assert fresh.ask(question(), soon())
    deaths.clear()
    kills = 2
    with pytest.raises(Undecided) as failure:
        fresh.ask(question(), soon())
    assert failure.value.status == "error"
    assert fresh.ask(question(), soon())


def test_nonsense_from_the_worker_is_an_error_not_an_answer(fresh, monkeypatch):
    ready = "print('{\"ready\": true}', flush=True);"
    for reply in (
        "sys.stdin.readline(); print('yes', flush=True); sys.stdin.read()",
        "sys.stdin.readline(); print('[1]')",
    ):
        monkeypatch.setattr(link, "_BOOT", f"import sys;{ready}{reply}")
        with pytest.raises(Undecided) as failure:
            fresh.ask(question(), soon())
        assert failure.value.status == "error"
        fresh.close()


def test_a_reply_to_another_question_is_no_answer(fresh, monkeypatch):
    reply = json.dumps({"id": 10_000, "found": "agree"})
    code = "import sys;print('{\"ready\": true}', flush=True);sys.stdin.readline();"
    code += f"print('{reply}', flush=True);sys.stdin.read()"
    monkeypatch.setattr(link, "_BOOT", code)
    with pytest.raises(Undecided) as failure:
        fresh.ask(question(), soon())
    assert failure.value.status == "error"


def test_a_worker_that_cannot_start_is_an_error_verdict(uncached, monkeypatch):
    verifiers.close()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    for _ in range(2):
        verdict = boxed(*HARD)
        assert (verdict.status, verdict.score) == ("error", None)
        assert "could not be started" in verdict.reason
    assert boxed("1/2", "0.5").correct  # plain forms need none
    monkeypatch.undo()
    equivalence._LINK._failed_at = float("-inf")  # as if the pause after a failure had passed
    assert boxed(*HARD).correct


def test_many_threads_share_one_worker(uncached):
    pairs = [(f"\\sqrt{{{n * n + 1}}}-{n}", f"\\frac{{1}}{{{n}+\\sqrt{{{n * n + 1}}}}}") for n in range(2, 40)]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda pair: boxed(*pair), pairs))
    assert all(verdict.correct and verdict.level == "worker" for verdict in verdicts)


@POSIX
def test_a_fork_gets_a_worker_of_its_own():
    code = """
import os, verifiers, types
from verifiers.answers.equivalence import _LINK
hard = (types.SimpleNamespace(answer="\\\\sqrt2-1"), "\\\\boxed{\\\\frac{1}{1+\\\\sqrt2}}")
other = (types.SimpleNamespace(answer="\\\\sqrt5-2"), "\\\\boxed{\\\\frac{1}{2+\\\\sqrt5}}")
third = (types.SimpleNamespace(answer="\\\\sqrt{10}-3"), "\\\\boxed{\\\\frac{1}{3+\\\\sqrt{10}}}")
assert verifiers.verify(*hard).correct
first = _LINK.pid
child = os.fork()
if child == 0:
    ok = verifiers.verify(*other).correct and _LINK.pid != first
    verifiers.close()
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert verifiers.verify(*third).correct and _LINK.pid == first
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # dead; its new parent has not looked yet
            return True
        time.sleep(0.05)
    return False


@LINUX
@pytest.mark.parametrize("held", [False, True], ids=["pipe closes", "a sibling holds the pipe open"])
def test_the_worker_dies_with_its_parent(held):
    code = f"""
import os, sys, time, types, verifiers
from verifiers.answers.equivalence import _LINK
verifiers.verify(types.SimpleNamespace(answer="\\\\sqrt2-1"), "\\\\boxed{{\\\\frac{{1}}{{1+\\\\sqrt2}}}}")
pipe = os.dup(_LINK._process.stdin.fileno())
if {held}:
    sibling = os.fork()
    if sibling == 0:
        time.sleep(15)
        os._exit(0)
print(_LINK.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(worker, 12)


@LINUX
def test_the_worker_sees_no_descriptor_and_no_secret_of_ours(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "open").write_text("x")
    with open(tmp_path / "open") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        assert fresh.ask(question(), soon())
        targets = [os.readlink(entry) for entry in Path(f"/proc/{fresh.pid}/fd").iterdir()]
    assert sorted(target.split(":")[0] for target in targets) == ["/dev/null", "pipe", "pipe"]
    environment = Path(f"/proc/{fresh.pid}/environ").read_text()
    assert "hunter2" not in environment
    limits = Path(f"/proc/{fresh.pid}/limits").read_text()
    assert "unlimited" not in next(line for line in limits.splitlines() if line.startswith("Max address space"))[:45]


@LINUX
def test_nothing_is_left_behind_by_many_starts(fresh):
    assert fresh.ask(question(), soon())
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(10):
        fresh.close()
        assert fresh.ask(question(), soon())
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before


def test_a_reader_thread_serves_where_pipes_cannot_be_waited_on(fresh, monkeypatch):
    start = Link._start

    def started(self):
        spent = start(self)
        if self._queue is None:
            self._queue = link._reader_thread(self._process)
        return spent

    monkeypatch.setattr(Link, "_start", started)
    assert fresh.ask(question(), soon())
    assert not fresh.ask(question("\\sqrt2", "\\sqrt3"), soon())
    os.kill(fresh.pid, signal.SIGSTOP)
    with pytest.raises(Undecided) as failure:
        fresh.ask(question(), time.monotonic() + 0.2)
    assert failure.value.status == "timeout"


def test_large_questions_are_not_sent(fresh):
    big = ("add", *[("sym", "x" * 1000)] * 100)
    with pytest.raises(Undecided, match="too long"):
        fresh.ask(Question("equal", big, big), soon())
    assert fresh.ask(question(), soon())


@pytest.mark.parametrize(
    ("kind", "a", "b", "found"),
    [
        ("equal", "\\sqrt2-1", "\\frac{1}{1+\\sqrt2}", "agree"),
        ("equal", "x^{1000}", "x^{1001}", "different"),
        ("equal", "e^{-1000}", "0", "different"),
        ("equal", "\\sin\\pi", "0", "agree"),
        ("equal", "e^{\\pi\\sqrt{163}}", "262537412640768744", "different"),
        ("equal", "\\frac{1}{x-x}", "1", "unclear"),
        ("equal", "9^{9^{9^{9}}}", "9^{9^{9^{9}}}", "unclear"),
        ("equal", "\\lfloor \\sqrt{16} \\rfloor", "4", "agree"),
        ("proportional", "\\sqrt2 x - 2 y", "x - \\sqrt2 y", "agree"),
        ("proportional", "x - y", "x + y", "different"),
        ("same_direction", "x - y", "y - x", "different"),
        ("same_direction", "2x - 2y", "x - y", "agree"),
    ],
)
def test_what_the_worker_finds(kind, a, b, found):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(15):
        request = {"kind": kind, "a": encode(node(a)), "b": encode(node(b)), "bound": "0"}
        assert settle(request, mpmath.mp) == found


def test_trees_survive_the_wire():
    tree = node("\\frac{1}{3}x_{1} + 2.5\\sin^2(\\pi y) - 7! + e^{i}")
    assert decode(json.loads(json.dumps(encode(tree)))) == tree
    assert Fraction("1/3") == Fraction(1, 3)


def test_closing_twice_is_fine():
    assert boxed(*HARD).correct
    verifiers.close()
    verifiers.close()
    assert equivalence._LINK.pid is None
    assert verifiers.verify(Problem("\\sqrt{17}-4"), "\\boxed{\\frac{1}{4+\\sqrt{17}}}").correct


@LINUX
def test_the_worker_walls_itself_in(fresh):
    """Its own walls, tried from inside; without the packages for them it says that it has none."""
    code = """
import os, socket
from verifiers.answers.confinement import confine
walls, held = confine(), []
for act in (lambda: open("/etc/passwd"), lambda: os.listdir("/"), lambda: open("/tmp/x", "w"), socket.socket, os.fork,
            lambda: os.execv("/bin/true", ["x"]), lambda: os.kill(os.getppid(), 0)):
    try:
        act()
    except OSError:
        held.append(True)
print(*walls, len(held))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = all(importlib.util.find_spec(name) for name in ("pyseccomp", "landlockpy"))
    assert ran.stdout.split() == (["landlock", "seccomp", "7"] if packages else ["0"])
    assert fresh.ask(question(), soon())
    assert list(fresh.walls) == ran.stdout.split()[:-1]
    assert fresh.ask(question(r"\sinh(1)\cosh(1)", r"\frac{e^2-e^{-2}}{4}"), soon())


@LINUX
def test_a_worker_in_the_middle_of_a_question_ends_with_its_parent():
    code = """
import os
from verifiers.answers.worker import _watch
child = os.fork()
if child == 0:
    _watch(os.getppid())
    while True:
        pass
print(child, flush=True)
"""
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert gone(int(parent.stdout), 12)
