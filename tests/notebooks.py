"""Runs a notebook as its reader would and stores it again with one picture: `python -m tests.notebooks NAME ...`.

Sources are edited by hand, in any editor of notebooks; this strips every output but that of the cell tagged `picture`,
of which the PNG stays. The rules are in `test_notebooks.py`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
ORDINARY = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path) -> Any:
    """The notebook with all its outputs. Raises nbclient's CellExecutionError where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    return NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(path.parent)}}).execute()


def stripped(book: Any) -> Any:
    """The same without outputs, counts and what editors leave behind; the picture's PNG stays."""
    book["metadata"] = ORDINARY
    for cell in book["cells"]:
        tags = cell["metadata"].get("tags", [])
        cell["metadata"] = {"tags": tags} if tags else {}
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)  # a line a line, for diffs
        if cell["cell_type"] == "code":
            images = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
            cell["execution_count"] = None
            cell["outputs"] = [picture(png) for png in images[:1]] if "picture" in tags else []
    return book


def picture(png: str) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"image/png": png}, "metadata": {}}


def text_of(book: Any) -> str:
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def processor() -> float:
    """Seconds of processor time that finished kernels took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(names: Sequence[str]) -> int:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        start, spent = time.monotonic(), processor()
        book = executed(path)
        if outputs := os.environ.get("WB_NB_OUTPUTS"):
            (Path(outputs) / path.name).write_text(text_of(book), encoding="utf-8")
        path.write_text(text_of(stripped(book)), encoding="utf-8")
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {processor() - spent:.0f} s of processors", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
