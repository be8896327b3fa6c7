"""Everything measured side by side in one run, and the page about it.

    python benchmarks/run.py                          every row, into benchmarks/results.json and docs/benchmarks.md
    python benchmarks/run.py --rows jsd --repeat 5    one row; the others keep what was measured before
    python benchmarks/run.py --quick --out -          tiny sizes, to see that the scripts run; no peers, nothing written

The peers (TRL, Liger) are installed into an environment of their own on first use; their code is called, not copied.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path

import page
import peers
from memory import available
from models import MODEL_ROWS
from rows import LOSS_ROWS, Bench, Row

ROWS = {**LOSS_ROWS, **MODEL_ROWS}
sys.path.append(str(page.ROOT))  # for the workbench itself; this folder is there already


def machine() -> dict[str, object]:
    """What kind of machine this is; nothing that names it."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "free_memory_gb": round(available() / 1e9),
        "threads_used": 1,
    }


def show(name: str, row: Row) -> None:
    """The row as a table."""
    print(f"\n{name}: {row.title}")
    for claim in row.claims:
        spread = f"[{min(claim.found):.2f}, {max(claim.found):.2f}]" if len(claim.found) > 1 else ""
        verdict = {None: "", True: "holds", False: "DOES NOT HOLD"}[claim.holds]
        print(f"  {claim.what:76s} {claim.median:8.2f} {claim.unit:2s} {spread:14s} {claim.required:10s} {verdict}")
    for line in row.skipped:
        print(f"  skipped: {line}")
    for line in row.notes:
        print(f"  note: {line}")
    sys.stdout.flush()


def keep(out: Path, name: str, row: Row, bench: Bench, versions: dict[str, dict[str, str]]) -> None:
    """Merge one row into the results, and write the page anew."""
    kept = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    kept["rows"][name] = {
        "title": row.title,
        "claim": (ROWS[name].__doc__ or "").strip(),
        "claims": [claim.record() for claim in row.claims],
        "ways": row.ways,
        "skipped": row.skipped,
        "notes": row.notes,
        "repeat": bench.repeat,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions,
    }
    kept["rows"] = {n: kept["rows"][n] for n in ROWS if n in kept["rows"]}
    out.write_text(json.dumps(kept, indent=1) + "\n")
    if out == page.RESULTS:
        page.PAGE.write_text(page.render(kept), encoding="utf-8")


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    ask.add_argument("--repeat", type=int, default=5, help="paired repetitions")
    ask.add_argument(
        "--tokens", default="512,2048,4096", help="N to measure at; the large vocabulary with three of them"
    )
    ask.add_argument("--quick", action="store_true", help="tiny sizes and no peers")
    ask.add_argument("--no-peers", action="store_true", help="install and measure none")
    ask.add_argument("--model", help="for decoding and the step; smollm2, or none with --quick")
    ask.add_argument("--out", default=str(page.RESULTS), help="where results are merged; - for nowhere")
    ask.add_argument("--pip-args", default="", help="more options for pip")
    given = ask.parse_args()
    names = given.rows.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        ask.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    missing = "not asked for" if given.quick or given.no_peers else peers.install(given.pip_args.split())
    model = given.model or (None if given.quick else "smollm2")
    tokens = tuple(int(n) for n in given.tokens.split(","))
    bench = Bench(given.repeat, given.quick, None if missing else str(peers.PYTHON), missing or "", model, tokens)
    versions = {"workbench": peers.versions(sys.executable)}
    if not missing:
        versions["peers"] = peers.versions(str(peers.PYTHON))
    for name in names:
        row = ROWS[name](bench)
        show(name, row)
        if given.out != "-":
            keep(Path(given.out).resolve(), name, row, bench, versions)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
