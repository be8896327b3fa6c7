"""Runs a candidate, or a check, in a child that is already confined. Nothing here is trusted by the parent.

Frames on the run's socket: four bytes of length, one letter of kind, the body. A candidate that writes its own frames
says no more than one that returns wrong values.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import os
import struct
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

from verifiers.sandbox import data

SOURCE, CHECK = "<program>", "<check>"


class Channel:
    """Whole frames over a descriptor."""

    def __init__(self, fd: int) -> None:
        """Take the descriptor."""
        self.fd = fd

    def send(self, kind: bytes, body: bytes = b"") -> None:
        """Write one frame."""
        frame = struct.pack("<I", len(body) + 1) + kind + body
        while frame:
            frame = frame[os.write(self.fd, frame) :]

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame; the process ends where the parent hung up."""
        (length,) = struct.unpack("<I", self._exactly(4))
        frame = self._exactly(length)
        return frame[:1], frame[1:]

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.fd, min(size, 1 << 20))
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def main(fd: int) -> NoReturn:
    """Read the program and run it."""
    channel = Channel(fd)
    channel.send(b"R")  # confined, and no candidate here yet: the last frame that can be believed
    _, body = channel.receive()
    program = json.loads(body)
    source = program["source"].lstrip("\ufeff")
    module = types.ModuleType("__main__" if program["kind"] == "script" else "program")
    module.__dict__.update(__builtins__=builtins, exit=sys.exit, quit=sys.exit)
    sys.modules[module.__name__] = module
    if program["kind"] == "script":
        os.close(fd)
        _script(source, module.__dict__)
    elif program["kind"] == "check":
        _check(channel, program, module.__dict__)
    else:
        _calls(channel, source, program["entry_point"], module.__dict__)
    os._exit(0)


def _script(source: str, space: dict[str, Any]) -> NoReturn:
    status = 0
    try:
        exec(compile(source, SOURCE, "exec", dont_inherit=True), space)
    except SystemExit as leaving:
        status = _status(leaving.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter does at its end: waits for threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 1
    os._exit(status)


def _status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _calls(channel: Channel, source: str, entry_point: str, space: dict[str, Any]) -> None:
    try:
        exec(compile(source, SOURCE, "exec", dont_inherit=True), space)
        function = _function(space, entry_point)
    except BaseException as error:
        _say(channel, b"X", error, SOURCE)
        return
    channel.send(b"L")
    while True:
        _, body = channel.receive()
        try:
            answer = data.write(function(*data.build(data.read(body))))
        except BaseException as error:
            _flush()
            _say(channel, b"E", error, SOURCE)
        else:
            _flush()
            channel.send(b"V", answer)


def _function(space: dict[str, Any], name: str) -> Any:
    if name not in space and isinstance(space.get("Solution"), type):
        return getattr(space["Solution"](), name)
    if name not in space:
        raise NameError(f"the program defines no {name}")
    return space[name]


def _flush() -> None:
    # A candidate that closed its output has returned a value all the same.
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()


def _say(channel: Channel, kind: bytes, error: BaseException, file: str, text: str = "") -> None:
    """Tell of an exception; its own __str__ may do anything, in here."""
    try:
        message = str(error)[:2000]
    except BaseException:
        message = ""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == file:
        line = error.lineno
    if text and line is not None and 0 < line <= len(text.splitlines()):
        message = (text.splitlines()[line - 1].strip()[:1000] + ("  # " + message if message else ""))[:2000]
    said = {"name": type(error).__name__[:100], "message": message, "line": line}
    channel.send(kind, json.dumps(said).encode())


def _check(channel: Channel, program: dict[str, Any], space: dict[str, Any]) -> None:
    """The tester: `candidate` asks the parent, which asks the other jail."""

    def candidate(*arguments: Any) -> Any:
        channel.send(b"C", data.write(arguments))
        kind, body = channel.receive()
        if kind == b"V":
            return data.build(data.read(body))
        said = json.loads(body)
        known = getattr(builtins, said["name"], None)
        plain = isinstance(known, type) and issubclass(known, Exception) and known is not AssertionError
        raise (known if plain and known is not None else RuntimeError)(said["message"])

    with contextlib.suppress(Exception):  # a task in words; a helper that is missing shows in the check
        exec(compile(program["prompt"], "<prompt>", "exec", dont_inherit=True), space)
    try:
        space[program["entry_point"]] = space["candidate"] = candidate
        exec(compile(program["check"], CHECK, "exec", dont_inherit=True), space)
        if callable(space.get("check")):
            space["check"](candidate)
    except BaseException as error:
        _say(channel, b"F", error, CHECK, program["check"])
    else:
        channel.send(b"P")
    _flush()
