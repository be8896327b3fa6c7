"""`python -m workbench.export RUN`: a run's model, rollouts and problems as files that other programs read.

Without flags it says where the finished model lies and how to use it. Nothing leaves this machine without `--push`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli import Arguments, run_command
from workbench.errors import UsageError
from workbench.text import printable
from workbench.train.interrupts import amount

if TYPE_CHECKING:
    from workbench.exporting import Source


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = Arguments(prog="python -m workbench.export", description="A run's results as files that others read.")
    parser.add_argument("run", help="a run directory")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--merged", action="store_true", help="a whole model: an adapter goes into the weights")
    kind.add_argument("--adapter", action="store_true", help="the adapter alone; refused where all weights trained")
    parser.add_argument("--to", metavar="DIR", help="write the model here; by default into RUN/exports")
    parser.add_argument(
        "--checkpoint", nargs="?", const="newest", metavar="STEP",
        help="not final/ but what was saved at this step, or last: for a run that is not finished",
    )  # fmt: skip
    parser.add_argument("--hub", metavar="OWNER/NAME", help="list what would go to this repository of the Hub")
    parser.add_argument("--push", action="store_true", help="with --hub: send it. The repository is private")
    parser.add_argument("--public", action="store_true", help="with --hub --push: everybody may read it")
    parser.add_argument("--rollouts", metavar="FILE", help="write all rollouts into this parquet file")
    parser.add_argument("--lm-eval", metavar="DIR", help="write the held-out problems as a task of lm_eval")
    return parser


def _main(argv: Sequence[str]) -> int:
    asked = arguments().parse_args(argv)
    if (asked.push or asked.public) and not asked.hub:
        raise UsageError("--push and --public say how a repository is filled. None is named. Add --hub owner/name.")
    run = Path(asked.run)
    _refuse_taken(asked)
    if asked.rollouts:
        from workbench.train.rollout_table import write

        n = write(run, Path(asked.rollouts))
        print(f"rollouts   {n} in {printable(asked.rollouts)}")
    model = asked.merged or asked.adapter or asked.to or asked.hub or asked.checkpoint
    if asked.rollouts and not (model or asked.lm_eval):
        return 0
    from workbench import exporting  # torch: seconds that the rollouts do not need

    source = exporting.find(run, asked.checkpoint)
    folder = _model(source, asked)
    task = _task(source, asked, folder) if asked.lm_eval else None
    if asked.hub:
        return _hub(folder, asked)
    from workbench.engine.export import ways_to_use

    print(f"model      {printable(folder)}")
    for line in ways_to_use(folder, task):
        print(f"           {printable(line)}")
    return 0


def _refuse_taken(asked: argparse.Namespace) -> None:
    """Before anything is written. Raises UsageError for a file or folder that is there and holds something."""
    file, folder = Path(asked.rollouts or ""), Path(asked.lm_eval or "")
    if asked.rollouts and os.path.lexists(file):
        raise UsageError(f"--rollouts {printable(file)} is there. Nothing is overwritten. Name a new file.")
    if asked.lm_eval and os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--lm-eval {printable(folder)} holds something. Nothing is overwritten. Name a new folder.")


def _model(source: Source, asked: argparse.Namespace) -> Path:
    """The folder with the model, written now unless the run left it as it is wanted."""
    from workbench import exporting

    if asked.adapter and not source.adapter:
        raise UsageError(f"--adapter: {asked.run} trained all weights. There is no adapter. Leave --adapter out.")
    merge = asked.merged and source.adapter
    if not asked.to and source.checkpoint is None and not merge:
        return exporting.as_trained(source)
    step, kind = f"step-{source.step:08d}", "merged" if merge else "adapter" if source.adapter else "model"
    # The step is part of the name: a run that went on and finished again has another model.
    name = f"{kind}-{step}" if source.checkpoint is None else f"{step}-{kind}"
    to = Path(asked.to) if asked.to else source.run / "exports" / name
    if not asked.to and (to / "README.md").is_file():
        return to  # written before, and whole: it appears by one rename
    return exporting.write(source, to, merge=merge)


def _task(source: Source, asked: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    from workbench.exporting import tokenizer_ends
    from workbench.lm_eval.writing import write_task

    if source.planned is None:
        raise UsageError(f"--lm-eval: the problems of {asked.run} are not what they were. Put its data back.")
    to = Path(asked.lm_eval)
    return to, write_task(source.planned, source.run.name, to, tokenizer_ends(source.run, folder))


def _hub(folder: Path, asked: argparse.Namespace) -> int:
    from workbench.engine import hub

    hub.refuse_unshareable(folder, asked.hub)
    files = hub.listing(folder)
    print(f"{len(files)} files, {amount(sum(size for _, size in files))}, from {printable(folder)}:")
    for name, size in files:
        print(f"  {amount(size):>10}  {printable(name)}")
    who = "public: everybody can read it" if asked.public else "private"
    if not asked.push:
        print(f"nothing was sent. To send it to {printable(asked.hub)} ({who}), add --push")
        return 0
    address = hub.push(folder, asked.hub, public=asked.public, files=[name for name, _ in files])
    print(f"sent to {printable(address)} ({who})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
