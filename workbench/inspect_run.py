"""`python -m workbench.inspect_run RUN ...`: a recorded rollout as both roles saw it, in the terminal or as a file.

Reads the run directory alone: a run that died is inspected like one that lives, and no model is loaded. The rollout
shown is the one asked for; else, of the newest recorded step, the one that adds most to the loss.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from workbench.cli import Arguments, run_command
from workbench.errors import InputError, ResourceError, UsageError, nearest
from workbench.text import printable

if TYPE_CHECKING:
    from workbench.inspector.page.ansi import Pen
    from workbench.inspector.seen import Seen
    from workbench.inspector.token_records import Listed, RunTokens
    from workbench.train.reporting import RunView

_OTHERS = 10
"""Lines of other rollouts below the one that is shown."""
_TOGETHER = 32
"""Completions in one file."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = Arguments(
        prog="python -m workbench.inspect_run",
        description="Show a recorded rollout as student and teacher saw it, token by token.",
    )
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--step", type=int, help="of this step; default: the newest recorded")
    parser.add_argument("--problem", help="of this problem, by its id")
    parser.add_argument("--index", type=int, help="which rollout of the problem, from 0")
    parser.add_argument("--list", action="store_true", help="list the recorded rollouts that fit, show none")
    parser.add_argument("--html", help="write a page that needs no network to this file, and its numbers beside it")
    parser.add_argument("--csv", help="write a table, a row a token, to this file")
    parser.add_argument("--json", help="write every number to this file")
    return parser


def _main(argv: Sequence[str]) -> int:
    asked = arguments().parse_args(argv)
    files = _targets(asked)
    from workbench.inspector.token_records import load_run

    run = _run(Path(asked.run))
    tokens = load_run(run.path)
    for path in tokens.torn:
        print(f"note: {printable(path.name)} cannot be read and is left out", file=sys.stderr)
    fitting = _fitting(run, tokens, asked)
    if asked.list:
        print(_table(fitting))
        return 0
    chosen = fitting if _narrowed(asked) else fitting[:1]
    if files:
        _write(files, [row.read() for row in chosen[:_TOGETHER]])
        if len(chosen) > _TOGETHER:
            print(
                f"note: the first {_TOGETHER} of {len(chosen)} that fit; --step and --problem narrow", file=sys.stderr
            )
        return 0
    pen = _pen(sys.stdout, os.environ)
    print(_shown(chosen[0].read(), pen))
    others = [row for row in fitting if row is not chosen[0]]
    if others:
        print(f"\nothers of these steps, --step N --problem ID --index I shows one ({len(others)} in all)")
        print(pen.text(_table(others[:_OTHERS]), lines=True))
    return 0


def _run(path: Path) -> RunView:
    """The run. Raises InputError where the path is none."""
    from workbench.train.reporting import list_runs, view

    found = view(path)
    if found is not None:
        return found
    beside = [run.name for run in list_runs(path.parent)]
    why = "It is not there" if not path.exists() else "It has no run.json and no status.json"
    hint = nearest(path.name, beside) if beside else "Give the directory that training printed as 'saved'."
    raise InputError(f"{printable(str(path))} is no run. {why}. {hint}")


def _fitting(run: RunView, tokens: RunTokens, asked: argparse.Namespace) -> list[Listed]:
    """The rollouts asked for, else those of the newest step; most of the loss first. Raises where nothing fits."""
    name = printable(str(run.path))
    if not tokens.listed:
        torn = f" {len(tokens.torn)} files of it cannot be read." if tokens.torn else ""
        raise InputError(
            f"{name} recorded no tokens.{torn} The run is {run.state} at step {run.step}, and nothing lies in its "
            "tokens/. Train again with this version, or let its rollouts be read: rollouts.jsonl holds their text."
        )
    _known("--step", asked.step, tokens.steps)
    _known("--problem", asked.problem, tokens.problems)
    step = tokens.steps[-1] if not _narrowed(asked) and not asked.list else asked.step
    rows = tokens.of(step, asked.problem, asked.index)
    if not rows:
        there = sorted({row.index for row in tokens.of(asked.step, asked.problem)})
        raise UsageError(
            f"no recorded rollout is that one. Together --step, --problem and --index fit none. "
            f"Recorded of that step and problem: {', '.join(map(str, there)) or 'none; --list shows all'}."
        )
    return list(rows) if asked.list else sorted(rows, key=lambda row: (not row.shown, -_size(row.loss)))


def _known(flag: str, value: object, there: Sequence[object]) -> None:
    if value is not None and value not in there:
        hint = nearest(str(value), map(str, there)) if len(there) <= 20 else f"Recorded: {there[0]} to {there[-1]}."
        raise UsageError(f"{flag} {printable(str(value))} was not recorded. {printable(hint)}")


def _narrowed(asked: argparse.Namespace) -> bool:
    return (asked.step, asked.problem, asked.index) != (None, None, None)


def _size(loss: float) -> float:
    return 0.0 if math.isnan(loss) else abs(loss)


def _shown(seen: Seen, pen: Pen) -> str:
    """The header and the tinted text."""
    from workbench.inspector.page.ansi import MARKS, tinted

    wide = max(20, pen.width)
    head = [part for line in header(seen) for part in textwrap.wrap(pen.text(line), wide, subsequent_indent="  ")]
    return "\n".join([*head, "", tinted(seen, pen), "", *textwrap.wrap(MARKS, wide)])


def header(seen: Seen) -> list[str]:
    """What is known of a completion, a line a fact."""
    from workbench.inspector.page.value import carried, divergence_name

    said = {"live": "live", "recorded": "recorded by the step that learnt from it", "recomputed": "recomputed now"}
    ended = "truncated" if seen.stop == "length" else seen.stop
    verdict = "unjudged" if seen.verdict is None else f"{seen.verdict.status} ({seen.verdict.reason})"
    counted = int((seen.weight != 0).sum())
    total = float((seen.weight * seen.divergence)[seen.weight != 0].sum())
    share = carried(seen)
    made = f"run {seen.run}  recipe {seen.recipe}  by the {seen.author}"
    mean = f"{total / max(1, counted):.4f} nat/token, {total:.2f} nat over {counted} tokens in the loss"
    return [
        f"rollout {seen.rollout}  {made}  {len(seen)} tokens, {ended}",
        f"student sees {len(seen.student_prompt)} tokens  teacher sees {len(seen.teacher_prompt)} tokens",
        f"verdict {verdict}  gold {seen.answer}",
        f"{divergence_name(seen)}  {mean}",
        *([share] if share else []),
        f"numbers {said[seen.source]}; tint: teacher minus student log-prob, full at 3 nat",
    ]


def _table(rows: Sequence[Listed]) -> str:
    lines = ["step  index  tokens  verdict       ended      loss        problem"]
    for row in rows:
        ended = "truncated" if row.stop == "length" else row.stop
        loss = "not in it" if not row.kept else f"{row.loss:.3g}"
        text = " (no top-k)" if not row.shown else ""
        facts = f"{row.tokens:<6}  {printable(row.status):<12}  {printable(ended):<9}  {loss:<10}"
        lines.append(f"{row.step:<4}  {row.index:<5}  {facts}  {printable(row.problem)}{text}")
    return "\n".join(lines)


def _pen(stream: TextIO, environment: Mapping[str, str]) -> Pen:
    """What the terminal can show: colours on a terminal that did not refuse them, its width, its characters."""
    import shutil

    from workbench.inspector.page.ansi import Pen

    dumb = environment.get("TERM", "") in ("", "dumb")
    colour = stream.isatty() and not dumb and not environment.get("NO_COLOR")
    return Pen(shutil.get_terminal_size((80, 24)).columns, colour, getattr(stream, "encoding", None) or "ascii")


def _targets(asked: argparse.Namespace) -> dict[str, Path]:
    """The files to write, by kind. Raises UsageError before anything is read where one is there already."""
    files = {kind: Path(name) for kind in ("html", "csv", "json") if (name := getattr(asked, kind))}
    if "html" in files and "json" not in files:
        files["json"] = files["html"].with_suffix(".json")
    for path in files.values():
        if path.exists():
            raise UsageError(f"{printable(str(path))} exists. Nothing is overwritten. Give another name, or remove it.")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"no folder {printable(str(path.parent))} for {printable(path.name)}. Make it first.")
    if len(set(files.values())) < len(files):
        raise UsageError("two of the files have one name. Each would replace the other. Give different names.")
    return files


def _write(files: Mapping[str, Path], seen: Sequence[Seen]) -> None:
    from workbench.inspector.page import static, tables

    documents = tables.documents(seen)
    made = {
        "html": lambda: static.page_of(json.loads(documents)),
        "csv": lambda: tables.table(*seen),
        "json": lambda: documents,
    }
    for kind, path in files.items():
        try:
            path.write_text(made[kind](), encoding="utf-8", newline="")
        except OSError as error:
            raise ResourceError(
                f"{printable(str(path))} could not be written ({error.strerror}). It is not whole. "
                "Free space, or choose another place."
            ) from error
        print(f"wrote {printable(str(path))}: {len(seen)} rollout{'s' * (len(seen) != 1)}")


if __name__ == "__main__":
    raise SystemExit(main())
