"""The environment of the peers: made on first use, apart from ours, with the same torch and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "peers"
PYTHON = FOLDER / "bin" / "python"
STAMP = FOLDER / "installed"
WANTED = (
    ["-c", "constraints.txt", "torch", "setuptools", "numpy"],
    ["-c", "constraints.txt", "transformers", "trl==1.16.*"],
    ["--no-deps", "liger-kernel==0.8.*"],  # its triton is for GPUs; the chunked losses are plain torch
)
NAMES = ("torch", "transformers", "trl", "liger_kernel", "accelerate")


def install(options: list[str]) -> str | None:
    """Make the environment if it is not there; returns why there is none."""
    wanted = json.dumps(WANTED)
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return None
    print(f"setting up {FOLDER.relative_to(ROOT)} for the peers: a few minutes the first time", file=sys.stderr)
    steps = [[sys.executable, "-m", "venv", str(FOLDER)]]
    steps += [[str(PYTHON), "-m", "pip", "install", "-q", *options, *packages] for packages in WANTED]
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            return f"the peers could not be installed: {said[-1] if said else step}"
    STAMP.write_text(wanted)
    return None


def versions(python: str, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    """Of the installed packages among `names`."""
    code = (
        "import importlib.metadata as m, json\n"
        "found = {}\n"
        f"for n in {names!r}:\n"
        "    try: found[n] = m.version(n)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
