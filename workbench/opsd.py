"""`python -m workbench.opsd`: distil a model against its own privileged view.

Parses, says what it is about to do, and only then loads anything.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from workbench import __version__
from workbench.cli import parse, run_command
from workbench.config import RunConfig
from workbench.launch import launched, leave
from workbench.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config: RunConfig | None = None

    def understand() -> int:
        nonlocal config
        config = parse(arguments)
        return 0

    code = run_command(understand, debug="--debug" in arguments)
    return code if config is None else run_command(partial(start, config), debug=config.debug)


def start(config: RunConfig) -> int:
    """Say what is about to happen, then load what it needs and do it."""
    if config.progress not in ("quiet", "json") and launched().rank == 0:
        print(printable(heading(config)), file=sys.stderr, flush=True)
    # torch takes seconds, transformers more. The recipe needs only the former: a misspelt one is answered first.
    from workbench.planning import settle_recipe

    settle_recipe(config)
    from workbench.job import run

    return run(config)


def heading(config: RunConfig) -> str:
    """One line on what was asked for, all known before anything is loaded."""
    name = f"run {config.output}/{config.name}" if config.name else f"a new run in {config.output}/"
    model = f"{config.model} ({config.engine}, {config.device})"
    return (
        f"workbench {__version__}  {config.recipe}  {model}  {config.problems or 'its own problems'}  {name}: loading"
    )


if __name__ == "__main__":
    leave(main())
