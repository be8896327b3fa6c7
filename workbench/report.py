"""`python -m workbench.report RUN [RUN2]`: does the signal of a run teach? One page that any run can print.

Without `--probe` what the run recorded is read, and no model is loaded. With it the run's models are asked what no
record can give: wrong hints on the same rollouts, several answers a problem, budgets, steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli import Arguments, run_command
from workbench.errors import InputError, UsageError
from workbench.text import printable

if TYPE_CHECKING:
    from workbench.inspector.report.collect import Recorded
    from workbench.inspector.report.section import Section


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = Arguments(prog="python -m workbench.report", description="Does the signal of a run teach?")
    parser.add_argument("run", nargs="+", help="a run directory, or two to compare")
    parser.add_argument("--probe", action="store_true", help="load the run's models and measure what was not recorded")
    parser.add_argument("--problems", type=int, default=24, help="with --probe: held-out problems to ask")
    parser.add_argument("--samples", type=int, default=4, help="with --probe: completions a problem and model")
    parser.add_argument("--hints", type=int, default=3, help="with --probe: wrong hints of each kind")
    parser.add_argument("--html", help="where the page goes; report.html in the (first) run if not given")
    parser.add_argument("--markdown", help="also write the text as Markdown into this file")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the text")
    return parser


def _main(argv: Sequence[str]) -> int:
    asked = arguments().parse_args(argv)
    if len(asked.run) > 2:
        raise UsageError(f"{len(asked.run)} runs are too many. A report compares two at most. Name one or two.")
    if min(asked.problems, asked.samples, asked.hints) < 1:
        raise UsageError(
            "--problems, --samples and --hints count things to ask for. Nothing can be asked of none. Give 1 or more."
        )
    from workbench.inspector.report import build, plain
    from workbench.inspector.report.page import page
    from workbench.inspector.report.section import as_json

    runs = [build.collected(Path(run)) for run in asked.run]
    probes = [_probed(run, asked) if asked.probe else () for run in runs]
    reports = [build.report_of(run, found) for run, found in zip(runs, probes, strict=True)]
    comparison = build.compared(reports) if len(reports) == 2 else None
    data: dict[str, Any] = {"reports": [r.as_dict() for r in reports]}
    data |= {} if comparison is None else {"comparison": comparison.as_dict()}
    target = Path(asked.html) if asked.html else Path(asked.run[0]) / "report.html"
    files = {target: page(reports, comparison, build.telling(runs[0])), target.with_suffix(".json"): as_json(data)}
    if asked.markdown:
        files[Path(asked.markdown)] = "\n".join(plain.markdown(r) for r in reports)
    for path, content in files.items():
        _write(path, content)
    texts = [plain.text(r) for r in reports] + ([] if comparison is None else [plain.section_text(comparison)])
    print(as_json(data) if asked.json else "\n\n".join(texts))
    print(f"page: {printable(target)}", file=sys.stderr)
    return 0


def _probed(run: Recorded, asked: argparse.Namespace) -> list[Section]:
    """Load the run's models, one after the other, and measure. Raises InputError for a run whose plan is lost."""
    from workbench.assembly import build_engine
    from workbench.engine.allocator import retain_heap
    from workbench.fitting import fitting
    from workbench.inspector.report.probes import Asked, Probe

    if run.planned is None:
        raise InputError(
            f"--probe needs the run's problems, and {run.why_unplanned}. Nothing can be asked without them. "
            "Put them back, or leave --probe out."
        )
    retain_heap()
    config = replace(run.config, resume=False, name=None)
    engine = build_engine(config, run.planned)
    probe = Probe(fitting(engine, run.planned, config), config.model, Asked(asked.problems, asked.samples, asked.hints))
    print("probing the beginning of the run", file=sys.stderr)
    probe.beginning(engine)
    del engine
    if (run.path / "final").is_dir():
        print("probing its end", file=sys.stderr)
        probe.end(build_engine(replace(config, fork=str(run.path)), run.planned))
    return probe.sections()


def _write(path: Path, content: str) -> None:
    """Replace a file whole. Raises InputError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{printable(path)} cannot be written: {error.strerror or error}. The report was made and is lost. "
            "Name another place with --html."
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
