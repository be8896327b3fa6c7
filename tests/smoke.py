"""`make smoke`: two steps of every recipe on the tiny model, through the command, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import build_tiny
from workbench import opsd
from workbench.recipes import ALL

MORE = {"paced": ["--set", "curriculum.success=0", "--set", "curriculum.failure=0"]}
"""A random model solves nothing; a kernel of 1 keeps what it never solves."""


def problems(path: Path, n: int = 12) -> Path:
    """A set in which every problem has everything that a context of the catalogue may show."""
    rows = [
        {
            "id": str(i),
            "question": f"What is {i} + {i + 1}?",
            "solution": f"{i} + {i + 1} = {2 * i + 1}. The answer is \\boxed{{{2 * i + 1}}}.",
            "answer": str(2 * i + 1),
            "document": f"The sum of {i} and {i + 1} is {2 * i + 1}.",
            "demonstration": "1 + 1 = 2",
            "feedback": "Add again.",
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> int:
    """0 if every recipe ran; the names on the command line choose some."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, data = build_tiny(root / "tiny"), problems(root / "problems.jsonl")
        taught = ["--teacher", str(build_tiny(root / "other", seed=1, layers=1))]
        sizes = "--steps 2 --batch 2 --max-new-tokens 8 --eval-problems 2 --eval-tokens 8 --progress quiet"
        for name in sys.argv[1:] or ALL:
            start = time.perf_counter()
            where = ["--model", str(model), "--problems", str(data), "--output", str(root / "runs"), "--name", name]
            where += taught if ALL[name].refresh.external else []
            where += MORE.get(name, [])
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = opsd.main(["--recipe", name, *where, *sizes.split()])
            print(
                f"{name:24} {'ok' if code == 0 else f'exit code {code}'}  {time.perf_counter() - start:.1f} s",
                flush=True,
            )
            if code:
                failed.append(name)
                print(said.getvalue())
    print(f"{len(failed)} recipes failed: {', '.join(failed)}" if failed else "every recipe ran two steps")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
