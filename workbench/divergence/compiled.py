"""Who runs the functions of `kernels.py`: Python as they stand, or on CUDA what `torch.compile` makes of them.

One kernel a function, set of divergences and type; the number of rows may vary. Parameters are constants in it, because
numbers that a compiler carries as symbols have come out wrong; so what moves from step to step is compiled `VALUES`
times and then no more. Whatever fails to compile, or a machine without a compiler, costs speed and one note in the log;
TORCH_COMPILE_DISABLE=1 asks for that.
"""

from __future__ import annotations

import functools
import logging
import types
import zlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.divergence.kernels import Entries

BACKEND: str | Callable[..., Any] = "inductor"
"""Who compiles."""
VALUES = 8
"""Sets of parameters that are compiled of one function and set of divergences."""

_log = logging.getLogger(__name__)
_kernels: dict[tuple[Any, ...], Callable[..., Any]] = {}
_families: dict[tuple[Any, ...], int] = {}
_failed: list[str] = []


def plainly(function: Callable[..., Any], asked: Any, *given: Any) -> Any:
    """As it stands."""
    return function(asked, *given)


def quickly(function: Callable[..., Any], asked: Any, *given: Any) -> Any:
    """Compiled, where that works."""
    if not ready(function, asked, given):
        return function(asked, *given)
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    _mark(given)
    try:
        return _kernels[_key(function, asked, given)](asked, *given)
    except (FailOnRecompileLimitHit, TorchDynamoException) as error:  # found before anything ran
        _fail(f"{function.__name__} of {asked}", error)
        return function(asked, *given)


def ready(function: Callable[..., Any], asked: Any, given: Any) -> bool:
    """Whether there is a kernel, made now if there may be one."""
    key = _key(function, asked, given)
    if _failed or key in _kernels:
        return not _failed
    family = (function, *_family(asked))
    count = _families[family] = _families.get(family, 0) + 1
    if count > VALUES:
        if count == VALUES + 1:
            _log.warning(
                "note: %s came with %d sets of parameters; further ones run uncompiled, which is slower.", asked, VALUES
            )
        return False
    _kernels[key] = torch.compile(_own(function, key), backend=BACKEND, fullgraph=True)
    return True


def works(device: torch.device) -> bool:
    """Whether kernels can be compiled for this device: CUDA, with a compiler that makes one of something small."""
    return device.type == "cuda" and compiles(device)


@functools.cache
def compiles(device: torch.device) -> bool:
    """Tried once."""
    import torch._dynamo

    if torch._dynamo.config.disable:
        return False
    try:
        torch.compile(_small, backend=BACKEND, fullgraph=True)(torch.zeros(2, 8, device=device))
    except Exception as error:  # whatever it is, everything can be computed without
        _fail(f"anything for {device}", error)
        return False
    return True


def forget() -> None:
    """Begin anew: no kernels, nothing failed."""
    for known in (_kernels, _families, _failed):
        known.clear()
    compiles.cache_clear()


def _small(x: Tensor) -> Tensor:
    return x.exp().sum(1)


def _fail(what: str, error: Exception) -> None:
    """Nothing is compiled from now on; said once."""
    if not _failed:
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().partition("\n")[0][:200]
        _log.warning(
            "note: torch.compile did not compile %s (%s: %s). The loss runs uncompiled, which is slower and no less"
            " exact. TORCH_LOGS=dynamo says more.",
            what,
            type(cause).__name__,
            reason,
        )
    _failed.append(what)


def _key(function: Callable[..., Any], asked: Any, given: Any) -> tuple[Any, ...]:
    first = given[0]
    return function, asked, (first.student if isinstance(first, Entries) else first).dtype, BACKEND


def _family(x: Any) -> tuple[Any, ...]:
    """What is left of frozen dataclasses without their numbers."""
    if is_dataclass(x):
        return type(x), *(_family(getattr(x, f.name)) for f in fields(x))
    if isinstance(x, tuple):
        return tuple(map(_family, x))
    return (type(x),) if isinstance(x, int | float) and not isinstance(x, bool) else (x,)


def _own(function: Callable[..., Any], key: tuple[Any, ...]) -> Callable[..., Any]:
    """The function with a code object of its own: torch counts recompilations, and guesses what varies, by that."""
    assert isinstance(function, types.FunctionType)
    name = f"{function.__name__}_{zlib.crc32(repr(key[1:3]).encode()):08x}"
    return types.FunctionType(
        function.__code__.replace(co_name=name), function.__globals__, name, function.__defaults__
    )


def _mark(given: Any) -> None:
    """The number of tokens varies: the first dimension of everything but the vocabulary's and of prepared rows."""
    from torch._dynamo import maybe_mark_dynamic

    for x in given:
        if isinstance(x, Entries):
            for rows in x.rows:
                maybe_mark_dynamic(rows, 1)
            _mark(x[:4])
        elif isinstance(x, tuple):
            _mark(x)
        elif isinstance(x, Tensor) and x.ndim == 2:
            maybe_mark_dynamic(x, 0)
