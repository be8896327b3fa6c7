from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sandbox.conftest import open_or_skip
from verifiers.sandbox import Calls, Sandbox, SandboxUnavailable
from verifiers.sandbox import box as box_module
from verifiers.sandbox.jail import runtime
from verifiers.sandbox.probe import REMEDIES, refusal

ONE = Calls("def f():\n    return 1\n", "f", ((),))


def bwrap_that_says(folder: Path, text: str, monkeypatch) -> None:
    program = folder / "bwrap"
    program.write_text(f"#!/bin/sh\necho {text!r} >&2\nexit 1\n")
    program.chmod(0o755)
    folder.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])


def patched(monkeypatch, folder: Path, package: str, more: str) -> None:
    """The jail's copy of a package, with lines added at the end of the file that matters."""
    if not runtime().packages:
        pytest.skip("pyseccomp and landlockpy are not installed")
    seccomp, landlock = runtime().packages
    shutil.copytree(Path(landlock).parent, folder / "landlockpy")
    shutil.copy(seccomp, folder / "pyseccomp.py")
    path = folder / package
    path.write_text(path.read_text() + "\n" + more)
    packages = (str(folder / "pyseccomp.py"), str(folder / "landlockpy" / "__init__.py"))
    found = replace(runtime(), packages=packages)
    monkeypatch.setattr(box_module, "runtime", lambda: found)


@pytest.mark.parametrize(
    "text", ["bwrap: No permissions to create new namespace", "bwrap: loopback: Failed RTM_NEWADDR"]
)
def test_refused_namespaces_are_named_with_their_remedy(text, tmp_path, monkeypatch):
    bwrap_that_says(tmp_path, text, monkeypatch)
    with pytest.raises(SandboxUnavailable) as caught:
        Sandbox.open("bwrap")
    remedy = next(remedy for part, remedy in REMEDIES if part in text)
    assert text in str(caught.value)
    assert remedy in str(caught.value)


def test_auto_takes_landlock_where_bwrap_fails_and_says_so(tmp_path, monkeypatch):
    open_or_skip("landlock").close()
    bwrap_that_says(tmp_path, "bwrap: No permissions to create new namespace", monkeypatch)
    with Sandbox.open("auto") as box:
        assert (box.level, box.run(ONE).level) == ("landlock", "landlock")


def test_auto_refuses_rather_than_run_unprotected(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    patched(
        monkeypatch,
        tmp_path,
        "landlockpy/_syscall.py",
        "def abi_version(): raise UnsupportedError(38, 'Function not implemented')",
    )
    with pytest.raises(SandboxUnavailable) as caught:
        Sandbox.open("auto")
    for part in ("bwrap", "bubblewrap", "landlock", "Function not implemented", "5.13"):
        assert part in str(caught.value)


def test_a_level_lost_in_a_run_stops_it(tmp_path, monkeypatch):
    with open_or_skip("bwrap") as box:
        if box._spare is not None:
            box._spare.result().close()
            box._spare = None
        bwrap_that_says(tmp_path, "bwrap: No permissions to create new namespace", monkeypatch)
        box._free.pop().close()
        with pytest.raises(SandboxUnavailable, match="No permissions"):
            box.run(ONE)


@pytest.mark.parametrize("abi", [1, 3, 6])
@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_an_older_landlock_holds(level, abi, tmp_path, monkeypatch):
    open_or_skip(level).close()
    patched(monkeypatch, tmp_path, "landlockpy/_syscall.py", f"def abi_version(): return {abi}")
    with Sandbox.open(level) as box:
        assert box.run(ONE).ended == "returned"
        cut = "import os\ndef f():\n    return os.open('/usr/lib/os-release', os.O_RDONLY | os.O_TRUNC)\n"
        assert box.run(Calls(cut, "f", ((),))).values[0].name == "PermissionError"


def test_bwrap_needs_no_landlock(tmp_path, monkeypatch):
    open_or_skip("bwrap").close()
    patched(
        monkeypatch,
        tmp_path,
        "landlockpy/_syscall.py",
        "def abi_version(): raise UnsupportedError(38, 'Function not implemented')",
    )
    with Sandbox.open("bwrap") as box:
        assert box.run(ONE).ended == "returned"


@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_no_libseccomp_is_no_jail(level, tmp_path, monkeypatch):
    patched(monkeypatch, tmp_path, "pyseccomp.py", "raise RuntimeError('Unable to find libseccomp')")
    with pytest.raises(SandboxUnavailable, match="libseccomp2"):
        Sandbox.open(level)


@pytest.mark.parametrize("level", ["bwrap", "landlock", "external"])
@pytest.mark.parametrize("line", ["def filter_a(*a, **k): return Nothing()", "def filter_b(*a, **k): return Nothing()"])
def test_the_self_test_notices_a_filter_that_does_nothing(level, line, tmp_path, monkeypatch):
    open_or_skip(level).close()
    own = tmp_path / "own"
    shutil.copytree(runtime().own, own)
    policy = own / "policy.py"
    policy.write_text(policy.read_text() + f"\nclass Nothing:\n    def load(self): pass\n{line}\n")
    found = replace(runtime(), own=str(own))
    monkeypatch.setattr(box_module, "runtime", lambda: found)
    with pytest.raises(SandboxUnavailable, match=r"not refused|self-test: died"):  # it became another program
        Sandbox.open(level)


def test_external_filters_system_calls_and_tries_no_file(monkeypatch):
    from verifiers.sandbox import probe

    monkeypatch.setattr(probe, "FILES", (("never tried", "/dev/null", os.O_RDONLY),))
    with open_or_skip("external") as box:
        refused = "import os\ndef f():\n    return os.fork()\n"
        outcome = box.run(Calls(refused, "f", ((),)))
        assert (outcome.level, outcome.values[0].name) == ("external", "PermissionError")


def test_unsafe_must_be_asked_for_and_is_recorded():
    with Sandbox.open("unsafe") as box:
        assert box.run(ONE).level == "unsafe"
    with pytest.raises(ValueError, match="unknown sandbox level"):
        Sandbox.open("none")


def test_other_systems_are_refused_in_words(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="darwin"):
        Sandbox.open()


def test_the_package_imports_without_its_extras_or_linux():
    code = (
        "import sys\n"
        "for name in ('pyseccomp', 'landlockpy', 'fcntl', 'pwd', 'resource', 'torch'): sys.modules[name] = None\n"
        "import verifiers.sandbox"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_refusal_names_every_level():
    text = refusal([("bwrap", "bwrap: No such file or directory"), ("landlock", "OSError: odd")])
    assert "bubblewrap" in text
    assert "landlock: OSError: odd" in text
    assert importlib.util.find_spec("verifiers.sandbox")
