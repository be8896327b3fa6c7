"""`python app.py`: the workbench in a browser. Lays out and wires; what the screens show is computed elsewhere."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cli import Arguments, run_command
from workbench.errors import UsageError
from workbench.screens.links import check_run_name
from workbench.train.reporting import view

if TYPE_CHECKING:
    import gradio as gr


TITLES = (
    ("live", "Live"),
    ("compare", "Compare"),
    ("runs", "Runs"),
    ("rollouts", "Rollouts"),
    ("train", "Train"),
    ("data", "Data"),
)
"""Tab id -> title, in the order of the tabs."""
QUIET = 0.02
"""Seconds between two looks at an empty queue. Gradio's own 1 ms takes from a model that works beside the app."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked. Raises UsageError."""
    parser = Arguments(prog="python app.py", description="The workbench in a browser, on this machine alone.")
    parser.add_argument("--run", nargs="+", action="extend", default=[], type=Path, metavar="DIR", help="runs to open")
    parser.add_argument("--model", action="append", default=[], metavar="M", help="a model to offer first; repeatable")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="the next free one is taken (7860)")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="another than this machine needs --auth-file")
    parser.add_argument("--auth-file", type=Path, metavar="FILE", help="lines user:password")
    parser.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="where runs lie (runs)")
    given = parser.parse_args(argv)
    for path in given.run:
        if view(path) is None:
            raise UsageError(f"--run {path} is no run. It has no run.json. List them: ls {given.output}")
        check_run_name(path.name)
    if not 0 <= given.port <= 65535:
        raise UsageError(f"--port {given.port} is no port. Ports are 0 to 65535, and 0 takes any. Try --port 7860")
    return given


def build(output: Path, chosen: Sequence[Path] = (), models: Sequence[str] = ()) -> gr.Blocks:
    """The whole app: the header, the tabs, and what connects them."""
    import gradio as gr

    from workbench.screens import compare, data, live, rollouts, runs, shell, train
    from workbench.screens.links import Link
    from workbench.screens.polling import PLACED
    from workbench.screens.stage import STATE_SECONDS, Opening, Stage

    screens = {"live": live, "compare": compare, "runs": runs, "rollouts": rollouts, "train": train, "data": data}
    with gr.Blocks(title="OPSD workbench", analytics_enabled=False, fill_width=True) as demo:
        header = shell.header()
        # Not inside the tabs: gradio counts every child of `Tabs` as one.
        place, opened = (gr.State(value, time_to_live=STATE_SECONDS) for value in (Link(), Opening()))
        liked = gr.BrowserState({}, storage_key="opsd-workbench", secret="preferences are no secret")
        with gr.Tabs(elem_id="app-screens", selected="live", overflow_behavior="wrap") as tabs:
            offered = tuple(dict.fromkeys([*models, "smollm2"]))
            stage = Stage(output, tuple(chosen), offered, tabs=tabs, place=place, opened=opened, preferences=liked)
            for name, title in TITLES:
                with gr.Tab(title, id=name, elem_id=f"tab-{name}") as tab:
                    screens[name].build(stage)
                tab.select(partial(shell.moved, name), stage.place, stage.place, **PLACED)
        shell.connect(demo, header, stage)
    demo.queue(max_size=16, default_concurrency_limit=8)
    demo._queue.sleep_when_free = QUIET
    return demo


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: Sequence[str]) -> int:
    given = arguments(argv)
    from workbench.screens import serving

    users = serving.guard(given.host, given.auth_file)
    listener, port = serving.listen(given.host, given.port)
    if port != given.port and given.port:
        serving.say(f"port {given.port} is taken; using {port}")
    if given.host not in serving.HERE:
        serving.say(f"warning: whoever can reach {given.host} and log in can start runs here, over an unencrypted line")
    serving.say("loading the app, a few seconds")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: then nothing leaves this machine
    from workbench.screens.look import look

    demo = build(given.output, given.run, given.model)
    app = serving.application(demo, look=look(), users=users, address=(given.host, port))
    serving.say(f"the workbench is at {serving.url(given.host, port)}  (Ctrl-C ends it; runs it started go on)")
    serving.serve(app, listener)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
