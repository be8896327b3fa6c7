"""How the app is served: on this machine, on a port that is free, under a policy that lets nothing out."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import InputError, UsageError
from workbench.text import printable

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI, Request, Response

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'"
)
"""gr.HTML compiles its scripts, so `unsafe-eval` stays; nothing of ours comes from, or goes to, another host."""
HERE = ("127.0.0.1", "localhost", "::1")
TRIES = 50
"""Ports looked at, from the one asked for on."""


def listen(host: str, port: int) -> tuple[socket.socket, int]:
    """A socket bound to the first free port from `port` on, and its number. Raises UsageError.

    Bound, not looked up: between a look and a bind another process could take it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(port, min(port + TRIES, 65536)):
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # a port that only lingers from our last start is free
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, number))
            found.listen(128)  # or two of us could bind the same port; who comes early waits
            return found, found.getsockname()[1]
        except OSError as error:
            found.close()
            if isinstance(error, socket.gaierror) or error.errno not in _TAKEN:
                raise UsageError(
                    f"--host {host} --port {number}: {error.strerror}. The app cannot listen there. "
                    "Use --host 127.0.0.1 and a port above 1023."
                ) from error
    raise UsageError(f"no free port from {port} to {port + TRIES - 1}. All are taken. Give another --port.")


_TAKEN = (98, 48, 10048)
"""Address already in use, on Linux, macOS and Windows."""


def passwords(path: Path) -> list[tuple[str, str]]:
    """The `user:password` lines of a file that only its owner reads. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        shared = path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--auth-file {path} cannot be read ({type(error).__name__}). It holds lines user:password. Make one."
        ) from error
    found = [(user, word) for user, colon, word in (line.partition(":") for line in lines) if colon and user and word]
    if not found:
        raise InputError(f"--auth-file {path} has no line user:password. Nobody could log in. Write one a line.")
    if shared:
        raise InputError(f"--auth-file {path} can be read by others. It holds passwords. chmod 600 {path}")
    return found


def guard(host: str, auth_file: Path | None) -> list[tuple[str, str]] | None:
    """Who may log in; None on this machine alone. Raises UsageError: another host needs passwords."""
    if host not in HERE and auth_file is None:
        raise UsageError(
            f"--host {host} lets other machines start runs here. It needs passwords. "
            "Add --auth-file FILE with lines user:password, or leave --host out."
        )
    return None if auth_file is None else passwords(auth_file)


def application(
    demo: gr.Blocks, *, look: dict[str, object], users: list[tuple[str, str]] | None, address: tuple[str, int]
) -> FastAPI:
    """The demo as an application with the policy on every answer, and the chosen theme on its page."""
    import gradio as gr
    from fastapi import FastAPI

    from workbench.screens.look import themed

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def policy(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == "/":  # as text, to write into it
            request.scope["headers"] = [pair for pair in request.scope["headers"] if pair[0] != b"accept-encoding"]
        response = await answer(request)
        if request.url.path == "/" and response.headers.get("content-type", "").startswith("text/html"):
            response = await _rewritten(response, themed)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    return gr.mount_gradio_app(
        app,
        demo,
        path="/",
        server_name=address[0],
        server_port=address[1],
        auth=users,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        **look,
    )


async def _rewritten(response: Response, change: Callable[[str], str]) -> Response:
    """The same answer with another text."""
    from fastapi import Response

    pieces = [piece async for piece in response.body_iterator]  # type: ignore[attr-defined]
    changed = Response(change(b"".join(pieces).decode("utf-8")), response.status_code)
    kept = [pair for pair in response.raw_headers if pair[0].lower() != b"content-length"]
    changed.raw_headers = [*kept, *(pair for pair in changed.raw_headers if pair[0] == b"content-length")]
    return changed


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer until Ctrl-C. Open pages do not hold the end up."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
    uvicorn.Server(config).run(sockets=[listener])


def say(text: str) -> None:
    """A line on stderr, at once."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def url(host: str, port: int) -> str:
    """Where the app is."""
    return f"http://{f'[{host}]' if re.search(':', host) else host}:{port}"
